//! `portcullis certs renew`: the same certificate once more, with a new key and a new time.

use std::fmt::Write as _;

use rcgen::{CertificateParams, CustomExtension, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use rcgen::{PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::X509Extension;
use x509_parser::public_key::PublicKey;

use crate::cli::certs::authority::{Authority, certificate_pem, generation, parsed};
use crate::cli::certs::dated;
use crate::cli::certs::inspect::read_certificates;
use crate::cli::check::lifetime;
use crate::cli::output::{Output, listed, write_all};
use crate::cli::{Failure, RenewArgs, print};
use crate::x509::certificate::Certificate;

pub(crate) fn renew(args: &RenewArgs) -> Result<(), Failure> {
    let file = &args.certificate;
    let name = file.file_stem().and_then(|stem| stem.to_str());
    let name = name.ok_or_else(|| Failure::Usage(format!("{} gives no name to new files", file.display())))?;
    let chain = read_certificates(file)?;
    let (Some(old), behind) = (chain.first(), chain.get(1..).unwrap_or_default()) else {
        return Err(Failure::file(file, "holds no certificate"));
    };
    let facts = Certificate::parse(old).map_err(|error| Failure::file(file, error))?;
    if facts.ca {
        return Err(Failure::file(file, format_args!("{} is a CA. {NO_CA}", facts.subject)));
    }
    let authority = Authority::read(&args.ca, &args.ca_key)?;
    let certificate = parsed(old)?;
    let days = args.days.map_or_else(|| days_of(&facts), i64::from);
    let (params, omitted) = same_again(&certificate, days)?;
    let new = authority.sign(&params, key_like(&certificate)?, Some(certificate.subject().as_raw()))?;

    // A server's file has the way to its root behind it. That is the same one if the issuer is.
    let same_issuer = behind.first() == Some(authority.certificate());
    let path: String = if same_issuer { behind.iter().map(certificate_pem).collect() } else { String::new() };
    let files = [
        Output::public(&format!("{name}.crt"), new.pem() + &path),
        Output::secret(&format!("{name}.key"), new.key_pem()),
    ];
    let paths = write_all(&args.out, &files)?;
    let mut said = told(&facts, &new.certificate, &authority)?;
    if !omitted.is_empty() {
        let _ = writeln!(said, "  not carried over: the extensions {}", omitted.join(", "));
    }
    if !behind.is_empty() && !same_issuer {
        let _ = writeln!(said, "  not carried over: the certificates behind it, which lead to another issuer");
    }
    print(&format!("{said}Made {}\n", listed(&paths)))
}

/// The parameters of the same certificate, and the extensions that only its issuer can know.
fn same_again(old: &X509Certificate<'_>, days: i64) -> Result<(CertificateParams, Vec<String>), Failure> {
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
            // Both say which keys these are, and those are others now.
            SUBJECT_KEY_IDENTIFIER | AUTHORITY_KEY_IDENTIFIER => {}
            other => omitted.push(other.to_owned()),
        }
    }
    Ok((params, omitted))
}

fn verbatim(extension: &X509Extension<'_>) -> Result<CustomExtension, Failure> {
    let oid: Option<Vec<u64>> = extension.oid.iter().map(Iterator::collect);
    let oid = oid.ok_or_else(|| generation(&"an extension has too large a number"))?;
    let mut same = CustomExtension::from_oid_content(&oid, extension.value.to_vec());
    same.set_criticality(extension.critical);
    Ok(same)
}

/// A new key of the kind and about the size of the old one, so that whoever could use that can use it.
fn key_like(old: &X509Certificate<'_>) -> Result<KeyPair, Failure> {
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
    key.map_err(|error| generation(&error))
}

/// As long as the old one was valid, in whole days.
fn days_of(old: &Certificate) -> i64 {
    let lasted = old.not_after - old.not_before;
    lasted.saturating_add(Duration::hours(12)).whole_days().clamp(1, 3650)
}

fn told(old: &Certificate, new: &CertificateDer<'_>, authority: &Authority) -> Result<String, Failure> {
    let new = Certificate::parse(new).map_err(|error| generation(&error))?;
    let issuer = authority.facts();
    let mut said = format!("Renewed {}\n", new.subject);
    for (which, certificate) in [("old", old), ("new", &new)] {
        let lifetime = lifetime(certificate, OffsetDateTime::now_utc());
        let _ = writeln!(said, "  {which} valid  {lifetime}\n  {which} sha256 {}", certificate.sha256);
    }
    if old.issuer_digest != new.issuer_digest {
        let _ = writeln!(said, "  issued by {}; the old one by {}", new.issuer, old.issuer);
    }
    if new.not_after > issuer.not_after {
        let _ = writeln!(said, "  it outlives its CA, which is valid {}", lifetime(issuer, OffsetDateTime::now_utc()));
    }
    Ok(said)
}

const NO_CA: &str = "certs renew renews the certificates of servers and clients; \
                     a new CA is made with certs init or openssl, and has to be given to everybody who trusts the old one";

const SUBJECT_KEY_IDENTIFIER: &str = "2.5.29.14";
const KEY_USAGE: &str = "2.5.29.15";
const SUBJECT_ALT_NAME: &str = "2.5.29.17";
const BASIC_CONSTRAINTS: &str = "2.5.29.19";
const AUTHORITY_KEY_IDENTIFIER: &str = "2.5.29.35";
const EXTENDED_KEY_USAGE: &str = "2.5.29.37";
