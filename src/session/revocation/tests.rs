//! Tests of passes over sessions: their order, their verdicts, and sessions that expire meanwhile.

use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Waker};

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::*;
use crate::addr::ClientAddr;
use crate::credential::clients::fixtures;
use crate::credential::login::Proof;
use crate::policy::fixtures::{ConfigDir, listener};
use crate::session::registry::ConnectionGuard;
use crate::source::rule::{Origin, Rule, Source};
use crate::timestamp;
use crate::tls::fixtures::{Authority, authority_params};

/// A listener before and after its CA is replaced by another one, which has issued the same intermediate once more. No session
/// can be judged by the path that it was admitted by.
struct Replaced {
    before: Snapshot,
    after: Snapshot,
    team: Authority,
    along: [CertificateDer<'static>; 2],
    registry: Arc<ConnectionRegistry>,
}

impl Replaced {
    fn new() -> Self {
        let dir = ConfigDir::new();
        dir.install("db", OffsetDateTime::now_utc() + time::Duration::DAY);
        let [old, new] = ["Old CA", "New CA"].map(Authority::new);
        let team = old.intermediate("Team CA");
        let crossed = team.reissued(authority_params("Team CA"), Some(&new));
        let config = format!(
            "{}tls.client_auth = \"required\"\ntls.client_ca = \"clients.pem\"\n",
            listener("db", 1001, "\"127.0.0.1\"")
        );
        let built = |authority: &Authority, previous| {
            std::fs::write(dir.path("clients.pem"), authority.pem()).unwrap();
            dir.snapshot(&config, previous)
        };
        let before = built(&old, None);
        let after = built(&new, Some(&before));
        let along = [team.der(), crossed.der()];
        Self { before, after, team, along, registry: Arc::default() }
    }

    fn client(&self, name: &str) -> CertificateDer<'static> {
        let now = OffsetDateTime::now_utc();
        self.team.client(name, now - time::Duration::HOUR, now + time::Duration::HOUR).der()
    }

    /// Opens a session of a client that sends further certificates.
    fn open(&self, leaf: &CertificateDer<'static>, junk: &[CertificateDer<'static>]) -> ConnectionGuard {
        self.open_at("db", leaf, junk)
    }

    /// Opens a session that is registered for another listener of the same policy.
    fn open_at(
        &self,
        listener: &str,
        leaf: &CertificateDer<'static>,
        junk: &[CertificateDer<'static>],
    ) -> ConnectionGuard {
        let chain: Vec<_> = [leaf].into_iter().chain(&self.along).chain(junk).cloned().collect();
        let from = ClientAddr::from_ip("127.0.0.1".parse().unwrap());
        let judged =
            self.before.authorize("db", from.into(), PresentedIdentity::Chain(&chain), OffsetDateTime::now_utc());
        let guard = self.registry.enter(listener.into(), from);
        guard.activate(Authorization::on(&judged.unwrap(), None));
        guard
    }

    /// Opens a session with a chain that no other session has.
    fn open_hostile(&self, leaf: &CertificateDer<'static>) -> ConnectionGuard {
        self.open(leaf, &[Authority::new("Old CA").der()])
    }

    /// Runs a pass whose time is up before it begins. Returns the sessions in the order of their verdicts.
    fn pass(&self) -> Vec<Groups> {
        let turns = in_turns(self.registry.all());
        let apply = |verdict: &mut dyn FnMut()| {
            verdict();
            true
        };
        let (snapshot, registry) = (&self.after, &*self.registry);
        Pass { time_limit: Duration::ZERO, snapshot, registry, now: OffsetDateTime::now_utc(), apply: &apply }
            .run(&registry.all());
        turns.iter().map(|group| (group.turn, group.sessions.len())).collect()
    }
}

/// Turn and number of sessions of a group.
type Groups = (usize, usize);

fn outcome(guard: &ConnectionGuard) -> Option<Outcome> {
    match pin!(guard.terminated()).poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(outcome) => Some(outcome),
        std::task::Poll::Pending => None,
    }
}

#[test]
fn sessions_with_one_chain_share_a_verdict() {
    let dir = Replaced::new();
    let leaf = dir.client("app");
    let sessions: Vec<_> = (0..50).map(|_| dir.open(&leaf, &[])).collect();
    assert_eq!(dir.pass(), [(0, 50)]);
    assert!(sessions.iter().all(|session| outcome(session).is_none()), "the new CA has issued their intermediate");
}

