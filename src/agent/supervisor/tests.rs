//! The supervisor with scripted agents: this test binary, which runs [`fake_agent`] only.

use std::env;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{park, sleep as block};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::*;
use crate::agent::state::AgentStatus;
use crate::fleet::settings::{Engine, EtcdSettings, StoreSettings};
use crate::fleet::store::{Operation, Outcome, StoreClient};
use crate::resolution::settings::{AddressChoice, DigitalOceanSettings, Secret};

const SCRIPT: &str = "PORTCULLIS_TEST_FAKE_AGENT";

/// The agent of the other tests. Does nothing if it is not started by one.
#[test]
fn fake_agent() {
    let Ok(script) = env::var(SCRIPT) else { return };
    let mut program = Peer(UnixStream::from(io::stdin().as_fd().try_clone_to_owned().unwrap()));
    let hello = json!({ "hello": { "version": 1, "confinement": "none" } });
    if script != "silent" {
        program.send(&if script == "other version" {
            json!({ "hello": { "version": 2, "confinement": "none" } })
        } else {
            hello.clone()
        });
    }
    let observed = |number| json!({ "observed": { "source": format!("droplet:{number}"), "observation": { "failed": { "error": "x" } } } });
    match script.as_str() {
        "silent" | "hanging" => park(),
        "ends" => return,
        "fails" => panic!("the agent fails"),
        "garbage" => program.0.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap(),
        "partial" => {
            program.0.write_all(b"\0\0\0\x10{").unwrap();
            park();
        }
        "unknown message" => program.send(&json!({ "bye": {} })),
        "second hello" => program.send(&hello),
        "wrong pong" => program.send(&json!({ "pong": { "number": 7 } })),
        "unknown source" => program.send(&observed(99)),
        "hidden text" => {
            let observation = json!({ "failed": { "error": "a\u{202e}b" } });
            program.send(&json!({ "observed": { "source": "droplet:1", "observation": observation } }));
        }
        "news without a store" => program.send(&json!({ "store_news": "listing" })),
        "reply without a request" => {
            program.send(&json!({ "store_reply": { "number": 1, "outcome": { "done": { "version": "1" } } } }));
        }
        "flood" => (0..10_000).for_each(|_| program.send(&observed(1))),
        _ => {}
    }
    while let Some(message) = program.receive() {
        if let Some(ping) = message.get("ping") {
            program.send(&json!({ "pong": ping }));
        }
        if message["task"]["store"].is_object() {
            program.send(&json!({ "store_news": "listing" }));
            let key = if script == "change of another key" { "members/a" } else { "shared/epoch" };
            program.send(&json!({ "store_news": { "changed": { "key": key, "value": "1", "version": "1" } } }));
            program.send(&json!({ "store_news": { "synced": { "cluster": "c", "revision": 7 } } }));
        }
        if let Some(number) = message["store"]["number"].as_u64() {
            let key = if script == "key that was not asked for" { "b" } else { "a" };
            let outcome = match script.as_str() {
                "ends at a request" => return,
                "answer of another kind" => json!({ "done": { "version": "1" } }),
                _ => json!({ "entries": [{ "key": key, "value": number.to_string(), "version": "1" }] }),
            };
            program.send(&json!({ "store_reply": { "number": number, "outcome": outcome } }));
        }
        if let Some(sources) = message["task"]["sources"].as_array() {
            for source in sources {
                program.send(
                    &json!({ "observed": { "source": source, "observation": { "failed": { "error": script } } } }),
                );
            }
        }
    }
}

/// The other end of the connection.
struct Peer(UnixStream);

impl Peer {
    fn send(&mut self, message: &Value) {
        let body = message.to_string();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        // It may have been killed on the other side's behalf.
        let _ = self.0.write_all(&[&length, body.as_bytes()].concat());
    }

    fn receive(&mut self) -> Option<Value> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).ok()?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut body).ok()?;
        Some(serde_json::from_slice(&body).unwrap())
    }
}

/// A supervisor that runs, and its agent.
struct Supervised {
    task: watch::Sender<Arc<Task>>,
    state: Arc<AgentState>,
    reports: mpsc::UnboundedReceiver<Report>,
    store: StoreClient,
    supervisor: JoinSet<()>,
}

fn task(numbers: &[u64]) -> Arc<Task> {
    let sources = numbers.iter().copied().map(CloudSource::Droplet).collect();
    Arc::new(Task { sources, ..Task::default() })
}

/// A task with a store.
fn store_task(fleet: &str) -> Arc<Task> {
    let endpoints = vec!["http://127.0.0.1:1".to_owned()];
    let etcd = EtcdSettings { endpoints, ca: None, identity: None, login: None, prefix: "/portcullis".to_owned() };
    let store = StoreSettings { fleet: fleet.to_owned(), engine: Engine::Etcd(etcd) };
    Arc::new(Task { store: Some(store), ..Task::clone(&task(&[1])) })
}

