//! Members of a fleet in one process, over a store in memory.

mod commands;
mod rotation;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::{sleep, timeout};

use super::*;
use crate::audit::LineFormat;
use crate::audit::admin::AdminActionKind;
use crate::control::access::Caller;
use crate::fleet::store::{ALIVE, Entry, Expected, MAX_KEYS, MEMBERS, Operation, Outcome, Request, TICKETS};
use crate::policy::fixtures::{ConfigDir, listener};
use crate::resolution::cache::ResolutionCache;
use crate::server::admin_handler::action::Action;
use crate::server::fleet::apply::in_force;
use crate::server::fleet::write::RulesChange;
use crate::server::reload::change::{self, Affected, BuiltChange, ChangeResult, Edit, Edited, FileChange};
use crate::tls::tickets::TicketKeys;

/// A store whose keys are in memory.
#[derive(Clone, Default)]
struct MemoryStore(Arc<Mutex<Content>>);

#[derive(Default)]
struct Content {
    revision: u64,
    /// Values with the revision of their last change.
    keys: BTreeMap<String, (String, u64)>,
    members: Vec<FleetObserver>,
    writes: usize,
    /// The next write of a manifest is performed and not answered.
    loses_an_answer: bool,
    /// Changes are not reported.
    is_silent: bool,
    /// No member can hold its name.
    fails_holds: bool,
    /// The next writes of answers are not performed.
    failing_answers: usize,
    /// The commands that were ever written.
    commands: usize,
    /// The keys with a limited life.
    limited: BTreeSet<String>,
    /// The ticket keys that members have written.
    rings: Vec<WrittenRing>,
    /// How often the members were listed.
    member_lists: usize,
}

/// Ticket keys, and the fleet when they were written.
struct WrittenRing {
    value: String,
    in_force: Vec<Option<(u64, TicketKeys)>>,
    alive: usize,
}

impl Content {
    fn entry(&self, key: &str) -> Option<Entry> {
        let (value, revision) = self.keys.get(key)?;
        Some(Entry { key: key.to_owned(), value: value.clone(), version: revision.to_string() })
    }

    fn with_prefix(&self, prefix: &str) -> Vec<Entry> {
        let keys: Vec<_> = self.keys.keys().filter(|key| key.starts_with(prefix)).cloned().collect();
        keys.iter().filter_map(|key| self.entry(key)).collect()
    }

    fn set(&mut self, key: &str, value: Option<String>) -> Outcome {
        self.revision += 1;
        self.writes += 1;
        match &value {
            Some(value) => drop(self.keys.insert(key.to_owned(), (value.clone(), self.revision))),
            None => drop(self.keys.remove(key)),
        }
        if key.starts_with("shared/") {
            let version = self.revision.to_string();
            self.report(&StoreEvent::Changed { key: key.to_owned(), value, version });
            self.report(&self.synced());
        }
        Outcome::Done { version: self.revision.to_string() }
    }

    fn synced(&self) -> StoreEvent {
        StoreEvent::Synced { cluster: "memory".to_owned(), revision: self.revision }
    }

    fn report(&self, event: &StoreEvent) {
        self.members.iter().filter(|_| !self.is_silent).for_each(|member| member.receive(event.clone()));
    }

    /// Lists the shared keys, as an agent does that has connected.
    fn list(&self, member: &FleetObserver) {
        member.receive(StoreEvent::Listing);
        for Entry { key, value, version } in self.with_prefix("shared/") {
            member.receive(StoreEvent::Changed { key, value: Some(value), version });
        }
        member.receive(self.synced());
    }

    fn note_ring(&mut self, value: &str) {
        let in_force = self.members.iter().map(|member| member.0.policy().fleet_secrets.tickets.clone()).collect();
        let alive = self.with_prefix(ALIVE).len();
        self.rings.push(WrittenRing { value: value.to_owned(), in_force, alive });
    }

