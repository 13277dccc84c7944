//! Decides whether a store may be believed. A store that was restored from an older backup, or replaced by another one, has rules
//! that were withdrawn since. They are not put in force before an operator accepts the store, once for the fleet.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How far a store has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Position {
    /// Identifies the store: the cluster ID of etcd, the UID of the namespace in Kubernetes.
    pub(crate) cluster: String,
    /// Grows with every change of the store.
    pub(crate) revision: u64,
    /// How often an operator has accepted a store of this fleet.
    pub(crate) epoch: u64,
}

/// Why a store is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Suspicion {
    /// It is another store.
    OtherCluster,
    /// It has lost changes that a member has seen.
    WentBack { known: u64, seen: u64 },
    /// It has lost an acceptance, although its revision is not lower.
    LostEpoch { known: u64, seen: u64 },
    /// It has more acceptances than operators can have made.
    StrangeEpoch { known: u64, seen: u64 },
    /// It has lost changes of a listener's rules, although its revision is not lower.
    LostRules { listener: String, known: u64, seen: u64 },
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherCluster => f.write_str("the store is another one than before"),
            Self::WentBack { known, seen } => {
                write!(f, "the store went back from revision {known} to {seen}, as one restored from a backup does")
            }
            Self::LostRules { listener, known, seen } => {
                write!(
                    f,
                    "the rules of {listener} in the store have number {seen}, and this member had number {known} in force"
                )
            }
            Self::StrangeEpoch { known, seen } => {
                write!(f, "the store has {seen} acceptances, and this member knows of {known}")
            }
            Self::LostEpoch { known, seen } => {
                write!(
                    f,
                    "the store has lost an acceptance: it has number {seen}, and this member knows number {known}"
                )
            }
        }
    }
}

impl Position {
    /// Decides whether a store at `seen` continues the one that this member knows. A higher epoch means that an operator has
    /// accepted the store as it is, at any member.
    ///
    /// # Errors
    /// Why the store must not be believed.
    pub(crate) fn check(known: Option<&Self>, seen: &Self) -> Result<(), Suspicion> {
        let epoch = known.map_or(0, |known| known.epoch);
        if is_strange(epoch, seen.epoch) {
            return Err(Suspicion::StrangeEpoch { known: epoch, seen: seen.epoch });
        }
        let Some(known) = known else { return Ok(()) };
        if seen.epoch > known.epoch {
            return Ok(());
        }
        if seen.cluster != known.cluster {
            return Err(Suspicion::OtherCluster);
        }
        if seen.revision < known.revision {
            return Err(Suspicion::WentBack { known: known.revision, seen: seen.revision });
        }
        if seen.epoch < known.epoch {
            return Err(Suspicion::LostEpoch { known: known.epoch, seen: seen.epoch });
        }
        Ok(())
    }
}

/// Whether a store has so many acceptances that none could follow.
pub(crate) const fn is_strange(known: u64, seen: u64) -> bool {
    seen > known.saturating_add(MAX_STEP)
}

/// Acceptances that a member may have missed.
const MAX_STEP: u64 = 1000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(cluster: &str, revision: u64, epoch: u64) -> Position {
        Position { cluster: cluster.to_owned(), revision, epoch }
    }

    #[test]
    fn first_store_and_newer_revisions_are_believed() {
        assert_eq!(Position::check(None, &at("a", 1, 0)), Ok(()));
        for seen in [at("a", 5, 0), at("a", 6, 0), at("a", 6, 1)] {
            assert_eq!(Position::check(Some(&at("a", 5, 0)), &seen), Ok(()), "{seen:?}");
        }
    }

    #[test]
    fn restored_or_replaced_store_is_not_believed_until_it_is_accepted() {
        let known = at("a", 5, 1);
        assert_eq!(Position::check(Some(&known), &at("a", 4, 1)), Err(Suspicion::WentBack { known: 5, seen: 4 }));
        assert_eq!(Position::check(Some(&known), &at("b", 9, 1)), Err(Suspicion::OtherCluster));
        assert_eq!(Position::check(Some(&known), &at("a", 9, 0)), Err(Suspicion::LostEpoch { known: 1, seen: 0 }));
        for accepted in [at("a", 4, 2), at("b", 1, 2)] {
            assert_eq!(Position::check(Some(&known), &accepted), Ok(()), "{accepted:?}");
        }
    }

    proptest! {
        #[test]
        fn believed_store_is_never_older_without_a_new_epoch(known: (bool, u8, u8), seen: (bool, u8, u8)) {
            let position = |(cluster, revision, epoch): (bool, u8, u8)| at(if cluster { "a" } else { "b" }, revision.into(), epoch.into());
            let (known, seen) = (position(known), position(seen));
            if Position::check(Some(&known), &seen).is_ok() && seen.epoch <= known.epoch {
                prop_assert!(seen.cluster == known.cluster && seen.revision >= known.revision && seen.epoch == known.epoch);
            }
        }
    }
}
