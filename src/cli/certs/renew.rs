//! `portcullis certs renew`: reissues a certificate with a new key and a new validity period.

use std::fmt::Write as _;

use rcgen::{CertificateParams, CustomExtension, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use rcgen::{PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::X509Extension;
use x509_parser::public_key::PublicKey;

use crate::cli::certs::ca_files::read_authority;
use crate::cli::certs::inspect::read_certificates;
use crate::cli::check::lifetime;
use crate::cli::output::{Output, join_paths, write_all};
use crate::cli::{Failure, RenewArgs, print};
use crate::issuing::IssuingError;
use crate::issuing::authority::{Authority, certificate_pem, parsed};
use crate::issuing::params::dated;
use crate::x509::certificate::Certificate;

pub(crate) fn renew(args: &RenewArgs) -> Result<(), Failure> {
    let file = &args.certificate;
    let name = file.file_stem().and_then(|stem| stem.to_str());
    let name = name
        .ok_or_else(|| Failure::Usage(format!("{} has no file name to derive the new names from", file.display())))?;
    let chain = read_certificates(file)?;
    let (Some(old), intermediates) = (chain.first(), chain.get(1..).unwrap_or_default()) else {
        return Err(Failure::file(file, "the file contains no certificate"));
    };
    let facts = Certificate::parse(old).map_err(|error| Failure::file(file, error))?;
    if facts.ca {
        return Err(Failure::file(file, format_args!("{} is a CA; {NO_CA}", facts.subject)));
    }
    let authority = read_authority(&args.ca, &args.ca_key)?;
    let certificate = parsed(old)?;
    let days = args.days.map_or_else(|| validity_days(&facts), i64::from);
    let (params, omitted) = renewed_params(&certificate, days)?;
    let new = authority.sign(&params, generate_similar_key(&certificate)?, Some(certificate.subject().as_raw()))?;

    // The intermediates in the old file stay valid only if the issuer is the same.
    let same_issuer = intermediates.first() == Some(authority.certificate());
    let path: String = if same_issuer { intermediates.iter().map(certificate_pem).collect() } else { String::new() };
    let files = [
        Output::public(&format!("{name}.crt"), new.pem() + &path),
        Output::secret(&format!("{name}.key"), new.key_pem()),
    ];
    let paths = write_all(&args.out, &files)?;
    let mut text = summary(&facts, &new.certificate, &authority)?;
    if !omitted.is_empty() {
        let _ = writeln!(text, "  not carried over: the extensions {}", omitted.join(", "));
    }
    if !intermediates.is_empty() && !same_issuer {
        let _ = writeln!(text, "  not carried over: the intermediates in the old file, which belong to another issuer");
    }
    print(&format!("{text}Created {}\n", join_paths(&paths)))
}

/// Returns the parameters of the renewed certificate, and the OIDs of extensions that are not carried over.
fn renewed_params(old: &X509Certificate<'_>, days: i64) -> Result<(CertificateParams, Vec<String>), Failure> {
    let mut params = dated(days);
    let mut omitted = Vec::new();
    for extension in old.extensions() {
        match extension.oid.to_id_string().as_str() {
            KEY_USAGE => {
                params.key_usages.clear();
                params.custom_extensions.push(verbatim(extension)?);
            }
            SUBJECT_ALT_NAME | EXTENDED_KEY_USAGE => params.custom_extensions.push(verbatim(extension)?),
            BASIC_CONSTRAINTS => params.is_ca = IsCa::ExplicitNoCa,
            // Both identify keys, which are new.
            SUBJECT_KEY_IDENTIFIER | AUTHORITY_KEY_IDENTIFIER => {}
            other => omitted.push(other.to_owned()),
        }
    }
    Ok((params, omitted))
}

fn verbatim(extension: &X509Extension<'_>) -> Result<CustomExtension, Failure> {
    let oid: Option<Vec<u64>> = extension.oid.iter().map(Iterator::collect);
    let oid = oid.ok_or_else(|| IssuingError::certificate("the OID of an extension is too large"))?;
    let mut same = CustomExtension::from_oid_content(&oid, extension.value.to_vec());
    same.set_criticality(extension.critical);
    Ok(same)
}

/// Generates a key of the same type and a similar size, which the same software supports.
fn generate_similar_key(old: &X509Certificate<'_>) -> Result<KeyPair, Failure> {
    let key = match old.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => {
            let size = match key.key_size() {
                ..=2048 => RsaKeySize::_2048,
                2049..=3072 => RsaKeySize::_3072,
                _ => RsaKeySize::_4096,
            };
            KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size)
        }
        Ok(PublicKey::EC(point)) if point.key_size() > 256 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
        _ if old.public_key().algorithm.algorithm.to_id_string() == "1.3.101.112" => {
            KeyPair::generate_for(&PKCS_ED25519)
        }
        _ => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
    };
    key.map_err(|error| IssuingError::certificate(error).into())
}

/// The validity period of the old certificate in whole days.
fn validity_days(old: &Certificate) -> i64 {
    let period = old.not_after - old.not_before;
    period.saturating_add(Duration::hours(12)).whole_days().clamp(1, 3650)
}

fn summary(old: &Certificate, new: &CertificateDer<'_>, authority: &Authority) -> Result<String, Failure> {
    let new = Certificate::parse(new).map_err(IssuingError::certificate)?;
    let issuer = authority.facts();
    let mut text = format!("Renewed {}\n", new.subject);
    for (which, certificate) in [("old", old), ("new", &new)] {
        let lifetime = lifetime(certificate, OffsetDateTime::now_utc());
        let _ = writeln!(text, "  {which} valid  {lifetime}\n  {which} sha256 {}", certificate.sha256);
    }
    if old.issuer_digest != new.issuer_digest {
        let _ = writeln!(text, "  issued by {}; the old one by {}", new.issuer, old.issuer);
    }
    if new.not_after > issuer.not_after {
        let _ = writeln!(
            text,
            "  warning: it is valid longer than its CA, which is valid {}",
            lifetime(issuer, OffsetDateTime::now_utc())
        );
    }
    Ok(text)
}

const NO_CA: &str = "certs renew supports server and client certificates only; \
                     create a new CA with certs init or openssl, and distribute it to everything that trusts the old one";

const SUBJECT_KEY_IDENTIFIER: &str = "2.5.29.14";
const KEY_USAGE: &str = "2.5.29.15";
const SUBJECT_ALT_NAME: &str = "2.5.29.17";
const BASIC_CONSTRAINTS: &str = "2.5.29.19";
const AUTHORITY_KEY_IDENTIFIER: &str = "2.5.29.35";
const EXTENDED_KEY_USAGE: &str = "2.5.29.37";
