//! The session ticket keys of a fleet, and when each step of their rotation is due.
//!
//! A new key first only decrypts. It encrypts once every member has it, so no member receives a ticket that it cannot decrypt. Any
//! member may do a step; compare-and-swap makes it the only one.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::fleet::seal::{SealingKeys, UnsealError};
use crate::timestamp;

/// The value of the key `tickets`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ring {
    /// The version of this form.
    format: u32,
    /// One more than that of the ring it replaced.
    pub(crate) sequence: u64,
    /// The newest key first. One of them encrypts, all decrypt.
    keys: Vec<RingKey>,
}

/// A key of a ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RingKey {
    /// The key, sealed.
    sealed: String,
    /// RFC 3339.
    created_at: String,
    /// Since when it encrypts, or `null` if it does not yet. The newest of these keys encrypts.
    encrypts_since: Option<String>,
}

/// A change of a ring that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Adds a key that decrypts.
    Add,
    /// Lets the newest key encrypt.
    Promote,
    /// Removes keys whose tickets have all expired.
    Retire,
}

/// Why a ring cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RingError {
    #[error("it is not a list of ticket keys: line {line}, column {column}")]
    Form { line: usize, column: usize },
    #[error("it has format {0}, and this version reads format {FORMAT} only; upgrade this member")]
    Format(u32),
    #[error("it is not valid: {0}")]
    Invalid(&'static str),
}

impl Ring {
    /// The first ring of a fleet. Its key encrypts at once, because no ticket is older.
    pub(crate) fn first(sealed: String, now: OffsetDateTime) -> Self {
        let at = timestamp::seconds(now);
        Self {
            format: FORMAT,
            sequence: 1,
            keys: vec![RingKey { sealed, created_at: at.clone(), encrypts_since: Some(at) }],
        }
    }

    /// Reads the value of the key.
    ///
    /// # Errors
    /// [`RingError`], without any of the value.
    pub(crate) fn parse(value: &str) -> Result<Self, RingError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let form = |error: &serde_json::Error| RingError::Form { line: error.line(), column: error.column() };
        let Version { format } = serde_json::from_str(value).map_err(|error| form(&error))?;
        if format != FORMAT {
            return Err(RingError::Format(format));
        }
        let ring: Self = serde_json::from_str(value).map_err(|error| form(&error))?;
        if !(1..=MAX_KEYS).contains(&ring.keys.len()) {
            return Err(RingError::Invalid("a ring has 1 to 16 keys"));
        }
        let times = ring.keys.iter().flat_map(|key| [Some(&key.created_at), key.encrypts_since.as_ref()]).flatten();
        if times.into_iter().any(|at| timestamp::parse(at).is_none()) {
            return Err(RingError::Invalid("a time is not in RFC 3339"));
        }
        if ring.encrypting().is_none() {
            return Err(RingError::Invalid("no key encrypts"));
        }
        Ok(ring)
    }

    /// The value of the key.
    pub(crate) fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// The keys: the one that encrypts, and then the others.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &RingKey> {
        let encrypting = self.encrypting();
        let others = self.keys.iter().enumerate().filter(move |(index, _)| Some(*index) != encrypting);
        encrypting.and_then(|index| self.keys.get(index)).into_iter().chain(others.map(|(_, key)| key))
    }

    /// The secrets of the keys, in the order of [`Self::keys`].
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub(crate) fn unseal(&self, keys: &SealingKeys, fleet: &str) -> Result<Vec<Zeroizing<Vec<u8>>>, UnsealError> {
        self.keys().map(|key| keys.unseal(&key.sealed, &purpose(fleet, &key.created_at))).collect()
    }

    /// How old the keys are.
    pub(crate) fn age(&self) -> RingAge {
        let made = |key: &RingKey| timestamp::parse(&key.created_at).map_or(i64::MIN, |at| at.unix_timestamp());
        let encrypting = self.encrypting().and_then(|index| self.keys.get(index)).map_or(i64::MIN, made);
        RingAge { encrypting, oldest: self.keys.iter().map(made).min().unwrap_or(i64::MIN) }
    }

    /// The position of the newest key that encrypts.
    fn encrypting(&self) -> Option<usize> {
        self.keys.iter().position(|key| key.encrypts_since.is_some())
    }

    /// Whether the newest key does not encrypt yet.
    pub(crate) fn is_announced(&self) -> bool {
        self.encrypting().is_some_and(|index| index > 0)
    }

    /// The next step, if one is due. `is_everywhere` tells whether every member that lives has this ring.
    pub(crate) fn due(&self, now: OffsetDateTime, rotation: Duration, is_everywhere: bool) -> Option<Step> {
        // A time far ahead is that of a member with a wrong clock, and must not stop the rotation until then.
        let age = |at: &str| match timestamp::parse(at).map(|at| now - at) {
            Some(age) if age < -CLOCK_TOLERANCE => Duration::MAX,
            Some(age) => age.try_into().unwrap_or_default(),
            None => Duration::ZERO,
        };
        let encrypting = self.encrypting()?;
        if let (Some(next), 1..) = (self.keys.first(), encrypting) {
            let is_due = is_everywhere || age(&next.created_at) >= PATIENCE;
            return is_due.then_some(Step::Promote);
        }
        let since = self.keys.first()?.encrypts_since.as_deref().unwrap_or_default();
        if self.keys.len() > 1 && age(since) >= LIFETIME {
            return Some(Step::Retire);
        }
        (age(since) >= rotation).then_some(Step::Add)
    }

    /// The ring after a step that is due. `new_key` seals a new key.
    pub(crate) fn after(
        &self,
        step: Step,
        now: OffsetDateTime,
        new_key: impl FnOnce(OffsetDateTime) -> Option<String>,
    ) -> Option<Self> {
        let at = timestamp::seconds(now);
        let mut keys = self.keys.clone();
        match step {
            Step::Add => {
                // Later than all others, also if the clock that made them is ahead: the age of a ring never goes back.
                let newest = keys.iter().filter_map(|key| timestamp::parse(&key.created_at)).max();
                let after = newest.and_then(|newest| newest.checked_add(time::Duration::SECOND));
                let created = now.max(after.unwrap_or(now));
                let created_at = timestamp::seconds(created);
                keys.insert(0, RingKey { sealed: new_key(created)?, created_at, encrypts_since: None });
                keys.truncate(MAX_KEYS);
            }
            Step::Promote => keys.first_mut()?.encrypts_since = Some(at),
            Step::Retire => keys.truncate(1),
        }
        Some(Self { format: FORMAT, sequence: self.sequence.saturating_add(1), keys })
    }
}

