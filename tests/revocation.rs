//! Revoked sources and credentials: the sessions that rely on them end, and all others continue.

use std::borrow::Borrow;
use std::thread;
use std::time::Instant;

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::harness::openssl::openssl;
use crate::harness::{
    Authority, ClockedPortcullis, Connection, Leaf, Listener, Portcullis, Redis, Request, TestDir, Upstream, program,
};
use crate::reload::ON_SIGHUP;

/// The most time between the reload or the moment that revokes a session and its end. Portcullis takes a second at most; a
/// machine that is busy with other work gets ten times that. All other timers that end a session are longer.
pub(crate) const MAX_REVOCATION_TIME: std::time::Duration = std::time::Duration::from_secs(10);

/// A listener that requires certificates, with the lines of its TLS that authorize them.
pub(crate) fn wanting(upstream: &Upstream, lines: &[&str]) -> Listener {
    let listener = Listener::redis(upstream).tls("client_auth = \"required\"");
    lines.iter().fold(listener, |listener, line| listener.tls(line))
}

pub(crate) fn start(site: TestDir, listeners: &[&Listener]) -> Portcullis {
    Portcullis::start(site, config(listeners))
}

pub(crate) fn config(listeners: &[&Listener]) -> String {
    let listeners: String = listeners.iter().map(ToString::to_string).collect();
    format!("{ON_SIGHUP}{listeners}")
}

pub(crate) fn session(portcullis: &Portcullis, leaf: impl Borrow<Leaf>) -> Connection {
    portcullis.client().showing(leaf).attempt().1.unwrap()
}

/// The session is closed for this reason, and both audit events have it.
pub(crate) fn assert_ended(portcullis: &Portcullis, mut session: Connection, reason: &str) {
    let began = Instant::now();
    assert_eq!(session.rest().unwrap(), b"", "close_notify and nothing else");
    assert!(began.elapsed() < MAX_REVOCATION_TIME, "it took {:?}", began.elapsed());
    let port = session.port();
    let closed = portcullis.ending(port);
    assert!(closed.is("connection.closed"), "{}", closed.0);
    assert_eq!(closed.reason(), reason, "{}", closed.0);
    let events = portcullis.events();
    let of_it = |name: &str| events.iter().position(|event| event.is(name) && event.0["source_port"] == port);
    let revoked = of_it("session.revoked").expect("it was revoked");
    assert!(revoked < of_it("connection.closed").expect("it was closed"));
    assert_eq!(events[revoked].reason(), reason);
    assert_eq!(events[revoked].0["session"], closed.0["session"]);
}

pub(crate) fn assert_lives(mut session: Connection) {
    session.ask(b"still here", b"still here");
}

/// Does something while a session transfers bytes, and checks that no byte is lost.
pub(crate) fn while_busy<T: Send>(session: &mut Connection, act: impl FnOnce() -> T + Send) -> T {
    let bytes: Vec<u8> = (0..=250).cycle().take(40_000).collect();
    thread::scope(|scope| {
        let acting = scope.spawn(act);
        let mut rounds = 0_u32;
        while !acting.is_finished() || rounds == 0 {
            session.ask(&bytes, &bytes);
            rounds += 1;
        }
        acting.join().unwrap()
    })
}

#[test]
fn removed_source_ends_its_open_sessions() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).trusting(&["127.0.0.0/24", "127.0.1.1", "127.0.2.0/24"]);
    let portcullis = start(TestDir::new(), &[&listener]);
    let from = |source: &str| portcullis.client().from(source).attempt().1.unwrap();
    let (gone, narrowed, kept, other) = (from("127.0.2.1"), from("127.0.0.2"), from("127.0.0.1"), from("127.0.1.1"));
    let applied = portcullis.reconfigure(config(&[&listener.trusting(&["127.0.0.1", "127.0.1.0/24"])]));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    assert_ended(&portcullis, gone, "source_revoked");
    assert_ended(&portcullis, narrowed, "source_revoked");
    // A new rule admits it now.
    assert_lives(kept);
    assert_lives(other);
}

