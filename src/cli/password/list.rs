//! `portcullis password list`.

use std::path::Path;

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::cli::client::certificates::expiry;
use crate::cli::client::json_view::DASH;
use crate::cli::output::table::Table;
use crate::cli::password::file::ClientsFile;
use crate::cli::{Failure, print, print_json};
use crate::credential::clients::{Client, Clients, Password};
use crate::timestamp;

pub(crate) fn list(path: &Path, as_json: bool) -> Result<(), Failure> {
    let file = ClientsFile::read(path)?;
    let now = OffsetDateTime::now_utc();
    if as_json { print_json(&to_json(&file.clients, now)) } else { print(&to_text(&file.clients, now)) }
}

fn to_json(clients: &Clients, now: OffsetDateTime) -> Value {
    let password = |password: &Password| {
        json!({
            "id": password.id,
            "created_at": password.created_at.map(timestamp::seconds),
            "expires_at": password.expires_at.map(timestamp::seconds),
            "expired": password.is_expired(now),
        })
    };
    let client = |client: &Client| {
        let Client { user, passwords, certificates, upstream_user, is_disabled } = client;
        json!({
            "user": user,
            "disabled": is_disabled,
            "upstream_user": upstream_user,
            "certificates": certificates.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "passwords": passwords.iter().map(|one| password(one)).collect::<Vec<_>>(),
        })
    };
    json!({ "clients": clients.iter().map(|one| client(one)).collect::<Vec<_>>() })
}

/// One row for each password, and one for a client without passwords.
fn to_text(clients: &Clients, now: OffsetDateTime) -> String {
    if clients.iter().len() == 0 {
        return "no clients\n".to_owned();
    }
    let mut table = Table::new(["USER", "STATE", "ID", "CREATED", "EXPIRES", "CERTIFICATES"]);
    for client in clients.iter() {
        let state = if client.is_disabled { "disabled" } else { "enabled" };
        let mut certificates: Vec<_> = client.certificates.iter().map(ToString::to_string).collect();
        let mut row = |[id, created, expires]: [String; 3]| {
            let certificates = std::mem::take(&mut certificates).join(" ");
            let certificates = if certificates.is_empty() { DASH.to_owned() } else { certificates };
            table.row([client.user.clone(), state.to_owned(), id, created, expires, certificates]);
        };
        for Password { id, created_at, expires_at, .. } in client.passwords.iter().map(|password| &**password) {
            let created = created_at.map_or(DASH.to_owned(), timestamp::seconds);
            row([id.clone(), created, expires_at.map_or("never".to_owned(), |end| expiry(end, now))]);
        }
        if client.passwords.is_empty() {
            row([DASH; 3].map(str::to_owned));
        }
    }
    table.render("")
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;
    use crate::credential::clients::fixtures::{client, clients, password};

    #[test]
    fn clients_are_listed_with_each_password_and_nothing_of_a_verifier() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::days(10);
        let old = Password {
            created_at: Some(OffsetDateTime::UNIX_EPOCH),
            expires_at: Some(OffsetDateTime::UNIX_EPOCH + Duration::days(1)),
            ..password("p1", "one")
        };
        let app = client("app", [old, password("p2", "two")]);
        let web = Client {
            certificates: vec!["cn:web".parse().unwrap(), "dns:web.internal".parse().unwrap()],
            upstream_user: Some("owner".to_owned()),
            is_disabled: true,
            ..client("web", [])
        };
        let list = clients([app, web]);
        let expected = "\
USER  STATE     ID  CREATED               EXPIRES              CERTIFICATES
app   enabled   p1  1970-01-01T00:00:00Z  1970-01-02, EXPIRED  -
app   enabled   p2  -                     never                -
web   disabled  -   -                     -                    cn:web dns:web.internal
";
        assert_eq!(to_text(&list, now), expected);
        assert_eq!(to_text(&Clients::default(), now), "no clients\n");
        let p1 = json!({ "id": "p1", "created_at": "1970-01-01T00:00:00Z", "expires_at": "1970-01-02T00:00:00Z", "expired": true });
        let p2 = json!({ "id": "p2", "created_at": null, "expires_at": null, "expired": false });
        assert_eq!(
            to_json(&list, now),
            json!({ "clients": [
                { "user": "app", "disabled": false, "upstream_user": null, "certificates": [], "passwords": [p1, p2] },
                { "user": "web", "disabled": true, "upstream_user": "owner", "certificates": ["cn:web", "dns:web.internal"], "passwords": [] },
            ] })
        );
    }
}
