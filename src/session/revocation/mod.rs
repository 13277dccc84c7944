//! Ends the sessions that the policy in force would no longer admit, and no others.
//!
//! Every session is judged again when a new policy is in force, and each by itself when what it was admitted by expires: a rule,
//! a certificate, a revocation list. Both happen on threads of their own and beside each other, so no session waits for a pass
//! over all of them.
//!
//! A client chooses what its sessions cost, so a pass judges them in an order that gives nobody an advantage:
//!
//! 1. Every session by its source, and by the path it was admitted by (`Snapshot::reauthorize_cheaply`). That costs no signature.
//! 2. The others by every path of their chains. Sessions with the same chain share one verdict. Clients take turns with one
//!    chain each, so the chains of one client delay only its own sessions.
//!
//! Of one client `MAX_CHAINS` chains are always judged. Sessions with more than that end where they have not been judged
//! `PASS_TIME` after the pass began.
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
use crate::fault;
use crate::identity::client_verifier::PresentedIdentity;
use crate::outcome::{Outcome, Reason};
use crate::policy::authorize::{Denial, Permit};
use crate::policy::usage::Authorization;
use crate::policy::{Current, Snapshot};
use crate::session::registry::{ConnectionRegistry, LiveConnection, Session};
use crate::session::revocation::turns::{Group, in_turns};

/// Judges for as long as policies come.
pub async fn run(current: Current, registry: Arc<ConnectionRegistry>) {
    tokio::select! {
        () = judge_everybody(current.clone(), &registry) => {}
        () = judge_due(current, &registry) => {}
    }
}

/// Judges every session by each new policy.
async fn judge_everybody(mut current: Current, registry: &Arc<ConnectionRegistry>) {
    while current.changed().await.is_ok() {
        let snapshot = Arc::clone(&current.borrow_and_update());
        let (registry, newer) = (Arc::clone(registry), current.clone());
        // A fault has been noted; the next policy is judged by all the same.
        let _ = fault::contained_blocking(PART, move || {
            let apply = |verdict: &mut dyn FnMut()| {
                verdict();
                !newer.has_changed().unwrap_or(true)
            };
            enforce(&snapshot, &registry, &registry.all(), OffsetDateTime::now_utc(), &apply);
        })
        .await;
    }
}

/// Judges the sessions that fall due, by the policy in force.
async fn judge_due(current: Current, registry: &Arc<ConnectionRegistry>) {
    loop {
        something_due(registry).await;
        let (registry, current) = (Arc::clone(registry), current.clone());
        let _ = fault::contained_blocking(PART, move || enforce_due(&current, &registry)).await;
    }
}

fn enforce_due(current: &Current, registry: &ConnectionRegistry) {
    let now = OffsetDateTime::now_utc();
    let due = registry.take_pending(now);
    // Behind that, so that a policy which comes later finds all of them due.
    let snapshot = Arc::clone(&current.borrow());
    // No policy can come between the question and the verdict, because that waits for whoever looks at the present one. A newer
    // policy judges everybody, and its verdict must not be replaced.
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

/// Applies a verdict, where the policy that it was reached by still counts. Says whether to go on with that policy.
pub type Apply<'a> = dyn Fn(&mut dyn FnMut()) -> bool + Sync + 'a;

/// Which sessions `snapshot` would end, were it in force, and why.
pub fn preview(snapshot: &Snapshot, registry: &ConnectionRegistry) -> Vec<(Arc<LiveConnection>, Outcome)> {
    let now = OffsetDateTime::now_utc();
    let ending = |live: Arc<LiveConnection>| {
        let session = live.session()?;
        let judged = snapshot.authorize(live.listener(), live.origin(), session.authorization.presented(), now);
        let is_kept = snapshot.revoke(live.listener()) == Revoke::Keep;
        let refusal = judged.err().filter(|_| !is_kept)?;
        Some((live, refusal.into_plan_outcome()))
    };
    registry.all().into_iter().filter_map(ending).collect()
}

/// Judges these connections, ends those that fail, and notes what the others rely on now. Every verdict goes through `apply`.
pub fn enforce(
    snapshot: &Snapshot,
    registry: &ConnectionRegistry,
    connections: &[Arc<LiveConnection>],
    now: OffsetDateTime,
    apply: &Apply<'_>,
) {
    let pass = Pass { snapshot, registry, now, deadline: Instant::now() + PASS_TIME, apply };
    pass.run(connections);
}

/// One pass over sessions.
struct Pass<'p> {
    snapshot: &'p Snapshot,
    registry: &'p ConnectionRegistry,
    now: OffsetDateTime,
    /// Until when every chain of a client is judged.
    deadline: Instant,
    apply: &'p Apply<'p>,
}