/// What a ticket key is sealed for, so that those of another fleet are not accepted, and none is made younger.
pub(crate) fn purpose(fleet: &str, created_at: &str) -> String {
    format!("ticket key of fleet {fleet} created at {created_at}")
}

/// How old the keys of a ring are, in seconds since 1970. Both times only grow, unless retired keys come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RingAge {
    /// When the key that encrypts was made.
    encrypting: i64,
    /// When the oldest key was made.
    oldest: i64,
}

impl RingAge {
    /// Whether a ring of this age may follow one of age `known`.
    pub(crate) const fn may_follow(self, known: Self) -> bool {
        self.encrypting >= known.encrypting && self.oldest >= known.oldest
    }
}

const FORMAT: u32 = 1;

/// As many as a file of ticket keys may have.
const MAX_KEYS: usize = 16;

/// A member that is alive has a new ring within a second. One that has lost the store must not stop the rotation.
const PATIENCE: Duration = Duration::from_secs(60);

/// By how much the clocks of members may differ.
const CLOCK_TOLERANCE: time::Duration = time::Duration::minutes(5);

/// How long a ticket is accepted ([`crate::tls::tickets`]).
const LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::Duration as Span;

    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
    const ROTATION: Duration = Duration::from_secs(12 * 60 * 60);

    fn sealed(ring: &Ring) -> Vec<&str> {
        ring.keys().map(|key| key.sealed.as_str()).collect()
    }

    fn step(ring: &Ring, now: OffsetDateTime, is_everywhere: bool, name: &str) -> (Option<Step>, Ring) {
        let due = ring.due(now, ROTATION, is_everywhere);
        let after = due.and_then(|due| ring.after(due, now, |_| Some(name.to_owned())));
        (due, after.unwrap_or_else(|| ring.clone()))
    }

    #[test]
    fn ring_whose_first_key_was_made_by_a_clock_ahead_never_gets_older() {
        let ahead = Ring::first("one".to_owned(), NOW + Span::minutes(6));
        let added = ahead.after(Step::Add, NOW, |_| Some("two".to_owned())).unwrap();
        assert!(added.age().may_follow(ahead.age()));
        let promoted = added.after(Step::Promote, NOW + Span::minutes(1), |_| None).unwrap();
        assert!(promoted.age().may_follow(added.age()), "{promoted:?}");
        assert!(!ahead.age().may_follow(promoted.age()));
    }

    #[test]
    fn retired_keys_do_not_come_back_and_a_clock_ahead_does_not_stop_the_rotation() {
        let first = Ring::first("one".to_owned(), NOW);
        let added = first.after(Step::Add, NOW + Span::hours(12), |_| Some("two".to_owned())).unwrap();
        let promoted = added.after(Step::Promote, NOW + Span::hours(12), |_| None).unwrap();
        let retired = promoted.after(Step::Retire, NOW + Span::hours(24), |_| None).unwrap();
        let rings = [&first, &added, &promoted, &retired];
        assert!(rings.windows(2).all(|pair| pair[1].age().may_follow(pair[0].age())));
        assert!(!promoted.age().may_follow(retired.age()), "it has a retired key again");
        assert!(!first.age().may_follow(promoted.age()), "an older key encrypts again");
        let ahead = Ring::first("one".to_owned(), NOW + Span::days(365));
        assert_eq!(ahead.due(NOW, ROTATION, true), Some(Step::Add));
    }

    #[test]
    fn key_decrypts_before_it_encrypts_and_is_retired_when_its_tickets_have_expired() {
        let first = Ring::first("one".to_owned(), NOW);
        assert_eq!(step(&first, NOW + Span::hours(11), true, "two").0, None);
        let (due, added) = step(&first, NOW + Span::hours(12), true, "two");
        assert_eq!((due, sealed(&added)), (Some(Step::Add), vec!["one", "two"]));
        assert_eq!(step(&added, NOW + Span::hours(12) + Span::seconds(59), false, "-").0, None, "a member lacks it");
        let (due, promoted) = step(&added, NOW + Span::hours(12) + Span::seconds(1), true, "-");
        assert_eq!((due, sealed(&promoted)), (Some(Step::Promote), vec!["two", "one"]));
        assert_eq!(step(&added, NOW + Span::hours(12) + Span::seconds(60), false, "-").0, Some(Step::Promote));
        assert_eq!(step(&promoted, NOW + Span::hours(20), true, "-").0, None);
        let (due, retired) = step(&promoted, NOW + Span::hours(25), true, "-");
        assert_eq!((due, sealed(&retired)), (Some(Step::Retire), vec!["two"]));
        assert_eq!(step(&retired, NOW + Span::hours(25), true, "three").0, Some(Step::Add));
        assert_eq!(retired.sequence, 4);
    }

    #[test]
    fn damaged_ring_is_rejected() {
        let good = Ring::first("one".to_owned(), NOW).to_json();
        assert_eq!(Ring::parse(&good).unwrap().to_json(), good);
        for (from, to) in [
            ("\"format\":1", "\"format\":2"),
            ("\"encrypts_since\":\"1970", "\"encrypts_since\":null,\"x\":\"1970"),
            ("\"encrypts_since\":\"1970-01-01T00:00:00Z\"", "\"encrypts_since\":null"),
            ("1970-01-01", "yesterday"),
            ("[{", "[{},{"),
        ] {
            let damaged = good.replacen(from, to, 1);
            assert!(damaged != good && Ring::parse(&damaged).is_err(), "{damaged}");
        }
        assert!(Ring::parse("{\"format\":1,\"sequence\":1,\"keys\":[]}").is_err());
    }

    proptest! {
        /// Hours pass, and members are sometimes slow.
        #[test]
        fn ring_always_has_an_encrypting_key_that_was_announced(waits in proptest::collection::vec((0..40_000_u32, any::<bool>()), 1..60)) {
            let (mut ring, mut now) = (Ring::first("0".to_owned(), NOW), NOW);
            for (index, (seconds, is_everywhere)) in waits.into_iter().enumerate() {
                now += Span::seconds(seconds.into());
                let before = sealed(&ring)[0].to_owned();
                let known: Vec<String> = sealed(&ring).iter().map(ToString::to_string).collect();
                let (_, after) = step(&ring, now, is_everywhere, &(index + 1).to_string());
                let encrypting = sealed(&after)[0].to_owned();
                prop_assert!(encrypting == before || known.contains(&encrypting));
                prop_assert_eq!(&Ring::parse(&after.to_json()).unwrap(), &after);
                ring = after;
            }
        }
    }
}
