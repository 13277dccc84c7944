//! One connection from accept to close, in one direction:
//!
//! ```text
//! accept ─► admit ─► preface ─► handshake ─► authorize ─► startup ─► limit ─► dial ─► reauthorize ─► select ─► relay ─► close
//! socket    source   protocol   TLS          identity     first      slots    upstream still valid?  role      bytes    farewell
//! ```
//!
//! `admit` happens in the accept loop ([`listener`]). Each phase takes the previous value by move, so nobody holds a raw socket
//! after the handshake or dials without an `AuthorizedClient`. Success and failure leave the same way: one [`Outcome`], written to
//! the audit once by `ConnectionRecord`, panics included.

pub(crate) mod accepted;
pub(crate) mod listener;
pub(crate) mod phase;
pub(crate) mod record;
pub(crate) mod relay;
#[cfg(test)]
mod tests;
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

use crate::proxy::accepted::{AcceptedConnection, Admission, Shared};

use crate::limit::handshakes::HandshakePermit;
use crate::limit::rate_limiter::RateDecision;
use crate::outcome::{Outcome, Reason};
use crate::proxy::accepted::{NewConnection, displaced, finish};
use crate::proxy::phase::cancel::CancelRequest;
use crate::proxy::phase::close::{Close, Farewell, StartupState};
use crate::proxy::phase::dial::Candidates;
use crate::proxy::phase::handshake::SecuredClient;
use crate::proxy::phase::preface::Preface;
use crate::proxy::phase::proxy_header::AnnouncedConnection;
use crate::proxy::phase::select::Selected;
use crate::proxy::phase::startup::{SessionRequest, StartupRequest};
use crate::proxy::record::ConnectionRecord;
use crate::proxy::relay::Relay;
use crate::session::registry::ConnectionGuard;

/// Serves a client from arrival to end. Not `async`, because an arrival taken apart inside the future would be reserved
/// there for life.
fn serve(connection: AcceptedConnection, shared: &Arc<Shared>) -> impl Future<Output = ()> + use<> {
    let AcceptedConnection { stream, admission, policy, guard, handshake, accepted_at, descriptor_permit: _ } =
        connection;
    let record = ConnectionRecord::new(Arc::clone(shared), &policy, &admission, &guard, accepted_at);
    let rate = match admission {
        Admission::Direct(_, rate) => Some(rate),
        Admission::Proxied(_) => None,
    };
    let connection = Box::new((NewConnection { stream, policy, rate }, handshake));
    run_connection(connection, guard, record)
}

async fn run_connection(
    connection: Box<(NewConnection, HandshakePermit)>,
    guard: ConnectionGuard,
    mut record: ConnectionRecord,
) {
    // What is not the relay is boxed: the state of a handshake and of a farewell is large, and a session that lives for
    // days needs none of it.
    let Some(mut relay) = Box::pin(open_upstream(connection, &guard, &mut record)).await else { return };
    // Noted before the audit is written, so that the list never lags behind it.
    guard.mark_open();
    record.opened(&guard);
    let ending = relay.run(&guard, record.carried()).await;
    // Noted before it leaves the list, so that what it relied on never shows as unused.
    record.note_last_use(&guard);
    guard.mark_closing();
    Box::pin(record.ended(relay.close(ending))).await;
}

/// From the first byte to the upstream. Who does not get there is seen off here.
async fn open_upstream(
    connection: Box<(NewConnection, HandshakePermit)>,
    guard: &ConnectionGuard,
    record: &mut ConnectionRecord,
) -> Option<Box<Relay>> {
    let (connection, handshake) = *connection;
    // A client that is not identified keeps its place until this function returns and its connection is closed.
    let mut handshake = Some(handshake);
    let established = tokio::select! {
        biased;
        ending = guard.terminated() => Err(ending.into()),
        established = establish(connection, &mut handshake, guard, record) => established,
    };
    match established {
        Ok(Established::Session(relay)) => return Some(relay),
        Ok(Established::Cancelled(farewell)) => record.cancelled(farewell).await,
        Err(close) => tokio::select! {
            biased;
            () = record.ended(close) => {}
            () = displaced(guard) => {}
        },
    }
    None
}