impl Pass<'_> {
    fn run(&self, connections: &[Arc<LiveConnection>]) {
        let left = Mutex::new(Vec::new());
        in_parallel(connections, SMALLEST_SHARE, &|live| {
            match fault::contain(PART, || self.reauthorize_from_path(live)) {
                Ok(Some(decision)) => _ = self.apply(decision, live),
                Ok(None) => left.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(live)),
                Err(_) => live.end(unjudged()),
            }
            true
        });
        let groups = in_turns(left.into_inner().unwrap_or_else(PoisonError::into_inner));
        in_parallel(&groups, SMALLEST_SHARE_OF_GROUPS, &|group| {
            fault::contain(PART, || self.reauthorize_group(group)).unwrap_or_else(|_| {
                group.sessions.iter().for_each(|live| live.end(unjudged()));
                true
            })
        });
    }

    /// Judges a connection where that costs no signature.
    fn reauthorize_from_path(&self, live: &LiveConnection) -> Option<Decision> {
        let Some(session) = live.session() else { return Some(Decision::Waits) };
        let (snapshot, presented) = (self.snapshot, session.authorization.presented());
        let judged = snapshot.reauthorize_from_path(live.listener(), live.origin(), presented, self.now)?;
        Some(self.decision(judged, live, &session))
    }

    /// Judges the sessions of one chain. Says whether to go on.
    fn reauthorize_group(&self, group: &Group) -> bool {
        if group.turn >= MAX_CHAINS && Instant::now() >= self.deadline {
            return group.sessions.iter().all(|live| match self.snapshot.revoke(live.listener()) {
                Revoke::Keep => true,
                Revoke::Disconnect => self.apply(Decision::Ends(too_many_chains()), live),
            });
        }
        let presented = PresentedIdentity::Verified(Some(&group.identity));
        // Without a listener its source is asked about in vain, and that question comes first.
        let Some(identity) = self.snapshot.verify_identity(&group.listener, presented, self.now) else { return true };
        group.sessions.iter().all(|live| {
            let Some(session) = live.session() else { return true };
            let (listener, identity) = (live.listener(), identity.clone());
            let judged = self.snapshot.authorize_identified(listener, live.origin(), identity, self.now);
            self.apply(self.decision(judged, live, &session), live)
        })
    }

    fn decision(&self, judged: Result<Permit, Denial>, live: &LiveConnection, session: &Session) -> Decision {
        match judged {
            Ok(permit) => Decision::Stays(session.authorization.renewed(&permit)),
            Err(_) if self.snapshot.revoke(live.listener()) == Revoke::Keep => Decision::Waits,
            Err(refusal) => Decision::Ends(refusal.into_session_outcome()),
        }
    }

    /// Says whether to go on.
    fn apply(&self, decision: Decision, live: &LiveConnection) -> bool {
        let mut decision = Some(decision);
        (self.apply)(&mut || match decision.take() {
            Some(Decision::Ends(ending)) => live.end(ending),
            Some(Decision::Stays(authorization)) => self.registry.renew(live, authorization),
            Some(Decision::Waits) | None => {}
        })
    }
}

/// The end of a session whose client has more chains than can be judged in time.
fn too_many_chains() -> Outcome {
    let detail = format_args!(
        "its client has sessions with more than {MAX_CHAINS} different certificate chains, and this one could not be judged in \
         time; send the same chain with every connection"
    );
    Outcome::new(Reason::CredentialRevoked, detail)
}

/// What nobody can judge any more does not go on.
fn unjudged() -> Outcome {
    Outcome::new(Reason::CredentialRevoked, "an internal fault kept it from being judged; `portcullis status` has more")
}

/// What faults are noted under.
const PART: &str = "revocation";

/// Does `work` for each item, in their order, on as many threads as that is worth. Stops where `work` says so.
fn in_parallel<T: Sync>(items: &[T], smallest_share: usize, work: &(dyn Fn(&T) -> bool + Sync)) {
    let next = AtomicUsize::new(0);
    let run = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if !work(item) {
                next.store(items.len(), Ordering::Relaxed);
            }
        }
    };
    let threads = available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    thread::scope(|scope| {
        for _ in 1..threads.min(items.len().div_ceil(smallest_share)) {
            scope.spawn(run);
        }
        run();
    });
}

/// What becomes of a connection.
enum Decision {
    /// It is no longer admitted.
    Ends(Outcome),
    /// It is, by this.
    Stays(Authorization),
    /// It is not admitted yet, and will be judged before a byte of it goes upstream; or it may stay whatever the policy says.
    Waits,
}

/// Returns when a session is due by the wall clock, which may jump or stand still while the machine sleeps.
async fn something_due(registry: &ConnectionRegistry) {
    loop {
        let wait = match registry.next_due() {
            Some(due) => match Duration::try_from(due - OffsetDateTime::now_utc()) {
                Ok(left) if !left.is_zero() => left.min(LONGEST_WAIT),
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

/// How long a jump of the wall clock may go unnoticed.
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// More would leave the sessions no processor.
const MOST_THREADS: usize = 8;

/// Fewer are not worth a thread.
const SMALLEST_SHARE: usize = 500;

/// The same of chains, each of which may cost signatures.
const SMALLEST_SHARE_OF_GROUPS: usize = 16;

/// Chains of one client that are judged however long the pass takes. Clients have one, or two while its file changes.
const MAX_CHAINS: usize = 4;

/// After that, further chains of a client are not judged. Half of what a revocation may take.
const PASS_TIME: Duration = Duration::from_millis(500);
