//! The account of one connection, which is audited exactly once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::audit::event::ConnectionFields;
use crate::fault;
use crate::outcome::{ByteCounts, Outcome, Reason};
use crate::policy::ListenerPolicy;
use crate::proxy::accepted::{Admission, Shared};
use crate::proxy::phase::close::{Close, Farewell};
use crate::session::registry::ConnectionGuard;

/// Collects what is known of a connection and writes its events. Dropped without an ending, as by a panic, it still
/// writes one.
#[derive(Debug)]
pub(crate) struct ConnectionRecord {
    shared: Arc<Shared>,
    fields: Box<ConnectionFields>,
    accepted_at: Instant,
    stage: Stage,
    carried: ByteCounts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Entering,
    Opened,
    Told,
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
        fields.is_health_checker = policy.proxies.is_health_checker(admission.from());
        fields.upstream = Some(Arc::clone(&policy.upstream.name));
        Self { shared, fields: Box::new(fields), accepted_at, stage: Stage::Entering, carried: ByteCounts::default() }
    }

    /// The moment when `timeout` has passed since the connection was accepted.
    pub(crate) fn deadline(&self, timeout: Duration) -> tokio::time::Instant {
        (self.accepted_at + timeout).into()
    }

    /// What is around the connection.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(crate) fn fields(&mut self) -> &mut ConnectionFields {
        &mut self.fields
    }

    /// Where the relay counts bytes.
    pub(crate) fn carried(&mut self) -> &mut ByteCounts {
        &mut self.carried
    }

    /// The upstream is reached.
    pub(crate) fn opened(&mut self, guard: &ConnectionGuard) {
        self.stage = Stage::Opened;
        let session = guard.session();
        let identity = session.as_ref().and_then(|session| session.authorization.identity.as_ref());
        let issuer = identity.map(|identity| identity.certificate.issuer.as_str());
        self.shared.audit.opened(&self.fields, issuer);
    }

    /// Nothing is relayed any more: until now the client used what it was admitted by.
    pub(crate) fn note_last_use(&self, guard: &ConnectionGuard) {
        let snapshot = self.shared.current.borrow().clone();
        if let (Some(policy), Some(session)) = (snapshot.named(&self.fields.listener), guard.session()) {
            policy.usage.note_end(&session.authorization, self.fields.client, OffsetDateTime::now_utc());
        }
    }

    /// The connection ends: the auditor is told first, then the client.
    pub(crate) async fn ended(&mut self, close: Close) {
        self.tell(&close.ending);
        close.farewell.send().await;
    }

    /// The connection was a CancelRequest, and it has reached the upstream.
    pub(crate) async fn cancelled(&mut self, farewell: Farewell) {
        self.stage = Stage::Told;
        self.shared.audit.cancel_forwarded(&self.fields, self.accepted_at.elapsed());
        farewell.send().await;
    }

    fn tell(&mut self, ending: &Outcome) {
        let duration = self.accepted_at.elapsed();
        // Once, even where telling fails.
        match std::mem::replace(&mut self.stage, Stage::Told) {
            Stage::Entering => self.shared.audit.denied(&self.fields, ending.reason, &ending.detail, duration),
            Stage::Opened => {
                if ending.reason.is_revocation() {
                    self.shared.audit.revoked(&self.fields, ending);
                }
                self.shared.audit.closed(&self.fields, ending, self.carried, duration);
            }
            Stage::Told => {}
        }
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        if self.stage != Stage::Told {
            let ending = Outcome::new(Reason::IoError, "this connection was dropped by a failure inside portcullis");
            // A second panic while the first unwinds would end the process.
            let _ = fault::contain(crate::proxy::PART, || self.tell(&ending));
        }
    }
}
