//! Which client certificates are good, and why: webpki's verdict for one trust anchor at a time, certificates that are
//! trusted by themselves, and a memory of good verdicts.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, DistinguishedName, Error, OtherError, RootCertStore};
use time::OffsetDateTime;

use super::certificate::Certificate;
use super::credential::{Credential, Voucher};
use super::crl::{Crl, CrlSet};
use super::error::BuildError;
use super::parts::TrustParts;
use super::provider;
use super::standing::{Chain, Lists, Standing};
use super::verified::{Digest, Verified, digest, digest_of};
use crate::policy::{ClientAuth, CrlExpired};

/// Judges clients' chains by one set of trust anchors, pinned certificates and revocation lists, which never changes.
#[derive(Debug)]
pub(super) struct ChainVerifier {
    /// Which of all that ever were in this process.
    number: u64,
    /// Whether clients must show a certificate.
    pub(super) mandatory: bool,
    anchors: Vec<Anchor>,
    pinned: HashSet<Digest>,
    has_lists: bool,
    /// When revocation lists run out; empty where that makes no difference.
    list_ends: Vec<OffsetDateTime>,
    /// The names of the CAs that clients are told of.
    pub(super) hints: Vec<DistinguishedName>,
    verified: Verified,
}

/// One trust anchor. Each has a verifier of its own: so it is known which of them vouches for a client, and of two with the
/// same name and different keys each goes by the revocation lists it has signed itself.
#[derive(Debug)]
struct Anchor {
    sha256: Arc<str>,
    /// Of all that webpki knows of it, which a renewed certificate of the same key has in common with the old one.
    authority: Digest,
    lists: Lists,
    /// Of the lists, and of how it goes by them.
    digest_of_lists: Digest,
    webpki: Arc<dyn ClientCertVerifier>,
}

impl Anchor {
    fn new(der: &CertificateDer<'static>, lists: &CrlSet, expired: CrlExpired) -> Result<Self, BuildError> {
        let mut root = RootCertStore::empty();
        root.add(der.clone()).map_err(BuildError::Anchor)?;
        let known = root.roots.first().cloned().ok_or(BuildError::Anchor(CertificateError::BadEncoding.into()))?;
        let lists: Vec<Crl> = lists.for_anchor(der).into_iter().cloned().collect();
        let how = [u8::from(expired == CrlExpired::Refuse)];
        let digest_of_lists = digest_of(lists.iter().map(|list| list.sha256.as_bytes()).chain([&how[..]]));
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(root), provider());
        if !lists.is_empty() {
            // A CA without a list is not checked.
            builder = builder.with_crls(lists.iter().map(|list| list.der().clone())).allow_unknown_revocation_status();
            if expired == CrlExpired::Refuse {
                builder = builder.enforce_revocation_expiration();
            }
        }
        let webpki = builder.build().map_err(|error| BuildError::ClientTrust(error.to_string()))?;
        let authority = digest_of_authority(&known);
        let lists = Lists::new(known, lists, expired);
        Ok(Self { sha256: super::sha256_hex(der).into(), authority, lists, digest_of_lists, webpki })
    }

    fn voucher(&self) -> Voucher {
        Voucher::Anchor { sha256: Arc::clone(&self.sha256), authority: self.authority, lists: self.digest_of_lists }
    }
}

fn digest_of_authority(anchor: &TrustAnchor<'_>) -> Digest {
    let TrustAnchor { subject, subject_public_key_info, name_constraints } = anchor;
    digest_of([subject, subject_public_key_info].into_iter().chain(name_constraints).map(|part| &**part))
}

