//! TLS session resumption: it works while nothing has changed, and it never bypasses a change of policy.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::HandshakeKind::{self, Full, Resumed};
use rustls::version::{TLS12, TLS13};
use time::{Duration, OffsetDateTime};

use crate::harness::openssl::s_client;
use crate::harness::portcullis::executable;
use crate::harness::program::run;
use crate::harness::{
    Authority, Client, ClockedPortcullis, CrlContent, Leaf, Listener, Portcullis, Request, TestDir, Upstream,
};
use crate::reload::ON_SIGHUP;
use crate::revocation::{assert_lives, wanting};

/// Sends bytes that show every client of these tests that it is admitted.
fn greeting() -> Upstream {
    Upstream::sending_and_closing(b"PING from the upstream\n")
}

const GREETING: &str = "from the upstream";

/// The result of a connection of a client that has a TLS session from an earlier one.
type Reception = Result<HandshakeKind, String>;

/// A client with the TLS session of its first connection.
enum Guest {
    Rustls(Box<Client>),
    /// Offers the TLS session of its first connection every time.
    Openssl {
        options: Vec<String>,
    },
}

impl Guest {
    /// Every kind of TLS session, each from a first connection.
    fn all(portcullis: &Portcullis, leaf: Option<&Leaf>) -> Vec<Self> {
        static SESSIONS: AtomicUsize = AtomicUsize::new(1);
        let mut options = Vec::new();
        if let Some(leaf) = leaf {
            portcullis.site.install("guest", leaf);
            options.extend(["-cert", "guest.crt", "-key", "guest.key"]);
        }
        let openssl = [&["-tls1_2"][..], &["-tls1_2", "-no_ticket"], &["-tls1_3"]].map(|version| {
            let file = format!("session-{}", SESSIONS.fetch_add(1, Ordering::Relaxed));
            let options: Vec<&str> = [version, options.as_slice()].concat();
            let first = [options.as_slice(), &["-sess_out", &file]].concat();
            let output = run(&mut s_client(&portcullis.site, portcullis.address("main"), &first)).success();
            assert!(output.contains("New, TLS") && output.contains(GREETING), "{output}");
            Self::Openssl {
                options: [options.as_slice(), &["-sess_in", &file]].concat().iter().map(|&o| o.into()).collect(),
            }
        });
        let rustls = [&TLS12, &TLS13].map(|version| {
            let client = portcullis.client().speaking(version);
            let client = match leaf {
                Some(leaf) => client.showing(leaf),
                None => client,
            };
            let first = client.attempt().1.unwrap();
            assert_eq!(first.tls().handshake_kind(), Some(Full));
            Self::Rustls(Box::new(client))
        });
        openssl.into_iter().chain(rustls).collect()
    }

    /// Connects again with its TLS session. `home` has its files.
    fn connect(&mut self, home: &TestDir, portcullis: &Portcullis, listener: &str) -> Reception {
        let address = portcullis.address(listener);
        match self {
            Self::Rustls(client) => {
                client.go_to(address);
                let (port, attempt) = client.attempt();
                match attempt {
                    Ok(connection) => Ok(connection.tls().handshake_kind().unwrap()),
                    Err(_) => Err(portcullis.refusal(port)),
                }
            }
            Self::Openssl { options } => {
                let seen = portcullis.seen();
                let options: Vec<&str> = options.iter().map(String::as_str).collect();
                let output = run(&mut s_client(home, address, &options)).text();
                if output.contains(GREETING) {
                    return Ok(if output.contains("Reused, TLS") { Resumed } else { Full });
                }
                let denied = portcullis.event_after(seen, "a refusal", |event| event.is("connection.denied"));
                Err(denied.reason().to_owned())
            }
        }
    }

    /// Whether it offers the ticket of its first connection every time, so that the test knows which one. rustls uses a ticket
    /// of TLS 1.3 once, and a session without a ticket is dropped with the policy under which it was made.
    fn keeps_ticket(&self) -> bool {
        matches!(self, Self::Openssl { options } if !options.iter().any(|option| option == "-no_ticket"))
    }

    fn is_openssl(&self) -> bool {
        matches!(self, Self::Openssl { .. })
    }

    fn name(&self) -> String {
        match self {
            Self::Rustls(client) => format!("rustls with {}", client.versions()),
            Self::Openssl { options } => format!("openssl {}", options.join(" ")),
        }
    }
}