    fn perform(&mut self, operation: Operation) -> Outcome {
        match operation {
            Operation::Get { keys } if keys.len() > MAX_KEYS => Outcome::Failed { error: "too many keys".to_owned() },
            Operation::Get { keys } => Outcome::Entries(keys.iter().filter_map(|key| self.entry(key)).collect()),
            Operation::List { prefix } | Operation::Keys { prefix } => {
                self.member_lists += usize::from(prefix == MEMBERS);
                Outcome::Entries(self.with_prefix(&prefix))
            }
            Operation::Put { key, value, expected, seconds } => {
                if key.starts_with("answers/") && self.failing_answers > 0 {
                    self.failing_answers -= 1;
                    return Outcome::Failed { error: "down".to_owned() };
                }
                let current = self.entry(&key);
                if !is_expected(current.as_ref(), &expected) {
                    return Outcome::Conflict { current };
                }
                self.commands += usize::from(key.starts_with("shared/commands/"));
                if key == TICKETS {
                    self.note_ring(&value);
                }
                match seconds {
                    Some(_) => self.limited.insert(key.clone()),
                    None => self.limited.remove(&key),
                };
                let done = self.set(&key, Some(value));
                if key.starts_with("shared/rules/") && std::mem::take(&mut self.loses_an_answer) {
                    return Outcome::Failed { error: "lost".to_owned() };
                }
                done
            }
            Operation::Hold { .. } if self.fails_holds => Outcome::Failed { error: "down".to_owned() },
            Operation::Hold { key, value, .. } => match self.entry(&key) {
                Some(current) if current.value != value => Outcome::Conflict { current: Some(current) },
                _ => self.set(&key, Some(value)),
            },
            Operation::Delete { key, expected } => {
                let current = self.entry(&key);
                match (&current, is_expected(current.as_ref(), &expected)) {
                    (None, _) => Outcome::Done { version: String::new() },
                    (Some(_), true) => self.set(&key, None),
                    (Some(_), false) => Outcome::Conflict { current },
                }
            }
        }
    }
}

impl FleetObserver {
    /// Takes over an event of the store of the configuration.
    fn receive(&self, event: StoreEvent) {
        self.observe(&Arc::new(self.0.policy().config.fleet.as_ref().unwrap().store.clone()), event);
    }
}

fn is_expected(current: Option<&Entry>, expected: &Expected) -> bool {
    match expected {
        Expected::Any => true,
        Expected::Absent => current.is_none(),
        Expected::Version(version) => current.is_some_and(|current| current.version == *version),
    }
}

impl MemoryStore {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap()
    }

    fn named(&self, prefix: &str) -> usize {
        self.content().with_prefix(prefix).len()
    }
}

/// A member with the listener `cache`.
struct Member {
    service: Arc<FleetService>,
    _dir: ConfigDir,
    _tasks: JoinSet<()>,
}

impl Member {
    fn start(store: &MemoryStore, name: &str) -> Self {
        Self::start_with(store, name, ConfigDir::new(), "", "")
    }

