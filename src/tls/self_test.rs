//! A handshake in memory with each server certificate, so that `check` and a reload find a key that cannot sign before clients do.

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

/// Runs a complete handshake for each TLS version. The server sends `certificate` and, with `hints`, requests a client
/// certificate of these CAs.
///
/// # Errors
/// The error of the handshake.
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
        Some(hints) => Arc::new(RejectAllClients(hints.to_vec())),
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
    // TLS 1.2 needs two round trips, TLS 1.3 one.
    for _ in 0..3 {
        deliver(&mut client, &mut server)?;
        deliver(&mut server, &mut client)?;
        if !client.is_handshaking() && !server.is_handshaking() {
            return Ok(());
        }
    }
    Err(Error::HandshakeNotComplete)
}

/// Delivers all pending TLS data of `from` to `to`.
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

/// A client that verifies only the handshake signature, not the certificate.
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

/// Requests a certificate and rejects every one.
#[derive(Debug)]
struct RejectAllClients(Vec<DistinguishedName>);

impl ClientCertVerifier for RejectAllClients {
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
