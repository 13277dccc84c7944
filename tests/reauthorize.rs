//! Rules and listeners that expire or are removed during a handshake.

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::harness::wire::{PROTOCOL_3_0, error_response, startup};
use crate::harness::{ClockedPortcullis, Connection, Listener, Portcullis, TestDir, Upstream};
use crate::reload::ON_SIGHUP;

/// A client sends its StartupMessage, and gets a PostgreSQL error because it is denied.
fn assert_rejected(mut client: Connection) {
    client.send(&startup(PROTOCOL_3_0, &[("user", "app")]));
    let fields = error_response(&client.rest().unwrap());
    assert_eq!((fields[&'S'].as_str(), fields[&'C'].as_str()), ("FATAL", "28000"), "{fields:?}");
}

#[test]
fn rule_that_expires_before_the_startup_message_denies_the_client() {
    let upstream = Upstream::silent();
    let listener = Listener::postgres(&upstream);
    let portcullis = ClockedPortcullis::start(TestDir::new(), format!("{ON_SIGHUP}{listener}"));
    portcullis.address("main");
    let end = OffsetDateTime::now_utc() + Duration::HOUR;
    let brief = listener.to_string().replace(
        "trusted_sources = [\"127.0.0.1\"]",
        &format!(
            r#"trusted_sources = [{{ type = "ip_addr", value = "127.0.0.1", expires_at = {} }}]"#,
            end.format(&Rfc3339).unwrap()
        ),
    );
    let applied = portcullis.reconfigure(format!("{ON_SIGHUP}{brief}"));
    assert!(applied.is("reload.applied"), "{}", applied.0);

    let client = portcullis.client().with_ssl_request().connect();
    let port = client.port();
    portcullis.set(2 * Duration::HOUR);
    assert_rejected(client);
    let denied = portcullis.ending(port);
    assert!(denied.is("connection.denied"), "{}", denied.0);
    assert_eq!(denied.reason(), "untrusted_source");
    assert!(denied.text("detail").contains("expired"), "{}", denied.0);
    upstream.assert_received_nothing();
}

#[test]
fn listener_removed_before_the_startup_message_denies_the_client() {
    let upstream = Upstream::silent();
    let (kept, removed) = (Listener::postgres(&upstream).named("kept"), Listener::postgres(&upstream));
    let portcullis = Portcullis::start(TestDir::new(), format!("{ON_SIGHUP}{kept}{removed}"));
    let client = portcullis.client().with_ssl_request().connect();
    let port = client.port();
    let applied = portcullis.reconfigure(format!("{ON_SIGHUP}{kept}"));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    assert_rejected(client);
    assert_eq!(portcullis.refusal(port), "listener_removed");
    upstream.assert_received_nothing();
}