#[test]
fn expired_rule_ends_its_sessions_unless_another_matches() {
    let upstream = Upstream::echo();
    let end = OffsetDateTime::now_utc() + Duration::HOUR;
    let ending = |source: &str| {
        let end = end.format(&Rfc3339).unwrap();
        format!(r#"{{ type = "ip_addr", value = "{source}", expires_at = {end} }}"#)
    };
    let listener = Listener::redis(&upstream).to_string().replace(
        "trusted_sources = [\"127.0.0.1\"]",
        &format!("trusted_sources = [\"127.0.1.0/24\", {}, {}]", ending("127.0.0.0/24"), ending("127.0.1.1")),
    );
    let portcullis = ClockedPortcullis::start(TestDir::new(), format!("{ON_SIGHUP}{listener}"));
    let from = |source: &str| portcullis.client().from(source).attempt().1.unwrap();
    let (mut gone, kept) = (from("127.0.0.1"), from("127.0.1.1"));
    assert_eq!(portcullis.opened(kept.port()).text("rule"), "ip_addr:127.0.1.1");
    let due = portcullis.set_shortly_before(end);
    // The session is closed without another event.
    assert_eq!(gone.rest().unwrap(), b"");
    let late = OffsetDateTime::now_utc() - due;
    assert!(late >= Duration::ZERO && late < MAX_REVOCATION_TIME, "it ended {late} after its rule");
    assert_ended(&portcullis, gone, "rule_expired");
    assert_lives(kept);
}

#[test]
fn expired_certificate_ends_its_session() {
    let upstream = Upstream::echo();
    let (site, clients) = (TestDir::new(), Authority::new("Clients CA"));
    site.write("clients.pem", clients.pem());
    let listener = wanting(&upstream, &["client_ca = \"clients.pem\""]);
    let portcullis = ClockedPortcullis::start(site, config(&[&listener]));
    let kept = session(&portcullis, clients.issue(Request::client("kept")));
    let end = OffsetDateTime::now_utc() + Duration::HOUR;
    let mut gone = session(&portcullis, clients.issue(Request::client("gone").expiring(end)));
    portcullis.set_shortly_before(end);
    assert_eq!(gone.rest().unwrap(), b"");
    assert_ended(&portcullis, gone, "client_certificate_expired");
    assert_lives(kept);
}

#[test]
fn removed_ca_ends_its_sessions_and_keeps_those_of_its_namesake() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    // The same name with other keys: only the key distinguishes them.
    let [old, new, other] = ["Clients CA", "Clients CA", "Other CA"].map(Authority::new);
    site.write("clients.pem", format!("{}{}{}", old.pem(), new.pem(), other.pem()));
    let portcullis = start(site, &[&wanting(&upstream, &["client_ca = \"clients.pem\""])]);
    let of = |ca: &Authority| session(&portcullis, ca.issue(Request::client("app")));
    let (gone, kept, too) = (of(&old), of(&new), of(&other));
    portcullis.applies(|| {
        portcullis.site.replace("clients.pem", format!("{}{}", new.pem(), other.pem()));
        portcullis.hang_up();
    });
    assert_ended(&portcullis, gone, "credential_revoked");
    assert_lives(kept);
    assert_lives(too);
    let late = portcullis.client().showing(old.issue(Request::client("late"))).attempt();
    late.1.unwrap_err();
    let denied = portcullis.ending(late.0);
    assert_eq!(denied.reason(), "client_certificate_unknown_ca");
    let detail = denied.text("detail");
    assert!(detail.contains("CN=Clients CA was removed by the reload to generation 2"), "{detail}");
}

#[test]
fn pinned_certificate_is_admitted_until_it_is_removed() {
    let upstream = Upstream::echo();
    let (site, anybody) = (TestDir::new(), Authority::new("Anybody's CA"));
    std::fs::create_dir(site.path("clients")).unwrap();
    let [old, new, later, untrusted] = ["app", "app", "later", "app"].map(|name| anybody.issue(Request::client(name)));
    site.write("clients/old.crt", old.pem());
    site.write("clients/new.crt", new.pem());
    let listener = wanting(&upstream, &["client_certificates = \"clients/*.crt\""]);
    let portcullis = Portcullis::start(site, format!("reload.poll = \"0s\"\n{listener}"));
    let (gone, kept) = (session(&portcullis, old), session(&portcullis, new));
    let (port, refused) = portcullis.client().showing(untrusted).attempt();
    refused.unwrap_err();
    assert_eq!(portcullis.refusal(port), "client_certificate_unknown_ca");
    // Added and removed files are applied without a signal.
    portcullis.applies(|| portcullis.site.replace("clients/later.crt", later.pem()));
    let late = session(&portcullis, later);
    portcullis.applies(|| std::fs::remove_file(portcullis.site.path("clients/old.crt")).unwrap());
    assert_ended(&portcullis, gone, "credential_revoked");
    assert_lives(kept);
    assert_lives(late);
}

