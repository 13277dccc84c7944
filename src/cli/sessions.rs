//! `portcullis sessions`: who is connected, and showing somebody out.

use hyper::Method;
use serde_json::Value;
use time::OffsetDateTime;

use super::control::Control;
use super::moment::since;
use super::reading::{DASH, Reading};
use super::table::Table;
use super::{Failure, Running, print};

pub(super) fn list(running: &Running, listener: Option<&str>, as_json: bool) -> Result<(), Failure> {
    let control = Control::find(running)?;
    let target = match listener {
        Some(listener) => {
            known(listener, &control)?;
            format!("/v1/sessions?listener={listener}")
        }
        None => "/v1/sessions".to_owned(),
    };
    let sessions = control.get(&target)?;
    print(&if as_json { format!("{sessions:#}\n") } else { in_words(&sessions, OffsetDateTime::now_utc()) })
}

pub(super) fn close(running: &Running, ids: &[u64]) -> Result<(), Failure> {
    let control = Control::find(running)?;
    let mut missing = Vec::new();
    for id in ids {
        let reply = control.ask(Method::DELETE, &format!("/v1/sessions/{id}"), None)?;
        match reply.status {
            404 => missing.push(id.to_string()),
            _ => {
                reply.done()?;
                print(&format!("session {id} is ended\n"))?;
            }
        }
    }
    match missing.as_slice() {
        [] => Ok(()),
        [id] => Err(Failure::Failed(format!("there is no session {id}; it may have ended by itself"))),
        ids => {
            Err(Failure::Failed(format!("there are no sessions {}; they may have ended by themselves", ids.join(", "))))
        }
    }
}

fn in_words(answer: &Value, now: OffsetDateTime) -> String {
    let mut table = Table::new(["SESSION", "LISTENER", "CLIENT", "OPEN FOR", "LET IN BY", "CERTIFICATE"]);
    let mut count = 0_usize;
    for session in Reading(answer).list("sessions") {
        count += 1;
        table.row([
            session.number("session").to_string(),
            session.text_or_dash("listener"),
            client(session),
            session.time("opened_at").map_or(DASH.to_owned(), |at| since(at, now)),
            session.text_or_dash("rule"),
            session.text_or_dash("client_subject"),
        ]);
    }
    if count == 0 { "no open sessions\n".to_owned() } else { table.render("") }
}

/// `10.0.0.5:4242`, and behind a load balancer `10.0.0.5:4242 via 10.9.0.1`.
pub(super) fn client(session: Reading<'_>) -> String {
    let (source, port) = (session.text_or_dash("source"), session.number("source_port"));
    let client = match (source.contains(':'), port) {
        (_, 0) => source,
        (true, port) => format!("[{source}]:{port}"),
        (false, port) => format!("{source}:{port}"),
    };
    session.text("balancer").map_or(client.clone(), |balancer| format!("{client} via {balancer}"))
}

/// A misspelt name has no sessions, which is not what was asked.
fn known(listener: &str, control: &Control) -> Result<(), Failure> {
    let status = control.get("/v1/status")?;
    let names: Vec<_> = Reading(&status).list("listeners").filter_map(|listener| listener.text("name")).collect();
    if names.iter().any(|name| name == listener) {
        return Ok(());
    }
    Err(Failure::Usage(format!("there is no listener {listener:?}; there is {}", names.join(", "))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::Duration;

    use super::*;

    #[test]
    fn a_session_is_a_line() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let answer = json!({ "sessions": [
            {
                "session": 7, "listener": "cache", "source": "10.0.0.5", "source_port": 4242, "rule": "ip_addr:10.0.0.0/8",
                "client_subject": "CN=app", "client_sha256": "3fa9", "opened_at": "1970-01-01T02:00:00Z",
            },
            { "session": 8, "listener": "db", "source": "2001:db8::1", "source_port": 9, "client_subject": null,
              "balancer": "10.9.0.1", "balancer_port": 5 },
        ]});
        let expected = "\
SESSION  LISTENER  CLIENT                        OPEN FOR  LET IN BY           CERTIFICATE
7        cache     10.0.0.5:4242                 3 h       ip_addr:10.0.0.0/8  CN=app
8        db        [2001:db8::1]:9 via 10.9.0.1  -         -                   -
";
        assert_eq!(in_words(&answer, now), expected);
        assert_eq!(in_words(&json!({ "sessions": [] }), now), "no open sessions\n");
    }
}
