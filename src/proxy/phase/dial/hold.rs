//! Holds a client while its upstream refuses connections, and dials again for up to `dial_retry`. The restart of a database
//! then causes a short delay for its clients, not an error.
//!
//! Only one of the waiting clients dials. When it connects, the others dial at random moments within `DIAL_SPREAD`.

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
use crate::proxy::phase::close::Close;
use crate::proxy::phase::startup::SessionRequest;
use crate::upstream::endpoint::outage::Outage;

/// The state of a client that is or was held.
#[derive(Debug, Default)]
pub(crate) struct RetryHold {
    /// `None` before the client is held for the first time.
    until: Option<Instant>,
    turn: DialTurn,
    /// The client has ended its direction after it had sent a request.
    is_half_closed: bool,
}

/// The turn of this client among the clients that wait for the same upstream.
#[derive(Debug, Default)]
struct DialTurn {
    /// Present while this client dials for all waiting clients.
    permit: Option<OwnedSemaphorePermit>,
    /// The number of dials with the permit.
    dials: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HoldOutcome {
    DialAgain,
    /// `dial_retry` has passed.
    GiveUp,
}

impl RetryHold {
    /// Whether the client has not been held yet.
    pub(crate) fn is_new(&self) -> bool {
        self.until.is_none()
    }

    /// Lets another waiting client dial.
    pub(crate) fn release(&mut self) {
        self.turn.permit = None;
    }

    /// Waits until this client dials again. The returned request has the policy in force at that time.
    ///
    /// # Errors
    /// The client disconnects, or the policy no longer admits it.
    pub(crate) async fn wait(
        &mut self,
        mut request: SessionRequest,
        current: &Current,
        fields: &mut ConnectionFields,
    ) -> Result<(HoldOutcome, SessionRequest), Close> {
        let Self { until, turn, is_half_closed } = self;
        let retry = request.authorized.policy.upstream.settings.dial_retry;
        let until = *until.get_or_insert_with(|| Instant::now() + retry);
        let mut current = current.clone();
        loop {
            let snapshot = Arc::clone(&current.borrow_and_update());
            match request.evaluate(&snapshot, fields) {
                Ok(permit) => {
                    let (former, next) = (&mut request.authorized.policy, permit.policy);
                    if former.protocol == next.protocol
                        && mem::replace(former, next).upstream.settings != former.upstream.settings
                    {
                        // Every waiting client gets here at the same time.
                        sleep(DIAL_SPREAD.mul_f32(random())).await;
                        return Ok((HoldOutcome::DialAgain, request));
                    }
                }
                Err(outcome) => return Err(request.authorized.refuse(outcome)),
            }
            let endpoints = Arc::clone(&request.authorized.policy.upstream.endpoints);
            tokio::select! {
                biased;
                changed = current.changed() => if changed.is_err() {
                    return Ok((HoldOutcome::GiveUp, request));
                },
                outcome = read_client(&mut request, is_half_closed) => return Err(outcome.into()),
                () = sleep_until(until) => return Ok((HoldOutcome::GiveUp, request)),
                // The rule or the certificate may have expired.
                () = sleep(REAUTHORIZE_INTERVAL) => {}
                () = turn.wait(endpoints.outage()) => return Ok((HoldOutcome::DialAgain, request)),
            }
        }
    }
}

impl DialTurn {
    /// Returns when it is this client's turn to dial.
    async fn wait(&mut self, outage: &Outage) {
        if self.permit.is_none() {
            tokio::select! {
                biased;
                () = outage.over() => return sleep(DIAL_SPREAD.mul_f32(random())).await,
                permit = outage.acquire_dial_permit() => self.permit = permit,
            }
        }
        let pause = MIN_PAUSE.saturating_mul(1 << self.dials.min(MAX_DOUBLINGS)).min(MAX_PAUSE);
        self.dials = self.dials.saturating_add(1);
        sleep(pause.mul_f32(0.5 + random())).await;
    }
}

/// Buffers the bytes that the client sends, and returns when it disconnects.
async fn read_client(request: &mut SessionRequest, is_half_closed: &mut bool) -> Outcome {
    let SessionRequest { authorized, buffered, .. } = request;
    let mut bytes = [0; 1024];
    while !*is_half_closed && buffered.len() < MAX_BUFFERED {
        match authorized.client.read(&mut bytes).await {
            // The client may still wait for the reply to its request.
            Ok(0) if authorized.policy.protocol != Protocol::Postgres && !buffered.is_empty() => *is_half_closed = true,
            Ok(0) => {
                let detail = "the client disconnected while the upstream refused connections";
                return Outcome::new(Reason::ClientClosed, detail);
            }
            Ok(count) => buffered.extend_from_slice(bytes.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Outcome::new(Reason::ProtocolViolation, format_args!("client: {error}"));
            }
            Err(error) => return Outcome::new(Reason::ClientClosed, format_args!("client: {error}")),
        }
    }
    pending().await
}

/// Returns a number from 0 to 1.
fn random() -> f32 {
    let mut byte = [128];
    // Without random numbers, all clients wait equally long.
    let _ = rand::fill(&mut byte);
    f32::from(byte[0]) / 255.0
}

const MIN_PAUSE: Duration = Duration::from_millis(25);
const MAX_PAUSE: Duration = Duration::from_millis(250);
const MAX_DOUBLINGS: u32 = 8;

/// How often a held client is authorized again. Longer than any pause, because each round starts the pause anew.
const REAUTHORIZE_INTERVAL: Duration = Duration::from_secs(1);

/// The time over which waiting clients spread their dials.
const DIAL_SPREAD: Duration = Duration::from_millis(100);

/// More than a client sends before it waits for a reply.
const MAX_BUFFERED: usize = 32 << 10;
