//! Ends exactly the sessions that the policy in force no longer admits.
//!
//! All sessions are judged again when a new policy comes into force. A session is also judged when its rule, its certificate or
//! a revocation list expires. Both run on separate threads at the same time, so no session waits for a pass over all others.
//!
//! A client chooses what its sessions cost, so a pass judges them in an order that favours no client:
//!
//! 1. Every session by its source, and by the path it was admitted by (`Snapshot::recheck`). That costs no signature.
//! 2. The others by every path of their chains. Sessions with the same chain share one verdict. Clients take turns with one
//!    chain each, so the chains of one client delay only its own sessions.
//!
//! `MAX_CHAINS` chains of each client are always judged. Sessions with further chains end if they are not judged within
//! `PASS_TIME` of the start of the pass.
//!
//! A newer policy ends the pass of an older one. A connection that is not admitted yet judges itself.

#[cfg(test)]
mod tests;
pub(crate) mod turns;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::time::sleep;

use crate::config::Revoke;
use crate::fault::record::Fault;
use crate::fault::{self, RESTART_PAUSE};
use crate::identity::client_verifier::PresentedIdentity;
use crate::outcome::{Outcome, Reason};
use crate::policy::authorize::{Denial, Permit};
use crate::policy::usage::Authorization;
use crate::policy::{Current, Snapshot};
use crate::session::registry::state::SessionState;
use crate::session::registry::{ConnectionRegistry, LiveConnection, Session};
use crate::session::revocation::turns::{Group, in_turns};

/// Judges sessions until the policy channel is closed.
pub async fn run(current: Current, registry: Arc<ConnectionRegistry>) {
    tokio::select! {
        () = judge_all(current.clone(), &registry) => {}
        () = judge_due(current, &registry) => {}
    }
}

/// Judges every session by each new policy.
async fn judge_all(mut current: Current, registry: &Arc<ConnectionRegistry>) {
    while current.changed().await.is_ok() {
        while judge_by_newest(&mut current, registry).await.is_err() {
            // The fault is recorded. A pass that did not finish may have left sessions open that have to end.
            sleep(RESTART_PAUSE).await;
        }
    }
}

/// Judges every session by the newest policy. Ends early if a newer policy is published.
async fn judge_by_newest(current: &mut Current, registry: &Arc<ConnectionRegistry>) -> Result<(), Fault> {
    let snapshot = Arc::clone(&current.borrow_and_update());
    let (registry, newer) = (Arc::clone(registry), current.clone());
    fault::contained_blocking(PART, move || {
        let apply = |verdict: &mut dyn FnMut()| {
            let is_newest = !newer.has_changed().unwrap_or(true);
            if is_newest {
                verdict();
            }
            is_newest
        };
        enforce(&snapshot, &registry, &registry.all(), OffsetDateTime::now_utc(), &apply);
    })
    .await
}

/// Judges sessions by the policy in force when their authorization expires.
async fn judge_due(current: Current, registry: &Arc<ConnectionRegistry>) {
    loop {
        session_due(registry).await;
        let (due, current) = (Arc::clone(registry), current.clone());
        if fault::contained_blocking(PART, move || enforce_due(&current, &due)).await.is_err() {
            // It is unknown which of them were judged.
            registry.restore_due();
            sleep(RESTART_PAUSE).await;
        }
    }
}

fn enforce_due(current: &Current, registry: &ConnectionRegistry) {
    let now = OffsetDateTime::now_utc();
    let due = registry.take_pending(now);
    // Read after `take_pending`, so that a later policy judges these sessions in its own pass.
    let snapshot = Arc::clone(&current.borrow());
    // The borrow keeps a new policy from being published between the check and the verdict. A newer policy judges all sessions,
    // and its verdicts must not be replaced.
    let apply = |verdict: &mut dyn FnMut()| {
        let newest = current.borrow();
        let is_in_force = Arc::ptr_eq(&newest, &snapshot);
        if is_in_force {
            verdict();
        }
        is_in_force
    };
    enforce(&snapshot, registry, &due, now, &apply);
}

