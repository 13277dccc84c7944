//! A span of time in 8 bytes, half the size of a `Duration`. An idle session has several.

use std::num::NonZeroU64;
use std::time::Duration;

/// Nanoseconds: up to 584 years, and at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(NonZeroU64);

impl Span {
    pub(crate) fn duration(self) -> Duration {
        Duration::from_nanos(self.0.get())
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(NonZeroU64::new(nanoseconds).unwrap_or(NonZeroU64::MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_from_a_duration_returns_that_duration_and_has_8_bytes() {
        for duration in [Duration::from_millis(250), Duration::from_secs(300), Duration::from_secs(3650 * 86_400)] {
            assert_eq!(Span::from(duration).duration(), duration);
        }
        assert_eq!(size_of::<Option<Span>>(), 8);
    }
}