#[test]
fn clients_take_turns_when_one_has_many_chains() {
    let dir = Replaced::new();
    let [hostile, honest] = ["hostile", "honest"].map(|name| dir.client(name));
    let parked: Vec<_> = (0..20).map(|_| dir.open_hostile(&hostile)).collect();
    let ordinary = [(); 3].map(|()| dir.open(&honest, &[]));
    let turns = in_turns(dir.registry.all());
    let turn = turns.iter().position(|group| group.sessions.iter().any(|live| live.id() == ordinary[0].id()));
    assert!(turn.unwrap() < 2, "at most one chain of the other client comes before");
    assert_eq!(turns.iter().map(|group| group.turn).max(), Some(19));

    dir.pass();
    assert!(ordinary.iter().all(|session| outcome(session).is_none()));
    let outcomes: Vec<_> = parked.iter().filter_map(outcome).collect();
    assert_eq!(outcomes.len(), parked.len() - MAX_CHAINS, "four chains are judged, and the others are not in time");
    for outcome in outcomes {
        assert_eq!(outcome.reason, Reason::CredentialRevoked);
        assert!(outcome.detail.contains("different certificate chains"), "{}", outcome.detail);
    }
}

#[test]
fn client_with_one_chain_at_several_listeners_has_one_turn() {
    let dir = Replaced::new();
    let leaf = dir.client("app");
    let listeners: Vec<_> = (0..2 * MAX_CHAINS).map(|number| format!("db{number}")).collect();
    let sessions: Vec<_> = listeners.iter().map(|listener| dir.open_at(listener, &leaf, &[])).collect();
    let turns = in_turns(dir.registry.all());
    assert_eq!(turns.len(), sessions.len());
    assert!(turns.iter().all(|group| group.turn == 0));
}

#[test]
fn superseded_pass_leaves_the_chains_to_the_next_one() {
    let dir = Replaced::new();
    let hostile = dir.client("hostile");
    let parked: Vec<_> = (0..20).map(|_| dir.open_hostile(&hostile)).collect();
    let verdicts = AtomicUsize::new(0);
    let apply = |_: &mut dyn FnMut()| {
        verdicts.fetch_add(1, Ordering::Relaxed);
        false
    };
    enforce(&dir.after, &dir.registry, &dir.registry.all(), OffsetDateTime::now_utc(), &apply);
    let threads = available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    assert!(verdicts.into_inner() <= threads);
    assert!(parked.iter().all(|session| outcome(session).is_none()));
}

/// An address that no rule of [`snapshot`] trusts.
fn untrusted() -> ClientAddr {
    ClientAddr::from_ip("127.0.0.1".parse().unwrap())
}

/// A session whose rule has expired.
fn expired(registry: &Arc<ConnectionRegistry>) -> ConnectionGuard {
    let source = Source::Network("127.0.0.1".parse().unwrap());
    let expires_at = Some(OffsetDateTime::UNIX_EPOCH);
    let rule = Rule { expires_at, ..Rule::of(source, Origin::Configuration) };
    let guard = registry.enter("db".into(), untrusted());
    guard.activate(Authorization { rule: Some(Arc::new(rule).into()), ..Authorization::default() });
    guard
}

fn snapshot() -> Arc<Snapshot> {
    let dir = ConfigDir::new();
    dir.install("db", OffsetDateTime::now_utc() + time::Duration::DAY);
    Arc::new(dir.snapshot(listener("db", 1001, ""), None))
}