/// Applies a verdict if its policy is still in force. Returns whether to continue with that policy.
pub type Apply<'a> = dyn Fn(&mut dyn FnMut()) -> bool + Sync + 'a;

/// The sessions that `snapshot` would end if it were in force, and why.
pub fn preview(snapshot: &Snapshot, registry: &ConnectionRegistry) -> Vec<(Arc<LiveConnection>, Outcome)> {
    let now = OffsetDateTime::now_utc();
    let outcome = |live: Arc<LiveConnection>| {
        let session = live.session().filter(|_| live.state() != Some(SessionState::Closing))?;
        let Authorization { login, .. } = &session.authorization;
        let judged = snapshot.authorize(live.listener(), live.origin(), session.authorization.presented(), now);
        let judged = judged.and_then(|permit| permit.with_login(login.as_deref(), now));
        let is_kept = snapshot.revoke(live.listener()) == Revoke::Keep;
        let refusal = judged.err().filter(|_| !is_kept)?;
        Some((live, refusal.into_plan_outcome()))
    };
    registry.all().into_iter().filter_map(outcome).collect()
}

/// Judges these connections, ends those that are no longer admitted, and renews the authorization of the others. Every verdict
/// goes through `apply`.
pub fn enforce(
    snapshot: &Snapshot,
    registry: &ConnectionRegistry,
    connections: &[Arc<LiveConnection>],
    now: OffsetDateTime,
    apply: &Apply<'_>,
) {
    Pass { time_limit: PASS_TIME, snapshot, registry, now, apply }.run(connections);
}

/// One pass over sessions.
struct Pass<'p> {
    /// How long every chain of a client is judged.
    time_limit: Duration,
    snapshot: &'p Snapshot,
    registry: &'p ConnectionRegistry,
    now: OffsetDateTime,
    apply: &'p Apply<'p>,
}

impl Pass<'_> {
    fn run(&self, connections: &[Arc<LiveConnection>]) {
        let left = Mutex::new(Vec::new());
        in_parallel(connections, MIN_SESSIONS_PER_THREAD, &|live| {
            match fault::contain(PART, || self.recheck(live)) {
                Ok(Some(decision)) => return self.apply(decision, live),
                Ok(None) => left.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(live)),
                Err(_) => return self.end(live, not_judged()),
            }
            true
        });
        let deadline = Instant::now() + self.time_limit;
        let groups = in_turns(left.into_inner().unwrap_or_else(PoisonError::into_inner));
        in_parallel(&groups, MIN_GROUPS_PER_THREAD, &|group| {
            fault::contain(PART, || self.judge(group, deadline))
                .unwrap_or_else(|_| group.sessions.iter().all(|live| self.end(live, not_judged())))
        });
    }

    /// Judges a connection if that costs no signature.
    fn recheck(&self, live: &LiveConnection) -> Option<Decision> {
        let Some(session) = live.session() else { return Some(Decision::Unchanged) };
        let (snapshot, presented) = (self.snapshot, session.authorization.presented());
        let judged = snapshot.reauthorize_from_path(live.listener(), live.origin(), presented, self.now)?;
        Some(self.decision(judged, live, &session))
    }

    /// Judges the sessions of one chain. Returns whether to continue.
    fn judge(&self, group: &Group, deadline: Instant) -> bool {
        if group.turn >= MAX_CHAINS && Instant::now() >= deadline {
            return group.sessions.iter().all(|live| self.end(live, too_many_chains()));
        }
        let presented = PresentedIdentity::Verified(Some(&group.identity));
        // Sessions of a removed listener were already ended by `recheck`.
        let Some(identity) = self.snapshot.authorize_identity(&group.listener, presented, self.now) else {
            return true;
        };
        group.sessions.iter().all(|live| {
            let Some(session) = live.session() else { return true };
            let (listener, identity) = (live.listener(), identity.clone());
            let judged = self.snapshot.authorize_with_identity(listener, live.origin(), identity, self.now);
            self.apply(self.decision(judged, live, &session), live)
        })
    }

    fn decision(&self, judged: Result<Permit, Denial>, live: &LiveConnection, session: &Arc<Session>) -> Decision {
        let login = session.authorization.login.as_deref();
        match judged.and_then(|permit| permit.with_login(login, self.now)) {
            Ok(permit) => Decision::Stays(Arc::clone(session), session.authorization.renewed(&permit)),
            Err(_) if self.snapshot.revoke(live.listener()) == Revoke::Keep => Decision::Unchanged,
            Err(refusal) => Decision::Ends(refusal.into_session_outcome()),
        }
    }

    /// Ends a session that cannot be judged, unless its listener keeps sessions. Returns whether to continue.
    fn end(&self, live: &LiveConnection, outcome: Outcome) -> bool {
        match self.snapshot.revoke(live.listener()) {
            Revoke::Keep => true,
            Revoke::Disconnect => self.apply(Decision::Ends(outcome), live),
        }
    }

    /// Returns whether to continue.
    fn apply(&self, decision: Decision, live: &LiveConnection) -> bool {
        let mut decision = Some(decision);
        (self.apply)(&mut || match decision.take() {
            Some(Decision::Ends(outcome)) => live.end(outcome),
            Some(Decision::Stays(judged, authorization)) => self.registry.renew(live, &judged, authorization),
            Some(Decision::Unchanged) | None => {}
        })
    }
}

