//! Waits that differ at random, so that programs and lookups that wait for the same thing spread out.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// A random number from the hash seed of the standard library. It protects nothing.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// A wait less a part of it, which `random` chooses up to `percent`.
pub(crate) fn less(whole: Duration, percent: u32, random: u64) -> Duration {
    let thousandth = u32::try_from(random % 1_000).unwrap_or_default();
    whole.saturating_sub(whole / 100_000 * percent.saturating_mul(thousandth))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_is_reduced_by_up_to_the_given_part() {
        let second = Duration::from_secs(1);
        assert_eq!(less(second, 50, 0), second);
        assert_eq!(less(second, 50, 500), Duration::from_millis(750));
        assert_eq!(less(second, 10, 999), Duration::from_micros(900_100));
        assert_eq!(less(Duration::ZERO, 50, 999), Duration::ZERO);
    }
}
