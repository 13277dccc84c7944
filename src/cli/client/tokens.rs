//! `portcullis token list`, `token revoke`, and `token new` by the running program.

use hyper::Method;
use serde_json::Value;
use time::OffsetDateTime;

use crate::cli::client::AdminClient;
use crate::cli::client::args::Running;
use crate::cli::client::certificates::expiry;
use crate::cli::client::http::encoded;
use crate::cli::client::json_view::{DASH, JsonView};
use crate::cli::output::moment::ago;
use crate::cli::output::table::Table;
use crate::cli::{Failure, hint, print, print_json, print_raw};
use crate::timestamp;

/// Asks the program for a token and prints it, alone on a line of standard output.
///
/// `request` is the body of `POST /v1/tokens`.
pub(crate) fn new(running: &Running, request: &Value, as_json: bool) -> Result<(), Failure> {
    let body = AdminClient::find(running)?.send(Method::POST, "/v1/tokens", Some(request))?.into_body()?;
    if as_json {
        return print_json(&body);
    }
    let view = JsonView(&body);
    let Some(token) = view.text("token") else {
        return Err(Failure::Failed("the program has created a token but did not send it; revoke it".to_owned()));
    };
    print_raw(&zeroize::Zeroizing::new(format!("{token}\n")))?;
    let until = view
        .time("expires_at")
        .map_or("does not expire".to_owned(), |end| format!("expires at {}", timestamp::seconds(end)));
    let (name, role) = (view.text_or_dash("name"), view.text_or_dash("role"));
    hint(&format!("token {name:?} with the role {role} {until}; it is not shown again"));
    Ok(())
}

pub(crate) fn list(running: &Running, as_json: bool) -> Result<(), Failure> {
    let body = AdminClient::find(running)?.get("/v1/tokens")?;
    if as_json { print_json(&body) } else { print(&to_text(&body, OffsetDateTime::now_utc())) }
}

/// With `--json`, a success prints nothing: the reply has no body.
pub(crate) fn revoke(running: &Running, name: &str, as_json: bool) -> Result<(), Failure> {
    let target = format!("/v1/tokens/{}", encoded(name));
    AdminClient::find(running)?.send(Method::DELETE, &target, None)?.into_body()?;
    if as_json { Ok(()) } else { print(&format!("token {name:?} is revoked\n")) }
}

fn to_text(body: &Value, now: OffsetDateTime) -> String {
    let mut table = Table::new(["NAME", "ROLE", "ORIGIN", "EXPIRES", "LAST USED", "FROM", "SOURCES"]);
    let mut count = 0_usize;
    for token in JsonView(body).list("tokens") {
        count += 1;
        let sources = token.texts("sources");
        table.row([
            token.text_or_dash("name"),
            token.text_or_dash("role"),
            token.text_or_dash("origin"),
            token.time("expires_at").map_or("never".to_owned(), |end| expiry(end, now)),
            token.time("last_used_at").map_or(DASH.to_owned(), |used| ago(used, now)),
            token.text_or_dash("last_used_from"),
            if sources.is_empty() { "all".to_owned() } else { sources.join(" ") },
        ]);
    }
    if count == 0 { "no tokens\n".to_owned() } else { table.render("") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::Duration;

    use super::*;

    #[test]
    fn tokens_are_listed_with_expiry_and_last_use() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::days(10);
        let body = json!({ "tokens": [
            {
                "name": "ci", "role": "operator", "origin": "config", "expires_at": "1970-01-02T00:00:00Z",
                "last_used_at": "1970-01-10T23:58:00Z", "last_used_from": "10.0.0.5", "sources": ["10.0.0.0/8"],
            },
            { "name": "ops", "role": "owner", "origin": "file", "expires_at": null, "sources": [] },
        ] });
        let expected = "\
NAME  ROLE      ORIGIN  EXPIRES              LAST USED  FROM      SOURCES
ci    operator  config  1970-01-02, EXPIRED  2 min ago  10.0.0.5  10.0.0.0/8
ops   owner     file    never                -          -         all
";
        assert_eq!(to_text(&body, now), expected);
        assert_eq!(to_text(&json!({ "tokens": [] }), now), "no tokens\n");
    }
}
