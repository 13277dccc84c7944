//! Whether the server that answers is the one that is meant, in libpq's sense.

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

/// Who may have issued a server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anchors {
    /// Nobody is known.
    None,
    /// The certificates of a bundle. Each counts, whether a root, an intermediate, or the server's own.
    Bundle(Vec<CertificateDer<'static>>),
    /// Whom the system trusts.
    System(Vec<CertificateDer<'static>>),
}

impl Anchors {
    /// Those that `verification` goes by, where this bundle, or none, is given.
    ///
    /// # Errors
    /// When it needs those of the system, and there are none.
    pub fn new(bundle: Option<Vec<CertificateDer<'static>>>, verification: Verification) -> Result<Self, BuildError> {
        match (bundle, verification) {
            (Some(bundle), _) => Ok(Self::Bundle(bundle)),
            (None, Verification::Require) => Ok(Self::None),
            (None, Verification::VerifyCa | Verification::VerifyFull) => system_roots().map(Self::System),
        }
    }
}

/// The root certificates that the system trusts, found as OpenSSL finds them.
///
/// # Errors
/// When there are none.
pub(crate) fn system_roots() -> Result<Vec<CertificateDer<'static>>, BuildError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        let why = if why.is_empty() { "none of the usual files exists".to_owned() } else { why.join("; ") };
        return Err(BuildError::NoSystemRoots { why });
    }
    Ok(found.certs)
}

/// Judges servers by one set of trust anchors, which never changes. All handshakes share it: rustls takes up no session that
/// another verifier has let begin.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    /// Nothing, where whoever answers is taken.
    trust: Option<UpstreamTrust>,
    /// Whether the name counts.
    by_name: bool,
    good: Mutex<HashMap<Digest, Range<OffsetDateTime>>>,
}

#[derive(Debug)]
struct UpstreamTrust {
    anchors: AnchorSet,
    /// Trusted by themselves; servers often have a certificate that nobody else has issued.
    pinned: HashSet<CertificateDer<'static>>,
    of_system: bool,
}

/// What a chain that is trusted comes to.
struct TrustedServer {
    /// While its path is valid.
    validity: Range<OffsetDateTime>,
    /// Whether a CA on the path limits the names below it. webpki holds subject alternative names to that, and not the common
    /// name.
    constrains_names: bool,
}

impl UpstreamTrust {
    fn new(anchors: &Anchors, validity: AnchorValidity) -> Result<Self, BuildError> {
        let (set, pinned) = match anchors {
            Anchors::None => (AnchorSet::new(&[], Purpose::ServerAuth, validity)?, HashSet::new()),
            // A server's own certificate vouches for that server, and for no other.
            Anchors::Bundle(bundle) => {
                (AnchorSet::new(bundle, Purpose::ServerAuth, validity)?, bundle.iter().cloned().collect())
            }
            // What the system has and nobody can read is not the operator's to mend.
            Anchors::System(roots) => (AnchorSet::of_system(roots, Purpose::ServerAuth, validity), HashSet::new()),
        };
        Ok(Self { anchors: set, pinned, of_system: matches!(anchors, Anchors::System(_)) })
    }

    /// Whether the certificate is trusted by itself, or a path leads to an anchor; one that limits no names before one that
    /// does.
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

    /// Judges a chain. A good verdict is remembered for the time in which all of its certificates are valid.
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

    /// Why a trust anchor vouches for nobody at this time; nothing where it does, or is none.
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

/// More servers than one listener has. Past it all are forgotten, and verified anew.
const MAX_CHAINS: usize = 64;

/// Whether the certificate is for this host. As libpq has it, the common name counts where no subject alternative name is of
/// the kind that is asked for; but only where its CAs may issue for any name.
fn is_named(
    leaf: &CertificateDer<'_>,
    facts: &Certificate,
    name: &ServerName<'_>,
    common_name_counts: bool,
) -> Result<(), ServerFault> {
    // One without extensions has no such names, and webpki does not read it.
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
