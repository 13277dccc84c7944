//! Connects to an endpoint of the upstream. Only an authorized client that has requested a session costs the upstream a
//! connection.

pub(crate) mod hold;

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::audit::event::ConnectionFields;
use crate::outcome::{Outcome, Reason};
use crate::policy::Current;
use crate::printable;
use crate::protocol::{Protocol, postgres};
use crate::proxy::phase::authenticate::Access;
use crate::proxy::phase::authorize::AuthorizedClient;
use crate::proxy::phase::close::{Close, StartupState};
use crate::proxy::phase::dial::hold::{HoldOutcome, RetryHold};
use crate::proxy::phase::startup::SessionRequest;
use crate::transport::UpstreamStream;
use crate::upstream::Upstream;
use crate::upstream::connect::resolve;
use crate::upstream::dial::{
    ConnectedUpstream, EndpointError, EndpointFault, dial_any_role, dial_endpoint, unresolved,
};
use crate::upstream::endpoint::{ConfiguredAddress, Endpoint};
use crate::upstream::login::{DatabaseLogin, LoggedIn};
use crate::upstream::probe::share;
use crate::upstream::proxy_header;
use crate::upstream::record::{record_failure, record_healthy};

/// A client and its connected upstream. No byte has been relayed yet.
#[derive(Debug)]
pub(crate) struct Dialed {
    pub(crate) authorized: AuthorizedClient,
    pub(crate) connected: ConnectedUpstream,
    /// Bytes of the client that have not been sent to the upstream.
    pub(crate) buffered: Vec<u8>,
    /// Present if the client has authenticated.
    pub(crate) access: Option<Box<Access>>,
}

/// The endpoints that are still to be tried for one client, and the failures of the others.
#[derive(Debug)]
pub(crate) struct Candidates {
    addresses: std::vec::IntoIter<Arc<ConfiguredAddress>>,
    /// The remaining endpoints of the current address.
    endpoints: std::vec::IntoIter<Endpoint>,
    /// The remaining dial time of all endpoints of the current address.
    time_left: Duration,
    /// How long a dialed endpoint may take to respond to the client.
    response_timeout: Duration,
    several: bool,
    failures: Vec<String>,
    reason: Reason,
    /// An endpoint responded, but has the wrong role or is not ready.
    any_healthy: bool,
    /// An endpoint refused the connection, for example during a restart.
    any_refused: bool,
    hold: RetryHold,
}

impl Candidates {
    pub(crate) fn new(upstream: &Upstream) -> Self {
        let addresses = upstream.endpoints.in_order(upstream.needs_primary());
        Self {
            several: addresses.len() > 1,
            addresses: addresses.into_iter(),
            endpoints: Vec::new().into_iter(),
            time_left: Duration::ZERO,
            response_timeout: Duration::ZERO,
            failures: Vec::new(),
            reason: Reason::UpstreamUnreachable,
            any_healthy: false,
            any_refused: false,
            hold: RetryHold::default(),
        }
    }

    /// Tries all endpoints again.
    fn restart(&mut self, upstream: &Upstream) {
        *self = Self { hold: mem::take(&mut self.hold), ..Self::new(upstream) };
    }

    /// The refusal that another client received a moment ago, so that this client need not dial.
    fn known_refusal(&mut self, upstream: &Upstream) -> Option<Outcome> {
        let outage = upstream.endpoints.outage();
        let known = outage.known(Instant::now().into_std()).filter(|_| self.hold.is_new() && is_retried(upstream))?;
        self.any_refused = true;
        Some(known)
    }

    /// Whether more than one endpoint is known so far.
    pub(crate) fn has_several(&self) -> bool {
        self.several
    }

    /// Whether the client was held while the upstream refused connections.
    pub(crate) fn has_waited(&self) -> bool {
        !self.hold.is_new()
    }

    /// How long a dialed endpoint may take to respond to the client.
    pub(crate) fn response_timeout(&self) -> Duration {
        self.response_timeout
    }

    /// Dials the remaining endpoints until one connects and, with `login`, accepts the client's user.
    ///
    /// # Errors
    /// No endpoint is left. The detail lists the failure of each.
    pub(crate) async fn dial_next(
        &mut self,
        upstream: &Upstream,
        header: &[u8],
        login: Option<DatabaseLogin<'_>>,
    ) -> Result<ConnectedUpstream, Outcome> {
        while let Some(endpoint) = self.next(upstream).await {
            let start = Instant::now();
            // Each endpoint may take its share of the remaining time of its address.
            let deadline = start + share(self.time_left, self.endpoints.len() + 1);
            let connected = match &login {
                Some(login) => {
                    // Boxed, so that its state costs connections without credentials nothing.
                    let connected = Box::pin(login.dial(&endpoint, upstream, header, deadline)).await;
                    connected.map_err(|failed| failed.into_error(self.has_waited()))
                }
                None => {
                    let dialed = dial_endpoint(&endpoint, upstream, header, deadline).await;
                    dialed.map(|stream| LoggedIn { stream, greeting: Vec::new(), redis: None })
                }
            };
            self.time_left = self.time_left.saturating_sub(start.elapsed());
            match connected {
                Ok(LoggedIn { stream, greeting, redis }) => {
                    return Ok(ConnectedUpstream { stream, endpoint, greeting, redis });
                }
                Err(endpoint_error) => self.reject(&endpoint, upstream, endpoint_error),
            }
        }
        Err(Outcome::new(self.reason, printable::list(&self.failures)))
    }

