//! The upstream. Only a client that has been identified and has said what it wants can cost it a connection.

pub(crate) mod hold;

use crate::upstream::proxy_header;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::dial::{ConnectedUpstream, EndpointError};
use crate::upstream::record::{record_failure, record_healthy};

use crate::audit::event::ConnectionFields;
use crate::outcome::{Outcome, Reason};
use crate::policy::Current;
use crate::printable;
use crate::protocol::{Protocol, postgres};
use crate::proxy::phase::authorize::AuthorizedClient;
use crate::proxy::phase::close::{Close, StartupState};
use crate::proxy::phase::dial::hold::{HoldOutcome, RetryHold};
use crate::proxy::phase::startup::SessionRequest;
use crate::transport::UpstreamStream;
use crate::upstream::Upstream;
use crate::upstream::connect::resolve;
use crate::upstream::dial::{connect_any_role, connect_endpoint, unresolved};
use crate::upstream::endpoint::{ConfiguredUpstream, Endpoint};
use crate::upstream::probe::share;

/// A client and its upstream, between which nothing has passed yet.
#[derive(Debug)]
pub(crate) struct Dialed {
    pub(crate) authorized: AuthorizedClient,
    pub(crate) connected: ConnectedUpstream,
    /// What the client has said already and the upstream has not heard.
    pub(crate) first: Vec<u8>,
}

/// The nodes that have not been tried yet for a client, and what became of the others.
#[derive(Debug)]
pub(crate) struct Candidates {
    addresses: std::vec::IntoIter<Arc<ConfiguredUpstream>>,
    /// Where the node leads whose turn it is.
    endpoints: std::vec::IntoIter<Endpoint>,
    /// How long all its places together may still take.
    left: Duration,
    /// How long each of them may take to deal with the client.
    patience: Duration,
    several: bool,
    failures: Vec<String>,
    reason: Reason,
    /// Whether one answers and is only not what is wanted, or not yet.
    is_soon: bool,
    /// Whether one refuses connections, as while it restarts.
    is_refused: bool,
    hold: RetryHold,
}

impl Candidates {
    /// All of them.
    pub(crate) fn of(upstream: &Upstream) -> Self {
        let addresses = upstream.endpoints.in_order(upstream.wants_writes());
        Self {
            several: addresses.len() > 1,
            addresses: addresses.into_iter(),
            endpoints: Vec::new().into_iter(),
            left: Duration::ZERO,
            patience: Duration::ZERO,
            failures: Vec::new(),
            reason: Reason::UpstreamUnreachable,
            is_soon: false,
            is_refused: false,
            hold: RetryHold::default(),
        }
    }

    /// All of them once more.
    fn start_over(&mut self, upstream: &Upstream) {
        *self = Self { hold: mem::take(&mut self.hold), ..Self::of(upstream) };
    }

    /// What all of them refuse connections with, where another client has found that out a moment ago.
    fn known_refusal(&mut self, upstream: &Upstream) -> Option<Outcome> {
        let outage = upstream.endpoints.outage();
        let known = outage.known(Instant::now().into_std()).filter(|_| self.hold.is_new() && is_retried(upstream))?;
        self.is_refused = true;
        Some(known)
    }

    /// Whether there is more than one to choose from, as far as is known by now.
    pub(crate) fn has_several(&self) -> bool {
        self.several
    }

    /// Whether the client has been held while the upstream refused connections.
    pub(crate) fn has_waited(&self) -> bool {
        !self.hold.is_new()
    }

