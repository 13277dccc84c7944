//! Certificates for one run: a CA, a server with an ECDSA key, a server with an RSA key, and a client.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

use crate::fault::{Context, Fault, Result};

/// A certificate and its key, as files and for clients in this process.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// Both in one file, for HAProxy and hitch.
    pub(crate) both: PathBuf,
    pub(crate) der: CertificateDer<'static>,
    pub(crate) key_der: PrivateKeyDer<'static>,
}

#[derive(Debug)]
pub(crate) struct Pki {
    pub(crate) ca: PathBuf,
    pub(crate) ca_der: CertificateDer<'static>,
    pub(crate) ecdsa: Pair,
    pub(crate) rsa: Pair,
    pub(crate) client: Pair,
}

type Authority = CertifiedIssuer<'static, KeyPair>;

impl Pki {
    /// Creates all certificates as files in a directory.
    pub(crate) fn make(directory: &Path) -> Result<Self> {
        let authority = authority()?;
        let ca = directory.join("ca.crt");
        fs::write(&ca, authority.pem()).context(|| format!("cannot write {}", ca.display()))?;
        let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
        Ok(Self {
            ecdsa: issue(directory, "ecdsa", &authority, KeyPair::generate()?, server()?)?,
            rsa: issue(directory, "rsa", &authority, rsa, server()?)?,
            client: issue(directory, "client", &authority, KeyPair::generate()?, client())?,
            ca_der: authority.der().clone(),
            ca,
        })
    }
}

fn authority() -> Result<Authority> {
    let mut params = dated("Benchmark CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn server() -> Result<CertificateParams> {
    let mut params = dated("localhost");
    let names = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    params.subject_alt_names = names.subject_alt_names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn client() -> CertificateParams {
    let mut params = dated("client");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn dated(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - Duration::days(1), now + Duration::days(30));
    params
}

fn issue(directory: &Path, name: &str, by: &Authority, key: KeyPair, params: CertificateParams) -> Result<Pair> {
    let certificate = params.signed_by(&key, by)?;
    let file = |ending: &str, text: String| {
        let path = directory.join(format!("{name}.{ending}"));
        fs::write(&path, text).context(|| format!("cannot write {}", path.display())).map(|()| path)
    };
    let key_der = PrivateKeyDer::try_from(key.serialize_der()).map_err(|why| Fault::from(why.to_owned()))?;
    Ok(Pair {
        cert: file("crt", certificate.pem())?,
        both: file("pem", certificate.pem() + &key.serialize_pem())?,
        key: file("key", key.serialize_pem())?,
        der: certificate.der().clone(),
        key_der,
    })
}