#[test]
fn pinned_file_accepts_old_and_new_certificates_with_their_chains() {
    let redis = Redis::start();
    let site = TestDir::new();
    let upload = |name: &str| {
        // Self-signed certificates as users make them: openssl marks them as a CA, and both have the same name.
        let (key, out) = (format!("{name}.key"), format!("{name}.crt"));
        let request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        openssl(&site, &[&request[..], &["-subj", "/CN=app", "-keyout", &key, "-out", &out]].concat());
        std::fs::read_to_string(site.path(&out)).unwrap()
    };
    let (old, new) = (upload("old"), upload("new"));
    let (root, chained) = (Authority::new("Root"), Authority::new("Root"));
    let middle = root.intermediate("Middle");
    site.install("chained", &middle.issue(Request::client("chained")));
    let chain = std::fs::read_to_string(site.path("chained.crt")).unwrap();
    site.write("redis_user.crt", format!("{old}{new}{chain}{}", root.pem()));
    site.install("sibling", &middle.issue(Request::client("sibling")));
    site.install("impostor", &chained.issue(Request::client("chained")));
    let listener =
        Listener::redis(&redis).tls("client_auth = \"required\"").tls("client_certificates = \"redis_user.crt\"");
    let portcullis = start(site, &[&listener]);
    let ping = |name: &str| {
        let port = portcullis.address("main").port().to_string();
        let (cert, key) = (format!("{name}.crt"), format!("{name}.key"));
        let options = ["--tls", "--cacert", "ca.crt", "-h", "localhost", "-p", &port, "--cert", &cert, "--key", &key];
        let mut command = program::command("redis-cli");
        program::run(command.args(options).arg("PING").current_dir(portcullis.site.directory())).text()
    };
    for name in ["old", "new", "chained"] {
        assert_eq!(ping(name), "PONG\n", "{name}");
    }
    for name in ["sibling", "impostor"] {
        assert!(!ping(name).contains("PONG"), "{name}");
    }
}