    /// How long the one that was reached may take to deal with the client.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Reaches the next of them that will do.
    ///
    /// # Errors
    /// When there is none left.
    pub(crate) async fn reach_next(
        &mut self,
        upstream: &Upstream,
        header: &[u8],
    ) -> Result<ConnectedUpstream, Outcome> {
        while let Some(endpoint) = self.next(upstream).await {
            let begun = Instant::now();
            // No place may take more than its share of what time its node has.
            let connected =
                connect_endpoint(&endpoint, upstream, header, begun + share(self.left, self.endpoints.len() + 1)).await;
            self.left = self.left.saturating_sub(begun.elapsed());
            match connected {
                Ok(stream) => return Ok(ConnectedUpstream { stream, endpoint }),
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
            let begun = Instant::now();
            match resolve(&configured, upstream, begun + upstream.settings.connect_timeout, upstream.wants_writes())
                .await
            {
                Ok(endpoints) => {
                    self.left = upstream.settings.connect_timeout.saturating_sub(begun.elapsed());
                    self.patience = share(upstream.settings.connect_timeout, endpoints.len());
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

    /// One of them will not do.
    pub(crate) fn reject(&mut self, endpoint: &Endpoint, upstream: &Upstream, endpoint_error: EndpointError) {
        record_failure(endpoint, upstream, &endpoint_error, self.several);
        let EndpointError { reason, words, is_healthy, refuses, .. } = endpoint_error;
        self.is_refused |= refuses;
        self.is_soon |= is_healthy;
        self.failures.push(format!("upstream {endpoint}: {words}"));
        self.reason = reason;
    }

    /// Turns a client away for whom there is none left.
    fn close_client(&self, ending: Outcome, ready: SessionRequest, fields: &mut ConnectionFields) -> Close {
        let AuthorizedClient { client, policy, .. } = ready.authorized;
        // Each of them has been tried.
        fields.upstream = Some(Arc::clone(&policy.upstream.name));
        let protocol = policy.protocol;
        match (protocol, self.is_soon) {
            (Protocol::Postgres, true) => Close::with_words(ending, client, postgres::try_again()),
            (Protocol::Postgres | Protocol::Redis | Protocol::Tcp, _) => {
                Close::refused(ending, client, protocol, StartupState::Heard)
            }
        }
    }
}

/// Reaches an upstream for a client, which is held while all refuse connections, for `dial_retry`.
pub(crate) async fn dial(
    mut ready: SessionRequest,
    candidates: &mut Candidates,
    current: &Current,
    fields: &mut ConnectionFields,
) -> Result<Dialed, Close> {
    loop {
        let policy = &ready.authorized.policy;
        let mut ending = match candidates.known_refusal(&policy.upstream) {
            Some(ending) => ending,
            None => {
                let AuthorizedClient { client, identity, .. } = &ready.authorized;
                let header = proxy_header::client_header(client, identity.as_deref(), &policy.upstream, fields);
                match candidates.reach_next(&policy.upstream, &header).await {
                    Ok(connected) => {
                        // Whether it will do is not known yet; the next one may try meanwhile.
                        candidates.hold.release();
                        fields.upstream = Some(connected.endpoint.configured.address().to_string().into());
                        let SessionRequest { authorized, first } = ready;
                        return Ok(Dialed { authorized, connected, first });
                    }
                    Err(ending) if candidates.is_refused && is_retried(&policy.upstream) => {
                        policy.upstream.endpoints.outage().note(&ending, Instant::now().into_std());
                        ending
                    }
                    Err(ending) => return Err(candidates.close_client(ending, ready, fields)),
                }
            }
        };
        let (held, again) = candidates.hold.wait(ready, current, fields).await?;
        ready = again;
        match held {
            HoldOutcome::DialAgain => candidates.start_over(&ready.authorized.policy.upstream),
            HoldOutcome::GiveUp => {
                let retry = ready.authorized.policy.upstream.settings.dial_retry;
                ending.add(format_args!("; it was dialled again for {retry:?} (dial_retry)"));
                return Err(candidates.close_client(ending, ready, fields));
            }
        }
    }
}

/// Whether a client is held while the upstream refuses connections.
fn is_retried(upstream: &Upstream) -> bool {
    !upstream.settings.dial_retry.is_zero()
}

/// Reaches the upstream for a CancelRequest: the place where its session is or, where that is not known, the first that
/// will do.
pub(crate) async fn dial_for_cancel(
    endpoint: Option<&Endpoint>,
    upstream: &Upstream,
    header: &[u8],
) -> Result<(UpstreamStream, Arc<ConfiguredUpstream>), Outcome> {
    let Some(endpoint) = endpoint else {
        let connected = Candidates::of(upstream).reach_next(upstream, header).await?;
        return Ok((connected.stream, connected.endpoint.configured));
    };
    let deadline = Instant::now() + upstream.settings.connect_timeout;
    // That a connection is taken is too little to know that a server answers.
    let failed = |endpoint_error: EndpointError| {
        record_failure(endpoint, upstream, &endpoint_error, upstream.endpoints.has_several());
        Outcome::new(endpoint_error.reason, format_args!("upstream {endpoint}: {}", endpoint_error.words))
    };
    let stream = connect_any_role(endpoint, upstream, header, deadline).await.map_err(failed)?;
    Ok((stream, Arc::clone(&endpoint.configured)))
}