/// A listener and its clients.
struct Inn {
    portcullis: Portcullis,
    guests: Vec<Guest>,
    _upstream: Upstream,
}

/// The kind of ticket keys.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Keys {
    Own,
    Shared,
}

impl Inn {
    /// Starts with these files in the directory, and connects every client for the first time.
    fn open(keys: Keys, leaf: Option<&Leaf>, lines: &[&str], files: &[(&str, String)]) -> Self {
        let upstream = greeting();
        let (site, config) = furnished(&upstream, keys, lines, files);
        let portcullis = Portcullis::start(site, config);
        let guests = Guest::all(&portcullis, leaf);
        Self { portcullis, guests, _upstream: upstream }
    }

    fn assert_received(&mut self, expected: &Reception, when: &str) {
        assert_received(&mut self.guests, &self.portcullis, expected, when);
    }

    fn change(&self, file: &str, text: &str) {
        self.portcullis.applies(|| {
            self.portcullis.site.replace(file, text);
            self.portcullis.hang_up();
        });
    }

    /// Every client resumes; is denied for this reason while `file` holds `text`; and is admitted again afterwards, by
    /// a full handshake if the ticket keys are those of the listener, which has dropped them. Under shared keys a ticket is
    /// bound to the trust under which it was issued, and valid again with that.
    fn assert_never_around(mut self, keys: Keys, file: &str, text: &str, reason: &str) {
        let before = fs::read_to_string(self.portcullis.site.path(file)).unwrap();
        self.assert_received(&Ok(Resumed), "in steady state");
        self.change(file, text);
        self.assert_received(&Err(reason.to_owned()), "after the change");
        self.change(file, &before);
        for guest in &mut self.guests {
            let name = guest.name();
            let received = guest.connect(&self.portcullis.site, &self.portcullis, "main");
            match keys {
                Keys::Shared if guest.keeps_ticket() => assert_eq!(received, Ok(Resumed), "{name}, {keys:?}"),
                Keys::Shared => assert!(received.is_ok(), "{name}, {keys:?}: {received:?}"),
                Keys::Own => assert_eq!(received, Ok(Full), "{name}, {keys:?}"),
            }
        }
    }
}

/// A directory with these files, and the configuration of a listener with these lines of its TLS.
fn furnished(upstream: &Upstream, keys: Keys, lines: &[&str], files: &[(&str, String)]) -> (TestDir, String) {
    let site = TestDir::new();
    for (name, text) in files {
        site.write(name, text);
    }
    let mut listener = lines.iter().fold(Listener::redis(upstream), |listener, line| listener.tls(line));
    if keys == Keys::Shared {
        site.write("tickets.keys", key());
        listener = listener.tls("ticket_keys = \"tickets.keys\"");
    }
    (site, format!("{ON_SIGHUP}{listener}"))
}

/// Every client connects again with the same result.
fn assert_received(guests: &mut [Guest], portcullis: &Portcullis, expected: &Reception, when: &str) {
    for guest in guests {
        let name = guest.name();
        let received = guest.connect(&portcullis.site, portcullis, "main");
        assert_eq!(&received, expected, "{name}, {when}");
    }
}

/// A line of the ticket key file.
fn key() -> String {
    let mut key = [0; 48];
    rand::fill(&mut key).unwrap();
    format!("{}\n", STANDARD.encode(key))
}

const BOTH: [Keys; 2] = [Keys::Own, Keys::Shared];

fn app(authority: &Authority) -> Leaf {
    authority.issue(Request::client("app"))
}

#[test]
fn ticket_is_not_resumed_after_its_ca_is_removed() {
    for keys in BOTH {
        let clients = Authority::new("Clients CA");
        let lines = ["client_auth = \"required\"", "client_ca = \"clients.pem\""];
        let inn = Inn::open(keys, Some(&app(&clients)), &lines, &[("clients.pem", clients.pem())]);
        let other = Authority::new("Other CA").pem();
        inn.assert_never_around(keys, "clients.pem", &other, "client_certificate_unknown_ca");
    }
}

