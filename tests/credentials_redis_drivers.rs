//! `[listener.credentials]` with drivers of Redis in Python and JavaScript.

use std::fs;

use serde_json::{Value, json};

use crate::credentials_redis::{before, keyed};
use crate::harness::cache::Driver;
use crate::harness::credentials::{
    OTHER_PASSWORD, PASSWORD, add_password, remove_password, set_client, site, with_credentials,
};
use crate::harness::portcullis::ADMIN;
use crate::harness::{Event, Listener, Portcullis, Request, eventually};

/// The connections of a pool.
const SIZE: usize = 3;

/// Each driver with RESP2 and RESP3.
fn each(test: impl Fn(Driver, u32)) {
    for driver in Driver::ALL {
        [2, 3].into_iter().for_each(|protocol| test(driver, protocol));
    }
}

fn assert_failures(portcullis: &Portcullis, count: usize) {
    portcullis.assert_count("failures", count, |event: &Event| event.is("authentication.failed"));
}

/// A connection of its own that acts as the user of the database, and has a name.
fn accepted(protocol: u32) -> Value {
    json!({ "answer": ["keyed", "shop", protocol] })
}

/// The IDs of the open sessions, from the first one.
fn open_sessions(portcullis: &Portcullis) -> Vec<u64> {
    // One that is closing stays in the list for a moment.
    let sessions = portcullis.sessions();
    let open = sessions.iter().filter(|session| session["state"] == "open");
    open.map(|session| session["session"].as_u64().unwrap()).collect()
}

/// The IDs of the sessions that end, which all have lost their password.
fn revoked_after(portcullis: &Portcullis, seen: usize, count: usize) -> Vec<u64> {
    let ended = eventually("the sessions of the old password end", || {
        let events = portcullis.events();
        let ended: Vec<_> = events[seen..].iter().filter(|event| event.is("connection.closed")).cloned().collect();
        (ended.len() >= count).then_some(ended)
    });
    assert!(ended.iter().all(|event| event.reason() == "credential_revoked"), "{ended:?}");
    let mut ended: Vec<_> = ended.iter().map(|event| event.number("session")).collect();
    ended.sort_unstable();
    ended
}

#[test]
fn drivers_authenticate_and_report_a_wrong_password_as_their_own_error() {
    let redis = keyed();
    let portcullis = before(&redis);
    each(|driver, protocol| {
        let client = driver.start(&portcullis, protocol, None);
        assert_eq!(client.perform(&json!(["connect", "app", PASSWORD])), accepted(protocol), "{driver:?}");
        for (user, password) in [("app", "Wrong-1-password"), ("nobody", PASSWORD)] {
            let refused = client.perform(&json!(["connect", user, password]));
            // redis-py removes the code of an error that it has a class for.
            let (class, code) = match driver {
                Driver::RedisPy => ("AuthenticationError", ""),
                Driver::Ioredis => ("ReplyError", "WRONGPASS "),
            };
            let message = format!("{code}invalid username-password pair or user is disabled.");
            assert_eq!(refused, json!({ "error": class, "message": message }), "{driver:?} {protocol}");
        }
        let refused = client.perform(&json!(["connect", null, null]));
        assert!(refused["message"].as_str().unwrap().contains("uthenticat"), "{driver:?} {protocol}: {refused}");
        assert_eq!(client.perform(&json!(["connect", "app", PASSWORD])), accepted(protocol), "{driver:?}");
    });
    assert_failures(&portcullis, 2 * 2 * Driver::ALL.len());
}

#[test]
fn drivers_run_transactions_and_receive_messages() {
    let redis = keyed();
    let portcullis = before(&redis);
    each(|driver, protocol| {
        let client = driver.start(&portcullis, protocol, None);
        let answer = client.answer(&json!(["work", "app", PASSWORD]));
        assert_eq!(answer, json!([[42, "42"], "sold"]), "{driver:?} {protocol}");
    });
}

