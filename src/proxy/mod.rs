//! The life of one connection:
//!
//! ```text
//! accept ─► preface ─► handshake ─► authorize ─► startup ─► authenticate ─┐
//! source    plaintext  TLS          identity     request    password      │
//!                                                                         │
//!    close ◄─ relay ◄─ select ◄─ reauthorize ◄─ dial ◄─ limit ◄───────────┘
//!    farewell bytes    role      policy now     upstream session
//! ```
//!
//! [`listener`] accepts. `negotiate` and `connect` run the phases up to `select`. Each phase takes the value of the previous
//! phase by move, so no code can dial without an `AuthorizedClient`. Every connection ends with one [`Outcome`], which
//! [`ConnectionRecord`] audits exactly once, even after a panic.

pub(crate) mod accepted;
pub(crate) mod listener;
pub(crate) mod phase;
pub(crate) mod record;
pub(crate) mod relay;
#[cfg(test)]
mod tests;
pub(crate) mod worker;

use std::sync::Arc;

use tokio::time::{sleep, timeout_at};

use crate::limit::handshakes::HandshakePermit;
use crate::limit::rate_limiter::RateDecision;
use crate::outcome::{Outcome, Reason};
use crate::proxy::accepted::{
    AcceptedConnection, Admission, NewConnection, Shared, finish_handshake, handshake_displaced,
};
use crate::proxy::phase::authenticate::authenticate;
use crate::proxy::phase::authorize::authorize;
use crate::proxy::phase::cancel::CancelRequest;
use crate::proxy::phase::close::{Close, Farewell, StartupState, TERMINATION_TIMEOUT};
use crate::proxy::phase::dial::{Candidates, dial};
use crate::proxy::phase::handshake::{SecuredClient, perform_handshake};
use crate::proxy::phase::limit::acquire_session;
use crate::proxy::phase::preface::{Preface, read_preface};
use crate::proxy::phase::proxy_header::{AnnouncedConnection, accept_announced, read_proxy_header};
use crate::proxy::phase::reauthorize::reauthorize;
use crate::proxy::phase::select::{Selected, select};
use crate::proxy::phase::startup::{SessionRequest, StartupRequest, read_startup};
use crate::proxy::record::ConnectionRecord;
use crate::proxy::relay::Relay;
use crate::proxy::relay::reauthenticate::Account;
use crate::session::registry::ConnectionGuard;

/// Serves an accepted connection until it is closed.
///
/// This function is not `async`: the future would reserve space for the whole `AcceptedConnection` for its lifetime.
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
    // Everything but the relay is boxed: its state is large, and a session that lives for days does not need it.
    let Some(mut relay) = Box::pin(establish(connection, &guard, &mut record)).await else { return };
    // Marked before the audit event, so that the session list never lags behind the audit.
    guard.mark_open();
    record.open(&guard);
    let outcome = relay.run(&guard, record.byte_meter()).await;
    // Noted before the session leaves the list, so that its rule and certificate never show as unused.
    record.note_last_use(&guard);
    guard.mark_closing();
    Box::pin(unless_terminated(&guard, record.close(relay.close(outcome)))).await;
}

/// Runs the close of a session. If a policy no longer admits the client meanwhile, it ends within a second as well.
async fn unless_terminated(guard: &ConnectionGuard, close: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = close => {}
        () = async {
            guard.terminated().await;
            sleep(TERMINATION_TIMEOUT).await;
        } => {}
    }
}

/// Runs the phases before the relay. A connection that does not get there is closed here.
async fn establish(
    connection: Box<(NewConnection, HandshakePermit)>,
    guard: &ConnectionGuard,
    record: &mut ConnectionRecord,
) -> Option<Box<Relay>> {
    let (connection, handshake) = *connection;
    // An unidentified client holds its handshake permit until this function returns and its connection is closed.
    let mut handshake = Some(handshake);
    let established = tokio::select! {
        biased;
        outcome = guard.terminated() => Err(outcome.into()),
        established = negotiate(connection, &mut handshake, guard, record) => established,
    };
    match established {
        Ok(Established::Session(relay)) => return Some(relay),
        Ok(Established::Cancelled(farewell)) => record.close_cancelled(farewell).await,
        Err(close) => tokio::select! {
            biased;
            () = record.close(close) => {}
            () = handshake_displaced(guard) => {}
        },
    }
    None
}

