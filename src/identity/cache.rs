//! A cache of verified chains: a client that reconnects costs one digest instead of its signature checks.
//!
//! A result depends on the chain, the trust anchors, the revocation lists and the time. Each verifier has its own cache, whose
//! keys are digests of complete chains. An entry is valid only while all certificates and lists behind it are valid. Rejected
//! chains are not cached, so unauthenticated peers cannot fill the memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;

use crate::identity::verified::VerifiedIdentity;
use crate::x509::digest::Digest;

/// The accepted chains of one [`ChainVerifier`](crate::identity::verifier::ChainVerifier).
#[derive(Debug, Default)]
pub(crate) struct VerificationCache {
    chains: Mutex<HashMap<Digest, Arc<VerifiedIdentity>>>,
}

impl VerificationCache {
    /// The identity of a cached chain, if it is valid at `now`.
    pub(crate) fn get(&self, chain: &Digest, now: OffsetDateTime) -> Option<Arc<VerifiedIdentity>> {
        let chains = self.chains();
        let identity = chains.get(chain)?;
        (identity.from..identity.until).contains(&now).then(|| Arc::clone(identity))
    }

    /// Chains above [`MAX_CHAIN_BYTES`] are not cached.
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

/// More clients than a database has, at about 1 KiB each. At this size the cache is cleared.
const MAX_CHAINS: usize = 1024;

/// Far above any real chain. Without the limit, a client with a valid certificate could fill the memory with additional
/// certificates.
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

    /// An identity with this leaf, and the digest of `chain`.
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
    fn cached_chain_is_found_only_with_equal_bytes_and_while_valid() {
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
    fn cache_size_stays_at_or_below_its_limit() {
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
    fn chain_above_the_size_limit_is_not_cached() {
        let leaf = certificate("app");
        let padding = vec![0; MAX_CHAIN_BYTES];
        let alone = std::slice::from_ref(&leaf);
        let long = VerifiedIdentity { chain: vec![leaf.clone(), padding.into()], ..(*identity(&leaf, alone)).clone() };
        let cache = VerificationCache::default();
        cache.insert(&Arc::new(long));
        assert!(cache.get(&digest_of_chain(std::slice::from_ref(&leaf)), NOW).is_none());
    }
}