#[tokio::test]
async fn expired_session_is_judged_without_a_new_policy() {
    let (publish, current) = watch::channel(snapshot());
    let registry = Arc::new(ConnectionRegistry::default());
    let mut running = JoinSet::new();
    running.spawn(run(current, Arc::clone(&registry)));
    let session = expired(&registry);
    assert_eq!(session.terminated().await.reason, Reason::SourceRevoked);
    drop(publish);
    running.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn pass_that_fails_is_repeated() {
    let before = snapshot();
    let (publish, current) = watch::channel(Arc::clone(&before));
    let registry = Arc::new(ConnectionRegistry::default());
    let session = registry.enter("db".into(), untrusted());
    session.activate(Authorization::default());
    let mut running = JoinSet::new();
    fault::injection::inject(PART);
    running.spawn(run(current, Arc::clone(&registry)));
    publish.send_replace(before);
    assert_eq!(session.terminated().await.reason, Reason::SourceRevoked);
}

#[tokio::test]
async fn expired_session_is_judged_again_after_a_fault() {
    let (_publish, current) = watch::channel(snapshot());
    let registry = Arc::new(ConnectionRegistry::default());
    let session = expired(&registry);
    let mut running = JoinSet::new();
    fault::injection::inject(PART);
    running.spawn(run(current, Arc::clone(&registry)));
    assert_eq!(session.terminated().await.reason, Reason::SourceRevoked);
}

#[test]
fn expired_session_does_not_wait_for_a_pass() {
    let snapshot = snapshot();
    let (_publish, current) = watch::channel(Arc::clone(&snapshot));
    let registry = Arc::new(ConnectionRegistry::default());
    let _other = registry.enter("db".into(), untrusted());
    let connections = registry.all();
    let (begun, begins) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    thread::scope(|scope| {
        scope.spawn(|| {
            let apply = |_: &mut dyn FnMut()| {
                begun.send(()).unwrap();
                released.lock().unwrap().recv().is_ok()
            };
            enforce(&snapshot, &registry, &connections, OffsetDateTime::now_utc(), &apply);
        });
        begins.recv().unwrap();
        let session = expired(&registry);
        enforce_due(&current, &registry);
        let outcome = outcome(&session);
        release.send(()).unwrap();
        assert!(outcome.is_some(), "the pass was still running");
    });
}

#[tokio::test]
async fn policy_published_while_sessions_fall_due_is_applied() {
    let before = snapshot();
    let (publish, current) = watch::channel(Arc::clone(&before));
    let registry = Arc::new(ConnectionRegistry::default());
    let mut running = JoinSet::new();
    running.spawn(run(current, Arc::clone(&registry)));
    for _ in 0..20 {
        // Only a policy ends this one.
        let source = registry.enter("db".into(), untrusted());
        source.activate(Authorization::default());
        let due = expired(&registry);
        publish.send_replace(Arc::clone(&before));
        assert_eq!(due.terminated().await.reason, Reason::SourceRevoked);
        assert_eq!(source.terminated().await.reason, Reason::SourceRevoked);
    }
    drop(publish);
    running.join_next().await.unwrap().unwrap();
}

/// A listener with credentials, and sessions of its clients.
struct Gate {
    dir: ConfigDir,
    registry: Arc<ConnectionRegistry>,
}

impl Gate {
    fn new() -> Self {
        let dir = ConfigDir::new();
        dir.install("db", OffsetDateTime::now_utc() + time::Duration::DAY);
        std::fs::write(dir.path("db.password"), "secret\n").unwrap();
        Self { dir, registry: Arc::default() }
    }

    fn snapshot(&self, clients: &str, previous: Option<&Snapshot>) -> Snapshot {
        std::fs::write(self.dir.path("clients.toml"), clients).unwrap();
        let credentials =
            "credentials = { clients_file = \"clients.toml\", upstream_password_file = \"db.password\" }\n";
        let config = listener("db", 1001, "\"127.0.0.1\"").replace("\"tcp\"", "\"redis\"") + credentials;
        self.dir.snapshot(config, previous)
    }

    /// Opens a session; `None` has not authenticated.
    fn open(&self, snapshot: &Snapshot, login: Option<(&str, &str)>) -> ConnectionGuard {
        let now = OffsetDateTime::now_utc();
        let login = login.map(|(user, id)| {
            let credentials = snapshot.named("db").unwrap().credentials.as_ref().unwrap();
            let client = Arc::clone(credentials.clients.by_user(user).unwrap());
            let by = Proof::Password(Arc::clone(client.password(id).unwrap()));
            credentials.login(&client, by)
        });
        let permit = snapshot.authorize("db", untrusted().into(), PresentedIdentity::Verified(None), now).unwrap();
        let guard = self.registry.enter("db".into(), untrusted());
        guard.activate(Authorization::on(&permit.with_login(login.as_ref(), now).unwrap(), None));
        guard
    }

    fn enforce(&self, snapshot: &Snapshot, now: OffsetDateTime) {
        let apply = |verdict: &mut dyn FnMut()| {
            verdict();
            true
        };
        enforce(snapshot, &self.registry, &self.registry.all(), now, &apply);
    }
}

fn client_table(user: &str, passwords: &[(&str, &str, &str)]) -> String {
    let passwords = passwords.iter().map(|(id, text, rest)| {
        let verifier = &fixtures::password(id, text).verifier;
        format!("{{ id = \"{id}\", scram = \"{verifier}\"{rest} }}, ")
    });
    format!("[[client]]\nuser = \"{user}\"\npasswords = [{}]\n", passwords.collect::<String>())
}

#[test]
fn removed_changed_or_disabled_password_ends_exactly_its_sessions() {
    let gate = Gate::new();
    let app = [("p1", "one", ""), ("p2", "two", "")];
    let (web, job) = (client_table("web", &[("p1", "one", "")]), client_table("job", &[("p1", "one", "")]));
    let before = gate.snapshot(&(client_table("app", &app) + &web + &job), None);
    let logins = [("app", "p1"), ("app", "p2"), ("web", "p1"), ("job", "p1")];
    let sessions: Vec<_> = logins.iter().map(|login| gate.open(&before, Some(*login))).collect();
    let anonymous = gate.open(&before, None);
    let changed = client_table("web", &[("p1", "other", "")]);
    let after = gate.snapshot(&(client_table("app", &app[1..]) + &changed + &job + "disabled = true\n"), Some(&before));
    let ended = |planned: &(Arc<LiveConnection>, Outcome)| (planned.0.id(), planned.1.detail.clone());
    let mut planned: Vec<_> = preview(&after, &gate.registry).iter().map(ended).collect();
    planned.sort_unstable();
    gate.enforce(&after, OffsetDateTime::now_utc());
    let outcomes: Vec<_> = sessions.iter().map(outcome).collect();
    let [Some(p1), None, Some(web), Some(job)] = outcomes.as_slice() else { unreachable!("{outcomes:?}") };
    assert!(outcome(&anonymous).is_none(), "it may authenticate yet");
    let removed = |user| format!("the password p1 of \"{user}\" is not in clients_file, or another one has its ID");
    let details = [removed("app"), removed("web"), "the client \"job\" is disabled".to_owned()];
    for (outcome, detail) in [p1, web, job].into_iter().zip(&details) {
        assert_eq!((outcome.reason, &outcome.detail), (Reason::CredentialRevoked, detail));
    }
    let ids = [0, 2, 3].map(|index: usize| sessions[index].id());
    assert!(planned.into_iter().eq(ids.into_iter().zip(details)));
}

#[test]
fn session_is_judged_when_its_password_expires() {
    let gate = Gate::new();
    let table = client_table("app", &[("p1", "one", ", expires_at = 2999-01-31T00:00:00Z"), ("p2", "two", "")]);
    let snapshot = gate.snapshot(&table, None);
    let (ending, lasting) = (gate.open(&snapshot, Some(("app", "p1"))), gate.open(&snapshot, Some(("app", "p2"))));
    let end = gate.registry.next_due().unwrap();
    assert_eq!(timestamp::seconds(end), "2999-01-31T00:00:00Z");
    gate.enforce(&snapshot, end - time::Duration::SECOND);
    assert!(outcome(&ending).is_none());
    gate.enforce(&snapshot, end);
    let detail = "the password p1 of \"app\" expired at 2999-01-31T00:00:00Z";
    assert_eq!(outcome(&ending), Some(Outcome::new(Reason::CredentialRevoked, detail)));
    assert!(outcome(&lasting).is_none());
}

#[test]
fn unchanged_credentials_are_kept_and_an_unrelated_reload_ends_no_session() {
    let gate = Gate::new();
    let table = client_table("app", &[("p1", "one", "")]);
    let before = gate.snapshot(&table, None);
    let session = gate.open(&before, Some(("app", "p1")));
    let after = gate.snapshot(&format!("# a comment\n{table}"), Some(&before));
    let of = |snapshot: &Snapshot| Arc::clone(snapshot.named("db").unwrap().credentials.as_ref().unwrap());
    assert!(Arc::ptr_eq(&of(&before), &of(&after)));
    assert!(after.differences_since(&before, OffsetDateTime::now_utc()).is_empty());
    // Without the section, the login is kept for a policy that has it again.
    let without =
        gate.dir.snapshot(listener("db", 1001, "\"127.0.0.1\"").replace("\"tcp\"", "\"redis\""), Some(&after));
    let again = gate.snapshot("client = []\n", Some(&without));
    for snapshot in [&after, &without] {
        gate.enforce(snapshot, OffsetDateTime::now_utc());
        assert!(outcome(&session).is_none());
    }
    gate.enforce(&again, OffsetDateTime::now_utc());
    assert!(outcome(&session).is_some_and(|outcome| outcome.reason == Reason::CredentialRevoked));
}
