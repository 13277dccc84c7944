//! `portcullis sessions`: lists and closes sessions.

use hyper::Method;
use serde_json::Value;
use time::OffsetDateTime;

use crate::cli::client::AdminClient;
use crate::cli::client::json_view::{DASH, JsonView};
use crate::cli::output::moment::since;
use crate::cli::output::table::Table;
use crate::cli::{Failure, Running, print, print_json};

pub(crate) fn list(running: &Running, listener: Option<&str>, as_json: bool) -> Result<(), Failure> {
    let client = AdminClient::find(running)?;
    if let Some(listener) = listener {
        require_listener(listener, &client)?;
    }
    let target = listener.map(|listener| format!("/v1/sessions?listener={listener}"));
    let sessions = client.get(target.as_deref().unwrap_or("/v1/sessions"))?;
    if as_json { print_json(&sessions) } else { print(&to_text(&sessions, OffsetDateTime::now_utc())) }
}

pub(crate) fn close(running: &Running, ids: &[u64]) -> Result<(), Failure> {
    let client = AdminClient::find(running)?;
    let mut missing = Vec::new();
    for id in ids {
        let reply = client.send(Method::DELETE, &format!("/v1/sessions/{id}"), None)?;
        match reply.status {
            404 => missing.push(id.to_string()),
            _ => {
                let was = JsonView(&reply.into_body()?).text("was");
                let what = if was.as_deref() == Some("closing") { "was already closing" } else { "is closed" };
                print(&format!("session {id} {what}\n"))?;
            }
        }
    }
    match missing.as_slice() {
        [] => Ok(()),
        [id] => Err(Failure::Failed(format!("there is no session {id}; it may have ended already"))),
        ids => Err(Failure::Failed(format!("there are no sessions {}; they may have ended already", ids.join(", ")))),
    }
}

fn to_text(body: &Value, now: OffsetDateTime) -> String {
    let mut table = Table::new(["SESSION", "LISTENER", "CLIENT", "STATE", "OPEN FOR", "ADMITTED BY", "CERTIFICATE"]);
    let mut count = 0_usize;
    for session in JsonView(body).list("sessions") {
        count += 1;
        table.row([
            session.number("session").to_string(),
            session.text_or_dash("listener"),
            client_address(session),
            state(session),
            session.time("opened_at").map_or(DASH.to_owned(), |at| since(at, now)),
            session.text_or_dash("rule"),
            session.text_or_dash("client_subject"),
        ]);
    }
    if count == 0 { "no open sessions\n".to_owned() } else { table.render("") }
}

/// `open`, `closing`, or `half-closed by upstream`.
fn state(session: JsonView<'_>) -> String {
    match session.text("half_closed_by") {
        Some(side) => format!("half-closed by {side}"),
        None => session.text_or_dash("state"),
    }
}

/// `10.0.0.5:4242`, or `10.0.0.5:4242 via 10.9.0.1` if a load balancer announced the client.
pub(crate) fn client_address(session: JsonView<'_>) -> String {
    let (address, port) = (session.text_or_dash("source"), session.number("source_port"));
    let client = match (address.contains(':'), port) {
        (_, 0) => address.clone(),
        (true, port) => format!("[{address}]:{port}"),
        (false, port) => format!("{address}:{port}"),
    };
    // A health check of the load balancer itself has its own address as the source.
    let is_own = session.number("balancer_port") == port;
    match session.text("balancer").filter(|via| !is_own || *via != address) {
        Some(via) => format!("{client} via {via}"),
        None => client,
    }
}

/// Rejects an unknown name, which would otherwise list no sessions. A removed listener may still have sessions.
fn require_listener(listener: &str, client: &AdminClient) -> Result<(), Failure> {
    let status = client.get("/v1/status")?;
    let names = |list| JsonView(&status).list(list).filter_map(|listener| listener.text("name"));
    let mut removed = names("removed_listeners");
    let names: Vec<_> = names("listeners").collect();
    if names.iter().any(|name| name == listener) || removed.any(|name| name == listener) {
        return Ok(());
    }
    Err(Failure::Usage(format!("there is no listener {listener:?}; listeners: {}", names.join(", "))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::Duration;

    use super::*;

    #[test]
    fn each_session_is_one_line() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let body = json!({ "sessions": [
            {
                "session": 7, "listener": "cache", "source": "10.0.0.5", "source_port": 4242, "rule": "ip_addr:10.0.0.0/8",
                "client_subject": "CN=app", "client_sha256": "3fa9", "opened_at": "1970-01-01T02:00:00Z",
                "state": "open", "half_closed_by": null,
            },
            { "session": 8, "listener": "db", "source": "2001:db8::1", "source_port": 9, "client_subject": null,
              "balancer": "10.9.0.1", "balancer_port": 5, "state": "half_closed", "half_closed_by": "upstream" },
            { "session": 9, "listener": "db", "source": "10.9.0.1", "source_port": 5,
              "balancer": "10.9.0.1", "balancer_port": 5, "state": "closing" },
        ]});
        let expected = "\
SESSION  LISTENER  CLIENT                        STATE                    OPEN FOR  ADMITTED BY         CERTIFICATE
7        cache     10.0.0.5:4242                 open                     3 h       ip_addr:10.0.0.0/8  CN=app
8        db        [2001:db8::1]:9 via 10.9.0.1  half-closed by upstream  -         -                   -
9        db        10.9.0.1:5                    closing                  -         -                   -
";
        assert_eq!(to_text(&body, now), expected);
        assert_eq!(to_text(&json!({ "sessions": [] }), now), "no open sessions\n");
    }
}
