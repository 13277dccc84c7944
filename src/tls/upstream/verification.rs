//! Whether the server that answers is the one that is meant, in libpq's sense.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use time::OffsetDateTime;

use super::failure::Refusal;
use super::signature;
use crate::protocol::Verification;
use crate::tls::certificate::Certificate;
use crate::tls::chooser::matches;
use crate::tls::error::BuildError;
use crate::tls::provider;
use crate::tls::verified::{Digest, digest_of};
use crate::tls::verifier::{in_its_time, moment, unix_time};

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
pub fn system_roots() -> Result<Vec<CertificateDer<'static>>, BuildError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        let why = if why.is_empty() { "none of the usual files is there".to_owned() } else { why.join("; ") };
        return Err(BuildError::NoSystemRoots { why });
    }
    Ok(found.certs)
}

/// Judges servers by one set of trust anchors, which never changes. All handshakes share it: rustls takes up no session that
/// another verifier has let begin.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    /// Nothing, where whoever answers is taken.
    trust: Option<Trust>,
    /// Whether the name counts.
    by_name: bool,
    good: Mutex<HashMap<Digest, Range<OffsetDateTime>>>,
}

#[derive(Debug)]
struct Trust {
    roots: RootCertStore,
    /// Those of them that may issue for every name.
    free: RootCertStore,
    /// Trusted by themselves; servers often have a certificate that nobody else has issued.
    pinned: HashSet<CertificateDer<'static>>,
    of_system: bool,
}

impl Trust {
    fn new(anchors: &Anchors) -> Result<Self, BuildError> {
        let mut roots = RootCertStore::empty();
        let mut pinned = HashSet::new();
        match anchors {
            Anchors::None => {}
            Anchors::Bundle(bundle) => {
                for der in bundle {
                    // A server's own vouches for that server, and for no other.
                    if Certificate::parse(der)?.may_issue() {
                        roots.add(der.clone()).map_err(BuildError::Anchor)?;
                    }
                }
                pinned.extend(bundle.iter().cloned());
            }
            // What the system has and nobody can read is not the operator's to mend.
            Anchors::System(certificates) => {
                roots.add_parsable_certificates(certificates.iter().cloned());
            }
        }
        let free = roots.roots.iter().filter(|root| root.name_constraints.is_none()).cloned().collect();
        Ok(Self {
            roots,
            free: RootCertStore { roots: free },
            pinned,
            of_system: matches!(anchors, Anchors::System(_)),
        })
    }

    /// Whether the chain leads to an anchor, or the certificate is trusted by itself.
    fn vouch(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        if self.pinned.contains(leaf) {
            return in_its_time(leaf, now);
        }
        leads_to(&self.roots, leaf, intermediates, now)
    }

    /// Whether it does without a CA that may issue for some names only. webpki holds subject alternative names to that, and
    /// not the common name.
    fn vouches_freely(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> bool {
        let free: Vec<_> = intermediates.iter().filter(|der| !Certificate::is_constrained(der)).cloned().collect();
        self.pinned.contains(leaf) || leads_to(&self.free, leaf, &free, now).is_ok()
    }
}

fn leads_to(
    roots: &RootCertStore,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: OffsetDateTime,
) -> Result<(), Error> {
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(leaf)?,
        roots,
        intermediates,
        unix_time(now),
        provider().signature_verification_algorithms.all,
    )
}

impl ServerVerifier {
    pub(super) fn new(verification: Verification, anchors: &Anchors) -> Result<Self, BuildError> {
        let trust = match (verification, anchors) {
            (Verification::Require, Anchors::None) => None,
            _ => Some(Trust::new(anchors)?),
        };
        Ok(Self { trust, by_name: verification == Verification::VerifyFull, good: Mutex::default() })
    }

    /// Judges a chain. A good verdict is remembered for the time in which all of its certificates are valid.
    pub(super) fn judge(
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
        let judged = trust.vouch(leaf, intermediates, now);
        let free = || trust.vouches_freely(leaf, intermediates, now);
        let judged = judged.and_then(|()| if self.by_name { is_named(leaf, &facts, name, free) } else { Ok(()) });
        if let Err(error) = judged {
            let refusal = Refusal::of(error, &facts, &name_text, trust.of_system, now);
            return Err(CertificateError::Other(OtherError(Arc::new(refusal))).into());
        }
        self.remember(digest, &facts, intermediates, now);
        Ok(())
    }

    fn remembers(&self, digest: &Digest, now: OffsetDateTime) -> bool {
        let good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        good.get(digest).is_some_and(|valid| valid.contains(&now))
    }

    fn remember(&self, digest: Digest, leaf: &Certificate, intermediates: &[CertificateDer<'_>], now: OffsetDateTime) {
        let others: Vec<_> = intermediates.iter().filter_map(|der| Certificate::parse(der).ok()).collect();
        let whole = || [leaf].into_iter().chain(&others);
        // One that is not in its time was not needed for the verdict, and does not bound it.
        let from = whole().map(|facts| facts.not_before).filter(|from| *from <= now).max().unwrap_or(now);
        let until = whole().map(Certificate::end).filter(|end| *end > now).min().unwrap_or(now);
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.len() >= MOST_CHAINS {
            good.clear();
        }
        good.insert(digest, from..until);
    }
}

/// More servers than one listener has. Past it all are forgotten, and judged anew.
const MOST_CHAINS: usize = 64;

/// Whether the certificate is for this host. As libpq has it, the common name counts where no subject alternative name is of
/// the kind that is asked for; but only where its CAs are `free` to issue for any name.
fn is_named(
    leaf: &CertificateDer<'_>,
    facts: &Certificate,
    name: &ServerName<'_>,
    free: impl FnOnce() -> bool,
) -> Result<(), Error> {
    // One without extensions has no such names, and webpki does not read it.
    let by_san = match facts.version {
        3 => verify_server_name(&ParsedCertificate::try_from(leaf)?, name),
        _ => Err(CertificateError::NotValidForName.into()),
    };
    let Err(Error::InvalidCertificate(
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
    )) = by_san
    else {
        return by_san;
    };
    let kind = if matches!(name, ServerName::IpAddress(_)) { "ip:" } else { "dns:" };
    let has_kind = facts.sans.iter().any(|san| san.starts_with(kind));
    match &facts.common_name {
        Some(common) if !has_kind && is_called(common, name) && free() => Ok(()),
        _ => by_san,
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
        self.judge(leaf, intermediates, name, moment(now)?).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::verify_tls12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::verify_tls13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
