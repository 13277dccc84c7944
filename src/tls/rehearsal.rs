//! A handshake with oneself. A certificate that passed every other check is shown to a client in memory before any real
//! one sees it, so that a key that cannot sign is found by `check` and by a reload, and not by the clients.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, Error, ServerConfig, ServerConnection,
    SignatureScheme, SupportedProtocolVersion,
};

use super::provider;

/// Runs a whole handshake in memory in which the server shows `certificate`.
///
/// # Errors
/// What the handshake fails with.
pub(super) fn rehearse(
    certificate: &Arc<CertifiedKey>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<(), Error> {
    let provider = provider();
    let resolver: Arc<dyn ResolvesServerCert> = Arc::new(SingleCertAndKey::from(Arc::clone(certificate)));
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SignatureOnly(provider.signature_verification_algorithms)))
        .with_no_client_auth();
    let name = ServerName::try_from("rehearsal.invalid").map_err(|error| Error::General(error.to_string()))?;
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
pub(super) struct SignatureOnly(pub(super) WebPkiSupportedAlgorithms);

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

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
