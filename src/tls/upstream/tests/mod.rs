//! Verification of upstreams, with servers of rustls and OpenSSL.

pub(crate) mod handshakes;
pub(crate) mod openssl;
pub(crate) mod verification;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::asn1_rs::{Any, FromDer as _};

use super::*;
use crate::tls::fixtures::{Authority, IssuedCertificate, named};

/// Parameters of a server certificate with these host names or addresses.
fn params(common: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = named(CertificateParams::new(names).unwrap(), common);
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - Duration::DAY, now + Duration::DAY);
    params
}

fn issued(authority: &Authority, common: &str, names: &[&str]) -> IssuedCertificate {
    authority.issue(&params(common, names), KeyPair::generate().unwrap())
}

/// A client certificate that expires at `until`.
fn own(authority: &Authority, until: OffsetDateTime) -> CertifiedKeyPair {
    let issued_cert = authority.client("app", until - Duration::DAY, until);
    CertifiedKeyPair::new(vec![issued_cert.der()], issued_cert.key_der()).unwrap()
}

fn tomorrow() -> OffsetDateTime {
    OffsetDateTime::now_utc() + Duration::DAY
}

fn parts(verification: Verification, bundle: &[&Authority]) -> UpstreamTlsSettings {
    UpstreamTlsSettings {
        verification,
        anchors: Anchors::Bundle(bundle.iter().map(|authority| authority.der()).collect()),
        anchor_validity: AnchorValidity::Enforce,
        certificate: None,
        server_name: None,
        alpn: Alpn::None,
    }
}

fn tls(parts: &UpstreamTlsSettings) -> Arc<UpstreamTls> {
    Arc::new(UpstreamTls::new(parts).unwrap())
}

/// A self-signed certificate of version 1, as openssl creates without extensions. rcgen cannot create one, so it is built from
/// the parts of another.
fn version_1(common: &str) -> (CertificateDer<'static>, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let model = params(common, &[]).self_signed(&key).unwrap();
    let [to_be_signed, algorithm, _] = parts_of(model.der()).try_into().unwrap();
    // Without the first element, the version, and the last, the extensions.
    let parts = parts_of(&to_be_signed);
    let to_be_signed = der(0x30, &parts[1..7].concat());
    let signature = rcgen::SigningKey::sign(&key, &to_be_signed).unwrap();
    let whole = [to_be_signed, algorithm, der(0x03, &[&[0], &signature[..]].concat())].concat();
    (CertificateDer::from(der(0x30, &whole)), key)
}

/// The elements of a sequence.
fn parts_of(sequence: &[u8]) -> Vec<Vec<u8>> {
    let (_, whole) = Any::from_der(sequence).unwrap();
    let (mut rest, mut parts) = (whole.data, Vec::new());
    while !rest.is_empty() {
        let (behind, _) = Any::from_der(rest).unwrap();
        parts.push(rest[..rest.len() - behind.len()].to_vec());
        rest = behind;
    }
    parts
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let head = match length {
        0..0x80 => vec![u8::try_from(length).unwrap()],
        0x80..0x100 => vec![0x81, u8::try_from(length).unwrap()],
        _ => [&[0x82], &u16::try_from(length).unwrap().to_be_bytes()[..]].concat(),
    };
    [&[tag], &head[..], content].concat()
}
