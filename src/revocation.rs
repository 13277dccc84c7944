//! Ends the sessions that the policy in force would not let in any more, and no others.
//!
//! Every session is judged again when a new policy has come into force, and each by itself when what it was let in by runs
//! out: a rule, a certificate, a revocation list. The judging happens on threads of its own, so that no session has to wait
//! for it. Sessions that can be judged without a signature come first, so that no client can delay the end of another one's
//! session by what it has sent. A newer policy ends the pass of an older one. A connection that is still on its way in judges
//! itself, and can then be told in its own protocol.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, available_parallelism};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::sleep;

use crate::config::Revoke;
use crate::fault;
use crate::outcome::{Ending, Reason};
use crate::sessions::{Live, Register, Session};
use crate::snapshot::{Current, Permission, Refusal, Reliance, Snapshot};

/// Judges for as long as policies come.
pub async fn run(mut current: Current, register: Arc<Register>) {
    loop {
        let Some((snapshot, everybody)) = next(&mut current, &register).await else { return };
        let (register, newer) = (Arc::clone(&register), current.clone());
        // A fault has been noted; the next policy is judged by all the same.
        let _ = fault::contained_blocking(PART, move || {
            let now = OffsetDateTime::now_utc();
            let connections = if everybody { register.all() } else { register.take_due(now) };
            enforce(&snapshot, &register, &connections, now, &|| newer.has_changed().unwrap_or(true));
        })
        .await;
    }
}

/// Waits for what has to be judged next: everybody by a new policy, or those that fall due by the one in force. Nothing, when
/// no policy will come any more.
async fn next(current: &mut Current, register: &Register) -> Option<(Arc<Snapshot>, bool)> {
    tokio::select! {
        // First, so that sessions that fall due one after the other never put a policy off.
        biased;
        changed = current.changed() => changed.ok().map(|()| (Arc::clone(&current.borrow_and_update()), true)),
        // A policy that comes at this moment is not seen by that: it is left for the next turn.
        () = something_due(register) => Some((Arc::clone(&current.borrow()), false)),
    }
}

/// Which sessions `snapshot` would end, were it in force, and why.
pub fn foresee(snapshot: &Snapshot, register: &Register) -> Vec<(Arc<Live>, Ending)> {
    let now = OffsetDateTime::now_utc();
    let ending = |live: Arc<Live>| {
        let session = live.session()?;
        let judged = snapshot.judge(live.listener(), live.provenance(), session.reliance.evidence(), now);
        let is_kept = snapshot.revoke(live.listener()) == Revoke::Keep;
        let refusal = judged.err().filter(|_| !is_kept)?;
        Some((live, refusal.of_a_plan()))
    };
    register.all().into_iter().filter_map(ending).collect()
}

/// Judges these connections, ends those that fail, and notes what the others rely on now. Stops early where
/// `is_superseded` says that another policy has come into force, which begins anew.
pub fn enforce(
    snapshot: &Snapshot,
    register: &Register,
    connections: &[Arc<Live>],
    now: OffsetDateTime,
    is_superseded: &(dyn Fn() -> bool + Sync),
) {
    let expensive = Mutex::new(Vec::new());
    in_parallel(connections, &|live| {
        match fault::contain(PART, || recheck(snapshot, live, now)) {
            Ok(Some(judgement)) => apply(judgement, register, live),
            Ok(None) => expensive.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(live)),
            Err(_) => live.end(unjudged()),
        }
        true
    });
    let mut expensive = expensive.into_inner().unwrap_or_else(PoisonError::into_inner);
    expensive.sort_by_key(|live| certificates(live));
    in_parallel(&expensive, &|live| {
        match fault::contain(PART, || judge(snapshot, live, now)) {
            Ok(judgement) => apply(judgement, register, live),
            Err(_) => live.end(unjudged()),
        }
        !is_superseded()
    });
}

/// What nobody can judge any more does not go on.
fn unjudged() -> Ending {
    Ending::new(Reason::CredentialRevoked, "an internal fault kept it from being judged; `portcullis status` has more")
}

/// What faults are noted under.
const PART: &str = "revocation";

/// Does `work` for each connection, in their order, on as many threads as that is worth. Stops where `work` says so.
fn in_parallel(connections: &[Arc<Live>], work: &(dyn Fn(&Arc<Live>) -> bool + Sync)) {
    let next = AtomicUsize::new(0);
    let run = || {
        while let Some(live) = connections.get(next.fetch_add(1, Ordering::Relaxed)) {
            if !work(live) {
                next.store(connections.len(), Ordering::Relaxed);
            }
        }
    };
    let threads = available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    thread::scope(|scope| {
        for _ in 1..threads.min(connections.len().div_ceil(SMALLEST_SHARE)) {
            scope.spawn(run);
        }
        run();
    });
}

