//! `portcullis sessions`: lists and closes sessions.

use std::time::Duration;

use clap::Subcommand;
use hyper::Method;
use serde_json::Value;
use time::OffsetDateTime;

use crate::cli::client::AdminClient;
use crate::cli::client::args::Running;
use crate::cli::client::http::with_query;
use crate::cli::client::json_view::{DASH, JsonView};
use crate::cli::client::listeners::require_listener;
use crate::cli::client::members::{confirm, parse_wait};
use crate::cli::output::moment::since;
use crate::cli::output::table::Table;
use crate::cli::{Failure, print, print_json};
use crate::source::rule::Network;

#[derive(Debug, Subcommand)]
pub(crate) enum SessionsCommand {
    /// List sessions, including those that are closing
    List {
        #[command(flatten)]
        running: Running,
        /// Only the sessions of this listener
        #[arg(value_name = "LISTENER")]
        listener: Option<String>,
        /// Only the sessions of clients in this network
        #[arg(long, value_name = "CIDR")]
        source: Option<Network>,
        /// Only the sessions whose client certificate has this text in its subject
        #[arg(long, value_name = "TEXT")]
        client: Option<String>,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Close sessions; their clients may reconnect
    Close {
        #[command(flatten)]
        running: Running,
        /// Session IDs, as shown by `sessions list` and in audit events
        #[arg(required_unless_present_any = ["client", "source"], value_name = "ID")]
        ids: Vec<u64>,
        /// The sessions of the client certificate with this subject, as shown by `sessions list`
        #[arg(long, value_name = "SUBJECT", conflicts_with = "ids")]
        client: Option<String>,
        /// The sessions of clients in this network
        #[arg(long, value_name = "CIDR", conflicts_with = "ids")]
        source: Option<Network>,
        /// Only the sessions of this listener
        #[arg(long, value_name = "LISTENER", conflicts_with = "ids")]
        listener: Option<String>,
        /// Close them at all members of the fleet; exit 1 if one does not confirm it
        #[arg(long, conflicts_with = "ids")]
        fleet: bool,
        /// With --fleet: wait up to this time for the members [default: 5s]
        #[arg(long, value_name = "DURATION", value_parser = parse_wait, requires = "fleet")]
        wait: Option<Duration>,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(command: &SessionsCommand) -> Result<(), Failure> {
    match command {
        SessionsCommand::List { running, listener, source, client, json } => {
            let source = source.map(|source| source.to_string());
            let filters =
                [("listener", listener.as_deref()), ("source", source.as_deref()), ("client", client.as_deref())];
            list(&AdminClient::find(running)?, filters, *json)
        }
        SessionsCommand::Close { running, ids, client: None, source: None, json, .. } => {
            close(&AdminClient::find(running)?, ids, *json)
        }
        SessionsCommand::Close { running, ids: _, client, source, listener, fleet, wait, json } => {
            let source = source.map(|source| source.to_string());
            let wait = wait.map(|wait| format!("{}ms", wait.as_millis()));
            let parameters = [
                ("client", client.as_deref()),
                ("source", source.as_deref()),
                ("listener", listener.as_deref()),
                ("fleet", fleet.then_some("true")),
                ("wait", wait.as_deref()),
            ];
            close_selected(&AdminClient::find(running)?, &with_query("/v1/sessions", &parameters), *json)
        }
    }
}

fn list(client: &AdminClient, filters: [(&str, Option<&str>); 3], as_json: bool) -> Result<(), Failure> {
    if let [(_, Some(listener)), ..] = filters {
        require_listener(listener, client)?;
    }
    let sessions = client.get(&with_query("/v1/sessions", &filters))?;
    if as_json { print_json(&sessions) } else { print(&to_text(&sessions, OffsetDateTime::now_utc())) }
}

/// With `--json`, a success prints nothing: the replies have no body.
fn close(client: &AdminClient, ids: &[u64], as_json: bool) -> Result<(), Failure> {
    let mut missing = Vec::new();
    for id in ids {
        let reply = client.send(Method::DELETE, &format!("/v1/sessions/{id}"), None)?;
        if reply.has_id("not_found") {
            missing.push(id.to_string());
            continue;
        }
        reply.into_body()?;
        if !as_json {
            print(&format!("session {id} is closed\n"))?;
        }
    }
    match missing.as_slice() {
        [] => Ok(()),
        [id] => Err(Failure::Failed(format!("there is no session {id}; it may have ended already"))),
        ids => Err(Failure::Failed(format!("there are no sessions {}; they may have ended already", ids.join(", ")))),
    }
}

fn close_selected(client: &AdminClient, target: &str, as_json: bool) -> Result<(), Failure> {
    let body = client.send(Method::DELETE, target, None)?.into_body()?;
    if as_json {
        print_json(&body)?;
    } else {
        match body.get("closed").and_then(Value::as_u64) {
            Some(1) => print("1 session is closed\n")?,
            Some(closed) => print(&format!("{closed} sessions are closed\n"))?,
            None => {}
        }
    }
    let is_complete = body.get("missing").and_then(Value::as_array).is_none_or(Vec::is_empty);
    if is_complete { Ok(()) } else { confirm(&body, "sessions") }
}

fn to_text(body: &Value, now: OffsetDateTime) -> String {
    let sessions: Vec<_> = JsonView(body).list("sessions").collect();
    let row = |session: &JsonView<'_>| {
        [
            session.number("session").to_string(),
            session.text_or_dash("listener"),
            client_address(*session),
            state(*session),
            session.time("opened_at").map_or(DASH.to_owned(), |at| since(at, now)),
            session.text_or_dash("rule"),
            session.text_or_dash("client_subject"),
        ]
    };
    let heads = ["SESSION", "LISTENER", "CLIENT", "STATE", "OPEN FOR", "ADMITTED BY", "CERTIFICATE"];
    if sessions.is_empty() {
        return "no open sessions\n".to_owned();
    }
    // Only listeners with credentials have users.
    if sessions.iter().any(|session| user(*session) != DASH) {
        let [id, listener, client, rest @ ..] = heads;
        let [state, open_for, rule, subject] = rest;
        let mut table = Table::new([id, listener, client, "USER", state, open_for, rule, subject]);
        for session in &sessions {
            let [id, listener, client, state, open_for, rule, subject] = row(session);
            table.row([id, listener, client, user(*session), state, open_for, rule, subject]);
        }
        return table.render("");
    }
    let mut table = Table::new(heads);
    sessions.iter().for_each(|session| table.row(row(session)));
    table.render("")
}

/// The user as which the client has authenticated, or `unauthenticated` for a session that is older than the credentials.
fn user(session: JsonView<'_>) -> String {
    if session.flag("unauthenticated") == Some(true) {
        "unauthenticated".to_owned()
    } else {
        session.text_or_dash("user")
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::Duration;

    use super::{OffsetDateTime, to_text};

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

    #[test]
    fn users_have_a_column_if_there_are_any() {
        let body = json!({ "sessions": [
            { "session": 7, "listener": "db", "source": "10.0.0.5", "source_port": 4242, "user": "app", "state": "open" },
            { "session": 8, "listener": "db", "source": "10.0.0.5", "source_port": 4243, "unauthenticated": true, "state": "open" },
            { "session": 9, "listener": "cache", "source": "10.0.0.5", "source_port": 4244, "state": "open" },
        ]});
        let expected = "\
SESSION  LISTENER  CLIENT         USER             STATE  OPEN FOR  ADMITTED BY  CERTIFICATE
7        db        10.0.0.5:4242  app              open   -         -            -
8        db        10.0.0.5:4243  unauthenticated  open   -         -            -
9        cache     10.0.0.5:4244  -                open   -         -            -
";
        assert_eq!(to_text(&body, OffsetDateTime::UNIX_EPOCH), expected);
    }
}
