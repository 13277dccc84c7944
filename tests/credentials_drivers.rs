//! `[listener.credentials]` with drivers of PostgreSQL in Python and JavaScript.

use std::fs;

use serde_json::{Value, json};

use crate::credentials_postgres::{before, keyed};
use crate::harness::credentials::{
    OTHER_PASSWORD, PASSWORD, add_password, remove_password, set_client, site, with_credentials,
};
use crate::harness::database::Driver;
use crate::harness::portcullis::ADMIN;
use crate::harness::{Event, Listener, Portcullis, Request, eventually};

/// Performs a command in a program of its own.
fn perform(driver: Driver, portcullis: &Portcullis, options: &Value, command: &Value) -> Value {
    driver.start(portcullis, options).perform(command)
}

/// The result of a connection as the role of the database.
fn accepted() -> Value {
    json!({ "users": ["keyed"] })
}

#[test]
fn drivers_authenticate_and_report_a_wrong_password_as_their_own_error() {
    let postgres = keyed();
    let portcullis = before(&postgres);
    for driver in Driver::ALL {
        let client = driver.start(&portcullis, &json!({}));
        assert_eq!(client.perform(&json!(["connect", "app", PASSWORD])), accepted(), "{driver:?}");
        for (user, password) in [("app", "Wrong-1-password"), ("nobody", PASSWORD)] {
            let refused = client.perform(&json!(["connect", user, password]));
            // libpq has no SQLSTATE for a connection that failed.
            let expected = match driver {
                Driver::Psycopg => json!(["OperationalError", null]),
                Driver::Asyncpg => json!(["InvalidPasswordError", "28P01"]),
                Driver::NodePostgres => json!(["DatabaseError", "28P01"]),
            };
            assert_eq!(json!([refused["error"], refused["code"]]), expected, "{driver:?}: {refused}");
            let text = format!("password authentication failed for user \"{user}\"");
            assert!(refused["message"].as_str().unwrap().contains(&text), "{driver:?}: {refused}");
        }
        assert_eq!(client.perform(&json!(["connect", "app", PASSWORD])), accepted(), "{driver:?}");
    }
    portcullis.assert_count("failures", 2 * Driver::ALL.len(), |event: &Event| event.is("authentication.failed"));
}

/// asyncpg has no channel binding.
#[test]
fn drivers_bind_the_password_to_the_certificate_of_the_listener() {
    let postgres = keyed();
    let portcullis = before(&postgres);
    for driver in [Driver::Psycopg, Driver::NodePostgres] {
        let required = json!({ "binding": "require" });
        let connect = json!(["connect", "app", PASSWORD]);
        assert_eq!(perform(driver, &portcullis, &required, &connect), accepted(), "{driver:?}");
    }
}

#[test]
fn drivers_authenticate_with_each_of_two_passwords() {
    let postgres = keyed();
    let portcullis = before(&postgres);
    portcullis.applies(|| add_password(&portcullis.site, "app", OTHER_PASSWORD));
    for driver in Driver::ALL {
        let client = driver.start(&portcullis, &json!({}));
        for password in [PASSWORD, OTHER_PASSWORD] {
            assert_eq!(client.perform(&json!(["connect", "app", password])), accepted(), "{driver:?}");
        }
        assert_ne!(client.perform(&json!(["connect", "app", "Neither-1-of-them"])), accepted(), "{driver:?}");
    }
}

#[test]
fn removed_password_ends_the_sessions_of_its_pool_which_recovers_with_the_new_one() {
    const SIZE: usize = 3;
    let users = |count: usize| json!({ "users": vec!["keyed"; count] });
    for driver in Driver::ALL {
        let postgres = keyed();
        let portcullis = before(&postgres);
        portcullis.applies(|| add_password(&portcullis.site, "app", OTHER_PASSWORD));
        let [old, new] = [PASSWORD, OTHER_PASSWORD].map(|password| {
            let client = driver.start(&portcullis, &json!({}));
            let opened = client.perform(&json!(["pool", "app", password, SIZE]));
            assert_eq!(opened, json!({ "users": null }), "{driver:?}");
            assert_eq!(client.perform(&json!(["query"])), users(SIZE), "{driver:?}");
            client
        });
        // One that is closing stays in the list for a moment.
        let ids = || {
            let sessions = portcullis.sessions();
            let open = sessions.iter().filter(|session| session["state"] == "open");
            open.map(|session| session["session"].as_u64().unwrap()).collect::<Vec<_>>()
        };
        let opened = ids();
        assert_eq!(opened.len(), 2 * SIZE, "{driver:?}");

        // The application learns the new password before the old one is removed.
        old.perform(&json!(["password", OTHER_PASSWORD]));
        let seen = portcullis.seen();
        portcullis.applies(|| remove_password(&portcullis.site, "app", "p1"));
        let ended = eventually("the sessions of the old password end", || {
            let events = portcullis.events();
            let ended = events[seen..].iter().filter(|event| event.is("connection.closed"));
            let ended: Vec<_> = ended.map(|event| (event.number("session"), event.reason().to_owned())).collect();
            (ended.len() == SIZE).then_some(ended)
        });
        let mut ended: Vec<_> = ended
            .into_iter()
            .map(|(id, reason)| {
                assert_eq!(reason, "credential_revoked", "{driver:?}");
                id
            })
            .collect();
        ended.sort_unstable();
        assert_eq!(ended, opened[..SIZE], "{driver:?}: those of the first pool");
        // asyncpg replaces them at once.
        assert_eq!(ids()[..SIZE], opened[SIZE..], "{driver:?}");

        old.perform(&json!(["lost", SIZE]));
        for client in [&old, &new] {
            assert_eq!(client.perform(&json!(["query"])), users(SIZE), "{driver:?}");
        }
        let after = ids();
        assert_eq!(
            (&after[..SIZE], after.len()),
            (&opened[SIZE..], 2 * SIZE),
            "{driver:?}: the second pool is untouched"
        );
        portcullis.assert_count("failures", 0, |event: &Event| event.is("authentication.failed"));
    }
}

#[test]
fn drivers_with_a_certificate_of_the_user_need_no_password() {
    let (site, postgres) = (site(), keyed());
    let clients = fs::read_to_string(site.path("clients.toml")).unwrap();
    site.write("clients.toml", format!("{clients}\n[[client]]\nuser = \"web\"\ncertificates = [\"cn:web\"]\n"));
    site.install("web", &site.ca.issue(Request::client("web")));
    let listener = Listener::postgres(&postgres).tls("client_auth = \"required\"").tls("client_ca = \"ca.crt\"");
    let portcullis = Portcullis::start(site, format!("{ADMIN}{}", with_credentials(listener)));
    let certificate = Driver::certificate(&portcullis.site, "web");
    let connect = json!(["connect", "web", null]);
    for driver in Driver::ALL {
        let client = driver.start(&portcullis, &certificate);
        assert_eq!(client.perform(&connect), accepted(), "{driver:?}");
        // It proves `web` only.
        assert_ne!(client.perform(&json!(["connect", "app", null])), accepted(), "{driver:?}");
        assert_eq!(client.perform(&json!(["connect", "app", PASSWORD])), accepted(), "{driver:?}");
    }
    portcullis.applies(|| set_client(&portcullis.site, "disable", "web"));
    for driver in Driver::ALL {
        assert_ne!(perform(driver, &portcullis, &certificate, &connect), accepted(), "{driver:?}");
    }
}
