//! Chains that have been verified, so that a client that comes again costs a digest and not its signatures.
//!
//! A verdict depends on the chain, on the trust anchors and on the time. It is kept beside the anchors it was reached
//! with, under a digest of every byte of the chain, and counts only while every certificate of the chain is in its time;
//! outside that the question is put anew. Refusals are not remembered, so strangers cannot fill the memory. What else a
//! verdict may come to depend on, as a revocation list, needs a `ChainVerifier` of its own.

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

/// What a chain is known by.
pub(super) type Digest = [u8; 32];

#[derive(Debug)]
struct Verdict {
    leaf: Arc<Certificate>,
    /// When every certificate of the chain is in its time, in seconds since 1970, both ends included.
    from: u64,
    until: u64,
}

impl Verified {
    /// The holder of a chain that has been found good, if it still is.
    pub(super) fn recall(&self, chain: &Digest, now: UnixTime) -> Option<Arc<Certificate>> {
        let chains = self.chains();
        let verdict = chains.get(chain)?;
        (verdict.from..=verdict.until).contains(&now.as_secs()).then(|| Arc::clone(&verdict.leaf))
    }

    /// Notes that a chain is good: that of this leaf and what came behind it.
    pub(super) fn remember(&self, chain: Digest, leaf: &Arc<Certificate>, intermediates: &[CertificateDer<'_>]) {
        let (mut from, mut until) = (leaf.not_before, leaf.not_after);
        for certificate in intermediates {
            // webpki passes over one that it has no use for, even if it cannot be read.
            let Ok(certificate) = Certificate::parse(certificate) else { return };
            from = from.max(certificate.not_before);
            until = until.min(certificate.not_after);
        }
        let verdict = Verdict { leaf: Arc::clone(leaf), from: seconds(from), until: seconds(until) };
        let mut chains = self.chains();
        if chains.len() >= MOST_CHAINS {
            chains.clear();
        }
        chains.insert(chain, verdict);
    }

    fn chains(&self) -> MutexGuard<'_, HashMap<Digest, Verdict>> {
        self.chains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of every certificate and its length, so that no two chains have the same bytes.
pub(super) fn digest(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Digest {
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

/// More clients than a database has, at about a KiB each. Past it all are forgotten, and verified anew.
const MOST_CHAINS: usize = 1024;

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;
    use crate::tls::specimen::Authority;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::days(20_000));

    fn certificate(name: &str, lasting: Duration) -> CertificateDer<'static> {
        Authority::new("CA").client(name, NOW, NOW + lasting).der()
    }

    fn at(moment: OffsetDateTime) -> UnixTime {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds(moment)))
    }

    #[test]
    fn a_verdict_is_for_these_bytes_and_while_the_whole_chain_is_in_its_time() {
        let leaf = certificate("app", Duration::DAY);
        let between = [certificate("between", Duration::HOUR)];
        let facts = Arc::new(Certificate::parse(&leaf).unwrap());
        let verified = Verified::default();
        verified.remember(digest(&leaf, &between), &facts, &between);
        let known = |leaf, between, moment| verified.recall(&digest(leaf, between), at(moment)).is_some();
        assert!(known(&leaf, &between, NOW) && known(&leaf, &between, NOW + Duration::HOUR));
        assert!(!known(&leaf, &between, NOW - Duration::SECOND), "before its time");
        assert!(!known(&leaf, &between, NOW + Duration::HOUR + Duration::SECOND), "after the time of one of them");
        assert!(!known(&leaf, &[], NOW), "another chain of the same leaf");
        assert!(!known(&between[0], std::slice::from_ref(&leaf), NOW), "the same certificates in another order");
    }

    #[test]
    fn no_more_chains_are_remembered_than_there_is_room_for() {
        let leaf = certificate("app", Duration::DAY);
        let facts = Arc::new(Certificate::parse(&leaf).unwrap());
        let verified = Verified::default();
        for count in 0..=MOST_CHAINS {
            // As many chains, by as many certificates behind the leaf.
            let behind = vec![leaf.clone(); count % 40];
            verified.remember(digest(&leaf, &behind), &facts, &behind);
            let other = CertificateDer::from(count.to_be_bytes().to_vec());
            verified.remember(digest(&other, &[]), &facts, &[]);
        }
        assert!(verified.chains().len() <= MOST_CHAINS);
        let last = CertificateDer::from(MOST_CHAINS.to_be_bytes().to_vec());
        assert!(verified.recall(&digest(&last, &[]), at(NOW)).is_some());
    }
}
