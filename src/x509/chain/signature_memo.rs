//! Results of signature checks for open sessions, so that a pass over thousands of sessions verifies each signature once.
//!
//! A new policy may require other paths through the certificates that clients sent. Sessions of one client usually share their
//! certificates. A client that sends different certificates in each session gets [`MAX_FAILED_CHECKS`] failures for all its
//! sessions together.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::x509::chain::path::{MAX_FAILED_CHECKS, cost_of_failure};
use crate::x509::digest::{Digest, digest_of};

#[derive(Debug, Default)]
pub(crate) struct SignatureMemo {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    signatures: HashMap<Digest, bool>,
    /// Key: digest of the peer's own certificate. Value: cost of failed checks.
    failed: HashMap<Digest, usize>,
}

impl SignatureMemo {
    /// Whether the key signed the certificate. `None` if the client with this leaf has used up its failed checks.
    pub(crate) fn is_signed(
        &self,
        leaf: &[u8],
        certificate: &[u8],
        key_info: &[u8],
        verify: impl FnOnce() -> bool,
    ) -> Option<bool> {
        let [signature, leaf] = [digest_of([certificate, key_info].into_iter()), digest_of([leaf].into_iter())];
        {
            let known = self.known();
            if let Some(is_valid) = known.signatures.get(&signature) {
                return Some(*is_valid);
            }
            if known.failed.get(&leaf).is_some_and(|failed| *failed >= MAX_FAILED_CHECKS) {
                return None;
            }
        }
        // Verified without the lock. Another thread may verify the same signature meanwhile, which only costs time.
        let is_valid = verify();
        let mut known = self.known();
        if known.signatures.len() >= MAX_KNOWN {
            known.signatures.clear();
        }
        known.signatures.insert(signature, is_valid);
        if !is_valid {
            if known.failed.len() >= MAX_KNOWN {
                known.failed.clear();
            }
            *known.failed.entry(leaf).or_default() += cost_of_failure(key_info);
        }
        Some(is_valid)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.known().signatures.len()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Entries of each map. At this size the map is cleared.
const MAX_KNOWN: usize = 4096;
