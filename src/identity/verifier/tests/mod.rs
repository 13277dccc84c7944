//! A test PKI with many client chains, revocation lists and trust anchors.

pub(crate) mod agreement;
pub(crate) mod bounds;
pub(crate) mod cost;
pub(crate) mod lists;

use rcgen::{
    CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, GeneralSubtree, KeyUsagePurpose, NameConstraints,
};
use time::Duration as Span;

use super::*;
use crate::identity::trusted_clients::TrustedClients;
use crate::tls::fixtures::{Authority, authority_params, revoking};
use crate::x509::chain::settings::{AnchorValidity, CrlExpired};
use crate::x509::crl::Crl;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(Span::days(20_000));

fn client(authority: &Authority) -> CertificateDer<'static> {
    authority.client("app", NOW - Span::HOUR, NOW + Span::days(9)).der()
}

fn list(authority: &Authority, revoked: &[CertificateDer<'static>], number: u64) -> Crl {
    read(authority, &revoking(revoked, number, NOW))
}

fn read(authority: &Authority, params: &rcgen::CertificateRevocationListParams) -> Crl {
    Crl::parse_all(authority.list(params).der()).unwrap().remove(0)
}

/// A partitioned list with a distribution point.
fn scoped(authority: &Authority, revoked: &[CertificateDer<'static>], number: u64, scope: Option<CrlScope>) -> Crl {
    let mut params = revoking(revoked, number, NOW);
    let distribution_point = CrlDistributionPoint { uris: vec!["http://ca.test/list".to_owned()] };
    params.issuing_distribution_point = Some(CrlIssuingDistributionPoint { distribution_point, scope });
    read(authority, &params)
}

fn parts(anchors: &[CertificateDer<'static>], crls: &[Crl], crl_expired: CrlExpired) -> ClientAuthSettings {
    ClientAuthSettings {
        auth: ClientAuth::Required,
        anchors: anchors.to_vec(),
        pinned: Vec::new(),
        crls: crls.to_vec(),
        crl_expired,
        anchor_validity: AnchorValidity::Enforce,
        clients: TrustedClients::default(),
    }
}

fn verifier(anchors: &[CertificateDer<'static>], crls: &[Crl], crl_expired: CrlExpired) -> ChainVerifier {
    ChainVerifier::new(&parts(anchors, crls, crl_expired)).unwrap()
}

fn verify(verifier: &ChainVerifier, chain: &[CertificateDer<'static>]) -> Result<Arc<VerifiedIdentity>, ChainError> {
    verifier.verify_and_remember(&chain[0], &chain[1..], NOW)
}

/// The CAs. All client chains lead to the root.
struct Pki {
    root: Authority,
    /// Same name as the root, another key.
    namesake: Authority,
    other: Authority,
    /// Below the root.
    team: Authority,
    /// Below the team.
    deep: Authority,
    /// Below the root, without cRLSign.
    no_crl_sign: Authority,
    /// Below the root, without key usage.
    no_key_usage: Authority,
}

impl Pki {
    fn new() -> Self {
        let root = Authority::new("Root CA");
        let team = root.intermediate("Team CA");
        Self {
            namesake: Authority::new("Root CA"),
            other: Authority::new("Other CA"),
            deep: team.intermediate("Deep CA"),
            no_crl_sign: root.intermediate_for("Mute CA", &[KeyUsagePurpose::KeyCertSign]),
            no_key_usage: root.intermediate_for("Free CA", &[]),
            root,
            team,
        }
    }

    /// Client chains; all lead to the root.
    fn sent(&self) -> Vec<(&'static str, Vec<CertificateDer<'static>>)> {
        let Self { root, other, team, deep, no_crl_sign, no_key_usage, .. } = self;
        let [in_root, in_team, in_deep] = [root, team, deep].map(client);
        let expired_root = {
            let mut params = authority_params("Root CA");
            (params.not_before, params.not_after) = (NOW - Span::DAY, NOW - Span::HOUR);
            root.reissued(params, None).der()
        };
        let crossed = team.reissued(authority_params("Team CA"), Some(other)).der();
        let rooted = team.reissued(authority_params("Team CA"), Some(root)).der();
        let root_by_other = root.reissued(authority_params("Root CA"), Some(other)).der();
        let alike = other.intermediate("Team CA").der();
        let junk = CertificateDer::from(b"junk".to_vec());
        let (team, deep) = (team.der(), deep.der());
        let sent = |what, chain: &[&CertificateDer<'static>]| (what, chain.iter().map(|der| (*der).clone()).collect());
        vec![
            sent("its own certificate alone", &[&in_root]),
            sent("one intermediate", &[&in_team, &team]),
            sent("two intermediates", &[&in_deep, &deep, &team]),
            sent("two intermediates in disorder", &[&in_deep, &team, &deep]),
            sent("the root too", &[&in_team, &team, &root.der()]),
            sent("only the root too", &[&in_root, &root.der()]),
            sent("everything twice", &[&in_team, &in_team, &team, &team]),
            sent("an unrelated CA too", &[&in_team, &other.der(), &team]),
            sent("the root by another", &[&in_root, &root_by_other]),
            sent("one without crlSign", &[&client(no_crl_sign), &no_crl_sign.der()]),
            sent("one without keyUsage", &[&client(no_key_usage), &no_key_usage.der()]),
            sent("an expired root", &[&in_root, &expired_root]),
            sent("junk", &[&in_team, &junk, &team]),
            sent("an intermediate twice certified", &[&in_team, &team, &rooted]),
            sent("an intermediate by two roots", &[&in_team, &crossed, &team]),
            sent("another of its name", &[&in_team, &alike, &team]),
        ]
    }

    /// Revocation lists, and whether webpki interprets them equally.
    fn lists(&self, clients: &[CertificateDer<'static>]) -> Vec<(&'static str, Vec<Crl>, bool)> {
        let Self { root, namesake, other, team, deep, no_crl_sign, no_key_usage } = self;
        let between = [team, no_crl_sign, no_key_usage].map(Authority::der);
        let alike = other.intermediate("Team CA");
        // rcgen signs no list with a CA without cRLSign.
        let with_crl_sign = &no_crl_sign.reissued(authority_params("Mute CA"), None);
        let expired = |authority| read(authority, &revoking(&clients[..1], 2, NOW - Span::DAY));
        let expiring = |authority| read(authority, &revoking(&clients[..1], 2, NOW - Span::DAY + Span::SECOND));
        let whole = |what, lists| (what, lists, true);
        let part = |what, lists| (what, lists, false);
        vec![
            whole("none", Vec::new()),
            whole("an empty one", vec![list(root, &[], 2)]),
            whole("one with the clients", vec![list(root, clients, 2)]),
            whole("one with the intermediates", vec![list(root, &between, 2)]),
            whole("one with other clients", vec![list(root, &[client(root), client(team)], 2)]),
            whole("the team's", vec![list(team, clients, 1)]),
            whole("the team's, empty, and the root's", vec![list(team, &[], 1), list(root, &[], 2)]),
            whole("the team's and the deep's", vec![list(deep, clients, 1), list(team, &[], 1)]),
            whole("the team's with the deep", vec![list(team, &[deep.der()], 1), list(deep, &[], 1)]),
            whole("the CA without keyUsage's", vec![list(no_key_usage, clients, 1)]),
            whole("an old and a new one", vec![list(root, clients, 2), list(root, &[], 3)]),
            whole("a new and an old one", vec![list(root, clients, 3), list(root, &[], 2)]),
            whole("an impostor's", vec![list(namesake, clients, 2)]),
            whole("another's", vec![list(other, clients, 2)]),
            whole("one that has a second left", vec![expiring(root)]),
            whole("an impostor's of the team", vec![list(&alike, clients, 1)]),
            whole("the CA without cRLSign's, empty", vec![list(with_crl_sign, &[], 1)]),
            whole("the CA without cRLSign's", vec![list(with_crl_sign, clients, 1)]),
            whole("one that has expired", vec![expired(root)]),
            whole("the team's that has expired", vec![expired(team)]),
            part("one about users", vec![scoped(root, clients, 2, Some(CrlScope::UserCertsOnly))]),
            part("one about authorities", vec![scoped(root, clients, 2, Some(CrlScope::CaCertsOnly))]),
            part(
                "one about users and one about all",
                vec![scoped(root, clients, 2, Some(CrlScope::UserCertsOnly)), list(root, &[], 3)],
            ),
        ]
    }

    /// Trust anchors.
    fn anchors(&self) -> Vec<(&'static str, Vec<CertificateDer<'static>>)> {
        let root = self.root.der();
        let renewed = self.root.reissued(authority_params("Root CA"), None).der();
        let bound = {
            let mut params = authority_params("Root CA");
            let excluded_subtrees = vec![GeneralSubtree::DnsName("test".to_owned())];
            params.name_constraints = Some(NameConstraints { permitted_subtrees: Vec::new(), excluded_subtrees });
            self.root.reissued(params, None).der()
        };
        let (namesake, other, team) = (self.namesake.der(), self.other.der(), self.team.der());
        let with =
            |what, anchors: &[&CertificateDer<'static>]| (what, anchors.iter().map(|der| (*der).clone()).collect());
        vec![
            with("the same", &[&root]),
            with("another too", &[&other, &root]),
            with("a namesake too", &[&namesake, &root]),
            with("renewed", &[&renewed]),
            with("renewed beside a namesake", &[&namesake, &renewed]),
            with("renewed, and the old one", &[&root, &renewed]),
            with("the team too", &[&root, &team]),
            with("the team alone", &[&team]),
            with("another alone", &[&other]),
            with("a namesake alone", &[&namesake]),
            with("renewed with constraints", &[&bound]),
        ]
    }
}
