//! A client whose upstream refuses connections is held, and the upstream dialled again, for `dial_retry`: the restart of a
//! database then costs its clients a moment, as a direct client's own retries would, and no error.
//!
//! However many clients wait, one of them dials. When it gets through, the others dial at random moments of the next tenth
//! of a second.

use std::future::pending;
use std::io;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use tokio::io::AsyncReadExt as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, sleep_until};

use crate::audit::event::ConnectionFields;
use crate::outcome::{Outcome, Reason};
use crate::policy::Current;
use crate::protocol::Protocol;
use crate::proxy::phase::authorize::judge;
use crate::proxy::phase::close::Close;
use crate::proxy::phase::startup::SessionRequest;
use crate::upstream::endpoint::outage::Outage;

/// How a client has been held so far.
#[derive(Debug, Default)]
pub(crate) struct RetryHold {
    /// Nothing before it is held for the first time.
    until: Option<Instant>,
    turn: DialTurn,
    /// The client has ended its direction, after it had asked for something.
    is_half_closed: bool,
}

/// Whose turn it is to dial.
#[derive(Debug, Default)]
struct DialTurn {
    /// The right to dial for all.
    dialler: Option<OwnedSemaphorePermit>,
    /// How often it has been used.
    dials: u32,
}

/// What comes of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HoldOutcome {
    /// The upstream is to be dialled again.
    DialAgain,
    /// It has refused connections for too long.
    GiveUp,
}

impl RetryHold {
    /// Whether the client has not been held yet.
    pub(crate) fn is_new(&self) -> bool {
        self.until.is_none()
    }

    /// Leaves it to another client to dial for all.
    pub(crate) fn release(&mut self) {
        self.turn.dialler = None;
    }

    /// Waits until the upstream is to be dialled again, under the terms in force then.
    ///
    /// # Errors
    /// When the client leaves meanwhile, or the policy no longer accepts it.
    pub(crate) async fn wait(
        &mut self,
        mut ready: SessionRequest,
        current: &Current,
        fields: &mut ConnectionFields,
    ) -> Result<(HoldOutcome, SessionRequest), Close> {
        let Self { until, turn, is_half_closed } = self;
        let retry = ready.authorized.policy.upstream.settings.dial_retry;
        let until = *until.get_or_insert_with(|| Instant::now() + retry);
        let mut current = current.clone();
        loop {
            let snapshot = Arc::clone(&current.borrow_and_update());
            match judge(&ready.authorized.client, &snapshot, fields) {
                Ok(permit) => {
                    let (former, next) = (&mut ready.authorized.policy, permit.policy);
                    if former.protocol == next.protocol
                        && mem::replace(former, next).upstream.settings != former.upstream.settings
                    {
                        // So does every other client that waits.
                        sleep(SPREAD.mul_f32(random())).await;
                        return Ok((HoldOutcome::DialAgain, ready));
                    }
                }
                Err(ending) => return Err(ready.authorized.refused(ending)),
            }
            let endpoints = Arc::clone(&ready.authorized.policy.upstream.endpoints);
            tokio::select! {
                biased;
                changed = current.changed() => if changed.is_err() {
                    return Ok((HoldOutcome::GiveUp, ready));
                },
                ending = listen(&mut ready, is_half_closed) => return Err(ending.into()),
                () = sleep_until(until) => return Ok((HoldOutcome::GiveUp, ready)),
                // What admits it may have expired.
                () = sleep(MAX_UNJUDGED) => {}
                () = turn.come(endpoints.outage()) => return Ok((HoldOutcome::DialAgain, ready)),
            }
        }
    }
}

impl DialTurn {
    /// Returns when it is this client's turn to dial.
    async fn come(&mut self, outage: &Outage) {
        if self.dialler.is_none() {
            tokio::select! {
                biased;
                () = outage.over() => return sleep(SPREAD.mul_f32(random())).await,
                dialler = outage.dialler() => self.dialler = dialler,
            }
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.dials.min(MAX_DOUBLINGS)).min(LONGEST_PAUSE);
        self.dials = self.dials.saturating_add(1);
        sleep(pause.mul_f32(0.5 + random())).await;
    }
}

/// Keeps what the client sends, and returns when it leaves.
async fn listen(ready: &mut SessionRequest, is_half_closed: &mut bool) -> Outcome {
    let SessionRequest { authorized, first } = ready;
    let mut bytes = [0; 1024];
    while !*is_half_closed && first.len() < MAX_KEPT {
        match authorized.client.read(&mut bytes).await {
            // It may still wait for an answer to what it asked.
            Ok(0) if authorized.policy.protocol != Protocol::Postgres && !first.is_empty() => *is_half_closed = true,
            Ok(0) => return Outcome::new(Reason::ClientClosed, "it left while the upstream refused connections"),
            Ok(count) => first.extend_from_slice(bytes.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Outcome::new(Reason::ProtocolViolation, format_args!("client: {error}"));
            }
            Err(error) => return Outcome::new(Reason::ClientClosed, format_args!("client: {error}")),
        }
    }
    pending().await
}

/// From 0 to 1.
fn random() -> f32 {
    let mut byte = [128];
    // Where there are no random numbers all wait equally long.
    let _ = rand::fill(&mut byte);
    f32::from(byte[0]) / 255.0
}

const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
const MAX_DOUBLINGS: u32 = 8;

/// How long it is held before it is judged again, whatever changes. Longer than a pause, or its turn would never come.
const MAX_UNJUDGED: Duration = Duration::from_secs(1);

/// In which those that have waited dial.
const SPREAD: Duration = Duration::from_millis(100);

/// More than a client sends before it waits for an answer.
const MAX_KEPT: usize = 32 << 10;