#[test]
fn ticket_is_not_resumed_after_its_certificate_is_revoked() {
    for keys in BOTH {
        let clients = Authority::new("Clients CA");
        let leaf = app(&clients);
        let files = [("clients.pem", clients.pem()), ("clients.crl", clients.list(CrlContent::nothing(1)).pem())];
        let lines = ["client_auth = \"required\"", "client_ca = \"clients.pem\"", "client_crl = \"clients.crl\""];
        let inn = Inn::open(keys, Some(&leaf), &lines, &files);
        let list = clients.list(CrlContent::nothing(2).and(leaf.der())).pem();
        inn.assert_never_around(keys, "clients.crl", &list, "client_certificate_revoked");
    }
}

#[test]
fn ticket_is_not_resumed_after_its_pinned_certificate_is_removed() {
    for keys in BOTH {
        let (leaf, other) = (app(&Authority::new("Anybody's CA")), app(&Authority::new("Another CA")));
        let lines = ["client_auth = \"required\"", "client_certificates = \"pinned.crt\""];
        let inn = Inn::open(keys, Some(&leaf), &lines, &[("pinned.crt", leaf.pem())]);
        inn.assert_never_around(keys, "pinned.crt", &other.pem(), "client_certificate_unknown_ca");
    }
}

#[test]
fn ticket_is_not_resumed_after_its_trusted_client_is_removed() {
    for keys in BOTH {
        let clients = Authority::new("Clients CA");
        let lines = ["client_auth = \"required\"", "client_ca = \"clients.pem\"", "trusted_clients = [\"cn:app\"]"];
        let inn = Inn::open(keys, Some(&app(&clients)), &lines, &[("clients.pem", clients.pem())]);
        let config = fs::read_to_string(inn.portcullis.site.path("portcullis.toml")).unwrap();
        let tightened = config.replace("cn:app", "cn:other");
        inn.assert_never_around(keys, "portcullis.toml", &tightened, "client_not_trusted");
    }
}

#[test]
fn ticket_without_a_certificate_is_not_resumed_once_one_is_required() {
    for keys in BOTH {
        let clients = Authority::new("Clients CA");
        let lines = ["client_auth = \"optional\"", "client_ca = \"clients.pem\""];
        let inn = Inn::open(keys, None, &lines, &[("clients.pem", clients.pem())]);
        let config = fs::read_to_string(inn.portcullis.site.path("portcullis.toml")).unwrap();
        let required = config.replace("\"optional\"", "\"required\"");
        inn.assert_never_around(keys, "portcullis.toml", &required, "client_certificate_missing");
    }
}

#[test]
fn ticket_is_not_resumed_after_its_source_is_removed() {
    for keys in BOTH {
        let clients = Authority::new("Clients CA");
        let lines = ["client_auth = \"required\"", "client_ca = \"clients.pem\""];
        let mut inn = Inn::open(keys, Some(&app(&clients)), &lines, &[("clients.pem", clients.pem())]);
        let config = fs::read_to_string(inn.portcullis.site.path("portcullis.toml")).unwrap();
        let trusting = |sources: &str| config.replace("[\"127.0.0.1\"]", sources);
        inn.change("portcullis.toml", &trusting("[\"127.0.0.1\", \"127.0.0.2\"]"));
        inn.assert_received(&Ok(Resumed), "after another source was added");
        inn.change("portcullis.toml", &trusting("[\"127.0.0.2\"]"));
        inn.assert_received(&Err("untrusted_source".to_owned()), "after its source was removed");
        inn.change("portcullis.toml", &config);
        inn.portcullis.applies(|| inn.portcullis.hang_up());
        inn.assert_received(&Ok(Resumed), "as trust is the same, and a SIGHUP changes nothing");
    }
}

#[test]
fn ticket_is_not_resumed_after_its_certificate_expires() {
    let clients = Authority::new("Clients CA");
    let leaf = clients.issue(Request::client("app").expiring(OffsetDateTime::now_utc() + Duration::HOUR));
    let lines = ["client_auth = \"required\"", "client_ca = \"clients.pem\""];
    for keys in BOTH {
        let upstream = greeting();
        let (site, config) = furnished(&upstream, keys, &lines, &[("clients.pem", clients.pem())]);
        let portcullis = ClockedPortcullis::start(site, config);
        let mut guests = Guest::all(&portcullis, Some(&leaf));
        assert_received(&mut guests, &portcullis, &Ok(Resumed), "in its time");
        // Still in the lifetime of its tickets.
        portcullis.set(2 * Duration::HOUR);
        let expired = Err("client_certificate_expired".to_owned());
        assert_received(&mut guests, &portcullis, &expired, "after its time");
    }
}

