//! One client's life, told once and in one direction:
//!
//! ```text
//! admit ─► greet ─► secure ─► identify ─► hear ─► count ─► dial ─► confirm ─► settle ─► relay ─► part
//! source   preface  TLS       identity    first   room?    upstream still so?  writes?   bytes   last words
//! ```
//!
//! `admit` happens in the accept loop. Each later room takes the last room's value by move, so nobody holds a raw socket
//! after `secure` or dials without an `Identified`. Whatever happens, a room's error or the relay's end, becomes one
//! [`Ending`], and `Visit` writes it to the audit exactly once, panics included.

pub(crate) mod accepted;
pub(crate) mod listener;
pub(crate) mod phase;
pub(crate) mod record;
pub(crate) mod relay;
#[cfg(test)]
mod tests;
pub(crate) mod timing;
pub(crate) mod worker;

use crate::proxy::phase::authorize;
use crate::proxy::phase::dial;
use crate::proxy::phase::handshake;
use crate::proxy::phase::limit;
use crate::proxy::phase::preface;
use crate::proxy::phase::proxy_header;
use crate::proxy::phase::reauthorize;
use crate::proxy::phase::select;
use crate::proxy::phase::startup;
use std::sync::Arc;

use tokio::time::timeout_at;

use crate::proxy::accepted::{Arrival, Entrance, House};

use crate::limit::handshakes::Handshake;
use crate::limit::rate_limiter::Pace;
use crate::outcome::{Ending, Reason};
use crate::proxy::accepted::{Newcomer, displaced, finish};
use crate::proxy::phase::cancel::CancelRequest;
use crate::proxy::phase::close::{Leave, Parting, Startup};
use crate::proxy::phase::dial::Candidates;
use crate::proxy::phase::handshake::Secured;
use crate::proxy::phase::preface::Greeting;
use crate::proxy::phase::proxy_header::Introduced;
use crate::proxy::phase::select::Settled;
use crate::proxy::phase::startup::{Heard, Ready};
use crate::proxy::record::Visit;
use crate::proxy::relay::Relay;
use crate::session::registry::Presence;

/// Serves a client from arrival to end. Not `async`, because an arrival taken apart inside the future would be reserved
/// there for life.
fn serve(arrival: Arrival, house: &Arc<House>) -> impl Future<Output = ()> + use<> {
    let Arrival { stream, entrance, terms, presence, handshake, accepted_at, share: _ } = arrival;
    let visit = Visit::new(Arc::clone(house), &terms, &entrance, &presence, accepted_at);
    let pace = match entrance {
        Entrance::Admitted(_, pace) => Some(pace),
        Entrance::Balancer(_) => None,
    };
    let newcomer = Box::new((Newcomer { stream, terms, pace }, handshake));
    live(newcomer, presence, visit)
}

async fn live(newcomer: Box<(Newcomer, Handshake)>, presence: Presence, mut visit: Visit) {
    // What is not the relay is boxed: the state of a handshake and of a farewell is large, and a session that lives for
    // days needs none of it.
    let Some(mut relay) = Box::pin(reach_upstream(newcomer, &presence, &mut visit)).await else { return };
    // Noted before the audit is written, so that the list never lags behind it.
    presence.mark_open();
    visit.opened(&presence);
    let ending = relay.run(&presence, visit.carried()).await;
    // Noted before it leaves the list, so that what it relied on never shows as unused.
    visit.note_last_use(&presence);
    presence.mark_closing();
    Box::pin(visit.ended(relay.leave(ending))).await;
}

/// From the first byte to the upstream. Who does not get there is seen off here.
async fn reach_upstream(
    newcomer: Box<(Newcomer, Handshake)>,
    presence: &Presence,
    visit: &mut Visit,
) -> Option<Box<Relay>> {
    let (newcomer, handshake) = *newcomer;
    // A client that is not identified keeps its place until this function returns and its connection is closed.
    let mut handshake = Some(handshake);
    let entered = tokio::select! {
        biased;
        ending = presence.shown_out() => Err(ending.into()),
        entered = through_the_rooms(newcomer, &mut handshake, presence, visit) => entered,
    };
    match entered {
        Ok(Entered::Session(relay)) => return Some(relay),
        Ok(Entered::Cancelled(parting)) => visit.cancelled(parting).await,
        Err(leave) => tokio::select! {
            biased;
            () = visit.ended(leave) => {}
            () = displaced(presence) => {}
        },
    }
    None
}