fn get(key: &str) -> Operation {
    Operation::Get { keys: vec![key.to_owned()] }
}

impl Supervised {
    fn start(script: &str, numbers: &[u64]) -> Self {
        Self::start_with(script, task(numbers))
    }

    fn start_with(script: &str, task: Arc<Task>) -> Self {
        let (task, watched) = watch::channel(task);
        let (state, (sender, reports)) = (Arc::<AgentState>::default(), mpsc::unbounded_channel());
        let (store, mut requests) = StoreClient::new();
        let arguments = ["--exact", "agent::supervisor::tests::fake_agent", "--nocapture", "--quiet"];
        let program = Program {
            path: env::current_exe().unwrap().into(),
            arguments: arguments.map(Into::into).to_vec(),
            environment: vec![(SCRIPT.into(), script.into())],
        };
        let supervised = Arc::clone(&state);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let report = move |report| drop(sender.send(report));
            Supervisor { task: watched, requests: &mut requests, report, state: supervised, program }.run().await;
        });
        Self { task, state, reports, store, supervisor: tasks }
    }

    /// Waits for a state.
    async fn until(&self, matches: impl FnMut(&AgentStatus) -> bool) -> AgentStatus {
        let mut status = self.state.subscribe();
        let found = timeout(Duration::from_secs(60), status.wait_for(matches)).await.expect("it comes in time");
        found.unwrap().clone()
    }

    /// The process that answers.
    async fn process(&self) -> u32 {
        match self.until(AgentStatus::is_up).await.phase {
            Phase::Up { process, .. } => process,
            other => panic!("{other:?}"),
        }
    }

    async fn next(&mut self) -> (u64, String) {
        match timeout(Duration::from_secs(60), self.reports.recv()).await.expect("it comes in time") {
            Some(Report::Observation(CloudSource::Droplet(number), Observation::Failed { error })) => (number, error),
            other => panic!("{other:?}"),
        }
    }
}

impl Supervised {
    /// The next event of the store.
    async fn event(&mut self) -> StoreEvent {
        loop {
            let report = timeout(Duration::from_secs(60), self.reports.recv()).await.expect("it comes in time");
            if let Some(Report::Store(_, event)) = report {
                return event;
            }
        }
    }

    /// Waits until the store has been listed.
    async fn synced(&mut self) {
        assert_eq!(self.event().await, StoreEvent::Listing);
        assert!(matches!(self.event().await, StoreEvent::Changed { .. }));
        assert!(matches!(self.event().await, StoreEvent::Synced { .. }));
    }
}

/// Whether a descriptor of this process stays open when it executes a program.
fn is_inherited(number: &str) -> bool {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).map(str::trim);
    flags.is_some_and(|flags| i32::from_str_radix(flags, 8).unwrap() & libc::O_CLOEXEC == 0)
}

fn exists(process: u32) -> bool {
    Path::new(&format!("/proc/{process}")).exists()
}