    /// Starts a member with further keys of `[fleet]` and of the listener.
    fn start_with(store: &MemoryStore, name: &str, dir: ConfigDir, fleet: &str, listener_keys: &str) -> Self {
        dir.install("cache", OffsetDateTime::now_utc() + time::Duration::days(365));
        let config = format!(
            "state.directory = {:?}\n[fleet]\nname = \"prod\"\nmember = \"{name}\"\nstore = \"etcd\"\n{fleet}\
             [fleet.etcd]\nendpoints = [\"http://127.0.0.1:1\"]\n{}",
            dir.path("state").display().to_string(),
            listener("cache", 1001, "").replace("tls.", &format!("sources_store = \"fleet\"\n{listener_keys}tls."))
        );
        let current = watch::Sender::new(Arc::new(dir.snapshot(config, None)));
        let (client, requests) = StoreClient::new();
        let (reload_requests, reloads) = mpsc::channel(4);
        let service = FleetService::new(Parts {
            store: client,
            current: current.subscribe(),
            registry: Arc::default(),
            audit: Audit::start(LineFormat::Json, None),
            reload_requests,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(store.clone(), requests));
        tasks.spawn(reload(current, reloads));
        tasks.spawn(follow::run(Arc::clone(&service)));
        tasks.spawn(member::run(Arc::clone(&service)));
        tasks.spawn(super::commands::run(Arc::clone(&service)));
        tasks.spawn(tickets::run(Arc::clone(&service)));
        let observer = FleetObserver(Arc::clone(&service));
        let mut content = store.content();
        content.list(&observer);
        content.members.push(observer);
        drop(content);
        Self { service, _dir: dir, _tasks: tasks }
    }

    async fn until(&self, what: &str, is_so: impl Fn(&FleetService) -> bool) {
        let wait = async {
            while !is_so(&self.service) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("{what}: {:?}", self.service.status()));
    }

    async fn connected(&self) {
        self.until("the store is up", |service| service.believed.borrow().is_some()).await;
    }

    /// Adds a text to the rules.
    async fn add(&self, text: &str) -> Result<(), u16> {
        let added = text.to_owned();
        let edit = Box::new(move |_| -> Box<Edit> {
            let added = added.clone();
            Box::new(move |_, content, _, _| {
                let known = String::from_utf8_lossy(content.unwrap_or_default()).into_owned();
                Ok(Edited { content: Some(format!("{known}{added}").into_bytes()), affected: Affected::Nothing })
            })
        });
        let action = Action {
            kind: AdminActionKind::SourcesAppend,
            caller: Caller::Unix,
            target: None,
            request_id: String::new(),
            detail: None,
        };
        let change =
            RulesChange { listener: "cache".to_owned(), edit, has_precondition: false, replaces_all: false, action };
        self.service.change_rules(change).await.map(|_| ()).map_err(|response| response.status.as_u16())
    }

    fn rules(&self) -> usize {
        self.service.policy().named("cache").unwrap().sources.trusted.rules().len()
    }
}

async fn serve(store: MemoryStore, mut requests: mpsc::Receiver<Request>) {
    while let Some(Request { operation, reply }) = requests.recv().await {
        let outcome = store.content().perform(operation);
        let _ = reply.send(outcome);
    }
}

/// Builds, writes and publishes, as the reloader and the server do.
async fn reload(current: watch::Sender<Arc<Snapshot>>, mut requests: mpsc::Receiver<ReloadRequest>) {
    let resolutions = ResolutionCache::default();
    while let Some(request) = requests.recv().await {
        let ReloadRequest::Change(change, reply) = request else { continue };
        let FileChange { file, edit, plan, .. } = *change;
        let before = Arc::clone(&current.borrow());
        let result = change::build(&file, edit, &before, &resolutions, None).and_then(|change| {
            let BuiltChange { built, write, affected, listeners, .. } = change;
            if plan {
                let edited = Edited { content: write.into_content(), affected };
                return Ok(ChangeResult::Planned { built, listeners, edited });
            }
            write.run()?;
            let snapshot = Arc::new(built.snapshot);
            current.send_replace(Arc::clone(&snapshot));
            Ok(ChangeResult::Applied { snapshot, affected, listeners })
        });
        let _ = reply.send(result);
    }
}

/// Rules that need several chunks.
fn long(second: usize) -> String {
    let rule = |number: usize| {
        let (third, last) = (number / 250, number % 250);
        format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.{second}.{third}.{last}\"\n\n")
    };
    (0..3_000).map(rule).collect()
}

