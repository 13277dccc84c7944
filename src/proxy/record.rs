//! The account of one connection, which is audited exactly once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::audit::event::Facts;
use crate::fault;
use crate::outcome::{Carried, Ending, Reason};
use crate::policy::Terms;
use crate::proxy::accepted::{Entrance, House};
use crate::proxy::phase::close::{Leave, Parting};
use crate::session::registry::Presence;

/// Collects what is known of a connection and writes its events. Dropped without an ending, as by a panic, it still
/// writes one.
#[derive(Debug)]
pub(crate) struct Visit {
    house: Arc<House>,
    facts: Box<Facts>,
    accepted_at: Instant,
    stage: Stage,
    carried: Carried,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Entering,
    Opened,
    Told,
}

impl Visit {
    pub(crate) fn new(
        house: Arc<House>,
        terms: &Terms,
        entrance: &Entrance,
        presence: &Presence,
        accepted_at: Instant,
    ) -> Self {
        let mut facts = entrance.facts(Some(presence.id()), &terms.name);
        facts.from_checker = terms.balancers.check_from(entrance.from());
        facts.upstream = Some(Arc::clone(&terms.upstream.name));
        Self { house, facts: Box::new(facts), accepted_at, stage: Stage::Entering, carried: Carried::default() }
    }

    /// The moment when `timeout` has passed since the connection was accepted.
    pub(crate) fn deadline(&self, timeout: Duration) -> tokio::time::Instant {
        (self.accepted_at + timeout).into()
    }

    /// What is around the connection.
    pub(crate) fn house(&self) -> Arc<House> {
        Arc::clone(&self.house)
    }

    pub(crate) fn facts(&mut self) -> &mut Facts {
        &mut self.facts
    }

    /// Where the relay counts bytes.
    pub(crate) fn carried(&mut self) -> &mut Carried {
        &mut self.carried
    }

    /// The upstream is reached.
    pub(crate) fn opened(&mut self, presence: &Presence) {
        self.stage = Stage::Opened;
        let session = presence.session();
        let credential = session.as_ref().and_then(|session| session.reliance.credential.as_ref());
        let issuer = credential.map(|credential| credential.certificate.issuer.as_str());
        self.house.audit.opened(&self.facts, issuer);
    }

    /// Nothing is relayed any more: until now the client used what it was admitted by.
    pub(crate) fn note_last_use(&self, presence: &Presence) {
        let snapshot = self.house.current.borrow().clone();
        if let (Some(terms), Some(session)) = (snapshot.named(&self.facts.listener), presence.session()) {
            terms.usage.note_end(&session.reliance, self.facts.client, OffsetDateTime::now_utc());
        }
    }

    /// The connection ends: the auditor is told first, then the client.
    pub(crate) async fn ended(&mut self, leave: Leave) {
        self.tell(&leave.ending);
        leave.parting.say().await;
    }

    /// The connection was a CancelRequest, and it has reached the upstream.
    pub(crate) async fn cancelled(&mut self, parting: Parting) {
        self.stage = Stage::Told;
        self.house.audit.cancel_forwarded(&self.facts, self.accepted_at.elapsed());
        parting.say().await;
    }

    fn tell(&mut self, ending: &Ending) {
        let duration = self.accepted_at.elapsed();
        // Once, even where telling fails.
        match std::mem::replace(&mut self.stage, Stage::Told) {
            Stage::Entering => self.house.audit.denied(&self.facts, ending.reason, &ending.detail, duration),
            Stage::Opened => {
                if ending.reason.is_revocation() {
                    self.house.audit.revoked(&self.facts, ending);
                }
                self.house.audit.closed(&self.facts, ending, self.carried, duration);
            }
            Stage::Told => {}
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if self.stage != Stage::Told {
            let ending = Ending::new(Reason::IoError, "this connection was dropped by a failure inside portcullis");
            // A second panic while the first unwinds would end the process.
            let _ = fault::contain(crate::proxy::PART, || self.tell(&ending));
        }
    }
}
