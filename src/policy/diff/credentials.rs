//! Differences between the credentials of two policies. Passwords are named by user and ID.

use std::collections::HashMap;
use std::sync::Arc;

use crate::audit::changes::{Difference, MAX_DIFFERENCES};
use crate::config::credentials::CredentialSettings;
use crate::credential::clients::{Client, Password};
use crate::credential::credentials::Credentials;
use crate::policy::ListenerPolicy;
use crate::policy::diff::setting::{Setting, optional};
use crate::policy::diff::value::{Exposure, Value, path};
use crate::timestamp;

/// The settings of `[listener.credentials]`. Clients are compared in [`compare`].
pub(crate) fn of_credentials(settings: Option<&CredentialSettings>, policy: &ListenerPolicy) -> Vec<Setting> {
    let file = settings.map(|settings| path(&settings.clients_file.path));
    // Without the section, every client that reaches the database may try its passwords.
    let clients = optional(CLIENTS_FILE, file).exposing(Exposure::degree(settings.is_none()));
    let Some(CredentialSettings { clients_file: _, upstream_user, upstream_password_file }) = settings else {
        return vec![clients];
    };
    let passwords = policy.credentials.as_ref().map(|credentials| credentials.upstream_passwords.clone());
    let value = match (upstream_password_file, passwords) {
        (Some(file), Some(passwords)) => Value::Passwords { file: path(&file.path), passwords },
        (Some(file), None) => Value::One(path(&file.path)),
        (None, _) => Value::Unset,
    };
    let passwords = Setting { key: "credentials.upstream_password_file", value, exposure: Exposure::None };
    vec![clients, optional("credentials.upstream_user", upstream_user.as_ref()), passwords]
}

/// Returns the changed clients. They are compared only if both policies have some: with the section, all of them come and go.
pub(crate) fn compare(listener: &str, [old, new]: [&Option<Arc<Credentials>>; 2]) -> Vec<Difference> {
    let (Some(old), Some(new)) = (old, new) else { return Vec::new() };
    if Arc::ptr_eq(old, new) {
        return Vec::new();
    }
    let mut differences = Differences { listener, all: Vec::new() };
    for client in new.clients.iter() {
        match old.clients.by_user(&client.user) {
            Some(before) if before == client => {}
            Some(before) => differences.add_changes([before, client]),
            None => differences.add(CLIENT, [None, Some(describe(client))], false),
        }
    }
    for client in old.clients.iter().filter(|client| new.clients.by_user(&client.user).is_none()) {
        differences.add(CLIENT, [Some(describe(client)), None], false);
    }
    differences.all
}

struct Differences<'a> {
    listener: &'a str,
    all: Vec<Difference>,
}

impl Differences<'_> {
    fn add(&mut self, key: &'static str, [old, new]: [Option<String>; 2], weakens: bool) {
        if old != new && self.all.len() <= MAX_DIFFERENCES {
            self.all.push(Difference { weakens, ..Difference::new(Some(self.listener), key, old, new) });
        }
    }

    fn add_changes(&mut self, [old, new]: [&Client; 2]) {
        let Client { user, passwords, certificates: _, upstream_user: _, is_disabled: _ } = new;
        let summaries = [old, new].map(|client| Some(settings_of(client)));
        self.add(CLIENT, summaries, false);
        let before: HashMap<&str, &Password> =
            old.passwords.iter().map(|password| (password.id.as_str(), &**password)).collect();
        for password in passwords {
            let shown = describe_password(user, password);
            match before.get(password.id.as_str()) {
                Some(known) if known.verifier != password.verifier => {
                    let sides = [describe_password(user, known), format!("{shown} ({ANOTHER})")];
                    self.add(PASSWORD, sides.map(Some), false);
                }
                Some(known) => {
                    self.add(PASSWORD, [describe_password(user, known), shown].map(Some), is_later(known, password));
                }
                None => self.add(PASSWORD, [None, Some(shown)], false),
            }
        }
        for password in old.passwords.iter().filter(|password| new.password(&password.id).is_none()) {
            self.add(PASSWORD, [Some(describe_password(user, password)), None], false);
        }
    }
}

