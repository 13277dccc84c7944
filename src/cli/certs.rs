//! `portcullis certs init` and `certs issue`: certificates for development, and client certificates from a CA of one's
//! own. Keys are ECDSA P-256; they are written with mode 0600, and nothing is ever overwritten.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use super::{Failure, IssueArgs, print};

pub(super) fn init(directory: &Path, hosts: &[String]) -> Result<(), Failure> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    for host in hosts {
        if !names.contains(host) {
            names.push(host.clone());
        }
    }
    let ca_key = new_key()?;
    let ca = ca_params().self_signed(&ca_key).map_err(|error| generation(&error))?;
    let ca_pem = ca.pem();
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, &ca_key).map_err(|error| generation(&error))?;
    let server = signed(server_params(&names)?, &issuer)?;
    let client = signed(client_params("client", &[], &[], LEAF_DAYS)?, &issuer)?;

    let mut files = vec![Output::public("ca.crt", ca_pem.clone()), Output::secret("ca.key", ca_key.serialize_pem())];
    files.extend(server.files("server"));
    files.extend(client.files("client"));
    write_all(directory, &files)?;
    print(&format!(
        "Made in {}:\n  ca.crt, ca.key          a development CA\n  server.crt, server.key  for {}\n  client.crt, client.key  for the client \"client\"\nGive ca.crt to the clients, and keep the keys away from everybody.\n",
        directory.display(),
        names.join(", ")
    ))
}

pub(super) fn issue(args: &IssueArgs) -> Result<(), Failure> {
    if args.name.is_empty() || args.name.starts_with('.') || args.name.chars().any(|c| c == '/' || c.is_control()) {
        return Err(Failure::Usage(format!("--name {:?} cannot be the name of a file", args.name)));
    }
    let read = |path: &Path| fs::read_to_string(path).map_err(|error| Failure::file(path, error));
    let key = KeyPair::from_pem(&read(&args.ca_key)?)
        .map_err(|error| Failure::file(&args.ca_key, format_args!("is not a usable private key: {error}")))?;
    let ca_pem = read(&args.ca)?;
    belongs_together(&args.ca, &args.ca_key)?;
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, key)
        .map_err(|error| Failure::file(&args.ca, format_args!("is not a usable CA certificate: {error}")))?;
    let client = signed(client_params(&args.name, &args.dns, &args.uri, args.days)?, &issuer)?;
    write_all(&args.out, &client.files(&args.name))?;
    let path = |ending: &str| args.out.join(format!("{}.{ending}", args.name));
    print(&format!("Made {} and {}, valid for {} days\n", path("crt").display(), path("key").display(), args.days))
}

/// A certificate signed with somebody else's key would be issued without complaint and verify nowhere.
fn belongs_together(cert: &Path, key: &Path) -> Result<(), Failure> {
    let mut files = crate::config::Files::default();
    let mut read = |path: &Path| files.read(path).map_err(|error| Failure::file(path, error));
    let (cert_bytes, key_bytes) = (read(cert)?, read(key)?);
    let chain = crate::tls::certificates(&cert_bytes).map_err(|error| Failure::file(cert, error))?;
    let private = crate::tls::private_key(&key_bytes).map_err(|error| Failure::file(key, error))?;
    let pair = crate::tls::ServerCertificate::new(chain, private);
    let pair = pair.map_err(|error| Failure::file(cert, format_args!("with key {}: {error}", key.display())))?;
    if pair.leaf().ca {
        Ok(())
    } else {
        Err(Failure::file(cert, format_args!("{} may not issue certificates (it is no CA)", pair.leaf().subject)))
    }
}

/// A certificate and its key, as PEM.
struct Signed {
    certificate: String,
    key: String,
}

impl Signed {
    fn files(self, name: &str) -> [Output; 2] {
        [Output::public(&format!("{name}.crt"), self.certificate), Output::secret(&format!("{name}.key"), self.key)]
    }
}

fn signed(params: CertificateParams, issuer: &Issuer<'_, impl rcgen::SigningKey>) -> Result<Signed, Failure> {
    let key = new_key()?;
    let certificate = params.signed_by(&key, issuer).map_err(|error| generation(&error))?;
    Ok(Signed { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn new_key() -> Result<KeyPair, Failure> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| generation(&error))
}

fn generation(error: &rcgen::Error) -> Failure {
    Failure::Failed(format!("a certificate cannot be made: {error}"))
}

fn ca_params() -> CertificateParams {
    let mut params = named("Portcullis development CA", CA_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn server_params(names: &[String]) -> Result<CertificateParams, Failure> {
    let common_name = names.first().map_or("localhost", String::as_str);
    let mut params = named(common_name, LEAF_DAYS);
    params.subject_alt_names = names.iter().map(|name| server_name(name)).collect::<Result<_, _>>()?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn server_name(name: &str) -> Result<SanType, Failure> {
    match name.parse() {
        Ok(ip) => Ok(SanType::IpAddress(ip)),
        Err(_) => dns_name(name),
    }
}

fn dns_name(name: &str) -> Result<SanType, Failure> {
    let plain = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_*".contains(&byte))
    };
    let usage = || Failure::Usage(format!("{name:?} is neither a host name nor an IP address"));
    if name.len() > 253 || !name.split('.').all(plain) {
        return Err(usage());
    }
    name.try_into().map(SanType::DnsName).map_err(|_| usage())
}

fn client_params(name: &str, dns: &[String], uris: &[String], days: u32) -> Result<CertificateParams, Failure> {
    let mut params = named(name, days);
    for host in dns {
        params.subject_alt_names.push(dns_name(host)?);
    }
    for uri in uris {
        let bad = || Failure::Usage(format!("{uri:?} is not a URI such as spiffe://prod/app"));
        if !uri.contains(':') {
            return Err(bad());
        }
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().map_err(|_| bad())?));
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// What all have in common. Begins a little in the past, for clients whose clock is behind.
fn named(common_name: &str, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    params.distinguished_name = subject;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::minutes(5);
    params.not_after = now + Duration::days(days.into());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

/// A file to be written.
struct Output {
    name: String,
    content: String,
    mode: u32,
}

impl Output {
    fn public(name: &str, content: String) -> Self {
        Self { name: name.to_owned(), content, mode: 0o644 }
    }

    fn secret(name: &str, content: String) -> Self {
        Self { name: name.to_owned(), content, mode: 0o600 }
    }
}

/// Writes all files or, where one exists already, none.
fn write_all(directory: &Path, files: &[Output]) -> Result<(), Failure> {
    fs::create_dir_all(directory).map_err(|error| Failure::file(directory, error))?;
    let path = |file: &Output| -> PathBuf { directory.join(&file.name) };
    if let Some(existing) = files.iter().map(path).find(|path| path.symlink_metadata().is_ok()) {
        return Err(Failure::file(
            &existing,
            "exists already, and is not overwritten; take it away or choose another directory",
        ));
    }
    for file in files {
        let path = path(file);
        let written = File::options().write(true).create_new(true).mode(file.mode).open(&path).and_then(|mut out| {
            out.write_all(file.content.as_bytes())?;
            out.sync_all()
        });
        written.map_err(|error| Failure::file(&path, error))?;
    }
    Ok(())
}

const CA_DAYS: u32 = 3650;
const LEAF_DAYS: u32 = 365;