#[test]
fn ticket_of_one_listener_is_not_resumed_on_another() {
    for keys in BOTH {
        let (upstream, site) = (greeting(), TestDir::new());
        let clients = Authority::new("Clients CA");
        site.write("clients.pem", clients.pem());
        site.write("tickets.keys", key());
        let mut lines = vec!["client_ca = \"clients.pem\""];
        if keys == Keys::Shared {
            lines.push("ticket_keys = \"tickets.keys\"");
        }
        let main = wanting(&upstream, &lines);
        // With the same certificate, trust and keys.
        let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{main}{}", main.clone().named("other")));
        for mut guest in Guest::all(&portcullis, Some(&app(&clients))) {
            let name = guest.name();
            assert_eq!(guest.connect(&portcullis.site, &portcullis, "other"), Ok(Full), "{name}, {keys:?}");
            // rustls stores sessions by server name, and now offers that of the other replica.
            let expected = if guest.is_openssl() { Resumed } else { Full };
            assert_eq!(guest.connect(&portcullis.site, &portcullis, "main"), Ok(expected), "{name}, {keys:?}");
        }
    }
}

/// A replica with the files of another one.
fn replica(of: &TestDir, config: &str) -> Portcullis {
    let site = TestDir::new();
    for name in ["ca.crt", "server.crt", "server.key", "clients.pem", "tickets.keys"] {
        site.write(name, fs::read_to_string(of.path(name)).unwrap());
    }
    Portcullis::start(site, config)
}

/// Two replicas of one listener with a ticket key, and their upstream.
struct Replicas {
    both: [Portcullis; 2],
    clients: Authority,
    key: String,
    _upstream: Upstream,
}

impl Replicas {
    fn start() -> Self {
        let (upstream, site) = (greeting(), TestDir::new());
        let (clients, key) = (Authority::new("Clients CA"), key());
        site.write("clients.pem", clients.pem());
        site.write("tickets.keys", &key);
        let lines = ["client_ca = \"clients.pem\"", "ticket_keys = \"tickets.keys\""];
        let config = format!("{ON_SIGHUP}{}", wanting(&upstream, &lines));
        let first = Portcullis::start(site, &config);
        let second = replica(&first.site, &config);
        Self { both: [first, second], clients, key, _upstream: upstream }
    }

    /// Sessions of TLS 1.2 and 1.3 with tickets, from the first replica.
    fn tickets(&self) -> Vec<Guest> {
        let mut guests = Guest::all(&self.both[0], Some(&app(&self.clients)));
        guests.retain(Guest::keeps_ticket);
        guests
    }

    /// The result of these clients at each replica.
    fn assert_received(&self, guests: &mut [Guest], expected: [HandshakeKind; 2], when: &str) {
        for guest in guests {
            for (replica, expected) in self.both.iter().zip(expected) {
                let name = guest.name();
                let received = guest.connect(&self.both[0].site, replica, "main");
                assert_eq!(received, Ok(expected), "{name}, {when}, {}", replica.site.directory().display());
            }
        }
    }

    fn change(&self, which: usize, file: &str, text: &str) {
        let replica = &self.both[which];
        replica.applies(|| {
            replica.site.replace(file, text);
            replica.hang_up();
        });
    }
}

#[test]
fn replicas_with_the_same_ticket_keys_resume_each_others_sessions() {
    let replicas = Replicas::start();
    let [_, second] = &replicas.both;
    for mut guest in Guest::all(&replicas.both[0], Some(&app(&replicas.clients))) {
        let name = guest.name();
        let received = guest.connect(&replicas.both[0].site, second, "main");
        // A session without a ticket is only stored in the process that created it.
        let expected = if name.contains("-no_ticket") { Full } else { Resumed };
        assert_eq!(received, Ok(expected), "{name}");
    }
}