/// What a client has come for.
enum Entered {
    /// To talk to the upstream, which has been reached.
    Session(Box<Relay>),
    /// To cancel a query of another session (PostgreSQL), which the upstream has been asked.
    Cancelled(Parting),
}

/// Room after room.
async fn through_the_rooms(
    newcomer: Newcomer,
    handshake: &mut Option<Handshake>,
    presence: &Presence,
    visit: &mut Visit,
) -> Result<Entered, Leave> {
    let Newcomer { stream, terms, pace } = newcomer;
    let house = visit.house();
    let deadline = visit.deadline(terms.limits.handshake_timeout);
    let too_slow = |_| Leave::from(Ending::from(Reason::HandshakeTimeout));

    let Introduced { socket, terms, pace } = match pace {
        Some(pace) => Introduced::directly(stream, terms, pace)?,
        None => {
            let heard = timeout_at(deadline, proxy_header::hear(stream)).await.map_err(too_slow)??;
            let introduced = proxy_header::introduce(heard, &house.current, presence, visit.facts())?;
            handshake.iter_mut().for_each(|handshake| handshake.is_for(visit.facts().client));
            introduced
        }
    };
    let secured = match timeout_at(deadline, preface::greet(socket, &terms)).await.map_err(too_slow)?? {
        Greeting::Tls(greeted, tls) => {
            let secured = handshake::secure(greeted, &terms, &tls, visit.facts());
            timeout_at(deadline, secured).await.map_err(too_slow)??
        }
        Greeting::Plain(socket) => Secured::plain(socket, &terms),
        Greeting::Cancel(stream, packet) => {
            visit.facts().is_cancel = true;
            // A canceller expects no answer, only the end of the connection.
            if !terms.plaintext_cancel {
                let detail = "a CancelRequest without TLS, and postgres.plaintext_cancel is false";
                return Err(Leave::plain(Ending::new(Reason::PlaintextRefused, detail), stream, Vec::new()));
            }
            if let Pace::Refused(too_fast) = pace {
                return Err(Leave::plain(too_fast, stream, Vec::new()));
            }
            let request = CancelRequest::unasked(stream, packet, &terms);
            let forwarded = Box::pin(request.forward(handshake, &house.current, visit.facts()));
            return forwarded.await.map(Entered::Cancelled);
        }
    };
    if let Pace::Refused(too_fast) = pace {
        return Err(Leave::refused(too_fast.into(), secured.client, secured.protocol, Startup::Awaited));
    }
    let identified = authorize::identify(secured, &house.current, visit.facts())?;
    // A PostgreSQL client without a certificate says in its first packet who it is.
    if identified.credential.is_some() {
        finish(handshake)?;
    }
    let heard = match startup::hear(identified).await? {
        Heard::Session(ready) => ready,
        Heard::Cancel(identified, packet) => {
            visit.facts().is_cancel = true;
            let request = CancelRequest::of(identified, packet);
            let forwarded = Box::pin(request.forward(handshake, &house.current, visit.facts()));
            return forwarded.await.map(Entered::Cancelled);
        }
    };
    finish(handshake)?;
    Box::pin(open(heard, presence, visit)).await
}

/// From a client that wants a session to its session. To be boxed: the state for dialling is eight times that of a handshake,
/// and there may be many handshakes.
async fn open(ready: Ready, presence: &Presence, visit: &mut Visit) -> Result<Entered, Leave> {
    let house = visit.house();
    let (counted, mut ready) = limit::count(ready, visit.facts().client)?;
    let mut candidates = Candidates::of(&ready.identified.terms.upstream);
    loop {
        let dialled = dial::dial(ready, &mut candidates, &house.current, visit.facts()).await?;
        let confirmed = reauthorize::confirm(dialled, &house.current, presence, visit.facts())?;
        match select::settle(confirmed, &mut candidates).await? {
            Settled::Session(welcome) => {
                welcome.dialled.identified.terms.upstream.nodes.outage().end();
                return Ok(Entered::Session(Box::new(Relay::new(*welcome, counted))));
            }
            Settled::Elsewhere(again) => ready = again,
        }
    }
}

/// What the faults of connections are noted under.
const PART: &str = "connection";
