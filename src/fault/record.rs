//! Logs and counts the faults of this process, and keeps the last ones for `status`.

use std::error::Error;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tracing::error;

use crate::printable;

/// A panic that was contained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// When the fault last occurred.
    pub at: OffsetDateTime,
    /// Which part of the program failed.
    pub part: &'static str,
    /// `file:line:column` of the code, where known.
    pub location: Option<String>,
    /// The message of the panic.
    pub message: String,
    /// Number of occurrences since the program started.
    pub count: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "internal fault in {}: {}; see the log, and report it", self.part, self.message)
    }
}

impl Error for Fault {}

impl Fault {
    /// Whether both probably come from the same defect.
    fn is_like(&self, other: &Self) -> bool {
        let same_code = match (&self.location, &other.location) {
            (None, None) => self.message == other.message,
            (one, other) => one == other,
        };
        self.part == other.part && same_code
    }
}

/// The last faults, newest last.
pub(crate) fn recent() -> Vec<Fault> {
    entries().iter().map(|entry| entry.fault.clone()).collect()
}

/// Records a fault. A repeated fault is logged once a minute.
pub(crate) fn note(part: &'static str, message: &str, location: Option<String>) -> Fault {
    let fault = Fault {
        at: OffsetDateTime::now_utc(),
        part,
        location: location.map(printable::field),
        // A panic message may quote input.
        message: printable::field(message),
        count: 1,
    };
    let (fault, is_due) = add(&mut entries(), fault, Instant::now());
    if is_due {
        let Fault { location, message, count, .. } = &fault;
        let location = location.as_deref().unwrap_or("unknown");
        // The log itself may have failed.
        let _ =
            panic::catch_unwind(AssertUnwindSafe(|| error!(part, location, error = message, count, "internal fault")));
    }
    fault
}

/// A recorded fault.
#[derive(Debug)]
struct Entry {
    fault: Fault,
    logged: Instant,
}

/// Global, because panics are.
static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

fn entries() -> MutexGuard<'static, Vec<Entry>> {
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the fault with its count, and whether to log it.
fn add(entries: &mut Vec<Entry>, mut fault: Fault, now: Instant) -> (Fault, bool) {
    let known = entries.iter().position(|entry| entry.fault.is_like(&fault));
    let logged = match known {
        Some(index) => {
            let before = entries.remove(index);
            fault.count = before.fault.count.saturating_add(1);
            before.logged
        }
        None => {
            if entries.len() >= MAX_FAULTS {
                entries.remove(0);
            }
            now
        }
    };
    let is_due = known.is_none() || now.saturating_duration_since(logged) >= LOG_EVERY;
    entries.push(Entry { fault: fault.clone(), logged: if is_due { now } else { logged } });
    (fault, is_due)
}

/// Maximum number of different faults that are kept.
const MAX_FAULTS: usize = 32;

const LOG_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(message: &str, location: Option<&str>) -> Fault {
        let at = OffsetDateTime::UNIX_EPOCH;
        Fault { at, part: "reload", location: location.map(str::to_owned), message: message.to_owned(), count: 1 }
    }

    #[test]
    fn repeated_fault_is_counted_and_logged_once_a_minute() {
        let (mut entries, start) = (Vec::new(), Instant::now());
        let mut add = |message: &str, seconds| {
            let (fault, is_due) =
                add(&mut entries, fault(message, Some("src/a.rs:1:2")), start + Duration::from_secs(seconds));
            (fault.count, is_due)
        };
        assert_eq!(add("index 3", 0), (1, true));
        assert_eq!(add("index 4", 59), (2, false), "the same place in the code");
        assert_eq!(add("index 3", 60), (3, true));
        assert_eq!(add("index 3", 61), (4, false));
        assert_eq!(entries.len(), 1);
    }

    #[test]
    fn only_the_most_recent_faults_are_kept() {
        let mut entries = Vec::new();
        for number in 0..3 * MAX_FAULTS {
            add(&mut entries, fault(&number.to_string(), None), Instant::now());
            add(&mut entries, fault("often", None), Instant::now());
        }
        assert_eq!(entries.len(), MAX_FAULTS);
        let last = entries.last().unwrap();
        assert_eq!((last.fault.message.as_str(), last.fault.count), ("often", 3 * MAX_FAULTS as u64));
    }
}