    async fn next(&mut self, upstream: &Upstream) -> Option<Endpoint> {
        loop {
            if let Some(endpoint) = self.endpoints.next() {
                return Some(endpoint);
            }
            let configured = self.addresses.next()?;
            let start = Instant::now();
            let deadline = start + upstream.settings.connect_timeout;
            match resolve(&configured, upstream, deadline, upstream.needs_primary()).await {
                Ok(endpoints) => {
                    self.time_left = upstream.settings.connect_timeout.saturating_sub(start.elapsed());
                    self.response_timeout = share(upstream.settings.connect_timeout, endpoints.len());
                    self.several |= endpoints.len() > 1;
                    self.endpoints = endpoints.into_iter();
                    let name = configured.as_endpoint();
                    if name.is_name() {
                        record_healthy(&name, upstream);
                    }
                }
                Err(error) => self.reject(&configured.as_endpoint(), upstream, unresolved(error)),
            }
        }
    }

    /// Records that an endpoint cannot be used for this client.
    pub(crate) fn reject(&mut self, endpoint: &Endpoint, upstream: &Upstream, endpoint_error: EndpointError) {
        record_failure(endpoint, upstream, &endpoint_error, self.several);
        let EndpointError { reason, detail, fault, refuses } = endpoint_error;
        self.any_refused |= refuses;
        self.any_healthy |= fault == EndpointFault::Unsuitable;
        self.failures.push(format!("upstream {endpoint}: {detail}"));
        self.reason = reason;
    }

    /// Refuses a client for which no endpoint is left.
    fn close_client(&self, outcome: Outcome, request: SessionRequest, fields: &mut ConnectionFields) -> Close {
        let AuthorizedClient { client, policy, .. } = request.authorized;
        // All endpoints have been tried, so the audit names all addresses.
        fields.upstream = Some(Arc::clone(&policy.upstream.name));
        let protocol = policy.protocol;
        match (protocol, self.any_healthy) {
            (Protocol::Postgres, true) => Close::with_message(outcome, client, postgres::try_again()),
            (Protocol::Postgres | Protocol::Redis | Protocol::Tcp, _) => {
                Close::refused(outcome, client, protocol, StartupState::Received)
            }
        }
    }
}

/// Dials an endpoint for a client. While all endpoints refuse connections, the client is held for up to `dial_retry`.
pub(crate) async fn dial(
    mut request: SessionRequest,
    candidates: &mut Candidates,
    current: &Current,
    fields: &mut ConnectionFields,
) -> Result<Dialed, Close> {
    loop {
        let policy = &request.authorized.policy;
        let mut outcome = match candidates.known_refusal(&policy.upstream) {
            Some(outcome) => outcome,
            None => {
                let AuthorizedClient { client, identity, .. } = &request.authorized;
                let header = proxy_header::client_header(client, identity.as_deref(), &policy.upstream, fields);
                let login = request.access.as_deref().map(|access| access.database_login(policy));
                match candidates.dial_next(&policy.upstream, &header, login).await {
                    Ok(connected) => {
                        // `select` may still reject the endpoint; the next waiting client may dial meanwhile.
                        candidates.hold.release();
                        fields.upstream = Some(connected.endpoint.configured.address().to_string().into());
                        let SessionRequest { authorized, buffered, access } = request;
                        return Ok(Dialed { authorized, connected, buffered, access });
                    }
                    Err(outcome) if candidates.any_refused && is_retried(&policy.upstream) => {
                        policy.upstream.endpoints.outage().note(&outcome, Instant::now().into_std());
                        outcome
                    }
                    Err(outcome) => return Err(candidates.close_client(outcome, request, fields)),
                }
            }
        };
        let hold_outcome;
        (hold_outcome, request) = candidates.hold.wait(request, current, fields).await?;
        match hold_outcome {
            HoldOutcome::DialAgain => candidates.restart(&request.authorized.policy.upstream),
            HoldOutcome::GiveUp => {
                let retry = request.authorized.policy.upstream.settings.dial_retry;
                outcome.add(format_args!("; retried for {retry:?} (dial_retry)"));
                return Err(candidates.close_client(outcome, request, fields));
            }
        }
    }
}

/// Whether clients are held while the upstream refuses connections.
fn is_retried(upstream: &Upstream) -> bool {
    !upstream.settings.dial_retry.is_zero()
}

/// Dials the endpoint of the session that a CancelRequest names or, if the session is unknown, the first that connects.
pub(crate) async fn dial_for_cancel(
    endpoint: Option<&Endpoint>,
    upstream: &Upstream,
    header: &[u8],
) -> Result<(UpstreamStream, Arc<ConfiguredAddress>), Outcome> {
    let Some(endpoint) = endpoint else {
        let connected = Candidates::new(upstream).dial_next(upstream, header, None).await?;
        return Ok((connected.stream, connected.endpoint.configured));
    };
    let deadline = Instant::now() + upstream.settings.connect_timeout;
    // Success is not recorded: the kernel accepts connections even for a server that hangs.
    let failed = |endpoint_error: EndpointError| {
        record_failure(endpoint, upstream, &endpoint_error, upstream.endpoints.has_several());
        Outcome::new(endpoint_error.reason, format_args!("upstream {endpoint}: {}", endpoint_error.detail))
    };
    let stream = dial_any_role(endpoint, upstream, header, deadline).await.map_err(failed)?;
    Ok((stream, Arc::clone(&endpoint.configured)))
}
