use serde_json::Value;
use time::{Duration as Days, OffsetDateTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::audit::LineFormat;
use crate::audit::log::subscriber;
use crate::control;
use crate::fault::injection::inject;
use crate::policy::fixtures::{Site, listener};
use crate::server::reload;
use crate::server::reload::ReloadResult;

const PATIENCE: Duration = Duration::from_secs(30);

/// A site with one listener behind a shield, and a control channel.
struct World(Site);

impl World {
    fn new() -> Self {
        let site = Site::new();
        site.install("main", OffsetDateTime::now_utc() + Days::days(365));
        let world = Self(site);
        world.configure("127.0.0.1", "127.0.0.9");
        world
    }

    /// Listens at this address, and trusts that one.
    fn configure(&self, address: &str, trusted: &str) {
        let whole = "admin.listen = \"unix:admin.sock\"\nreload = { watch = false, poll = \"0s\" }\n";
        let listener =
            listener("main", 0, &format!("{trusted:?}")).replace("\"127.0.0.1:0\"", &format!("\"{address}:0\""));
        let listener = listener.replace("tls.", "shield = \"on\"\ntls.");
        std::fs::write(self.0.path("portcullis.toml"), format!("{whole}{listener}")).unwrap();
    }

    fn build(&self, previous: Option<&Snapshot>, host_cache: &HostCache) -> (Built, Fingerprint) {
        let (built, fingerprint) = reload::build(&self.0.path("portcullis.toml"), previous, host_cache);
        (built.unwrap(), fingerprint)
    }

    fn start(&self) -> Server {
        let host_cache = Arc::new(HostCache::default());
        let (built, fingerprint) = self.build(None, &host_cache);
        let audit = Audit::start(LineFormat::Json, None);
        let (_, log) = subscriber(&audit, "info").unwrap();
        Server::start(built, fingerprint, host_cache, audit, log).unwrap()
    }

    /// Considers what the files say now, as after a request.
    fn reload(&self, server: &mut Server) -> ReloadResult {
        let current = server.published.policy();
        let (built, _) = self.build(Some(&current), &server.host_cache);
        let (asker, mut verdict) = oneshot::channel();
        let attempt =
            ReloadAttempt { requested: true, asker: Some(asker), same_files: false, outcome: Ok(Box::new(built)) };
        server.consider(attempt, &current);
        verdict.try_recv().unwrap().verdict
    }

    /// Asks the running program, once it answers.
    async fn ask(&self, path: &str) -> (String, Value) {
        let request = format!("{path} HTTP/1.1\r\nhost: portcullis\r\ncontent-length: 0\r\n\r\n");
        let asked = async {
            let mut socket = UnixStream::connect(self.0.path("admin.sock")).await.unwrap();
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = timeout(PATIENCE, asked).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap();
        (status.to_owned(), serde_json::from_str(body).unwrap())
    }
}

fn generation(server: &Server) -> u64 {
    server.published.policy().generation
}

/// What `status` has of the faults of a part.
fn faults(status: &Value, part: &str) -> Vec<String> {
    let all = status["faults"].as_array().unwrap().iter();
    all.filter(|fault| fault["part"] == part).map(|fault| fault["message"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn fault_before_a_policy_is_in_force_keeps_the_running_one() {
    let world = World::new();
    let mut server = world.start();
    world.configure("127.0.0.1", "127.0.0.1");
    inject(reload::PART);
    let error = world.reload(&mut server).unwrap_err();
    assert!(error.starts_with("internal fault in reload: injected into reload"), "{error}");
    assert_eq!(generation(&server), 1);
    assert_eq!(world.reload(&mut server).unwrap().generation, 2, "the next one works");
}

#[tokio::test]
async fn fault_in_one_part_of_a_reload_keeps_no_other_from_following() {
    let world = World::new();
    let mut server = world.start();
    let parts = ["listeners", control::PART, "log", reload::PART, "audit", certificate_expiry::PART, "none"];
    for (turn, part) in (2..).zip(parts) {
        let source = format!("127.0.0.{turn}");
        world.configure(&source, &source);
        let current = server.published.policy();
        let (built, _) = world.build(Some(&current), &server.host_cache);
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
    let world = World::new();
    let mut server = world.start();
    let current = server.published.policy();
    let policy = current.named("main").unwrap();
    assert!(server.listeners.shield(policy).active_since.is_some(), "{:?}", server.listeners.shield(policy));
    inject("shield");
    server.listeners.update_shields(&current);
    assert_eq!(server.listeners.shield(policy).active_since, None);
    let connected = TcpStream::connect(server.listeners.addresses(policy).remove(0));
    timeout(PATIENCE, connected).await.expect("the kernel drops nothing any more").unwrap();
    world.reload(&mut server).unwrap();
    let again = server.published.policy();
    assert!(server.listeners.shield(again.named("main").unwrap()).active_since.is_some(), "a reload raises it again");
}

#[tokio::test]
async fn faults_of_the_running_program_are_in_status_and_end_nothing() {
    let world = World::new();
    let server = world.start();
    let parts = ["revocation", refresher::PART, health_check::PART, "server loop", certificate_expiry::PART];
    parts.iter().for_each(|part| inject(part));
    let asking = async {
        let (code, status) = world.ask("GET /v1/status").await;
        assert_eq!(code, "200", "{status}");
        for part in parts {
            assert_eq!(faults(&status, part), [format!("injected into {part}")], "{status}");
        }
        inject(admin_handler::PART);
        assert_eq!(world.ask("GET /v1/status").await.0, "500");
        inject(reload::PART);
        let (code, rejected) = world.ask("POST /v1/reload").await;
        assert_eq!(code, "422");
        assert!(rejected["message"].as_str().unwrap().contains("injected into reload"), "{rejected}");
        let (_, status) = world.ask("GET /v1/status").await;
        assert_eq!((&status["generation"], &status["last_reload"]["result"]), (&1.into(), &"rejected".into()));
        assert_eq!(faults(&status, admin_handler::PART).len(), 1);
        assert_eq!(world.ask("POST /v1/reload").await.0, "200");
    };
    let signals = Signals::unsent().unwrap();
    tokio::select! {
        () = server.run(signals) => unreachable!("nobody has it stop"),
        () = asking => {}
    }
}
