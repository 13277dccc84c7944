//! `portcullis certs init` and `certs issue`: development certificates, and certificates of a local CA.
//!
//! Keys are ECDSA P-256 and written with mode 0600. No file is overwritten.

pub(crate) mod ca_files;
pub(crate) mod inspect;
pub(crate) mod renew;
pub(crate) mod server_ca;

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};

use crate::cli::certs::ca_files::read_authority;
use crate::cli::certs::server_ca::ServerCa;
use crate::cli::output::{Output, join_paths, write_all};
use crate::cli::{Failure, IssueArgs, LocalIssue, print};
use crate::issuing::IssuingError;
use crate::issuing::authority::{Authority, Signed};
use crate::issuing::bundle::build_bundle;
use crate::issuing::client_request::DEFAULT_DAYS;
use crate::issuing::params;
use crate::issuing::params::{client_params, dated, named, new_key};

pub(crate) fn init(directory: &Path, hosts: &[String]) -> Result<(), Failure> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    for host in hosts {
        if !names.contains(host) {
            names.push(host.clone());
        }
    }
    let ca_key = new_key()?;
    let ca = ca_params().self_signed(&ca_key).map_err(IssuingError::certificate)?;
    let mut outputs = vec![Output::public("ca.crt", ca.pem()), Output::secret("ca.key", ca_key.serialize_pem())];
    let authority = Authority::new(ca.der(), ca_key)?;
    outputs.extend(files(&authority.sign(&server_params(&names)?, new_key()?, None)?, "server"));
    outputs.extend(files(&authority.sign(&client_params("client", LEAF_DAYS), new_key()?, None)?, "client"));
    write_all(directory, &outputs)?;
    print(&format!(
        "Created in {}:\n  ca.crt, ca.key          a development CA\n  server.crt, server.key  for {}\n  client.crt, client.key  for the client \"client\"\nDistribute ca.crt to the clients and keep the .key files secret.\n",
        directory.display(),
        names.join(", ")
    ))
}

pub(crate) fn issue(local: &LocalIssue<'_>) -> Result<(), Failure> {
    let args = local.args;
    if args.name.is_empty() || args.name.starts_with('.') || args.name.chars().any(|c| c == '/' || c.is_control()) {
        return Err(Failure::Usage(format!(
            "--name {:?} is not a valid file name; use a name without slashes",
            args.name
        )));
    }
    let authority = read_authority(local.ca, local.ca_key)?;
    let days = args.days.unwrap_or(DEFAULT_DAYS);
    let mut params = if args.server { server_params(&server_names(args))? } else { client_params(&args.name, days) };
    params.not_after = dated(days.into()).not_after;
    params.subject_alt_names.extend(additional_names(args)?);
    let signed = authority.sign(&params, new_key()?, None)?;
    let chain = if args.server { authority.intermediates_pem() } else { String::new() };
    let mut outputs = vec![
        Output::public(&format!("{}.crt", args.name), signed.pem() + &chain),
        Output::secret(&format!("{}.key", args.name), signed.key_pem()),
    ];
    let mut hint = "";
    if args.bundle {
        let (protocol, server_ca) = match ServerCa::find(local)? {
            Some(ServerCa { protocol, pem }) => (protocol, pem),
            None => {
                hint = SAME_CA;
                (args.protocol.as_deref().unwrap_or("redis").to_owned(), authority.bundle_pem())
            }
        };
        outputs.push(Output::secret(
            &format!("{}.zip", args.name),
            build_bundle(&signed, "", &protocol, server_ca.as_bytes())?,
        ));
    }
    let paths = write_all(local.out, &outputs)?;
    print(&format!("Created {}, valid for {days} days\n{hint}", join_paths(&paths)))
}

fn files(signed: &Signed, name: &str) -> [Output; 2] {
    [Output::public(&format!("{name}.crt"), signed.pem()), Output::secret(&format!("{name}.key"), signed.key_pem())]
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
    params::dns_name(name).ok_or_else(|| Failure::Usage(format!("{name:?} is neither a host name nor an IP address")))
}

/// The names and addresses of a server certificate, starting with `--name`.
fn server_names(args: &IssueArgs) -> Vec<String> {
    let mut names = vec![args.name.clone()];
    for name in args.dns.iter().cloned().chain(args.ip.iter().map(ToString::to_string)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The subject alternative names that [`server_names`] does not cover.
fn additional_names(args: &IssueArgs) -> Result<Vec<SanType>, Failure> {
    let dns = args.dns.iter().filter(|_| !args.server).map(|name| dns_name(name));
    let uri = args.uri.iter().map(|uri| {
        let bad = || Failure::Usage(format!("{uri:?} is not a URI such as spiffe://prod/app"));
        if uri.contains(':') { uri.as_str().try_into().map(SanType::URI).map_err(|_| bad()) } else { Err(bad()) }
    });
    let email = args.email.iter().map(|email| {
        let bad = || Failure::Usage(format!("{email:?} is not an e-mail address such as app@example.com"));
        let is_address = email.split_once('@').is_some_and(|(user, host)| !user.is_empty() && dns_name(host).is_ok());
        if is_address { email.as_str().try_into().map(SanType::Rfc822Name).map_err(|_| bad()) } else { Err(bad()) }
    });
    dns.chain(uri).chain(email).collect()
}

const SAME_CA: &str = "The bundle contains the CA that issued the client certificate. If another CA issued the server certificate, \
                       pass it with --server-ca FILE, or --listener NAME -c FILE\n";

const CA_DAYS: u32 = 3650;
const LEAF_DAYS: u32 = 365;