impl ChainVerifier {
    pub(super) fn new(parts: &TrustParts) -> Result<Self, BuildError> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let lists = CrlSet::new(parts.crls.clone());
        let mut anchors = Vec::new();
        for der in &parts.anchors {
            if Certificate::parse(der)?.may_issue() {
                anchors.push(Anchor::new(der, &lists, parts.crl_expired)?);
            }
        }
        let hints = match parts.pinned.is_empty() {
            true => anchors.iter().flat_map(|anchor| anchor.webpki.root_hint_subjects()).cloned().collect(),
            // A client that is known by itself need not have any of our issuers, and would send nothing.
            false => Vec::new(),
        };
        let list_ends = match parts.crl_expired {
            CrlExpired::Refuse => {
                anchors.iter().flat_map(|anchor| anchor.lists.iter()).map(|list| list.next_update).collect()
            }
            CrlExpired::Allow => Vec::new(),
        };
        Ok(Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            mandatory: parts.auth == ClientAuth::Required,
            anchors,
            pinned: parts.pinned.iter().map(|der| digest(der, &[])).collect(),
            has_lists: !parts.crls.is_empty(),
            list_ends,
            hints,
            verified: Verified::default(),
        })
    }

    /// Judges the chain of a client that has shown to have its key. A good verdict is remembered.
    pub(super) fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<Arc<Credential>, Error> {
        let chain = digest(leaf, intermediates);
        match self.verified.recall(&chain, now) {
            Some(credential) => Ok(credential),
            None => self.judge_anew(chain, leaf, intermediates, now),
        }
    }

    /// Judges a credential again, which costs nothing where it was this verifier that found it good, and little where its
    /// trust anchor is still there.
    pub(super) fn judge_again(
        &self,
        credential: &Arc<Credential>,
        now: OffsetDateTime,
    ) -> Result<Arc<Credential>, Error> {
        if credential.judge == self.number && now < credential.until {
            return Ok(Arc::clone(credential));
        }
        let Some((leaf, intermediates)) = credential.chain.split_first() else {
            return Err(Error::NoCertificatesPresented);
        };
        let chain = digest(leaf, intermediates);
        if let Some(known) = self.verified.recall(&chain, now) {
            return Ok(known);
        }
        let Some(voucher) = self.ask_lists(credential, leaf, intermediates, now) else {
            return self.judge_anew(chain, leaf, intermediates, now);
        };
        let until = self.until(credential.in_time.end, now);
        let renewed = Credential { voucher: voucher?, until, judge: self.number, ..(**credential).clone() };
        let renewed = Arc::new(renewed);
        self.verified.remember(chain, &renewed);
        Ok(renewed)
    }

    fn judge_anew(
        &self,
        chain: Digest,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<Arc<Credential>, Error> {
        let voucher = self.ask(leaf, intermediates, now)?;
        let certificate = Certificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
        // webpki passes over an intermediate that it has no use for, even if it cannot be read: then it has no dates either.
        let others: Vec<_> = intermediates.iter().filter_map(|der| Certificate::parse(der).ok()).collect();
        let whole = || [&certificate].into_iter().chain(&others);
        let from = whole().map(|certificate| certificate.not_before).max().unwrap_or(now);
        // One that has ended already was not needed for the verdict, and does not end it.
        let end = whole().map(Certificate::end).filter(|end| *end > now).min().unwrap_or(now);
        let credential = Arc::new(Credential {
            voucher,
            until: self.until(end, now),
            in_time: from..end,
            chain: [leaf].into_iter().chain(intermediates).map(|der| der.clone().into_owned()).collect(),
            judge: self.number,
            certificate,
        });
        self.verified.remember(chain, &credential);
        Ok(credential)
    }

    /// How long a verdict of this moment counts, if its chain is in its time until `end`.
    fn until(&self, end: OffsetDateTime, now: OffsetDateTime) -> OffsetDateTime {
        self.list_ends.iter().copied().filter(|end| *end > now).fold(end, Ord::min)
    }

    /// What is to be said of a credential without verifying its chain again, because the anchor that vouched for it is still
    /// there; nothing, where that is not enough.
    fn ask_lists(
        &self,
        credential: &Credential,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Option<Result<Voucher, Error>> {
        let Voucher::Anchor { sha256, authority, lists } = &credential.voucher else { return None };
        let is_pinned = || self.pinned.contains(&digest(leaf, &[]));
        if !credential.in_time.contains(&now) || !self.pinned.is_empty() && is_pinned() {
            return None;
        }
        let same = self.anchors.iter().find(|anchor| anchor.sha256 == *sha256);
        let anchor = same.or_else(|| self.anchors.iter().find(|anchor| anchor.authority == *authority))?;
        if anchor.digest_of_lists == *lists && now < credential.until {
            return Some(Ok(anchor.voucher()));
        }
        let others = distinct(leaf, intermediates).ok()?;
        let chain = Chain::read(leaf, &others)?;
        match anchor.lists.standing(&chain, now)? {
            Standing::Good => Some(Ok(anchor.voucher())),
            Standing::Revoked => {
                let mut others = self.anchors.iter().filter(|other| other.authority != anchor.authority);
                // To the others it may be good all the same.
                let is_of_another = others.any(|other| other.lists.may_have_issued_of(&chain));
                (!is_of_another).then(|| Err(CertificateError::Revoked.into()))
            }
        }
    }

    /// Verifies a chain during the handshake. Nobody has shown to have its key yet, so the verdict is not remembered:
    /// otherwise who only knows a good certificate could fill the memory with it and ever new ones behind it.
    pub(super) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        match self.verified.recall(&digest(leaf, intermediates), now) {
            Some(_) => Ok(()),
            None => self.ask(leaf, intermediates, now).map(|_| ()),
        }
    }

    fn ask(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<Voucher, Error> {
        let intermediates = &distinct(leaf, intermediates)?;
        if !self.pinned.contains(&digest(leaf, &[])) {
            return self.ask_anchors(leaf, intermediates, now);
        }
        in_its_time(leaf, now)?;
        // Trusted by itself, but not against the word of the CA it comes from, where that is known here too. It is asked about
        // the certificate alone as well: a client may send along what webpki finds worse than revoked, and says instead.
        let ways: &[&[_]] = if self.has_lists { &[intermediates, &[]] } else { &[] };
        let mut words = ways.iter().filter_map(|way| self.ask_anchors(leaf, way, now).err());
        match words.find(is_revocation) {
            Some(revoked) => Err(revoked),
            None => Ok(Voucher::Pinned),
        }
    }

    /// The first anchor that vouches for the chain or, where none does, what says most about why not.
    fn ask_anchors(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<Voucher, Error> {
        let mut refusal = None;
        for anchor in &self.anchors {
            match anchor.webpki.verify_client_cert(leaf, intermediates, unix_time(now)) {
                Ok(_) => return Ok(anchor.voucher()),
                // Not of this anchor. With its name but another key, as after a CA was made anew under its old name, the
                // signature is what fails; to the client and the operator that CA is unknown all the same.
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {}
                // That an anchor has taken it back is certain; what else there is to say depends on what was sent along.
                Err(error) if refusal.is_none() || is_revocation(&error) => refusal = Some(error),
                Err(_) => {}
            }
        }
        if refusal.is_none() {
            // Also where there is no anchor at all to say so.
            in_its_time(leaf, now)?;
        }
        Err(refusal.unwrap_or_else(|| CertificateError::UnknownIssuer.into()))
    }
}

fn is_revocation(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::Revoked))
}