/// Whether a password is valid longer than before.
fn is_later(old: &Password, new: &Password) -> bool {
    match (old.expires_at, new.expires_at) {
        (Some(old), Some(new)) => new > old,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

/// A client with its passwords.
fn describe(client: &Client) -> String {
    let passwords: Vec<_> = client.passwords.iter().map(|password| password.id.as_str()).collect();
    let noun = if passwords.len() == 1 { "password" } else { "passwords" };
    let passwords =
        if passwords.is_empty() { "no password".to_owned() } else { format!("{noun} {}", passwords.join(" ")) };
    format!("{} ({passwords})", settings_of(client))
}

/// A client without its passwords.
fn settings_of(client: &Client) -> String {
    let Client { user, passwords: _, certificates, upstream_user, is_disabled } = client;
    let mut text = user.clone();
    if !certificates.is_empty() {
        let patterns: Vec<_> = certificates.iter().map(ToString::to_string).collect();
        text += &format!(" by {}", patterns.join(" "));
    }
    if let Some(user) = upstream_user {
        text += &format!(" as {user}");
    }
    if *is_disabled {
        text += " disabled";
    }
    text
}

fn describe_password(user: &str, password: &Password) -> String {
    let Password { id, verifier: _, created_at: _, expires_at } = password;
    let end = expires_at.map(|end| format!(" until {}", timestamp::seconds(end))).unwrap_or_default();
    format!("{user} {id}{end}")
}

/// The key that every listener has, set or not.
pub(crate) const CLIENTS_FILE: &str = "credentials.clients_file";

const CLIENT: &str = "credentials.client";
const PASSWORD: &str = "credentials.password";

const ANOTHER: &str = "another password";

#[cfg(test)]
mod tests {
    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::credential::clients::fixtures::{client, clients, password};
    use crate::credential::upstream_passwords::UpstreamPasswords;

    fn credentials(list: Vec<Client>) -> Option<Arc<Credentials>> {
        let upstream_passwords = UpstreamPasswords::default();
        Some(Arc::new(Credentials { clients: clients(list), upstream_user: None, upstream_passwords }))
    }

    fn differences(old: Vec<Client>, new: Vec<Client>) -> Vec<String> {
        let sides = [credentials(old), credentials(new)];
        compare("db", [&sides[0], &sides[1]]).iter().map(ToString::to_string).collect()
    }

    fn ending(id: &str, hours: i64) -> Password {
        let expires_at = Some(OffsetDateTime::UNIX_EPOCH + Duration::hours(hours));
        Password { expires_at, ..password(id, "one") }
    }

    #[test]
    fn clients_and_passwords_are_named_and_nothing_of_a_verifier_is() {
        let web = Client {
            certificates: vec!["cn:web".parse().unwrap()],
            upstream_user: Some("owner".to_owned()),
            ..client("web", [])
        };
        let old = vec![
            client("app", [password("p1", "one"), password("p2", "two"), password("p3", "three")]),
            client("gone", [password("p1", "one")]),
            client("same", [password("p1", "one")]),
        ];
        let new = vec![
            client("app", [password("p2", "other"), password("p3", "three"), ending("p4", 1)]),
            client("same", [password("p1", "one")]),
            web,
        ];
        assert_eq!(
            differences(old, new),
            [
                "db credentials.password: app p2 -> app p2 (another password)",
                "db credentials.password: none -> app p4 until 1970-01-01T01:00:00Z",
                "db credentials.password: app p1 -> none",
                "db credentials.client: none -> web by cn:web as owner (no password)",
                "db credentials.client: gone (password p1) -> none",
            ]
        );
    }

    #[test]
    fn later_expiry_weakens_and_an_earlier_one_does_not() {
        let change = |old, new| differences(vec![client("app", [old])], vec![client("app", [new])]).concat();
        assert_eq!(
            change(ending("p1", 1), ending("p1", 2)),
            "db credentials.password: app p1 until 1970-01-01T01:00:00Z -> app p1 until 1970-01-01T02:00:00Z (weakens protection)"
        );
        assert!(change(ending("p1", 1), password("p1", "one")).ends_with("-> app p1 (weakens protection)"));
        assert!(change(password("p1", "one"), ending("p1", 1)).ends_with("-> app p1 until 1970-01-01T01:00:00Z"));
    }

    #[test]
    fn changed_settings_of_a_client_are_one_difference() {
        let app = client("app", [password("p1", "one")]);
        let changed = Client {
            is_disabled: true,
            certificates: vec!["cn:a".parse().unwrap(), "dns:a.b".parse().unwrap()],
            ..app.clone()
        };
        assert_eq!(
            differences(vec![app.clone()], vec![changed]),
            ["db credentials.client: app -> app by cn:a dns:a.b disabled"]
        );
        let created = Password { created_at: Some(OffsetDateTime::UNIX_EPOCH), ..password("p1", "one") };
        assert!(differences(vec![app], vec![client("app", [created])]).is_empty());
    }

    #[test]
    fn clients_of_a_new_or_removed_section_are_not_listed() {
        let some = credentials(vec![client("app", [])]);
        assert!(compare("db", [&None, &some]).is_empty());
        assert!(compare("db", [&some, &None]).is_empty());
    }
}
