//! Chains that have been verified, so that a client that comes again costs a digest and not its signatures.
//!
//! A verdict depends on the chain, on the trust anchors and revocation lists, and on the time. It is kept beside the
//! anchors and lists it was reached with, under a digest of every byte of the chain, and counts only while every
//! certificate of the chain and every list is in its time; outside that the question is put anew. Refusals are not
//! remembered, so strangers cannot fill the memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;

use crate::identity::verified::VerifiedIdentity;
use crate::x509::digest::Digest;

/// The good verdicts of one set of trust anchors.
#[derive(Debug, Default)]
pub(crate) struct VerificationCache {
    chains: Mutex<HashMap<Digest, Arc<VerifiedIdentity>>>,
}

impl VerificationCache {
    /// The credential of a chain that has been found good, if it still is.
    pub(crate) fn get(&self, chain: &Digest, now: OffsetDateTime) -> Option<Arc<VerifiedIdentity>> {
        let chains = self.chains();
        let identity = chains.get(chain)?;
        (identity.from..identity.until).contains(&now).then(|| Arc::clone(identity))
    }

    /// Notes that a chain is good, as long as its credential says.
    pub(crate) fn insert(&self, identity: &Arc<VerifiedIdentity>) {
        if identity.chain.iter().map(|der| der.len()).sum::<usize>() > MAX_CHAIN_BYTES {
            return;
        }
        let mut chains = self.chains();
        if chains.len() >= MAX_CHAINS {
            chains.clear();
        }
        chains.insert(identity.digest, Arc::clone(identity));
    }

    fn chains(&self) -> MutexGuard<'_, HashMap<Digest, Arc<VerifiedIdentity>>> {
        self.chains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// More clients than a database has, at about a KiB each. Past it all are forgotten, and verified anew.
const MAX_CHAINS: usize = 1024;

/// In bytes. Far above any real chain, and what keeps the holder of a good certificate from filling the memory with what it
/// sends along.
const MAX_CHAIN_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;
    use crate::identity::verified::TrustedBy;
    use crate::tls::fixtures::Authority;
    use crate::x509::certificate::Certificate;
    use crate::x509::digest::digest_of_chain;
    use rustls::pki_types::CertificateDer;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::days(20_000));

    fn certificate(name: &str) -> CertificateDer<'static> {
        Authority::new("CA").client(name, NOW, NOW + Duration::DAY).der()
    }

    /// The credential of a chain, with the facts of some leaf.
    fn identity(leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Arc<VerifiedIdentity> {
        let certificate = Certificate::parse(leaf).unwrap();
        Arc::new(VerifiedIdentity {
            certificate,
            trusted_by: TrustedBy::Pinned,
            until: NOW + Duration::HOUR,
            constrains_names: false,
            validity: NOW..NOW + Duration::DAY,
            from: NOW,
            chain: Vec::new(),
            digest: digest_of_chain(chain),
            path: Box::default(),
            constraints: Digest::default(),
            verifier_id: 0,
        })
    }

    #[test]
    fn a_verdict_is_for_these_bytes_and_for_its_time() {
        let chain = [certificate("app"), certificate("between")];
        let turned = [chain[1].clone(), chain[0].clone()];
        let cache = VerificationCache::default();
        cache.insert(&identity(&chain[0], &chain));
        let known = |chain, moment| cache.get(&digest_of_chain(chain), moment).is_some();
        assert!(known(&chain, NOW) && known(&chain, NOW + Duration::HOUR - Duration::NANOSECOND));
        assert!(!known(&chain, NOW - Duration::SECOND), "before its time");
        assert!(!known(&chain, NOW + Duration::HOUR), "after its time");
        assert!(!known(&chain[..1], NOW), "another chain of the same leaf");
        assert!(!known(&turned, NOW), "the same certificates in another order");
    }

    #[test]
    fn no_more_chains_are_remembered_than_there_is_room_for() {
        let leaf = certificate("app");
        let cache = VerificationCache::default();
        for count in 0..=2 * MAX_CHAINS {
            let other = CertificateDer::from(count.to_be_bytes().to_vec());
            cache.insert(&identity(&leaf, &[other]));
        }
        assert!(cache.chains().len() <= MAX_CHAINS);
        let last = CertificateDer::from((2 * MAX_CHAINS).to_be_bytes().to_vec());
        assert!(cache.get(&digest_of_chain(&[last]), NOW).is_some());
    }

    #[test]
    fn a_chain_with_much_sent_along_is_not_remembered() {
        let leaf = certificate("app");
        let padding = vec![0; MAX_CHAIN_BYTES];
        let alone = std::slice::from_ref(&leaf);
        let long = VerifiedIdentity { chain: vec![leaf.clone(), padding.into()], ..(*identity(&leaf, alone)).clone() };
        let cache = VerificationCache::default();
        cache.insert(&Arc::new(long));
        assert!(cache.get(&digest_of_chain(std::slice::from_ref(&leaf)), NOW).is_none());
    }
}
