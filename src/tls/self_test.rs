//! A handshake with oneself. A certificate that passed every other check is shown to a client in memory before any real
//! one sees it, so that a key that cannot sign is found by `check` and by a reload, and not by the clients.

use std::sync::Arc;

use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DistinguishedName, Error, ServerConfig,
    ServerConnection, SupportedProtocolVersion,
};

use crate::identity::handshake_signature::verify_handshake_signatures;
use crate::x509::crypto::provider;

/// Runs a whole handshake in memory by each TLS version, in which the server shows `certificate` and asks for one of the CAs in
/// `hints`, as it does clients where it asks them for any.
///
/// # Errors
/// What the handshake fails with.
pub(crate) fn self_test(
    certificate: &Arc<CertifiedKey>,
    versions: &[&'static SupportedProtocolVersion],
    hints: Option<&[DistinguishedName]>,
) -> Result<(), Error> {
    versions.iter().try_for_each(|version| self_test_version(certificate, version, hints))
}

fn self_test_version(
    certificate: &Arc<CertifiedKey>,
    version: &'static SupportedProtocolVersion,
    hints: Option<&[DistinguishedName]>,
) -> Result<(), Error> {
    let provider = provider();
    let resolver: Arc<dyn ResolvesServerCert> = Arc::new(SingleCertAndKey::from(Arc::clone(certificate)));
    let clients: Arc<dyn ClientCertVerifier> = match hints {
        Some(hints) => Arc::new(Nobody(hints.to_vec())),
        None => WebPkiClientVerifier::no_client_auth(),
    };
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(resolver);
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SignatureOnly(provider.signature_verification_algorithms)))
        .with_no_client_auth();
    let name = ServerName::try_from("self-test.invalid").map_err(|error| Error::General(error.to_string()))?;
    let mut client = Connection::from(ClientConnection::new(Arc::new(client), name)?);
    let mut server = Connection::from(ServerConnection::new(Arc::new(server))?);
    // Two round trips in TLS 1.2, one in TLS 1.3; what is not done after these never will be.
    for _ in 0..3 {
        deliver(&mut client, &mut server)?;
        deliver(&mut server, &mut client)?;
        if !client.is_handshaking() && !server.is_handshaking() {
            return Ok(());
        }
    }
    Err(Error::HandshakeNotComplete)
}

/// Carries what `from` has to say to `to`.
fn deliver(from: &mut Connection, to: &mut Connection) -> Result<(), Error> {
    let in_memory = |error: std::io::Error| Error::General(error.to_string());
    let mut flight = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut flight).map_err(in_memory)?;
    }
    let mut rest = flight.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).map_err(in_memory)?;
        to.process_new_packets()?;
    }
    Ok(())
}

/// A client that cares for the signature only: whose certificate it is, and by whom, is not asked here.
#[derive(Debug)]
pub(crate) struct SignatureOnly(pub(crate) WebPkiSupportedAlgorithms);

impl ServerCertVerifier for SignatureOnly {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    verify_handshake_signatures!(self => self.0.supported_schemes());
}

/// Asks clients for a certificate, and takes none.
#[derive(Debug)]
struct Nobody(Vec<DistinguishedName>);

impl ClientCertVerifier for Nobody {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.0
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Err(CertificateError::UnknownIssuer.into())
    }

    verify_handshake_signatures!();
}
