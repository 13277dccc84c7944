//! What the trust in clients is made of, before anything is built from it.

use aws_lc_rs::digest::{Context, SHA256};
use rustls::pki_types::CertificateDer;

use crate::identity::settings::ClientAuth;
use crate::identity::trusted_clients::TrustedClients;
use crate::x509::chain::settings::{AnchorValidity, CrlExpired};
use crate::x509::crl::Crl;

/// By what client certificates are judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuthSettings {
    /// Whether certificates are asked for. Without, nothing else counts.
    pub auth: ClientAuth,
    /// Whose certificates are good; each by itself.
    pub anchors: Vec<CertificateDer<'static>>,
    /// Certificates that are good by themselves.
    pub pinned: Vec<CertificateDer<'static>>,
    /// Revocation lists.
    pub crls: Vec<Crl>,
    /// What one past its nextUpdate means.
    pub crl_expired: CrlExpired,
    /// What the dates of the anchors mean.
    pub anchor_validity: AnchorValidity,
    /// Whom of the holders to let in.
    pub clients: TrustedClients,
}

impl ClientAuthSettings {
    /// A digest of all of it and of the listener it is for: what session tickets under shared keys are bound to.
    pub fn binding(&self, listener: &str) -> [u8; 32] {
        let Self { auth, anchors, pinned, crls, crl_expired, anchor_validity, clients } = self;
        let words = format!("{auth} {crl_expired:?} {anchor_validity:?}");
        let lists: [Vec<Vec<u8>>; 5] = [
            vec![listener.into(), words.into()],
            anchors.iter().map(|der| der.to_vec()).collect(),
            pinned.iter().map(|der| der.to_vec()).collect(),
            crls.iter().map(|list| list.der().to_vec()).collect(),
            clients.patterns().iter().map(|pattern| pattern.to_string().into_bytes()).collect(),
        ];
        // With every length in front, so that no two sets of parts have the same bytes.
        let mut context = Context::new(&SHA256);
        for list in lists {
            context.update(&list.len().to_be_bytes());
            for part in list {
                context.update(&part.len().to_be_bytes());
                context.update(&part);
            }
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }
}