/// The outcome of a session whose client has more chains than can be judged in time.
fn too_many_chains() -> Outcome {
    let detail = format_args!(
        "the client has sessions with more than {MAX_CHAINS} different certificate chains, and this one could not be checked in \
                 time; send the same chain with every connection"
    );
    Outcome::new(Reason::CredentialRevoked, detail)
}

/// The outcome of a session that a fault prevented from being judged. It must not stay open.
fn not_judged() -> Outcome {
    Outcome::new(
        Reason::CredentialRevoked,
        "an internal fault prevented the check of this session; see `portcullis status`",
    )
}

/// The name of this part in fault reports.
const PART: &str = "revocation";

/// Calls `work` for each item in order, on several threads if there are at least `min_share` items for each. Stops when `work`
/// returns false.
fn in_parallel<T: Sync>(items: &[T], min_share: usize, work: &(dyn Fn(&T) -> bool + Sync)) {
    let next = AtomicUsize::new(0);
    let run = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if !work(item) {
                next.store(items.len(), Ordering::Relaxed);
            }
        }
    };
    let threads = available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    thread::scope(|scope| {
        for _ in 1..threads.min(items.len().div_ceil(min_share)) {
            // If no thread can be started, this one does the work.
            let _ = thread::Builder::new().spawn_scoped(scope, run);
        }
        run();
    });
}

/// The verdict on a connection.
enum Decision {
    /// The connection is no longer admitted.
    Ends(Outcome),
    /// The session that was judged is still admitted, with this authorization.
    Stays(Arc<Session>, Authorization),
    /// The connection is not admitted yet and judges itself, or `revoke = "keep"` applies.
    Unchanged,
}

/// Returns when a session is due by the wall clock, which may jump, or stop while the machine is suspended.
async fn session_due(registry: &ConnectionRegistry) {
    loop {
        let wait = match registry.next_due() {
            Some(due) => match Duration::try_from(due - OffsetDateTime::now_utc()) {
                Ok(left) if !left.is_zero() => left.min(MAX_WAIT),
                Ok(_) | Err(_) => return,
            },
            None => {
                registry.due_earlier().await;
                continue;
            }
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = registry.due_earlier() => {}
        }
    }
}

/// The time within which a jump of the wall clock is noticed.
const MAX_WAIT: Duration = Duration::from_millis(250);

/// Leaves processors for the sessions on large machines.
const MAX_THREADS: usize = 8;

/// Fewer sessions are not worth a thread.
const MIN_SESSIONS_PER_THREAD: usize = 500;

/// Fewer chains are not worth a thread. A chain may cost signatures.
const MIN_GROUPS_PER_THREAD: usize = 16;

/// Chains of one client that are judged however long the pass takes. A client has one, or two while its file changes.
const MAX_CHAINS: usize = 4;

/// Half of the second within which a revocation has to take effect.
const PASS_TIME: Duration = Duration::from_millis(500);
