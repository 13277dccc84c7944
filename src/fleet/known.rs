//! What a member remembers of its store: how far it had come, and which rules were in force.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::fleet::guard::{Position, Suspicion};
use crate::fleet::manifest::Manifest;
use crate::fleet::ticket_ring::RingAge;

/// The memory of a member, kept across restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Known {
    /// `None` before the first contact.
    pub(crate) position: Option<Position>,
    /// The rules that were last applied, by listener.
    pub(crate) rules: BTreeMap<String, AppliedRules>,
    /// The age of the ticket keys that were last in use.
    #[serde(default)]
    pub(crate) tickets: Option<RingAge>,
    /// The process that last held this member's name.
    pub(crate) instance: String,
}

/// Rules that a member has applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AppliedRules {
    /// How often an operator had accepted a store by then.
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
    pub(crate) sha256: String,
}

impl Known {
    /// The number of acceptances that this member knows.
    pub(crate) fn epoch(&self) -> u64 {
        self.position.as_ref().map_or(0, |position| position.epoch)
    }

    /// The sequence of the rules that a member has applied, 0 if there are none.
    pub(crate) fn sequence(&self, listener: &str) -> u64 {
        self.rules.get(listener).map_or(0, |rules| rules.sequence)
    }

    /// Whether ticket keys of this age may be used: retired ones never come back.
    pub(crate) fn may_use(&self, tickets: RingAge) -> bool {
        self.tickets.is_none_or(|known| tickets.may_follow(known))
    }

    /// Decides whether a store at `seen` with these manifests continues the one that this member knows. A store that was
    /// restored may have passed the known revision again, so the rules must not have gone back either.
    ///
    /// # Errors
    /// Why the store must not be believed.
    pub(crate) fn check<'m>(
        &self,
        seen: &Position,
        manifests: impl IntoIterator<Item = (&'m str, &'m Manifest)>,
    ) -> Result<(), Suspicion> {
        Position::check(self.position.as_ref(), seen)?;
        if seen.epoch > self.epoch() {
            return Ok(());
        }
        for (listener, manifest) in manifests {
            // Rules from before an acceptance say nothing about the accepted store.
            let applied = self.rules.get(listener).filter(|applied| applied.epoch == seen.epoch);
            let Some(AppliedRules { sequence, sha256, .. }) = applied else { continue };
            let is_other = manifest.sequence == *sequence && manifest.sha256() != sha256;
            if manifest.sequence < *sequence || is_other {
                let listener = listener.to_owned();
                return Err(Suspicion::LostRules { listener, known: *sequence, seen: manifest.sequence });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn manifest(text: &str, previous: u64) -> Manifest {
        Manifest::encode(text, previous, "a", OffsetDateTime::UNIX_EPOCH).manifest
    }

    fn at(revision: u64, epoch: u64) -> Position {
        Position { cluster: "c".to_owned(), revision, epoch }
    }

    #[test]
    fn store_that_has_lost_rules_is_not_believed_although_its_revision_has_grown() {
        let applied = manifest("rule = []\n", 4);
        let rules = AppliedRules { epoch: 0, sequence: 5, sha256: applied.sha256().to_owned() };
        let rules = BTreeMap::from([("cache".to_owned(), rules)]);
        let known = Known { position: Some(at(10, 0)), rules, ..Known::default() };
        let check = |seen: &Position, manifest: &Manifest| known.check(seen, [("cache", manifest)]);
        assert_eq!(check(&at(11, 0), &applied), Ok(()));
        assert_eq!(check(&at(11, 0), &manifest("x", 5)), Ok(()), "it is newer");
        let lost = |seen| Err(Suspicion::LostRules { listener: "cache".to_owned(), known: 5, seen });
        assert_eq!(check(&at(11, 0), &manifest("rule = []\n", 3)), lost(4));
        assert_eq!(check(&at(11, 0), &manifest("other", 4)), lost(5), "it was written after a restore");
        assert_eq!(check(&at(2, 1), &manifest("x", 0)), Ok(()), "an operator has accepted it");
        let accepted = Known { position: Some(at(11, 1)), ..known.clone() };
        assert_eq!(
            accepted.check(&at(12, 1), [("cache", &manifest("x", 0))]),
            Ok(()),
            "it was accepted before it could be put in force"
        );
        assert_eq!(known.check(&at(11, 0), [("db", &manifest("x", 0))]), Ok(()), "nothing is known of it");
        assert!(check(&at(9, 0), &applied).is_err());
    }
}
