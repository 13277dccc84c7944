//! Ends the sessions that the policy in force would not let in any more, and no others.
//!
//! Every session is judged again when a new policy has come into force, and each by itself when what it was let in by runs
//! out: a rule, a certificate, a revocation list. The judging happens on a thread of its own, so that no session has to
//! wait for it. A connection that is still on its way in judges itself, and can then be told in its own protocol.

use std::sync::Arc;
use std::thread::{self, available_parallelism};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::config::Revoke;
use crate::outcome::Ending;
use crate::sessions::{Live, Register};
use crate::snapshot::{Current, Reliance, Snapshot};

/// Judges for as long as policies come.
pub async fn run(mut current: Current, register: Arc<Register>) {
    loop {
        let everybody = tokio::select! {
            changed = current.changed() => match changed {
                Ok(()) => true,
                Err(_) => return,
            },
            () = something_due(&register) => false,
        };
        let snapshot = Arc::clone(&current.borrow_and_update());
        let register = Arc::clone(&register);
        // Nothing in there can panic; if something did, the next policy would be judged by all the same.
        let _ = spawn_blocking(move || {
            let now = OffsetDateTime::now_utc();
            let connections = if everybody { register.all() } else { register.take_due(now) };
            enforce(&snapshot, &register, &connections, now);
        })
        .await;
    }
}

/// Which sessions `snapshot` would end, were it in force, and why.
pub fn foresee(snapshot: &Snapshot, register: &Register) -> Vec<(Arc<Live>, Ending)> {
    let now = OffsetDateTime::now_utc();
    let ending = |live: Arc<Live>| {
        live.session()?;
        let Judgement::Ends(ending) = judge(snapshot, &live, now) else { return None };
        Some((live, ending))
    };
    register.all().into_iter().filter_map(ending).collect()
}

/// Judges these connections, ends those that fail, and notes what the others rely on now.
pub fn enforce(snapshot: &Snapshot, register: &Register, connections: &[Arc<Live>], now: OffsetDateTime) {
    // Where every certificate has to be verified anew there is work for more than one.
    let threads = available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let share = connections.len().div_ceil(threads).max(SMALLEST_SHARE);
    let (own, others) = connections.split_at(share.min(connections.len()));
    let enforce = |part: &[Arc<Live>]| part.iter().for_each(|live| enforce_one(snapshot, register, live, now));
    thread::scope(|scope| {
        for part in others.chunks(share) {
            scope.spawn(move || enforce(part));
        }
        enforce(own);
    });
}

fn enforce_one(snapshot: &Snapshot, register: &Register, live: &Live, now: OffsetDateTime) {
    match judge(snapshot, live, now) {
        Judgement::Ends(ending) => live.end(ending),
        Judgement::Stays(reliance) => register.renew(live, reliance),
        Judgement::Waits => {}
    }
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

fn judge(snapshot: &Snapshot, live: &Live, now: OffsetDateTime) -> Judgement {
    let listener = live.listener();
    let Some(session) = live.session() else { return Judgement::Waits };
    let evidence = session.reliance.evidence();
    match snapshot.judge(listener, live.provenance(), evidence, now) {
        Ok(permission) => Judgement::Stays(session.reliance.renewed(&permission)),
        Err(_) if snapshot.revoke(listener) == Revoke::Keep => Judgement::Waits,
        Err(refusal) => Judgement::Ends(refusal.of_a_session()),
    }
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