fn short(last: usize) -> String {
    format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"192.0.2.{last}\"\n\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_two_members_are_all_kept_with_exactly_their_chunks() {
    let store = MemoryStore::default();
    let (a, b) = (Member::start(&store, "a"), Member::start(&store, "b"));
    a.connected().await;
    b.connected().await;
    let (one, two) = (long(1), long(2));
    let both = tokio::join!(a.add(&one), b.add(&two));
    assert_eq!(both, (Ok(()), Ok(())));
    for member in [&a, &b] {
        member.until("all rules are in force", |_| member.rules() == 6_000).await;
    }
    assert_eq!(a.add(&short(1)).await, Ok(()));
    b.until("one more", |_| b.rules() == 6_001).await;
    let manifest = store.content().entry("shared/rules/cache").unwrap().value;
    let named = crate::fleet::manifest::Manifest::parse(&manifest).unwrap().chunks().len();
    a.until("only named chunks are left", |_| store.named("chunks/cache/") == named).await;
    let digests = [&a, &b].map(|member| in_force(&member.service.policy(), "cache"));
    assert!(digests[0].is_some() && digests[0] == digests[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_list_is_read_in_several_groups_of_chunks() {
    let store = MemoryStore::default();
    let (a, b) = (Member::start(&store, "a"), Member::start(&store, "b"));
    a.connected().await;
    b.connected().await;
    let many: String = (0..17).map(long).collect();
    assert_eq!(a.add(&many).await, Ok(()));
    assert!(store.named("chunks/cache/") > MAX_KEYS, "{}", store.named("chunks/cache/"));
    b.until("all rules are in force", |_| b.rules() == 51_000).await;
    assert_eq!(b.add(&short(1)).await, Ok(()));
    a.until("one more", |_| a.rules() == 51_001).await;
    let digests = [&a, &b].map(|member| in_force(&member.service.policy(), "cache"));
    assert!(digests[0].is_some() && digests[0] == digests[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn change_whose_answer_was_lost_is_made_once() {
    let store = MemoryStore::default();
    let member = Member::start(&store, "a");
    member.connected().await;
    store.content().loses_an_answer = true;
    assert_eq!(member.add(&short(1)).await, Ok(()));
    assert_eq!(member.rules(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn store_that_went_back_is_neither_used_nor_written() {
    let store = MemoryStore::default();
    let member = Member::start(&store, "a");
    member.connected().await;
    member.add(&short(1)).await.unwrap();
    let backup = {
        let content = store.content();
        (content.revision, content.keys.clone())
    };
    member.add(&short(2)).await.unwrap();
    {
        let mut content = store.content();
        (content.revision, content.keys) = backup;
        content.revision -= 1;
        content.list(&content.members[0].clone());
    }
    member.until("it is refused", |service| matches!(service.status().store, StoreState::Refused { .. })).await;
    assert_eq!(member.add(&short(3)).await, Err(503));
    // A write that had begun before is over.
    let writes = store.content().writes;
    sleep(Duration::from_secs(4)).await;
    assert_eq!((member.rules(), store.content().writes), (2, writes));
    let action = Action {
        kind: AdminActionKind::FleetAccept,
        caller: Caller::Unix,
        target: None,
        request_id: String::new(),
        detail: None,
    };
    let accepted = member.service.accept(action).await.unwrap();
    assert_eq!(accepted["epoch"], 1);
    member.until("the rules of the backup are in force", |_| member.rules() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_event_of_the_former_store_is_not_taken_for_one_of_the_new_store() {
    let store = MemoryStore::default();
    let member = Member::start(&store, "a");
    member.connected().await;
    member.add(&short(1)).await.unwrap();
    let observer = FleetObserver(Arc::clone(&member.service));
    let mut former = member.service.policy().config.fleet.as_ref().unwrap().store.clone();
    former.fleet = "former".to_owned();
    let former = Arc::new(former);
    let synced = StoreEvent::Synced { cluster: "former".to_owned(), revision: 1 };
    for event in [StoreEvent::Listing, synced] {
        observer.observe(&former, event);
    }
    member.until("the store is not used", |service| service.believed.borrow().is_none()).await;
    observer.receive(store.content().synced());
    assert!(member.service.believed.borrow().is_none(), "without a listing of the new store");
    store.content().list(&observer);
    member.connected().await;
    assert_eq!((member.service.status().store, member.rules()), (StoreState::Up, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn change_that_the_agent_does_not_report_is_answered_in_time_and_comes_into_force_later() {
    let store = MemoryStore::default();
    let member = Member::start(&store, "a");
    member.connected().await;
    store.content().is_silent = true;
    let change = timeout(Duration::from_secs(10), member.add(&short(1))).await;
    assert_eq!(change.expect("an answer within 10 s"), Err(503));
    assert_eq!(member.rules(), 0);
    {
        let mut content = store.content();
        content.is_silent = false;
        content.list(&content.members[0].clone());
    }
    member.until("the change is in force", |_| member.rules() == 1).await;
}