/// Waits until the process has ended and has been reaped.
async fn gone(process: u32) {
    for _ in 0..6_000 {
        if !exists(process) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("process {process} still exists");
}

fn signal(process: u32, signal: Signal) {
    kill(Pid::from_raw(process.try_into().unwrap()), signal).unwrap();
}

#[tokio::test]
async fn agent_runs_while_the_task_has_sources() {
    let mut supervised = Supervised::start("good", &[]);
    assert!(!supervised.until(|status| !status.is_needed()).await.is_up());
    supervised.task.send(task(&[1, 2])).unwrap();
    let process = supervised.process().await;
    assert_eq!(supervised.next().await, (1, "good".to_owned()));
    assert_eq!(supervised.next().await, (2, "good".to_owned()));
    supervised.task.send(task(&[3])).unwrap();
    assert_eq!(supervised.next().await, (3, "good".to_owned()));
    assert_eq!(supervised.process().await, process, "a changed task needs no other agent");
    supervised.task.send(task(&[])).unwrap();
    let status = supervised.until(|status| !status.is_needed()).await;
    gone(process).await;
    assert_eq!((status.restarts, status.last_error), (0, None));
    supervised.task.send(task(&[4])).unwrap();
    assert_ne!(supervised.process().await, process);
}

#[tokio::test]
async fn agent_has_only_its_connection_and_the_standard_streams() {
    let supervised = Supervised::start("good", &[1]);
    let process = supervised.process().await;
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap().map(|entry| entry.unwrap().path());
    let connection = fs::read_link(format!("/proc/{process}/fd/0")).unwrap();
    for path in descriptors {
        let Ok(target) = fs::read_link(&path) else { continue };
        let number = path.file_name().unwrap().to_str().unwrap();
        match number {
            "0" => assert!(target.to_str().unwrap().starts_with("socket:"), "{target:?}"),
            "1" => assert_eq!(target, Path::new("/dev/null")),
            "2" => {}
            // The test's own code in the agent duplicates its standard input. What is not closed on execution was inherited
            // from the parent of this process: the standard library opens nothing without O_CLOEXEC.
            _ => assert!(target == connection || is_inherited(number), "{number} is {target:?}"),
        }
    }
    let environment = fs::read_to_string(format!("/proc/{process}/environ")).unwrap();
    assert!(!environment.contains("PATH=") && !environment.contains("HOME="), "{environment}");
}

#[tokio::test]
async fn agent_is_replaced_when_a_task_needs_another_variable() {
    let supervised = Supervised::start("good", &[1]);
    let process = supervised.process().await;
    let token = Secret::Environment("CARGO_MANIFEST_DIR".to_owned());
    let endpoint = "https://api.digitalocean.com".to_owned();
    let addresses = AddressChoice::All;
    let settings = DigitalOceanSettings { token, endpoint, ca: None, refresh_ms: 60_000, addresses };
    supervised.task.send(Arc::new(Task { digitalocean: Some(settings), ..Task::clone(&task(&[1])) })).unwrap();
    gone(process).await;
    let process = supervised.process().await;
    let environment = fs::read_to_string(format!("/proc/{process}/environ")).unwrap();
    assert!(environment.contains("CARGO_MANIFEST_DIR="), "{environment}");
    assert_eq!(supervised.state.status().restarts, 0);
}

#[tokio::test]
async fn failing_agent_is_started_again_and_its_error_is_kept() {
    for (script, error) in [
        ("ends", "it closed the connection (exit status: 0)"),
        ("fails", "it closed the connection (exit status: 101)"),
        ("garbage", "a message has 1195725856 bytes, and 16777216 are allowed (signal: 9 (SIGKILL))"),
        ("unknown message", "invalid message: unknown variant `bye`"),
        ("second hello", "a second greeting"),
        ("wrong pong", "an answer that was not asked for"),
        ("unknown source", "a result for droplet:99, which is not in its task"),
        ("hidden text", "an invalid result for droplet:1"),
        ("news without a store", "a message about a store, which is not in its task"),
        ("reply without a request", "an answer to a request that is not open"),
        ("flood", "more than 104 messages or 64 MiB a second"),
        ("other version", "it has version 2 of the messages, and not 1"),
    ] {
        let supervised = Supervised::start(script, &[1]);
        let status = supervised.until(|status| status.last_error.is_some()).await;
        let last_error = status.last_error.unwrap();
        assert!(last_error.starts_with(error), "{script}: {last_error}");
        assert_eq!((status.phase, status.restarts), (Phase::Down, 1), "{script}");
        if script == "ends" {
            supervised.until(|status| status.restarts == 2).await;
        }
    }
}

#[tokio::test]
async fn requests_are_answered_by_the_agent() {
    let mut supervised = Supervised::start_with("good", store_task("prod"));
    supervised.synced().await;
    for number in 1..=3 {
        let outcome = supervised.store.perform(get("a")).await;
        let Outcome::Entries(entries) = outcome else { panic!("{outcome:?}") };
        assert_eq!(entries[0].value, number.to_string(), "the number of the request");
    }
    let mut requests = JoinSet::new();
    for _ in 0..200 {
        let store = supervised.store.clone();
        requests.spawn(async move { store.perform(get("a")).await });
    }
    while let Some(outcome) = requests.join_next().await {
        assert!(matches!(outcome, Ok(Outcome::Entries(_))), "{outcome:?}");
    }
}

#[tokio::test]
async fn report_names_the_store_to_which_it_belongs() {
    let mut supervised = Supervised::start_with("good", store_task("prod"));
    supervised.synced().await;
    supervised.task.send(store_task("test")).unwrap();
    loop {
        let report = timeout(Duration::from_secs(60), supervised.reports.recv()).await.expect("it comes in time");
        let Some(Report::Store(store, event)) = report else { continue };
        let fleet = if matches!(event, StoreEvent::Down { .. }) { "prod" } else { "test" };
        assert_eq!(store.fleet, fleet, "{event:?}");
        if matches!(event, StoreEvent::Synced { .. }) {
            return;
        }
    }
}

#[tokio::test]
async fn wrong_answer_ends_the_agent_and_its_requests_fail() {
    for (script, error) in [
        ("key that was not asked for", "an answer that does not fit its request"),
        ("answer of another kind", "an answer that does not fit its request"),
        ("ends at a request", "it closed the connection"),
    ] {
        let mut supervised = Supervised::start_with(script, store_task("prod"));
        supervised.synced().await;
        let outcome = supervised.store.perform(get("a")).await;
        assert!(matches!(outcome, Outcome::Failed { .. }), "{script}: {outcome:?}");
        assert!(matches!(supervised.event().await, StoreEvent::Down { .. }), "{script}");
        let status = supervised.until(|status| status.last_error.is_some()).await;
        assert!(status.last_error.unwrap().starts_with(error), "{script}");
        supervised.synced().await;
    }
}

#[tokio::test]
async fn change_of_a_key_that_is_not_shared_ends_the_agent() {
    let mut supervised = Supervised::start_with("change of another key", store_task("prod"));
    assert_eq!(supervised.event().await, StoreEvent::Listing);
    assert!(matches!(supervised.event().await, StoreEvent::Down { .. }));
    let status = supervised.until(|status| status.last_error.is_some()).await;
    assert!(status.last_error.unwrap().starts_with("an invalid report of the store"));
}

#[tokio::test]
async fn request_without_an_agent_or_a_store_fails_at_once() {
    let supervised = Supervised::start("good", &[]);
    supervised.until(|status| !status.is_needed()).await;
    let asked = Instant::now();
    assert!(matches!(supervised.store.perform(get("a")).await, Outcome::Failed { .. }));
    supervised.task.send(task(&[1])).unwrap();
    supervised.process().await;
    assert!(matches!(supervised.store.perform(get("a")).await, Outcome::Failed { .. }));
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn agent_is_replaced_when_the_task_has_another_store() {
    let mut supervised = Supervised::start_with("good", store_task("prod"));
    supervised.synced().await;
    let process = supervised.process().await;
    supervised.task.send(store_task("test")).unwrap();
    gone(process).await;
    assert!(matches!(supervised.event().await, StoreEvent::Down { .. }));
    supervised.synced().await;
    assert_eq!(supervised.state.status().restarts, 0);
}

#[tokio::test]
async fn killed_agent_is_reaped_and_started_again() {
    let mut supervised = Supervised::start("good", &[1]);
    let process = supervised.process().await;
    supervised.next().await;
    signal(process, Signal::SIGKILL);
    let status = supervised.until(|status| status.restarts == 1).await;
    assert_eq!(status.last_error.as_deref(), Some("it closed the connection (signal: 9 (SIGKILL))"));
    gone(process).await;
    assert_ne!(supervised.process().await, process);
    assert_eq!(supervised.next().await.0, 1, "the new agent has the task");
}

#[tokio::test]
async fn agent_ends_with_its_supervisor() {
    let supervised = Supervised::start("good", &[1]);
    let process = supervised.process().await;
    drop(supervised.supervisor);
    gone(process).await;
    let supervised = Supervised::start("good", &[1]);
    let process = supervised.process().await;
    let Supervised { task, mut supervisor, .. } = supervised;
    drop(task);
    supervisor.join_next().await.unwrap().unwrap();
    gone(process).await;
}

/// Runs the clock by hand: the time of the runtime is paused once the agent runs.
#[tokio::test]
async fn hanging_agent_is_killed() {
    for (script, error) in [
        ("hanging", "no answer for 15s ("),
        ("silent", "no message within 10s of its start ("),
        ("partial", "the rest of a message did not arrive within 10s ("),
    ] {
        let supervised = Supervised::start(script, &[1]);
        if script == "silent" {
            // Its process exists once the supervisor waits for the first message.
            supervised.until(|status| status.is_needed()).await;
        } else {
            supervised.process().await;
        }
        block(Duration::from_millis(200));
        tokio::time::pause();
        let status = supervised.until(|status| status.last_error.is_some()).await;
        let last_error = status.last_error.unwrap();
        assert!(last_error.starts_with(error), "{script}: {last_error}");
        tokio::time::resume();
    }
}

#[test]
fn pause_doubles_until_an_agent_serves_well() {
    let mut pauses = Pauses::default();
    let ran = Duration::from_secs(1);
    let seconds: Vec<_> = (0..8).map(|_| pauses.next(ran).as_secs()).collect();
    assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(pauses.next(GOOD_SERVICE).as_secs(), 1);
    assert_eq!(pauses.next(ran).as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn agent_is_silent_after_the_time_limit_and_not_after_a_pause_of_the_program() {
    let start = Instant::now();
    let mut dialogue = Dialogue::new(&task(&[1]));
    tokio::time::advance(PING_INTERVAL).await;
    dialogue.ping();
    assert_eq!(dialogue.silent_at(), Some(start + SILENCE_TIMEOUT));
    dialogue.receive(FromAgent::Pong { number: 1 }, 10).unwrap();
    // The program was stopped meanwhile.
    tokio::time::advance(10 * SILENCE_TIMEOUT).await;
    let resumed = Instant::now();
    assert!(dialogue.next_ping < resumed && dialogue.silent_at().is_none());
    dialogue.ping();
    assert_eq!(dialogue.silent_at(), Some(resumed + 2 * PING_INTERVAL));
}