#[test]
fn client_removed_from_trusted_clients_ends_its_sessions() {
    let upstream = Upstream::echo();
    let (site, clients) = (TestDir::new(), Authority::new("Clients CA"));
    site.write("clients.pem", clients.pem());
    let trusting =
        |names: &str| wanting(&upstream, &["client_ca = \"clients.pem\"", &format!("trusted_clients = [{names}]")]);
    let first = trusting(r#""cn:app", "dns:*.app.internal", "uri:spiffe://prod/*", "email:app@example.com""#);
    let portcullis = start(site, &[&first]);
    let named = |names: &[&str]| {
        let request = Request::client("untrusted");
        clients.issue(names.iter().fold(request, |request, name| request.also(name)))
    };
    let by_name = session(&portcullis, clients.issue(Request::client("app")));
    let by_host = session(&portcullis, named(&["dns:a.app.internal"]));
    let by_uri = session(&portcullis, named(&["dns:elsewhere", "uri:spiffe://prod/ns/app"]));
    let by_mail = session(&portcullis, named(&["email:app@EXAMPLE.com"]));

    // Names of the wrong kind, or that only look alike.
    for untrusted in [
        named(&["dns:app"]),
        named(&["uri:app", "dns:spiffe"]),
        named(&["dns:app.internal"]),
        named(&["uri:spiffe://production/app"]),
        named(&[]),
    ] {
        let (port, refused) = refused_words(&portcullis, untrusted);
        assert!(refused.starts_with("-DENIED "), "{refused}");
        let denied = portcullis.ending(port);
        assert_eq!((denied.reason(), denied.text("client_subject")), ("client_not_trusted", "CN=untrusted"));
        assert_eq!(denied.text("rule"), "ip_addr:127.0.0.1", "{}", denied.0);
    }

    let applied = portcullis.reconfigure(config(&[&trusting(r#""dns:*.app.internal", "uri:spiffe://prod/ns/app""#)]));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    assert_ended(&portcullis, by_name, "credential_revoked");
    assert_ended(&portcullis, by_mail, "credential_revoked");
    assert_lives(by_host);
    assert_lives(by_uri);
}

/// The error for a client with a valid certificate that is not a trusted client.
fn refused_words(portcullis: &Portcullis, leaf: Leaf) -> (u16, String) {
    let mut connection = portcullis.client().showing(leaf).connect();
    let words = connection.rest().unwrap();
    (connection.port(), String::from_utf8(words).unwrap())
}

#[test]
fn session_without_a_certificate_ends_once_one_is_required() {
    let upstream = Upstream::echo();
    let (site, clients) = (TestDir::new(), Authority::new("Clients CA"));
    site.write("clients.pem", clients.pem());
    let asking = |auth: &str| {
        Listener::redis(&upstream).tls(&format!("client_auth = \"{auth}\"")).tls("client_ca = \"clients.pem\"")
    };
    let portcullis = start(site, &[&asking("optional")]);
    let anonymous = portcullis.client().attempt().1.unwrap();
    let identified = session(&portcullis, clients.issue(Request::client("app")));
    portcullis.reconfigure(config(&[&asking("required")]));
    assert_ended(&portcullis, anonymous, "credential_revoked");
    assert_lives(identified);
}

#[test]
fn session_with_a_certificate_survives_client_auth_none() {
    let upstream = Upstream::echo();
    let (site, clients) = (TestDir::new(), Authority::new("Clients CA"));
    site.write("clients.pem", clients.pem());
    let (strict, open) = (wanting(&upstream, &["client_ca = \"clients.pem\""]), Listener::redis(&upstream));
    let portcullis = start(site, &[&strict]);
    let identified = session(&portcullis, clients.issue(Request::client("app")));
    portcullis.reconfigure(config(&[&open]));
    let anonymous = portcullis.client().attempt().1.unwrap();
    portcullis.reconfigure(config(&[&strict]));
    assert_ended(&portcullis, anonymous, "credential_revoked");
    assert_lives(identified);
}

#[test]
fn removed_listener_ends_its_sessions_and_moved_listener_keeps_them() {
    let upstream = Upstream::echo();
    let listeners = ["removed", "moved", "kept"].map(|name| Listener::redis(&upstream).named(name));
    let portcullis = start(TestDir::new(), &[&listeners[0], &listeners[1], &listeners[2]]);
    let [gone, moved, kept] = ["removed", "moved", "kept"].map(|name| portcullis.client_of(name).attempt().1.unwrap());
    let [_, second, third] = listeners;
    portcullis.reconfigure(config(&[&second.on(&["127.0.0.1:0", "[::1]:0"]), &third]));
    assert_ended(&portcullis, gone, "listener_removed");
    assert_lives(moved);
    assert_lives(kept);
}

#[test]
fn revoke_keep_keeps_sessions() {
    let upstream = Upstream::echo();
    let of = |name: &str| Listener::redis(&upstream).named(name).trusting(&["127.0.0.2"]);
    let (global, own) = (of("global"), of("own").key("revoke = \"disconnect\""));
    let keep = |listeners: &[&Listener]| format!("reload.revoke = \"keep\"\n{}", config(listeners));
    let portcullis = Portcullis::start(TestDir::new(), keep(&[&global, &own]));
    let session = |name: &str| portcullis.client_of(name).from("127.0.0.2").attempt().1.unwrap();
    let (kept, gone) = (session("global"), session("own"));
    let elsewhere = ["127.0.0.3"];
    portcullis.reconfigure(keep(&[&global.trusting(&elsewhere), &own.trusting(&elsewhere)]));
    // The session that ends shows that both have been checked.
    assert_ended(&portcullis, gone, "source_revoked");
    assert_lives(kept);
}

#[test]
fn revoked_client_is_not_resumed() {
    let upstream = Upstream::echo();
    let (site, clients) = (TestDir::new(), Authority::new("Clients CA"));
    site.write("clients.pem", clients.pem());
    let listener = wanting(&upstream, &["client_ca = \"clients.pem\""]);
    let portcullis = start(site, &[&listener]);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = portcullis.client().speaking(version).showing(clients.issue(Request::client("app")));
        let first = client.attempt().1.unwrap();
        assert_eq!(first.tls().handshake_kind(), Some(rustls::HandshakeKind::Full));
        let again = client.attempt().1.unwrap();
        assert_eq!(again.tls().handshake_kind(), Some(rustls::HandshakeKind::Resumed), "in steady state it resumes");
        portcullis.reconfigure(config(&[&listener.clone().tls("trusted_clients = \"cn:other\"")]));
        let (port, refused) = client.attempt();
        refused.unwrap_err();
        assert_eq!(portcullis.refusal(port), "client_not_trusted");
        portcullis.reconfigure(config(&[&listener]));
        let later = client.attempt().1.unwrap();
        assert_eq!(later.tls().handshake_kind(), Some(rustls::HandshakeKind::Full), "trust has changed meanwhile");
    }
}

#[test]
fn sessions_with_junk_chains_do_not_delay_other_revocations() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let [main, old, new] = ["Main CA", "Old CA", "Old CA"].map(Authority::new);
    let [victim, kept, hostile] = [&main, &main, &old].map(|authority| authority.issue(Request::client("app")));
    site.write("clients.pem", format!("{}{}", main.pem(), old.pem()));
    site.write("clients.crl", main.revoking(&[], 1));
    let lines = ["client_ca = \"clients.pem\"", "client_crl = \"clients.crl\""];
    let portcullis = start(site, &[&wanting(&upstream, &lines)]);
    // Each of them has a different chain, and the new CA of the old name makes each chain be verified again.
    let parked: Vec<_> =
        (0..40).map(|_| session(&portcullis, hostile.copied().followed_by(&[Authority::new("Old CA")]))).collect();
    let (gone, stays) = (session(&portcullis, &victim), session(&portcullis, kept));
    portcullis.applies(|| {
        portcullis.site.replace("clients.pem", format!("{}{}", main.pem(), new.pem()));
        portcullis.site.replace("clients.crl", main.revoking(&[&victim], 1));
        portcullis.hang_up();
    });
    assert_ended(&portcullis, gone, "credential_revoked");
    for session in parked {
        assert_ended(&portcullis, session, "credential_revoked");
    }
    assert_lives(stays);
}
