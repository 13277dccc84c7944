use serde_json::Value;
use time::{Duration as Days, OffsetDateTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::audit::LineFormat;
use crate::audit::log::subscriber;
use crate::audit::recent::EventFilter;
use crate::control;
use crate::dns::refresher;
use crate::fault::injection::inject;
use crate::policy::fixtures::{ConfigDir, listener};
use crate::resolution::observation::{Evidence, ObjectAddress, Observation};
use crate::server::cloud::CloudObserver;
use crate::server::reload;
use crate::server::reload::ReloadResult;
use crate::source::cloud::CloudSource;
use crate::upstream::health_check;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A configuration with one listener, which has a shield, and an admin socket.
struct Fixture(ConfigDir);

impl Fixture {
    fn new() -> Self {
        let dir = ConfigDir::new();
        dir.install("main", OffsetDateTime::now_utc() + Days::days(365));
        let fixture = Self(dir);
        fixture.configure("127.0.0.1", "127.0.0.9");
        fixture
    }

    /// Writes a configuration that listens on `address` and trusts `trusted`.
    fn configure(&self, address: &str, trusted: &str) {
        let process = "admin.listen = \"unix:admin.sock\"\nreload = { watch = false, poll = \"0s\" }\n";
        let listener =
            listener("main", 0, &format!("{trusted:?}")).replace("\"127.0.0.1:0\"", &format!("\"{address}:0\""));
        let listener = listener.replace("tls.", "shield = \"on\"\ntls.");
        std::fs::write(self.0.path("portcullis.toml"), format!("{process}{listener}")).unwrap();
    }

    fn build(&self, previous: Option<&Snapshot>, resolutions: &ResolutionCache) -> (Built, Fingerprint) {
        let (built, fingerprint) = reload::build(&self.0.path("portcullis.toml"), previous, resolutions);
        (built.unwrap(), fingerprint)
    }

    fn start(&self) -> Server {
        let resolutions = Arc::new(ResolutionCache::default());
        let (built, fingerprint) = self.build(None, &resolutions);
        let audit = Audit::start(LineFormat::Json, None);
        let (_, log) = subscriber(&audit, "info").unwrap();
        Server::start(built, fingerprint, resolutions, audit, log).unwrap()
    }

    /// Reloads the files, as after a request.
    fn reload(&self, server: &mut Server) -> ReloadResult {
        let current = server.published.policy();
        let (built, _) = self.build(Some(&current), &server.resolutions);
        let (reply, mut result) = oneshot::channel();
        let attempt =
            ReloadAttempt { requested: true, reply: Some(reply), same_files: false, outcome: Ok(Box::new(built)) };
        server.handle_reload(attempt, &current);
        result.try_recv().unwrap().result
    }

    /// Sends a request and returns the status code and the body.
    async fn request(&self, path: &str) -> (String, Value) {
        let request = format!("{path} HTTP/1.1\r\nhost: portcullis\r\ncontent-length: 0\r\n\r\n");
        let response = async {
            let mut socket = UnixStream::connect(self.0.path("admin.sock")).await.unwrap();
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            socket.read_to_string(&mut text).await.unwrap();
            text
        };
        let text = timeout(TIMEOUT, response).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap();
        (status.to_owned(), serde_json::from_str(body).unwrap())
    }
}

fn generation(server: &Server) -> u64 {
    server.published.policy().generation
}

/// The messages of the faults of a part in `status`.
fn faults(status: &Value, part: &str) -> Vec<String> {
    let all = status["faults"].as_array().unwrap().iter();
    all.filter(|fault| fault["part"] == part).map(|fault| fault["message"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn fault_before_a_policy_is_in_force_keeps_the_running_one() {
    let fixture = Fixture::new();
    let mut server = fixture.start();
    fixture.configure("127.0.0.1", "127.0.0.1");
    inject(reload::PART);
    let error = fixture.reload(&mut server).unwrap_err();
    assert!(error.starts_with("internal fault in reload: injected into reload"), "{error}");
    assert_eq!(generation(&server), 1);
    assert_eq!(fixture.reload(&mut server).unwrap().generation, 2, "the next reload works");
}

#[tokio::test]
async fn requested_reload_of_the_same_files_keeps_only_the_same_policy() {
    let fixture = Fixture::new();
    let mut server = fixture.start();
    let mut reload = || {
        let current = server.published.policy();
        let (built, _) = fixture.build(Some(&current), &server.resolutions);
        let (reply, mut result) = oneshot::channel();
        let attempt =
            ReloadAttempt { requested: true, reply: Some(reply), same_files: true, outcome: Ok(Box::new(built)) };
        server.handle_reload(attempt, &current);
        let ReloadReply { result, in_force_since } = result.try_recv().unwrap();
        (result.unwrap().generation, in_force_since.is_some())
    };
    assert_eq!(reload(), (1, true));
    // The fingerprint claims equal files, but the policy differs.
    fixture.0.install("main", OffsetDateTime::now_utc() + Days::days(365));
    assert_eq!(reload(), (2, false));
    assert_eq!(reload(), (2, true));
}

#[tokio::test]
async fn fault_in_one_part_of_a_reload_does_not_affect_the_others() {
    let fixture = Fixture::new();
    let mut server = fixture.start();
    let parts = ["listeners", control::PART, "log", reload::PART, "audit", certificate_expiry::PART, "none"];
    for (turn, part) in (2..).zip(parts) {
        let source = format!("127.0.0.{turn}");
        fixture.configure(&source, &source);
        let current = server.published.policy();
        let (built, _) = fixture.build(Some(&current), &server.resolutions);
        let prepared = server.prepare(&built.snapshot, &current).unwrap();
        inject(part);
        let changes = server.put_in_force(built, prepared, &current);
        assert_eq!((changes.generation, generation(&server)), (turn, turn), "{part}");
        let policy = Arc::clone(server.published.policy().named("main").unwrap());
        let moved = server.listeners.addresses(&policy).iter().any(|address| address.starts_with(&source));
        assert_eq!(moved, part != "listeners", "{part}");
        assert_eq!(changes.sources_added, usize::from(part != "audit"), "{part}");
    }
}

#[tokio::test]
async fn fault_in_a_shield_opens_the_port() {
    let fixture = Fixture::new();
    let mut server = fixture.start();
    let current = server.published.policy();
    let policy = current.named("main").unwrap();
    assert!(server.listeners.shield(policy).active_since.is_some(), "{:?}", server.listeners.shield(policy));
    inject("shield");
    server.listeners.update_shields(&current);
    assert_eq!(server.listeners.shield(policy).active_since, None);
    let connected = TcpStream::connect(server.listeners.addresses(policy).remove(0));
    timeout(TIMEOUT, connected).await.expect("the kernel no longer drops packets").unwrap();
    fixture.reload(&mut server).unwrap();
    let again = server.published.policy();
    assert!(
        server.listeners.shield(again.named("main").unwrap()).active_since.is_some(),
        "a reload activates it again"
    );
}

#[tokio::test]
async fn faults_of_the_running_program_are_in_status_and_end_nothing() {
    let fixture = Fixture::new();
    let server = fixture.start();
    let parts = ["revocation", refresher::PART, health_check::PART, "server loop", certificate_expiry::PART];
    parts.iter().for_each(|part| inject(part));
    let requests = async {
        let (code, status) = fixture.request("GET /v1/status").await;
        assert_eq!(code, "200", "{status}");
        for part in parts {
            // Other tests of the process may have injected the same.
            assert!(faults(&status, part).contains(&format!("injected into {part}")), "{status}");
        }
        inject(admin_handler::PART);
        assert_eq!(fixture.request("GET /v1/status").await.0, "500");
        inject(reload::PART);
        let (code, rejected) = fixture.request("POST /v1/reload").await;
        assert_eq!(code, "422");
        assert!(rejected["message"].as_str().unwrap().contains("injected into reload"), "{rejected}");
        let (_, status) = fixture.request("GET /v1/status").await;
        assert_eq!((&status["generation"], &status["last_reload"]["result"]), (&1.into(), &"rejected".into()));
        assert!(!faults(&status, admin_handler::PART).is_empty(), "{status}");
        assert_eq!(fixture.request("POST /v1/reload").await.0, "200");
    };
    let signals = Signals::unsent().unwrap();
    tokio::select! {
        () = server.run(signals) => unreachable!("no signal is sent"),
        () = requests => {}
    }
}

fn observed(last: &[u8]) -> Observation {
    let each = |last: &u8| ObjectAddress { ip: [10, 0, 0, *last].into(), object: format!("droplet web-{last}").into() };
    Observation::Addresses { addresses: last.iter().map(each).collect(), evidence: Evidence::List }
}

#[tokio::test]
async fn observation_comes_into_force_and_is_audited_for_each_listener_that_has_the_rule() {
    let fixture = Fixture::new();
    for name in ["second", "third"] {
        fixture.0.install(name, OffsetDateTime::now_utc() + Days::days(365));
    }
    std::fs::write(fixture.0.path("do.token"), "token").unwrap();
    let process = "admin.listen = \"unix:admin.sock\"\nreload = { watch = false, poll = \"0s\" }\nstate.directory = \"state\"\n\
                   [resolver.digitalocean]\ntoken_file = \"do.token\"\n";
    let listeners = [
        listener("main", 0, "\"tag:web\", \"192.0.2.1\""),
        listener("second", 0, "\"tag:web\""),
        listener("third", 0, "\"192.0.2.1\""),
    ];
    std::fs::write(fixture.0.path("portcullis.toml"), format!("{process}{}", listeners.concat())).unwrap();
    let server = fixture.start();
    let [web, other] = ["web", "other"].map(|tag| CloudSource::parse("tag", tag).unwrap().unwrap());
    let task = server.published.cloud_task();
    assert_eq!(task.borrow().sources, std::slice::from_ref(&web));
    assert!(task.borrow().digitalocean.is_some() && task.borrow().kubernetes.is_none());
    let mut current = server.published.subscribe();
    let (cache, audit) = (Arc::clone(&server.resolutions), server.audit.clone());
    let observer = CloudObserver { cache, current: current.clone(), audit };
    let mut events = server.audit.recent_events().reader(0, EventFilter::default());
    let is_trusted = |snapshot: &Snapshot, listener: &str, last: u8| {
        let trusted = &snapshot.named(listener).unwrap().sources.trusted;
        trusted.lookup([10, 0, 0, last].into(), OffsetDateTime::now_utc()).is_ok()
    };
    let steps = async {
        observer.observe(&other, observed(&[9]));
        observer.observe(&web, observed(&[1, 2]));
        timeout(TIMEOUT, current.changed()).await.unwrap().unwrap();
        let snapshot = Arc::clone(&current.borrow_and_update());
        assert_eq!(snapshot.generation, 2);
        for (listener, last, expected) in
            [("main", 1, true), ("second", 2, true), ("third", 1, false), ("main", 9, false)]
        {
            assert_eq!(is_trusted(&snapshot, listener, last), expected, "{listener} {last}");
        }
        for _ in 0..2 {
            observer.observe(&web, Observation::Failed { error: "the API answered 429".to_owned() });
        }
        observer.observe(&web, observed(&[2, 3]));
        timeout(TIMEOUT, current.changed()).await.unwrap().unwrap();
        let snapshot = Arc::clone(&current.borrow_and_update());
        assert!(!is_trusted(&snapshot, "main", 1) && is_trusted(&snapshot, "main", 3));
        assert!(!task.has_changed().unwrap(), "the same task");
        while !std::fs::read_dir(fixture.0.path("state")).is_ok_and(|mut files| files.next().is_some()) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let signals = Signals::unsent().unwrap();
    tokio::select! {
        () = server.run(signals) => unreachable!("no signal is sent"),
        () = async { timeout(TIMEOUT, steps).await.unwrap() } => {}
    }
    let mut seen = Vec::new();
    while let Some(batch) = events.take() {
        seen.extend(batch.events.iter().map(|event| {
            let event: Value = serde_json::from_str(&event.json).unwrap();
            let fields = ["event", "listener", "rule", "added", "removed", "addresses", "error"];
            fields.map(|field| event[field].to_string().replace('"', "")).join(" ")
        }));
    }
    seen.retain(|event| event.starts_with("source."));
    let of_both = |event: &str| ["main", "second"].map(|listener| event.replace("LISTENER", listener));
    let expected = [
        of_both("source.resolved LISTENER tag:web 2 0 2 null"),
        of_both("source.stale LISTENER tag:web null null null the API answered 429"),
        of_both("source.resolved LISTENER tag:web 1 1 2 null"),
    ];
    assert_eq!(seen, expected.concat());
}