#[test]
fn replica_with_other_trust_resumes_no_session() {
    let replicas = Replicas::start();
    let mut tickets = replicas.tickets();
    replicas.assert_received(&mut tickets, [Resumed, Resumed], "with the same trust");
    let both = format!("{}{}", replicas.clients.pem(), Authority::new("Other CA").pem());
    replicas.change(1, "clients.pem", &both);
    replicas.assert_received(&mut tickets, [Resumed, Full], "with one CA more");
    replicas.change(0, "clients.pem", &both);
    replicas.assert_received(&mut tickets, [Full, Full], "with another trust than that of the ticket");
    let mut fresh = replicas.tickets();
    replicas.assert_received(&mut fresh, [Resumed, Resumed], "with the same trust again");
}

#[test]
fn ticket_key_rotation_on_replicas_keeps_resumption() {
    let replicas = Replicas::start();
    let (old, new) = (replicas.key.clone(), key());
    let mut under_old = replicas.tickets();
    replicas.assert_received(&mut under_old, [Resumed, Resumed], "[old] and [old]");

    let overlap = format!("# from today on\n{new}{old}");
    replicas.change(0, "tickets.keys", &overlap);
    replicas.assert_received(&mut under_old, [Resumed, Resumed], "[new, old] and [old]");
    let mut under_new = replicas.tickets();
    replicas.assert_received(&mut under_new, [Resumed, Full], "[new, old] and [old]");
    replicas.change(1, "tickets.keys", &overlap);
    replicas.assert_received(&mut under_old, [Resumed, Resumed], "[new, old] and [new, old]");
    replicas.assert_received(&mut under_new, [Resumed, Resumed], "[new, old] and [new, old]");

    replicas.change(0, "tickets.keys", &new);
    replicas.assert_received(&mut under_old, [Full, Resumed], "[new] and [new, old]");
    replicas.assert_received(&mut under_new, [Resumed, Resumed], "[new] and [new, old]");
    replicas.change(1, "tickets.keys", &new);
    replicas.assert_received(&mut under_old, [Full, Full], "[new] and [new]");
    replicas.assert_received(&mut under_new, [Resumed, Resumed], "[new] and [new]");

    for replica in &replicas.both {
        assert!(!replica.events().iter().any(|event| event.is("connection.denied") || event.is("session.revoked")));
    }
}

#[test]
fn invalid_ticket_keys_reject_the_reload_and_are_not_shown() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let good = key();
    site.write("tickets.keys", &good);
    let listener = Listener::redis(&upstream).tls("ticket_keys = \"tickets.keys\"");
    let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{listener}"));
    let client = portcullis.client();
    let inside = client.attempt().1.unwrap();
    let secret = key();
    let cut = secret.trim_end();
    for (text, words) in [
        (format!("# short\n{}\n", &cut[..40]), "line 2: 30 bytes in base64, but a key has 48"),
        (format!("{good}{}\n", &cut[..61]), "line 2: not base64, or truncated"),
        (format!("{good}{}!\n", &cut[..63]), "line 2: not base64"),
        (format!("{good}\n{cut}{cut}\n"), "line 3: 96 bytes in base64"),
        (format!("{secret}{secret}"), "line 2: same key as line 1"),
        (String::new(), "holds no key"),
    ] {
        let rejected = portcullis.reload_after(|| {
            portcullis.site.replace("tickets.keys", &text);
            portcullis.hang_up();
        });
        assert!(rejected.is("reload.rejected"), "{words}: {}", rejected.0);
        let error = rejected.text("error");
        assert!(error.contains("tickets.keys") && error.contains(words), "no {words} in {error}");
        let checked = run(executable().arg("check").arg("-c").arg(portcullis.site.path("portcullis.toml")));
        assert_eq!(checked.code, Some(78), "{}", checked.stderr);
        for output in [format!("{:?}", portcullis.events()), portcullis.errors(), checked.text(), checked.stderr] {
            for key in [&good, &secret] {
                let mut pieces = key.trim_end().as_bytes().windows(8).map(|piece| str::from_utf8(piece).unwrap());
                assert!(!pieces.any(|piece| output.contains(piece)), "a piece of a key: {output}");
            }
        }
    }
    // The old keys are in force all the time.
    let resumed = client.attempt().1.unwrap();
    assert_eq!(resumed.tls().handshake_kind(), Some(Resumed));
    portcullis.applies(|| {
        portcullis.site.replace("tickets.keys", &good);
        portcullis.hang_up();
    });
    assert_lives(inside);
}