/// What a client has come for.
enum Established {
    /// To talk to the upstream, which has been reached.
    Session(Box<Relay>),
    /// To cancel a query of another session (PostgreSQL), which the upstream has been asked.
    Cancelled(Farewell),
}

/// Room after room.
async fn establish(
    connection: NewConnection,
    handshake: &mut Option<HandshakePermit>,
    guard: &ConnectionGuard,
    record: &mut ConnectionRecord,
) -> Result<Established, Close> {
    let NewConnection { stream, policy, rate } = connection;
    let shared = record.shared();
    let deadline = record.deadline(policy.limits.handshake_timeout);
    let too_slow = |_| Close::from(Outcome::from(Reason::HandshakeTimeout));

    let AnnouncedConnection { socket, policy, rate } = match rate {
        Some(rate) => AnnouncedConnection::directly(stream, policy, rate)?,
        None => {
            let request = timeout_at(deadline, proxy_header::hear(stream)).await.map_err(too_slow)??;
            let introduced = proxy_header::accept_announced(request, &shared.current, guard, record.fields())?;
            handshake.iter_mut().for_each(|handshake| handshake.set_client(record.fields().client));
            introduced
        }
    };
    let secured = match timeout_at(deadline, preface::read_preface(socket, &policy)).await.map_err(too_slow)?? {
        Preface::Tls(start, tls) => {
            let secured = handshake::perform(start, &policy, &tls, record.fields());
            timeout_at(deadline, secured).await.map_err(too_slow)??
        }
        Preface::Plain(socket) => SecuredClient::plain(socket, &policy),
        Preface::Cancel(stream, packet) => {
            record.fields().is_cancel = true;
            // A canceller expects no answer, only the end of the connection.
            if !policy.plaintext_cancel {
                let detail = "a CancelRequest without TLS, and postgres.plaintext_cancel is false";
                return Err(Close::plain(Outcome::new(Reason::PlaintextRefused, detail), stream, Vec::new()));
            }
            if let RateDecision::Refused(rate_exceeded) = rate {
                return Err(Close::plain(rate_exceeded, stream, Vec::new()));
            }
            let request = CancelRequest::unasked(stream, packet, &policy);
            let forwarded = Box::pin(request.forward(handshake, &shared.current, record.fields()));
            return forwarded.await.map(Established::Cancelled);
        }
    };
    if let RateDecision::Refused(rate_exceeded) = rate {
        return Err(Close::refused(rate_exceeded.into(), secured.client, secured.protocol, StartupState::Awaited));
    }
    let authorized = authorize::authorize(secured, &shared.current, record.fields())?;
    // A PostgreSQL client without a certificate says in its first packet who it is.
    if authorized.identity.is_some() {
        finish(handshake)?;
    }
    let request = match startup::hear(authorized).await? {
        StartupRequest::Session(ready) => ready,
        StartupRequest::Cancel(authorized, packet) => {
            record.fields().is_cancel = true;
            let request = CancelRequest::of(authorized, packet);
            let forwarded = Box::pin(request.forward(handshake, &shared.current, record.fields()));
            return forwarded.await.map(Established::Cancelled);
        }
    };
    finish(handshake)?;
    Box::pin(open(request, guard, record)).await
}

/// From a client that wants a session to its session. To be boxed: the state for dialling is eight times that of a handshake,
/// and there may be many handshakes.
async fn open(
    ready: SessionRequest,
    guard: &ConnectionGuard,
    record: &mut ConnectionRecord,
) -> Result<Established, Close> {
    let shared = record.shared();
    let (permit, mut ready) = limit::acquire_session(ready, record.fields().client)?;
    let mut candidates = Candidates::of(&ready.authorized.policy.upstream);
    loop {
        let dialed = dial::dial(ready, &mut candidates, &shared.current, record.fields()).await?;
        let confirmed = reauthorize::reauthorize(dialed, &shared.current, guard, record.fields())?;
        match select::select(confirmed, &mut candidates).await? {
            Selected::Session(selected) => {
                selected.dialed.authorized.policy.upstream.endpoints.outage().end();
                return Ok(Established::Session(Box::new(Relay::new(*selected, permit))));
            }
            Selected::Retry(again) => ready = again,
        }
    }
}

/// What the faults of connections are noted under.
const PART: &str = "connection";
