//! The settings of client authentication, before a verifier is built from them.

use aws_lc_rs::digest::{Context, SHA256};
use rustls::pki_types::CertificateDer;

use crate::identity::settings::ClientAuth;
use crate::identity::trusted_clients::TrustedClients;
use crate::x509::chain::settings::{AnchorValidity, CrlExpired};
use crate::x509::crl::Crl;

/// The input of a [`ClientVerifier`](crate::identity::client_verifier::ClientVerifier).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientAuthSettings {
    /// With [`ClientAuth::None`], all other fields are ignored.
    pub auth: ClientAuth,
    /// `client_ca`. Each CA certificate is a trust anchor.
    pub anchors: Vec<CertificateDer<'static>>,
    /// `client_certificates`: accepted without a CA.
    pub pinned: Vec<CertificateDer<'static>>,
    /// `client_crl`.
    pub crls: Vec<Crl>,
    /// `crl_expired`.
    pub crl_expired: CrlExpired,
    /// `anchor_validity`.
    pub anchor_validity: AnchorValidity,
    /// `trusted_clients`.
    pub clients: TrustedClients,
}

impl ClientAuthSettings {
    /// A digest of all settings and of the listener's name. Session tickets under shared keys are bound to it.
    pub fn binding(&self, listener: &str) -> [u8; 32] {
        let Self { auth, anchors, pinned, crls, crl_expired, anchor_validity, clients } = self;
        let options = format!("{auth} {crl_expired:?} {anchor_validity:?}");
        let lists: [Vec<Vec<u8>>; 5] = [
            vec![listener.into(), options.into()],
            anchors.iter().map(|der| der.to_vec()).collect(),
            pinned.iter().map(|der| der.to_vec()).collect(),
            crls.iter().map(|list| list.der().to_vec()).collect(),
            clients.patterns().iter().map(|pattern| pattern.to_string().into_bytes()).collect(),
        ];
        // Each part is prefixed with its length, so that different settings never hash the same bytes.
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
