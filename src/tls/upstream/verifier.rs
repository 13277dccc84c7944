//! Verifies the certificate of an upstream with the semantics of libpq's `sslmode`.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, Error, OtherError};
use time::OffsetDateTime;
use webpki::EndEntityCert;

use crate::identity::handshake_signature::verify_handshake_signatures;
use crate::protocol::Verification;
use crate::tls::cert_selector::matches;
use crate::tls::upstream::failure::{ServerFault, UpstreamTlsError};
use crate::x509::ca_properties::Purpose;
use crate::x509::certificate::Certificate;
use crate::x509::chain::anchors::AnchorSet;
use crate::x509::chain::error::ChainError;
use crate::x509::chain::path::{Path, Search, relevant};
use crate::x509::chain::rules;
use crate::x509::chain::rules::{NameBudget, Sent, check_validity, overlap};
use crate::x509::chain::settings::AnchorValidity;
use crate::x509::clock::moment;
use crate::x509::digest::{Digest, digest_of};
use crate::x509::error::BuildError;

/// The trusted issuers of server certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anchors {
    /// No trust anchors: with `tls = "require"`, certificates are not verified.
    None,
    /// The certificates of `ca`: roots, intermediates or pinned server certificates.
    Bundle(Vec<CertificateDer<'static>>),
    /// The root certificates of the system.
    System(Vec<CertificateDer<'static>>),
}

impl Anchors {
    /// Selects the anchors for `verification` and the optional bundle of `ca`. Reads the roots of the system only if they are needed.
    ///
    /// # Errors
    /// [`BuildError::NoSystemRoots`] if the system's roots are needed and there are none.
    pub fn new(
        bundle: Option<Vec<CertificateDer<'static>>>,
        verification: Verification,
        system_roots: impl FnOnce() -> Result<Vec<CertificateDer<'static>>, String>,
    ) -> Result<Self, BuildError> {
        match (bundle, verification) {
            (Some(bundle), _) => Ok(Self::Bundle(bundle)),
            (None, Verification::Require) => Ok(Self::None),
            (None, Verification::VerifyCa | Verification::VerifyFull) => {
                system_roots().map(Self::System).map_err(|why| BuildError::NoSystemRoots { why })
            }
        }
    }
}

/// Verifies servers with one immutable set of trust anchors. All handshakes share it, because rustls does not resume a session that
/// another verifier accepted.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    /// `None`: every server is accepted.
    trust: Option<UpstreamTrust>,
    /// Whether the server name is verified.
    by_name: bool,
    good: Mutex<HashMap<Digest, Range<OffsetDateTime>>>,
}

#[derive(Debug)]
struct UpstreamTrust {
    anchors: AnchorSet,
    /// Accepted without a CA. Servers often have self-signed certificates.
    pinned: HashSet<CertificateDer<'static>>,
    of_system: bool,
}

/// The result of an accepted chain.
struct TrustedServer {
    /// The validity period of the path.
    validity: Range<OffsetDateTime>,
    /// Whether a CA on the path has name constraints. webpki checks them for subject alternative names, not for the common name.
    constrains_names: bool,
}

impl UpstreamTrust {
    fn new(anchors: &Anchors, validity: AnchorValidity) -> Result<Self, BuildError> {
        let (set, pinned) = match anchors {
            Anchors::None => (AnchorSet::new(&[], Purpose::ServerAuth, validity)?, HashSet::new()),
            // A pinned server certificate identifies only that server.
            Anchors::Bundle(bundle) => {
                (AnchorSet::new(bundle, Purpose::ServerAuth, validity)?, bundle.iter().cloned().collect())
            }
            // System roots that cannot be parsed are skipped; the operator cannot fix them.
            Anchors::System(roots) => (AnchorSet::of_system(roots, Purpose::ServerAuth, validity), HashSet::new()),
        };
        Ok(Self { anchors: set, pinned, of_system: matches!(anchors, Anchors::System(_)) })
    }

    /// Accepts a pinned certificate, or a chain with a path to an anchor. Prefers paths without name constraints.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        facts: &Certificate,
        sent: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<TrustedServer, ChainError> {
        let own = facts.not_before..facts.end();
        if self.pinned.contains(leaf) {
            check_validity(&own, now)?;
            return Ok(TrustedServer { validity: own, constrains_names: false });
        }
        let mut chain = vec![CertificateDer::from(leaf.as_ref())];
        chain.extend(relevant(leaf, sent)?);
        let search = Search::new(&self.anchors, &chain)?;
        rules::choose(
            search,
            now,
            |trusted: &TrustedServer| trusted.constrains_names,
            |path, names| self.check(path, now, names),
        )
    }

