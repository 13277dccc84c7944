//! A rate as written in the configuration.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

/// A count per second, minute or hour: `50/s`, `100/m`, `1000/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    count: NonZeroU32,
    per: Duration,
}

impl Rate {
    /// Maximum number of events at once after a pause.
    pub fn burst(self) -> u32 {
        self.count.get()
    }

    /// Time until one more event is allowed.
    pub fn interval(self) -> Duration {
        self.per / self.count.get()
    }
}

/// The text is not a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a rate such as \"50/s\", \"100/m\" or \"1000/h\"")]
pub struct RateError;

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let (count, unit) = text.split_once('/').ok_or(RateError)?;
        let digits = !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit());
        let count = count.parse().ok().filter(|_| digits).ok_or(RateError)?;
        let seconds = UNITS.iter().find(|(known, _)| *known == unit).map(|(_, seconds)| *seconds);
        Ok(Self { count, per: Duration::from_secs(seconds.ok_or(RateError)?) })
    }
}

/// As written in the configuration.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, seconds)| *seconds == self.per.as_secs()).map_or("?", |(unit, _)| unit);
        write!(f, "{}/{unit}", self.count)
    }
}

const UNITS: [(&str, u64); 3] = [("s", 1), ("m", 60), ("h", 3600)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_without_count_or_unit_is_rejected() {
        let rate: Rate = "50/s".parse().unwrap();
        assert_eq!((rate.burst(), rate.interval()), (50, Duration::from_millis(20)));
        for text in ["1/s", "100/m", "1000/h"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for text in ["", "50", "0/s", "-1/s", "+1/s", "1.5/s", "50/d", "50 /s", "/s", "50/", "99999999999/s"] {
            assert_eq!(text.parse::<Rate>(), Err(RateError), "{text:?}");
        }
    }
}
