//! Signatures that were verified for open sessions, so that a pass over thousands of them verifies each once.
//!
//! A new policy may have to follow other paths than before through what clients have sent. Sessions of one client send the same
//! certificates, or are meant to: one that sends ever new ones gets [`MAX_FAILED_CHECKS`] failures for all of its sessions
//! together.

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
    /// By the digest of the peer's own certificate.
    failed: HashMap<Digest, usize>,
}

impl SignatureMemo {
    /// Whether a key has signed a certificate, asked on behalf of the client with this leaf. Nothing, where that client has used
    /// up its checks.
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
        // Without the lock: another thread may verify the same meanwhile, which costs time and does no harm.
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

    /// How many signatures were verified.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.known().signatures.len()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Past it all are forgotten, and verified anew.
const MAX_KNOWN: usize = 4096;