    fn check(&self, path: &Path<'_>, now: OffsetDateTime, names: &NameBudget) -> Result<TrustedServer, ChainError> {
        let Sent { validity, constrains_names } = rules::check_sent(path, self.anchors.purpose, now, names)?;
        let allowed = rules::check_anchor(path, &self.anchors, now, Some(names), &|_| Ok(()))?;
        Ok(TrustedServer {
            validity: overlap(validity, &allowed.validity),
            constrains_names: constrains_names || allowed.constrains_names,
        })
    }
}

impl ServerVerifier {
    pub(crate) fn new(
        verification: Verification,
        anchors: &Anchors,
        validity: AnchorValidity,
    ) -> Result<Self, BuildError> {
        let trust = match (verification, anchors) {
            (Verification::Require, Anchors::None) => None,
            _ => Some(UpstreamTrust::new(anchors, validity)?),
        };
        Ok(Self { trust, by_name: verification == Verification::VerifyFull, good: Mutex::default() })
    }

    /// Verifies a chain and the server name. Caches an accepted chain while all its certificates are valid.
    pub(crate) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        let Some(trust) = &self.trust else { return Ok(()) };
        let name_text = name.to_str();
        let parts = [name_text.as_bytes(), leaf].into_iter().chain(intermediates.iter().map(|der| &**der));
        let digest = digest_of(parts);
        if self.remembers(&digest, now) {
            return Ok(());
        }
        let facts = Certificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let trusted = trust.verify(leaf, &facts, intermediates, now);
        let verified = trusted.map_err(ServerFault::Chain).and_then(|trusted| {
            if self.by_name {
                is_named(leaf, &facts, name, !trusted.constrains_names)?;
            }
            Ok(trusted.validity)
        });
        match verified {
            Ok(validity) => {
                self.remember(digest, validity);
                Ok(())
            }
            Err(fault) => {
                let refusal = UpstreamTlsError::of(fault, &facts, &name_text, trust.of_system, now);
                Err(CertificateError::Other(OtherError(Arc::new(refusal))).into())
            }
        }
    }

    /// Why no certificate is accepted through this anchor at `now`. `None` if certificates are accepted, or it is not an anchor.
    pub(crate) fn anchor_error(&self, sha256: &str, now: OffsetDateTime) -> Option<ChainError> {
        let anchors = &self.trust.as_ref()?.anchors;
        let anchor = anchors.iter().find(|anchor| *anchor.sha256 == *sha256)?;
        let path = Path { certificates: Vec::new(), positions: Vec::new(), anchor };
        rules::check_anchor(&path, anchors, now, None, &|_| Ok(())).err()
    }

    fn remembers(&self, digest: &Digest, now: OffsetDateTime) -> bool {
        let good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        good.get(digest).is_some_and(|valid| valid.contains(&now))
    }

    fn remember(&self, digest: Digest, validity: Range<OffsetDateTime>) {
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.len() >= MAX_CHAINS {
            good.clear();
        }
        good.insert(digest, validity);
    }
}

/// More servers than a listener has. At this size the cache is cleared.
const MAX_CHAINS: usize = 64;

/// Checks that the certificate is for this host. As in libpq, the common name is used if no subject alternative name has the
/// requested type. It is not used below a CA with name constraints.
fn is_named(
    leaf: &CertificateDer<'_>,
    facts: &Certificate,
    name: &ServerName<'_>,
    common_name_counts: bool,
) -> Result<(), ServerFault> {
    // Certificates of versions 1 and 2 have no subject alternative names, and webpki cannot parse them.
    let by_san = match facts.version {
        3 => EndEntityCert::try_from(leaf).and_then(|leaf| leaf.verify_is_valid_for_subject_name(name)),
        _ => return by_common_name(facts, name, common_name_counts),
    };
    match by_san {
        Ok(()) => Ok(()),
        Err(webpki::Error::CertNotValidForName(_)) => by_common_name(facts, name, common_name_counts),
        Err(error) => Err(ServerFault::Chain(error.into())),
    }
}

fn by_common_name(facts: &Certificate, name: &ServerName<'_>, counts: bool) -> Result<(), ServerFault> {
    let kind = if matches!(name, ServerName::IpAddress(_)) { "ip:" } else { "dns:" };
    let has_kind = facts.sans.iter().any(|san| san.starts_with(kind));
    match &facts.common_name {
        Some(common) if !has_kind && counts && is_called(common, name) => Ok(()),
        _ => Err(ServerFault::Name),
    }
}

fn is_called(common: &str, name: &ServerName<'_>) -> bool {
    match name {
        ServerName::DnsName(host) => {
            let host = host.as_ref().to_ascii_lowercase();
            matches(&common.to_ascii_lowercase(), host.trim_end_matches('.'))
        }
        ServerName::IpAddress(address) => common.parse() == Ok(IpAddr::from(*address)),
        _ => false,
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, name, moment(now)?).map(|()| ServerCertVerified::assertion())
    }

    verify_handshake_signatures!();
}