/// The result of all phases before the relay.
enum Established {
    Session(Box<Relay>),
    /// The upstream has received the client's CancelRequest (PostgreSQL).
    Cancelled(Farewell),
}

/// Runs the phases from preface to authenticate.
async fn negotiate(
    connection: NewConnection,
    handshake: &mut Option<HandshakePermit>,
    guard: &ConnectionGuard,
    record: &mut ConnectionRecord,
) -> Result<Established, Close> {
    let NewConnection { stream, policy, rate } = connection;
    let shared = record.shared();
    let deadline = record.deadline(policy.limits.handshake_timeout);
    let timed_out = |_| Close::from(Outcome::from(Reason::HandshakeTimeout));

    let AnnouncedConnection { socket, policy, rate } = match rate {
        Some(rate) => AnnouncedConnection::direct(stream, policy, rate)?,
        None => {
            let header = timeout_at(deadline, read_proxy_header(stream)).await.map_err(timed_out)??;
            let announced = accept_announced(header, &shared.current, guard, record.fields())?;
            handshake.iter_mut().for_each(|permit| permit.set_client(record.fields().client));
            announced
        }
    };
    let secured = match timeout_at(deadline, read_preface(socket, &policy)).await.map_err(timed_out)?? {
        Preface::Tls(start, tls) => {
            let secured = perform_handshake(start, &policy, &tls, record.fields());
            let secured = timeout_at(deadline, secured).await.map_err(timed_out)??;
            record.note_handshake(secured.is_resumed());
            secured
        }
        Preface::Plain(socket) => SecuredClient::plain(socket, &policy),
        Preface::Cancel(stream, packet) => {
            record.fields().is_cancel = true;
            let request = CancelRequest::from_plaintext(stream, packet, &policy, rate)?;
            let forwarded = Box::pin(request.forward(handshake, &shared.current, record.fields()));
            return forwarded.await.map(Established::Cancelled);
        }
    };
    if let RateDecision::Refused(rate_exceeded) = rate {
        return Err(Close::refused(rate_exceeded.into(), secured.client, secured.protocol, StartupState::Awaited));
    }
    let authorized = authorize(secured, &shared.current, record.fields())?;
    // A PostgreSQL client without a certificate identifies itself in its StartupMessage. On a listener with credentials, a
    // client with a certificate has to authenticate too.
    if authorized.identity.is_some() && authorized.policy.credentials.is_none() {
        finish_handshake(handshake)?;
    }
    let mut request = match read_startup(authorized).await? {
        StartupRequest::Session(request) => request,
        StartupRequest::Cancel(authorized, packet) => {
            record.fields().is_cancel = true;
            let request = CancelRequest::from_authorized(authorized, packet);
            let forwarded = Box::pin(request.forward(handshake, &shared.current, record.fields()));
            return forwarded.await.map(Established::Cancelled);
        }
    };
    if request.authorized.policy.credentials.is_some() {
        request = Box::pin(authenticate(request, &shared.audit, record.fields())).await?;
    }
    finish_handshake(handshake)?;
    Box::pin(connect(request, guard, record)).await
}

/// Runs the phases from limit to select, the last three once for each attempt.
///
/// Callers box this future: its state is eight times as large as that of a handshake, and many handshakes run at once.
async fn connect(
    request: SessionRequest,
    guard: &ConnectionGuard,
    record: &mut ConnectionRecord,
) -> Result<Established, Close> {
    let shared = record.shared();
    let (permit, mut request) = acquire_session(request, record.fields().client)?;
    let mut candidates = Candidates::new(&request.authorized.policy.upstream);
    loop {
        let dialed = dial(request, &mut candidates, &shared.current, record.fields()).await?;
        let dialed = reauthorize(dialed, &shared.current, guard, record.fields())?;
        match select(dialed, &mut candidates).await? {
            Selected::Session(selected) => {
                selected.dialed.authorized.policy.upstream.endpoints.outage().end();
                let account = |start| {
                    let fields = record.fields().clone();
                    Account::new(record.shared(), guard.handle(), fields, start)
                };
                return Ok(Established::Session(Box::new(Relay::new(*selected, permit, account))));
            }
            Selected::Retry(next_attempt) => request = next_attempt,
        }
    }
}

/// The name under which faults of connections are counted.
const PART: &str = "connection";