#[test]
fn removed_password_ends_the_sessions_of_its_pool_which_recovers_with_the_new_one() {
    each(|driver, protocol| {
        let redis = keyed();
        let portcullis = before(&redis);
        portcullis.applies(|| add_password(&portcullis.site, "app", OTHER_PASSWORD));
        let users = json!(vec!["keyed"; SIZE]);
        let [(old, first), (new, second)] = [PASSWORD, OTHER_PASSWORD].map(|password| {
            let others = open_sessions(&portcullis);
            let client = driver.start(&portcullis, protocol, None);
            assert_eq!(client.answer(&json!(["pool", "app", password, SIZE])), users, "{driver:?} {protocol}");
            let mut own = open_sessions(&portcullis);
            own.retain(|id| !others.contains(id));
            assert!(own.len() >= SIZE, "{driver:?} {protocol}: {own:?}");
            (client, own)
        });

        // The application learns the new password before the old one is removed.
        old.answer(&json!(["password", OTHER_PASSWORD]));
        let seen = portcullis.seen();
        portcullis.applies(|| remove_password(&portcullis.site, "app", "p1"));
        assert_eq!(
            revoked_after(&portcullis, seen, first.len()),
            first,
            "{driver:?} {protocol}: those of the first pool"
        );
        old.answer(&json!(["lost", SIZE]));
        for client in [&old, &new] {
            assert_eq!(client.answer(&json!(["query"])), users, "{driver:?} {protocol}");
        }
        let after = open_sessions(&portcullis);
        assert!(second.iter().all(|id| after.contains(id)), "{driver:?} {protocol}: the second pool is untouched");
        assert_failures(&portcullis, 0);
    });
}

#[test]
fn pool_that_authenticates_again_keeps_its_sessions_when_the_old_password_is_removed() {
    each(|driver, protocol| {
        let redis = keyed();
        let portcullis = before(&redis);
        portcullis.applies(|| add_password(&portcullis.site, "app", OTHER_PASSWORD));
        let users = json!(vec!["keyed"; SIZE]);
        let [renewed, old] = [(); 2].map(|()| {
            let client = driver.start(&portcullis, protocol, None);
            assert_eq!(client.answer(&json!(["pool", "app", PASSWORD, SIZE])), users, "{driver:?} {protocol}");
            (client, open_sessions(&portcullis))
        });
        let ((renewed, kept), (_old, mut ending)) = (renewed, old);
        ending.retain(|id| !kept.contains(id));
        renewed.answer(&json!(["renew", OTHER_PASSWORD]));
        let seen = portcullis.seen();
        portcullis.applies(|| remove_password(&portcullis.site, "app", "p1"));
        assert_eq!(revoked_after(&portcullis, seen, ending.len()), ending, "{driver:?} {protocol}");
        assert_eq!(renewed.answer(&json!(["query"])), users, "{driver:?} {protocol}");
        if (driver, protocol) == (Driver::RedisPy, 3) {
            assert_eq!(renewed.answer(&json!(["message"])), "sold");
        }
        let after = open_sessions(&portcullis);
        assert!(kept.iter().all(|id| after.contains(id)), "{driver:?} {protocol}: {kept:?} {after:?}");
    });
}

#[test]
fn drivers_with_a_certificate_of_the_user_need_no_password() {
    let (site, redis) = (site(), keyed());
    let clients = fs::read_to_string(site.path("clients.toml")).unwrap();
    site.write("clients.toml", format!("{clients}\n[[client]]\nuser = \"web\"\ncertificates = [\"cn:web\"]\n"));
    site.install("web", &site.ca.issue(Request::client("web")));
    let listener = Listener::redis(&redis).tls("client_auth = \"required\"").tls("client_ca = \"ca.crt\"");
    let portcullis = Portcullis::start(site, format!("{ADMIN}{}", with_credentials(listener)));
    let connect = json!(["connect", null, null]);
    each(|driver, protocol| {
        let seen = portcullis.seen();
        let client = driver.start(&portcullis, protocol, Some("web"));
        assert_eq!(client.perform(&connect), accepted(protocol), "{driver:?}");
        let opened = portcullis.event_after(seen, "an opening", |event| event.is("connection.opened"));
        assert_eq!(opened.text("user"), "web");
        assert_eq!(client.answer(&json!(["work", null, null])), json!([[42, "42"], "sold"]), "{driver:?}");
        assert_eq!(client.perform(&json!(["connect", "app", PASSWORD])), accepted(protocol), "{driver:?}");
    });
    portcullis.applies(|| set_client(&portcullis.site, "disable", "web"));
    each(|driver, protocol| {
        let refused = driver.start(&portcullis, protocol, Some("web")).perform(&connect);
        assert!(refused["message"].as_str().unwrap().contains("uthenticat"), "{driver:?} {protocol}: {refused}");
    });
}
