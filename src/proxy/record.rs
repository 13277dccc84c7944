//! The record of one connection, which is audited exactly once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::audit::event::ConnectionFields;
use crate::fault;
use crate::metrics::listener::ListenerMetrics;
use crate::metrics::relayed::ByteMeter;
use crate::outcome::{ByteCounts, Outcome, Reason};
use crate::policy::ListenerPolicy;
use crate::proxy::accepted::{Admission, Shared};
use crate::proxy::phase::close::{Close, Farewell};
use crate::session::registry::ConnectionGuard;

/// Collects the audit fields of a connection and writes its events. A record that is dropped without an outcome, for
/// example by a panic, writes the event of an internal error.
#[derive(Debug)]
pub(crate) struct ConnectionRecord {
    shared: Arc<Shared>,
    metrics: Arc<ListenerMetrics>,
    fields: Box<ConnectionFields>,
    accepted_at: Instant,
    stage: Stage,
    byte_counts: ByteCounts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Accepted,
    Opened,
    Closed,
}

impl ConnectionRecord {
    pub(crate) fn new(
        shared: Arc<Shared>,
        policy: &ListenerPolicy,
        admission: &Admission,
        guard: &ConnectionGuard,
        accepted_at: Instant,
    ) -> Self {
        let mut fields = admission.fields(Some(guard.id()), &policy.name);
        fields.is_health_checker = policy.proxies.is_health_checker(admission.peer());
        fields.upstream = Some(Arc::clone(&policy.upstream.name));
        Self {
            shared,
            metrics: Arc::clone(&policy.metrics),
            fields: Box::new(fields),
            accepted_at,
            stage: Stage::Accepted,
            byte_counts: ByteCounts::default(),
        }
    }

    /// The end of a `timeout` that started when the connection was accepted.
    pub(crate) fn deadline(&self, timeout: Duration) -> tokio::time::Instant {
        (self.accepted_at + timeout).into()
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(crate) fn fields(&mut self) -> &mut ConnectionFields {
        &mut self.fields
    }

    /// The counters that the relay advances.
    pub(crate) fn byte_meter(&mut self) -> ByteMeter<'_> {
        let Self { shared, metrics, byte_counts, .. } = self;
        ByteMeter { counts: byte_counts, shard: metrics.relayed.shard(shared.worker) }
    }

    /// Counts a completed TLS handshake.
    pub(crate) fn note_handshake(&self, is_resumed: bool) {
        self.metrics.note_handshake(self.fields.tls_version, is_resumed, self.accepted_at.elapsed());
    }

    /// Audits that the connection has become a session.
    pub(crate) fn open(&mut self, guard: &ConnectionGuard) {
        self.stage = Stage::Opened;
        self.metrics.note_opened();
        let session = guard.session();
        let identity = session.as_ref().and_then(|session| session.authorization.identity.as_ref());
        let issuer = identity.map(|identity| identity.certificate.issuer.as_str());
        self.shared.audit.opened(&self.fields, issuer);
    }

    /// Notes that the session used its rule, certificate and password until now. Call it when the relay has ended.
    pub(crate) fn note_last_use(&mut self, guard: &ConnectionGuard) {
        let Some(session) = guard.session() else { return };
        if let Some(login) = &session.authorization.login {
            // A client of Redis may have become another one.
            self.fields.user = Some(login.client.user.as_str().into());
        }
        let snapshot = self.shared.current.borrow().clone();
        if let Some(policy) = snapshot.named(&self.fields.listener) {
            policy.usage.note_end(&session.authorization, self.fields.client, OffsetDateTime::now_utc());
        }
    }

    /// Audits the outcome, then sends the farewell.
    pub(crate) async fn close(&mut self, close: Close) {
        self.write(&close.outcome);
        close.farewell.send().await;
    }

    /// Audits that the upstream has received the client's CancelRequest, then sends the farewell.
    pub(crate) async fn close_cancelled(&mut self, farewell: Farewell) {
        self.stage = Stage::Closed;
        self.shared.audit.cancel_forwarded(&self.fields, self.accepted_at.elapsed());
        farewell.send().await;
    }

    fn write(&mut self, outcome: &Outcome) {
        let duration = self.accepted_at.elapsed();
        // Replaced first, so that a panic while auditing does not lead to a second event.
        match std::mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Accepted => {
                if !self.fields.is_health_check(outcome.reason) {
                    self.metrics.note_denied(outcome.reason);
                }
                self.shared.audit.denied(&self.fields, outcome.reason, &outcome.detail, duration);
            }
            Stage::Opened => {
                self.metrics.note_ended(outcome.reason);
                if outcome.reason.is_revocation() {
                    self.shared.audit.revoked(&self.fields, outcome);
                }
                self.shared.audit.closed(&self.fields, outcome, self.byte_counts, duration);
            }
            Stage::Closed => {}
        }
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        if self.stage != Stage::Closed {
            let outcome = Outcome::new(Reason::IoError, "an internal error dropped the connection");
            // Contained: a second panic during unwinding would abort the process.
            let _ = fault::contain(crate::proxy::PART, || self.write(&outcome));
        }
    }
}