/// What becomes of a connection.
enum Judgement {
    /// It may no longer be here.
    Ends(Ending),
    /// It may, by this.
    Stays(Reliance),
    /// It is on its way in, and will be judged before a byte of it goes upstream; or it may stay whatever the policy says.
    Waits,
}

fn apply(judgement: Judgement, register: &Register, live: &Live) {
    match judgement {
        Judgement::Ends(ending) => live.end(ending),
        Judgement::Stays(reliance) => register.renew(live, reliance),
        Judgement::Waits => {}
    }
}

fn judge(snapshot: &Snapshot, live: &Live, now: OffsetDateTime) -> Judgement {
    let Some(session) = live.session() else { return Judgement::Waits };
    let judged = snapshot.judge(live.listener(), live.provenance(), session.reliance.evidence(), now);
    judgement(judged, snapshot, live, &session)
}

/// The same, where it costs no signature.
fn recheck(snapshot: &Snapshot, live: &Live, now: OffsetDateTime) -> Option<Judgement> {
    let Some(session) = live.session() else { return Some(Judgement::Waits) };
    let judged = snapshot.recheck(live.listener(), live.provenance(), session.reliance.evidence(), now)?;
    Some(judgement(judged, snapshot, live, &session))
}

fn judgement(judged: Result<Permission, Refusal>, snapshot: &Snapshot, live: &Live, session: &Session) -> Judgement {
    match judged {
        Ok(permission) => Judgement::Stays(session.reliance.renewed(&permission)),
        Err(_) if snapshot.revoke(live.listener()) == Revoke::Keep => Judgement::Waits,
        Err(refusal) => Judgement::Ends(refusal.of_a_session()),
    }
}

/// How many certificates a session's client has sent: a measure of what it costs to verify them anew.
fn certificates(live: &Live) -> usize {
    let session = live.session();
    let presented = session.as_ref().and_then(|session| session.reliance.presented.as_ref());
    presented.map_or(0, |credential| credential.sent())
}

/// Returns when a session is due by the wall clock, which may jump or stand still while the machine sleeps.
async fn something_due(register: &Register) {
    loop {
        let wait = match register.next_due() {
            Some(due) => match Duration::try_from(due - OffsetDateTime::now_utc()) {
                Ok(left) if !left.is_zero() => left.min(LONGEST_WAIT),
                Ok(_) | Err(_) => return,
            },
            None => {
                register.sooner().await;
                continue;
            }
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = register.sooner() => {}
        }
    }
}

/// How long a jump of the wall clock may go unnoticed.
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// More would leave the sessions no processor.
const MOST_THREADS: usize = 8;

/// Fewer are not worth a thread.
const SMALLEST_SHARE: usize = 500;

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::addr::ClientAddr;
    use crate::policy::{Origin, Rule, Source};
    use crate::snapshot::specimen::{Site, listener};

    #[tokio::test]
    async fn new_policy_is_judged_by_before_sessions_that_fall_due() {
        let site = Site::new();
        site.install("db", OffsetDateTime::now_utc() + time::Duration::DAY);
        let snapshot = Arc::new(site.snapshot(listener("db", 1001, ""), None));
        let register = Arc::new(Register::default());
        let source = Source::Network("127.0.0.1".parse().unwrap());
        let expires_at = Some(OffsetDateTime::UNIX_EPOCH);
        let rule = Rule { source, description: None, expires_at, origin: Origin::Configuration };
        let presence = register.enter("db".into(), ClientAddr::UNIX);
        presence.stands(Reliance { rule: Some(Arc::new(rule)), ..Reliance::default() });
        let (publish, mut current) = watch::channel(Arc::clone(&snapshot));
        // The choice was random: in twenty turns it was wrong almost certainly.
        for _ in 0..20 {
            let due = next(&mut current, &register).await;
            assert!(matches!(due, Some((_, false))), "nothing but the session is new");
            publish.send(Arc::clone(&snapshot)).unwrap();
            let everybody = next(&mut current, &register).await;
            assert!(matches!(everybody, Some((_, true))), "the policy comes first");
        }
        drop(publish);
        assert!(next(&mut current, &Register::default()).await.is_none());
    }
}
