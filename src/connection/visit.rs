//! The account of one connection, which is audited exactly once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::part::{Leave, Parting};
use super::{Entrance, House};
use crate::audit::Facts;
use crate::fault;
use crate::outcome::{Carried, Ending, Reason};
use crate::sessions::Presence;
use crate::snapshot::Terms;

/// Collects what is known of a connection and writes its events. Dropped without an ending, as by a panic, it still
/// writes one.
#[derive(Debug)]
pub(super) struct Visit {
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
    pub(super) fn new(
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
    pub(super) fn deadline(&self, timeout: Duration) -> tokio::time::Instant {
        (self.accepted_at + timeout).into()
    }

    /// What is around the connection.
    pub(super) fn house(&self) -> Arc<House> {
        Arc::clone(&self.house)
    }

    pub(super) fn facts(&mut self) -> &mut Facts {
        &mut self.facts
    }

    /// Where the relay counts bytes.
    pub(super) fn carried(&mut self) -> &mut Carried {
        &mut self.carried
    }

    /// The upstream is reached.
    pub(super) fn opened(&mut self, presence: &Presence) {
        self.stage = Stage::Opened;
        let session = presence.session();
        let credential = session.as_ref().and_then(|session| session.reliance.credential.as_ref());
        let issuer = credential.map(|credential| credential.certificate.issuer.as_str());
        self.house.audit.opened(&self.facts, issuer);
    }

    /// Nothing is relayed any more: until now the client used what it was admitted by.
    pub(super) fn note_last_use(&self, presence: &Presence) {
        let snapshot = self.house.current.borrow().clone();
        if let (Some(terms), Some(session)) = (snapshot.named(&self.facts.listener), presence.session()) {
            terms.usage.note_end(&session.reliance, self.facts.client, OffsetDateTime::now_utc());
        }
    }

    /// The connection ends: the auditor is told first, then the client.
    pub(super) async fn ended(&mut self, leave: Leave) {
        self.tell(&leave.ending);
        leave.parting.say().await;
    }

    /// The connection was a CancelRequest, and it has reached the upstream.
    pub(super) async fn cancelled(&mut self, parting: Parting) {
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
            let _ = fault::contain(super::PART, || self.tell(&ending));
        }
    }
}
