//! Session tickets with keys that the process generates.
//!
//! rustls replaces such keys every few hours of wall-clock time. If the clock is set back, rustls would keep them until the clock
//! reaches its old time, perhaps for years. In that case all keys are replaced, and earlier tickets become invalid.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use rustls::Error;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::UnixTime;
use rustls::server::ProducesTickets;

/// Encrypts and decrypts the tickets of one listener with one set of client authentication settings.
#[derive(Debug)]
pub(crate) struct ProcessTicketer {
    keys: RwLock<Arc<dyn ProducesTickets>>,
    made: Instant,
    /// The highest wall-clock time computed for [`made`](Self::made), in Unix seconds. A lower value means that the clock was set
    /// back.
    made_at: AtomicI64,
}

impl ProcessTicketer {
    /// # Errors
    /// If the provider cannot generate keys.
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self { keys: RwLock::new(Ticketer::new()?), made: Instant::now(), made_at: AtomicI64::new(i64::MIN) })
    }

    /// The current keys.
    fn now(&self) -> Option<Arc<dyn ProducesTickets>> {
        let wall = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
        self.at(self.made.elapsed().as_secs(), wall)
    }

    /// The keys `passed` seconds after their creation, at `wall` Unix seconds.
    fn at(&self, passed: u64, wall: i64) -> Option<Arc<dyn ProducesTickets>> {
        let made_at = wall.saturating_sub_unsigned(passed);
        let latest = self.made_at.fetch_max(made_at, Ordering::Relaxed);
        if made_at >= latest.saturating_sub(TOLERANCE) {
            return Some(Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner)));
        }
        let fresh = Ticketer::new().ok()?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&fresh);
        self.made_at.store(made_at, Ordering::Relaxed);
        Some(fresh)
    }
}

impl ProducesTickets for ProcessTicketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.now()?.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.now()?.decrypt(cipher)
    }
}

/// Seconds. A smaller correction of the clock does not replace the keys.
const TOLERANCE: i64 = 300;

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_800_000_000;

    #[test]
    fn ticket_from_before_the_clock_was_set_back_is_rejected() {
        let tickets = ProcessTicketer::new().unwrap();
        let seal = |passed, wall| tickets.at(passed, wall).unwrap().encrypt(b"state").unwrap();
        let opens = |ticket: &[u8], passed, wall| tickets.at(passed, wall).unwrap().decrypt(ticket).is_some();
        let first = seal(0, START);
        // Passing time, small corrections, and a clock that is set forward.
        for (passed, wall) in [(60, START + 60), (60, START - 240), (3600, START + 3300), (60, START + (1 << 40))] {
            assert!(opens(&first, passed, wall), "{passed} {wall}");
        }
        // From there back to the original time, further back, and to the minimum.
        for (passed, wall) in [(61, START + 61), (3600, START), (3601, i64::MIN)] {
            let before = seal(60, START + (1 << 40));
            assert!(!opens(&before, passed, wall), "{passed} {wall}");
            assert!(opens(&seal(passed, wall), passed, wall), "the new keys stay");
        }
    }
}