/// Each of the intermediates once. Some clients send their own certificate again, and of anything that came twice there
/// would be twice as many paths.
fn distinct<'a>(
    leaf: &CertificateDer<'_>,
    intermediates: &'a [CertificateDer<'_>],
) -> Result<Vec<CertificateDer<'a>>, Error> {
    let mut distinct: Vec<CertificateDer<'a>> = Vec::new();
    for der in intermediates {
        if der == leaf || distinct.contains(der) {
            continue;
        }
        if distinct.len() == MOST_INTERMEDIATES {
            return Err(CertificateError::Other(OtherError(Arc::new(LongChain))).into());
        }
        distinct.push(CertificateDer::from(der.as_ref()));
    }
    Ok(distinct)
}

/// More certificates than a chain can need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the client sent more than {MOST_INTERMEDIATES} certificates beside its own; its certificate file may hold a whole bundle, \
     and should hold its own certificate and the intermediates above that"
)]
pub(super) struct LongChain;

/// As many as webpki follows. Anybody can send certificates of one name and with many keys, and of every one more there are
/// many times as many paths to try, before the client has shown to have any key.
const MOST_INTERMEDIATES: usize = 6;

pub(super) fn in_its_time(leaf: &CertificateDer<'_>, now: OffsetDateTime) -> Result<(), Error> {
    let facts = Certificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
    if now < facts.not_before {
        Err(CertificateError::NotValidYet.into())
    } else if now >= facts.end() {
        Err(CertificateError::Expired.into())
    } else {
        Ok(())
    }
}

