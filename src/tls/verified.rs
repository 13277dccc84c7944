//! Chains that have been verified, so that a client that comes again costs a digest and not its signatures.
//!
//! A verdict depends on the chain, on the trust anchors and on the time. It is kept beside the anchors it was reached
//! with, under a digest of every byte of the chain, and counts only while every certificate of the chain is in its time;
//! outside that the question is put anew. Refusals are not remembered, so strangers cannot fill the memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use rustls::pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;

use super::certificate::Certificate;

/// The good verdicts of one set of trust anchors.
#[derive(Debug, Default)]
pub(super) struct Verified {
    chains: Mutex<HashMap<Digest, Verdict>>,
}

type Digest = [u8; 32];

#[derive(Debug)]
struct Verdict {
    leaf: Arc<Certificate>,
    /// When every certificate of the chain is in its time, in seconds since 1970, both ends included.
    from: u64,
    until: u64,
}

impl Verified {
    /// The holder of a chain that has been found good, if it still is.
    pub(super) fn recall(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Option<Arc<Certificate>> {
        let digest = digest(leaf, intermediates);
        let chains = self.chains();
        let verdict = chains.get(&digest)?;
        (verdict.from..=verdict.until).contains(&now.as_secs()).then(|| Arc::clone(&verdict.leaf))
    }

    /// Notes that a chain is good.
    pub(super) fn remember(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        facts: &Arc<Certificate>,
    ) {
        let (mut from, mut until) = (facts.not_before, facts.not_after);
        for certificate in intermediates {
            // webpki passes over one that it has no use for, even if it cannot be read.
            let Ok(certificate) = Certificate::parse(certificate) else { return };
            from = from.max(certificate.not_before);
            until = until.min(certificate.not_after);
        }
        let verdict = Verdict { leaf: Arc::clone(facts), from: seconds(from), until: seconds(until) };
        let digest = digest(leaf, intermediates);
        let mut chains = self.chains();
        if chains.len() >= MOST_CHAINS {
            chains.clear();
        }
        chains.insert(digest, verdict);
    }

    fn chains(&self) -> MutexGuard<'_, HashMap<Digest, Verdict>> {
        self.chains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of every certificate and its length, so that no two chains have the same bytes.
fn digest(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Digest {
    let mut context = Context::new(&SHA256);
    for certificate in [leaf].into_iter().chain(intermediates) {
        context.update(&certificate.len().to_be_bytes());
        context.update(certificate);
    }
    let mut digest = Digest::default();
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

fn seconds(moment: OffsetDateTime) -> u64 {
    u64::try_from(moment.unix_timestamp()).unwrap_or(0)
}

/// More clients than a database has, at about a KiB each.
const MOST_CHAINS: usize = 1024;