pub(super) fn unix_time(moment: OffsetDateTime) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(moment.unix_timestamp()).unwrap_or(0)))
}

/// The time as rustls tells it to a verifier.
pub(super) fn moment(now: UnixTime) -> Result<OffsetDateTime, Error> {
    let now = i64::try_from(now.as_secs()).ok().and_then(|now| OffsetDateTime::from_unix_timestamp(now).ok());
    now.ok_or(Error::FailedToGetCurrentTime)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, GeneralSubtree, KeyUsagePurpose, NameConstraints,
    };
    use time::Duration as Span;

    use super::*;
    use crate::policy::TrustedClients;
    use crate::tls::specimen::{Authority, authority_params, revoking};

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(Span::days(20_000));

    /// Everybody there is. They have been verified under the root.
    struct World {
        root: Authority,
        /// Of the root's name, with another key.
        namesake: Authority,
        /// Another root.
        other: Authority,
        /// Below the root.
        team: Authority,
        /// Below the team.
        deep: Authority,
        /// Below the root, and not for signing lists.
        mute: Authority,
        /// Below the root, and for anything.
        free: Authority,
    }

    /// What a client sends.
    struct Sent {
        what: &'static str,
        chain: Vec<CertificateDer<'static>>,
        /// The names of all issuers.
        issuers: &'static [&'static str],
        /// Whether there is more than one way, or something that cannot be read.
        tangled: bool,
        /// Whether the root is sent along, in a certificate that has ended.
        ended_root: bool,
    }

    struct Lists {
        what: &'static str,
        lists: Vec<Crl>,
        /// Whose clients are left to webpki, and when.
        unclear: Option<(&'static str, When)>,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum When {
        Always,
        /// Where a list that has run out is none.
        Refusing,
    }

    struct Anchors {
        what: &'static str,
        anchors: Vec<CertificateDer<'static>>,
        /// The one that is relied on, if it is there.
        relied_on: Option<CertificateDer<'static>>,
        /// The name of another that could vouch for a client too.
        rival: Option<&'static str>,
    }

    fn client(authority: &Authority) -> CertificateDer<'static> {
        authority.client("app", NOW - Span::HOUR, NOW + Span::days(9)).der()
    }

    fn junk() -> CertificateDer<'static> {
        b"junk".to_vec().into()
    }

    fn list(authority: &Authority, revoked: &[CertificateDer<'static>], number: u64) -> Crl {
        read(authority, &revoking(revoked, number, NOW))
    }

    fn read(authority: &Authority, params: &rcgen::CertificateRevocationListParams) -> Crl {
        Crl::parse_all(authority.list(params).der()).unwrap().remove(0)
    }

    fn parts(anchors: &[CertificateDer<'static>], crls: &[Crl], crl_expired: CrlExpired) -> TrustParts {
        TrustParts {
            auth: ClientAuth::Required,
            anchors: anchors.to_vec(),
            pinned: Vec::new(),
            crls: crls.to_vec(),
            crl_expired,
            clients: TrustedClients::default(),
        }
    }

    fn verifier(anchors: &[CertificateDer<'static>], crls: &[Crl], crl_expired: CrlExpired) -> ChainVerifier {
        ChainVerifier::new(&parts(anchors, crls, crl_expired)).unwrap()
    }

    fn judged(verifier: &ChainVerifier, chain: &[CertificateDer<'static>]) -> Result<Arc<Credential>, Error> {
        verifier.judge(&chain[0], &chain[1..], NOW)
    }

    /// The answer that needs no verifying, if there is one.
    fn quickly(verifier: &ChainVerifier, credential: &Credential) -> Option<Result<Voucher, Error>> {
        verifier.ask_lists(credential, &credential.chain[0], &credential.chain[1..], NOW)
    }

    /// All of a credential but who judged it.
    fn told(judged: Result<Arc<Credential>, Error>) -> Result<Credential, Error> {
        judged.map(|credential| Credential { judge: 0, ..(*credential).clone() })
    }

    impl World {
        fn new() -> Self {
            let root = Authority::new("Root CA");
            let team = root.intermediate("Team CA");
            Self {
                namesake: Authority::new("Root CA"),
                other: Authority::new("Other CA"),
                deep: team.intermediate("Deep CA"),
                mute: root.intermediate_for("Mute CA", &[KeyUsagePurpose::KeyCertSign]),
                free: root.intermediate_for("Free CA", &[]),
                root,
                team,
            }
        }

        fn sent(&self) -> Vec<Sent> {
            let Self { root, other, team, deep, mute, free, .. } = self;
            let [in_root, in_team, in_deep] = [root, team, deep].map(client);
            let ended = {
                let mut params = authority_params("Root CA");
                (params.not_before, params.not_after) = (NOW - Span::DAY, NOW - Span::HOUR);
                root.certified_again(params, None).der()
            };
            let crossed = team.certified_again(authority_params("Team CA"), Some(other)).der();
            let rooted = team.certified_again(authority_params("Team CA"), Some(root)).der();
            let by_other = root.certified_again(authority_params("Root CA"), Some(other)).der();
            let alike = other.intermediate("Team CA").der();
            let (team, deep) = (team.der(), deep.der());
            let sent = |what, chain: &[&CertificateDer<'static>], issuers| Sent {
                what,
                chain: chain.iter().map(|der| (*der).clone()).collect(),
                issuers,
                tangled: false,
                ended_root: false,
            };
            let tangled = |sent| Sent { tangled: true, ..sent };
            const IN_ROOT: &[&str] = &["Root CA"];
            const IN_TEAM: &[&str] = &["Root CA", "Team CA"];
            const IN_DEEP: &[&str] = &["Root CA", "Team CA", "Deep CA"];
            vec![
                sent("its own certificate alone", &[&in_root], IN_ROOT),
                sent("one intermediate", &[&in_team, &team], IN_TEAM),
                sent("two intermediates", &[&in_deep, &deep, &team], IN_DEEP),
                sent("two intermediates in disorder", &[&in_deep, &team, &deep], IN_DEEP),
                sent("the root too", &[&in_team, &team, &root.der()], IN_TEAM),
                sent("only the root too", &[&in_root, &root.der()], IN_ROOT),
                sent("everything twice", &[&in_team, &in_team, &team, &team], IN_TEAM),
                sent("a stranger too", &[&in_team, &other.der(), &team], &["Root CA", "Team CA", "Other CA"]),
                sent("the root by another", &[&in_root, &by_other], &["Root CA", "Other CA"]),
                sent("one without crlSign", &[&client(mute), &mute.der()], &["Root CA", "Mute CA"]),
                sent("one without keyUsage", &[&client(free), &free.der()], &["Root CA", "Free CA"]),
                Sent { ended_root: true, ..sent("an ended root", &[&in_root, &ended], IN_ROOT) },
                tangled(sent("junk", &[&in_team, &junk(), &team], IN_TEAM)),
                tangled(sent("an intermediate twice certified", &[&in_team, &team, &rooted], IN_TEAM)),
                tangled(sent("an intermediate by two roots", &[&in_team, &crossed, &team], IN_TEAM)),
                tangled(sent("another of its name", &[&in_team, &alike, &team], IN_TEAM)),
            ]
        }

        fn lists(&self, sent: &[Sent]) -> Vec<Lists> {
            let Self { root, namesake, other, team, deep, mute, free } = self;
            let clients: Vec<_> = sent.iter().map(|sent| sent.chain[0].clone()).collect();
            let between = [team, mute, free].map(Authority::der);
            let alike = other.intermediate("Team CA");
            // It would not be made with the certificate that is not for it.
            let voiced = &mute.certified_again(authority_params("Mute CA"), None);
            let about = |scope, number| {
                let mut params = revoking(&clients, number, NOW);
                let distribution_point = CrlDistributionPoint { uris: vec!["http://ca.test/list".to_owned()] };
                params.issuing_distribution_point = Some(CrlIssuingDistributionPoint { distribution_point, scope });
                read(root, &params)
            };
            let ended = |authority| read(authority, &revoking(&clients[..1], 2, NOW - Span::DAY));
            let ending = |authority| read(authority, &revoking(&clients[..1], 2, NOW - Span::DAY + Span::SECOND));
            let clear = |what, lists| Lists { what, lists, unclear: None };
            let unclear = |what, lists, name, when| Lists { what, lists, unclear: Some((name, when)) };
            use When::{Always, Refusing};
            vec![
                clear("none", Vec::new()),
                clear("an empty one", vec![list(root, &[], 2)]),
                clear("one with the clients", vec![list(root, &clients, 2)]),
                clear("one with the intermediates", vec![list(root, &between, 2)]),
                clear("one with other clients", vec![list(root, &[client(root), client(team)], 2)]),
                clear("the team's", vec![list(team, &clients, 1)]),
                clear("the team's, empty, and the root's", vec![list(team, &[], 1), list(root, &[], 2)]),
                clear("the team's and the deep's", vec![list(deep, &clients, 1), list(team, &[], 1)]),
                clear("the team's with the deep", vec![list(team, &[deep.der()], 1), list(deep, &[], 1)]),
                clear("the free's", vec![list(free, &clients, 1)]),
                clear("an old and a new one", vec![list(root, &clients, 2), list(root, &[], 3)]),
                clear("a new and an old one", vec![list(root, &clients, 3), list(root, &[], 2)]),
                clear("an impostor's", vec![list(namesake, &clients, 2)]),
                clear("another's", vec![list(other, &clients, 2)]),
                clear("one that has a second left", vec![ending(root)]),
                unclear("an impostor's of the team", vec![list(&alike, &clients, 1)], "Team CA", Always),
                unclear("the mute's, empty", vec![list(voiced, &[], 1)], "Mute CA", Always),
                unclear("the mute's", vec![list(voiced, &clients, 1)], "Mute CA", Always),
                unclear("one about users", vec![about(Some(CrlScope::UserCertsOnly), 2)], "Root CA", Always),
                unclear("one about authorities", vec![about(Some(CrlScope::CaCertsOnly), 2)], "Root CA", Always),
                unclear(
                    "one about users and one about all",
                    vec![about(Some(CrlScope::UserCertsOnly), 2), list(root, &[], 3)],
                    "Root CA",
                    Always,
                ),
                unclear("one that has run out", vec![ended(root)], "Root CA", Refusing),
                unclear("the team's that has run out", vec![ended(team)], "Team CA", Refusing),
            ]
        }

        fn anchors(&self) -> Vec<Anchors> {
            let root = self.root.der();
            let renewed = self.root.certified_again(authority_params("Root CA"), None).der();
            let bound = {
                let mut params = authority_params("Root CA");
                let excluded_subtrees = vec![GeneralSubtree::DnsName("test".to_owned())];
                params.name_constraints = Some(NameConstraints { permitted_subtrees: Vec::new(), excluded_subtrees });
                self.root.certified_again(params, None).der()
            };
            let with =
                |what, others: &[&CertificateDer<'static>], relied_on: &CertificateDer<'static>, rival| Anchors {
                    what,
                    anchors: others.iter().map(|der| (*der).clone()).collect(),
                    relied_on: others.contains(&relied_on).then(|| relied_on.clone()),
                    rival,
                };
            let (namesake, other, team) = (self.namesake.der(), self.other.der(), self.team.der());
            vec![
                with("the same", &[&root], &root, None),
                with("another too", &[&other, &root], &root, Some("Other CA")),
                with("a namesake too", &[&namesake, &root], &root, Some("Root CA")),
                with("renewed", &[&renewed], &renewed, None),
                with("renewed beside a namesake", &[&namesake, &renewed], &renewed, Some("Root CA")),
                with("renewed, and the old one", &[&root, &renewed], &root, None),
                with("the team too", &[&root, &team], &root, Some("Team CA")),
                with("the team alone", &[&team], &root, None),
                with("another alone", &[&other], &root, None),
                with("a namesake alone", &[&namesake], &root, None),
                with("renewed with constraints", &[&bound], &root, None),
            ]
        }
    }

    /// What is in force now.
    struct Terms<'world> {
        anchors: &'world Anchors,
        lists: &'world Lists,
        expired: CrlExpired,
        again: ChainVerifier,
        anew: ChainVerifier,
        /// With the anchor alone that is relied on, if it is there.
        alone: Option<ChainVerifier>,
    }

    impl<'world> Terms<'world> {
        fn new(anchors: &'world Anchors, lists: &'world Lists, expired: CrlExpired) -> Self {
            let by = |anchors: &[_]| verifier(anchors, &lists.lists, expired);
            let alone = anchors.relied_on.as_ref().map(|one| by(std::slice::from_ref(one)));
            Self { anchors, lists, expired, again: by(&anchors.anchors), anew: by(&anchors.anchors), alone }
        }

        /// Compares what is said of a credential with what webpki says of its chain. Returns what the lists alone say.
        fn compare(&mut self, sent: &Sent, credential: &Arc<Credential>) -> Option<Result<Voucher, Error>> {
            let Self { anchors, lists, expired, .. } = self;
            let what = format!("{}; lists: {}, {expired:?}; anchors: {}", sent.what, lists.what, anchors.what);
            let is_unclear = lists.unclear.is_some_and(|(name, when)| {
                sent.issuers.contains(&name) && (when == When::Always || *expired == CrlExpired::Refuse)
            });
            let has_rival = anchors.rival.is_some_and(|rival| sent.issuers.contains(&rival));
            let alone = self.alone.as_ref().map(|alone| judged(alone, &sent.chain));
            let is_plain = !sent.tangled
                && !is_unclear
                && match &alone {
                    None => false,
                    Some(Ok(_)) => true,
                    Some(Err(_)) => !has_rival && !sent.ended_root,
                };
            let is_as_before = matches!(&alone, Some(Ok(one)) if by_what(&one.voucher) == by_what(&credential.voucher));

            let said = quickly(&self.again, credential);
            assert_eq!(said.is_some(), is_plain || is_as_before, "{what}: {said:?}");
            let mut expected = told(judged(&self.anew, &sent.chain));
            match &said {
                Some(Ok(voucher)) => {
                    assert_eq!(*voucher, alone.unwrap().unwrap().voucher, "{what}");
                    // Another may vouch too, and come first; who vouched before goes on to.
                    expected = expected.map(|anew| Credential { voucher: voucher.clone(), ..anew });
                }
                Some(Err(error)) => assert_eq!(*error, Error::from(CertificateError::Revoked), "{what}"),
                None => {}
            }
            assert_eq!(told(self.again.judge_again(credential, NOW)), expected, "{what}");
            self.again.verified = Verified::default();
            said
        }
    }

    #[test]
    fn to_ask_the_lists_is_to_verify_anew() {
        let world = World::new();
        let (sent, anchors) = (world.sent(), world.anchors());
        let lists = world.lists(&sent);
        let lists_before = [Vec::new(), vec![list(&world.root, &[], 1)]];
        let before = lists_before.map(|crls| verifier(&[world.root.der()], &crls, CrlExpired::Refuse));
        let (mut good, mut revoked, mut left) = (0, 0, 0);
        for (lists, anchors) in lists.iter().flat_map(|lists| anchors.iter().map(move |anchors| (lists, anchors))) {
            let ends = matches!(lists.unclear, Some((_, When::Refusing)));
            // Without a list at first; and with one where there is none now.
            let before = if lists.lists.is_empty() { &before[..] } else { &before[..1] };
            for expired in [CrlExpired::Refuse, CrlExpired::Allow].into_iter().take(if ends { 2 } else { 1 }) {
                let mut terms = Terms::new(anchors, lists, expired);
                for (sent, before) in sent.iter().flat_map(|sent| before.iter().map(move |before| (sent, before))) {
                    match terms.compare(sent, &judged(before, &sent.chain).unwrap()) {
                        Some(Ok(_)) => good += 1,
                        Some(Err(_)) => revoked += 1,
                        None => left += 1,
                    }
                }
            }
        }
        assert!(good > 1000 && revoked > 100 && left > 1000, "{good} good, {revoked} revoked, {left} left to webpki");
    }

    /// The authority and the lists by which an anchor vouches.
    fn by_what(voucher: &Voucher) -> ([u8; 32], [u8; 32]) {
        match voucher {
            Voucher::Anchor { authority, lists, .. } => (*authority, *lists),
            Voucher::Pinned => panic!("nothing is pinned"),
        }
    }
    #[test]
    fn a_verdict_taken_over_ends_with_the_lists_that_count_now() {
        let world = World::new();
        let (root, chain) = ([world.root.der()], [client(&world.root)]);
        let lists = [(1, -Span::HOUR), (2, Span::ZERO)]
            .map(|(number, later)| read(&world.root, &revoking(&[], number, NOW + later)));
        let [old, new] = lists.each_ref().map(|list| list.next_update);
        let before = verifier(&root, &lists[..1], CrlExpired::Refuse);
        let credential = judged(&before, &chain).unwrap();
        assert_eq!(credential.until, old);
        let again = verifier(&root, &lists, CrlExpired::Refuse);
        assert!(quickly(&again, &credential).is_some());
        let renewed = again.judge_again(&credential, NOW).unwrap();
        assert_eq!((renewed.until, renewed.judge), (new, again.number));
        assert!(Arc::ptr_eq(&again.judge_again(&renewed, NOW).unwrap(), &renewed));
        assert!(Arc::ptr_eq(&again.judge_again(&credential, NOW).unwrap(), &renewed), "sessions of a client share one");
        // A list that has run out is none, whatever was good before it did.
        assert!(again.ask_lists(&renewed, &chain[0], &[], new).is_none());
        assert!(again.judge_again(&renewed, new).is_err());
        let lenient = verifier(&root, &lists, CrlExpired::Allow);
        assert_eq!(lenient.judge_again(&renewed, new).unwrap().until, renewed.in_time.end);
    }

    #[test]
    fn what_is_out_of_its_time_or_pinned_is_left_to_webpki() {
        let world = World::new();
        let (root, chain) = ([world.root.der()], [client(&world.root)]);
        let lists = [1, 2].map(|number| list(&world.root, &[], number));
        let credential = judged(&verifier(&root, &lists[..1], CrlExpired::Allow), &chain).unwrap();
        let again = verifier(&root, &lists, CrlExpired::Allow);
        let is_quick = |now| again.ask_lists(&credential, &chain[0], &[], now).is_some();
        let (begin, end) = (credential.certificate.not_before, credential.certificate.end());
        assert!(is_quick(begin) && is_quick(end - Span::NANOSECOND));
        assert!(!is_quick(begin - Span::NANOSECOND) && !is_quick(end));
        let pinned = TrustParts { pinned: chain.to_vec(), ..parts(&root, &lists, CrlExpired::Allow) };
        let pinned = ChainVerifier::new(&pinned).unwrap();
        assert!(quickly(&pinned, &credential).is_none());
        assert_eq!(pinned.judge_again(&credential, NOW).unwrap().voucher, Voucher::Pinned);
    }
}
