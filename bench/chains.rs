//! The cost of verifying client certificates, of an attacker and of an ordinary client: `cargo bench --bench chains`.
//! With `-- handshakes`, whole handshakes only.

mod handshakes;

use std::time::{Duration, Instant};

use portcullis::internals::{AnchorValidity, ClientAuth, CrlExpired, TrustedClients};
use portcullis::internals::{Certificate, ClientAuthSettings, ClientVerifier, Crl, PresentedIdentity};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, CustomExtension, DnType,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ECDSA_P521_SHA512, RevokedCertParams, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

type Failure = Box<dyn std::error::Error>;
type Authority = CertifiedIssuer<'static, KeyPair>;

fn main() -> Result<(), Failure> {
    if std::env::args().any(|argument| argument == "handshakes") {
        return handshakes::run();
    }
    println!("Verifying one chain, median of {ROUNDS} different ones\n");
    println!("{:<72} {:>10} {:>10}", "", "µs", "÷ ordinary");
    for (name, algorithm) in
        [("P-256", &PKCS_ECDSA_P256_SHA256), ("P-384", &PKCS_ECDSA_P384_SHA384), ("P-521", &PKCS_ECDSA_P521_SHA512)]
    {
        let root = authority("Root CA", None, algorithm)?;
        let ordinary = median(std::slice::from_ref(&root), |_| Ok(vec![client(&root, algorithm)?]))?;
        row(&format!("{name}: ordinary, issued by an anchor"), ordinary, ordinary);
        let team = authority("Team CA", Some(&root), algorithm)?;
        let below = median(std::slice::from_ref(&root), |_| Ok(vec![client(&team, algorithm)?, team.der().clone()]))?;
        row(&format!("{name}: ordinary, by an intermediate"), below, ordinary);
        for anchors in [1, 12, 62] {
            let named = |number: usize| format!("CA {number}");
            let others = (0..anchors).map(|number| authority(&named(number), None, algorithm));
            let others = others.collect::<Result<Vec<_>, _>>()?;
            let looping = median(&others, |_| looping("Loop CA", algorithm))?;
            row(&format!("{name}: looping intermediates, {anchors} anchors with other names"), looping, ordinary);
            let namesakes = (0..anchors).map(|_| authority("Loop CA", None, algorithm));
            let namesakes = namesakes.collect::<Result<Vec<_>, _>>()?;
            let looping = median(&namesakes, |_| self::looping("Loop CA", algorithm))?;
            row(&format!("{name}: looping intermediates, {anchors} anchors with their name"), looping, ordinary);
        }
    }
    large()?;
    lists()?;
    handshakes::run()
}

/// A certificate of the maximum size in a handshake, which is parsed once to name it in the audit.
fn large() -> Result<(), Failure> {
    let mut names = named("client");
    for number in 0..LARGE {
        names.subject_alt_names.push(SanType::DnsName(format!("n{number}").try_into()?));
    }
    let mut subject = named("client");
    for number in 0..LARGE {
        subject.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, number]), "x");
    }
    let mut extensions = named("client");
    for number in 0..LARGE {
        let extension = CustomExtension::from_oid_content(&[1, 2, number], vec![5, 0]);
        extensions.custom_extensions.push(extension);
    }
    for (what, params) in
        [("subject alternative names", names), ("subject attributes", subject), ("extensions", extensions)]
    {
        let der = params.self_signed(&KeyPair::generate()?)?.der().clone();
        let mut times: Vec<_> = (0..ROUNDS)
            .map(|_| {
                let began = Instant::now();
                let _ = std::hint::black_box(Certificate::parse(&der));
                began.elapsed()
            })
            .collect();
        times.sort_unstable();
        let median = times.get(ROUNDS / 2).ok_or("no rounds")?;
        println!("\n{LARGE} {what}, {} bytes: parsed in {} µs", der.len(), median.as_micros());
    }
    Ok(())
}

fn row(what: &str, cost: Duration, ordinary: Duration) {
    println!("{what:<72} {:>10.0} {:>10.2}", cost.as_secs_f64() * 1e6, cost.as_secs_f64() / ordinary.as_secs_f64());
}

/// The median time to verify a chain that is not cached.
fn median(
    anchors: &[Authority],
    chain: impl Fn(usize) -> Result<Vec<CertificateDer<'static>>, Failure>,
) -> Result<Duration, Failure> {
    let trust = ClientVerifier::new(&parts(anchors.iter().map(|one| one.der().clone()).collect(), Vec::new()))?;
    let now = OffsetDateTime::now_utc();
    let mut times = Vec::new();
    for number in 0..ROUNDS {
        let chain = chain(number)?;
        let began = Instant::now();
        let _ = std::hint::black_box(trust.verify(PresentedIdentity::Chain(&chain), now));
        times.push(began.elapsed());
    }
    times.sort_unstable();
    times.get(ROUNDS / 2).copied().ok_or_else(|| "no rounds".into())
}

/// A leaf and six self-issued certificates of one name with different keys, each of which may have issued every other.
fn looping(name: &str, algorithm: &'static SignatureAlgorithm) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let intermediates = (0..6).map(|_| authority(name, None, algorithm)).collect::<Result<Vec<_>, _>>()?;
    let first = intermediates.first().ok_or("no intermediate")?;
    let mut chain = vec![client(first, algorithm)?];
    chain.extend(intermediates.iter().map(|one| one.der().clone()));
    Ok(chain)
}

/// Memory and time of many CAs with long revocation lists.
fn lists() -> Result<(), Failure> {
    let authorities = (0..LISTS).map(|number| authority(&format!("CA {number}"), None, &PKCS_ECDSA_P256_SHA256));
    let authorities = authorities.collect::<Result<Vec<_>, _>>()?;
    let ders = authorities.iter().map(list).collect::<Result<Vec<_>, _>>()?;
    let before = resident()?;
    let began = Instant::now();
    let crls = ders.iter().map(|der| Crl::parse_all(der)).collect::<Result<Vec<_>, _>>()?;
    let anchors = authorities.iter().map(|one| one.der().clone()).collect();
    let trust = ClientVerifier::new(&parts(anchors, crls.into_iter().flatten().collect()))?;
    let now = OffsetDateTime::now_utc();
    for authority in &authorities {
        let chain = [client(authority, &PKCS_ECDSA_P256_SHA256)?];
        let _identity = trust.verify(PresentedIdentity::Chain(&chain), now).map_err(|ending| format!("{ending:?}"))?;
    }
    let took = began.elapsed();
    println!(
        "\n{LISTS} anchors with a list of {ENTRIES} entries each ({} MiB): {} ms, {} MiB more, one client of each accepted",
        ders.iter().map(Vec::len).sum::<usize>() >> 20,
        took.as_millis(),
        resident()?.saturating_sub(before) >> 10,
    );
    Ok(())
}

fn list(authority: &Authority) -> Result<Vec<u8>, Failure> {
    let now = OffsetDateTime::now_utc();
    let revoked = (0..ENTRIES).map(|number| RevokedCertParams {
        serial_number: SerialNumber::from_slice(&[&[1; 12][..], &number.to_be_bytes()].concat()),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    });
    let params = CertificateRevocationListParams {
        this_update: now,
        next_update: now + Duration::from_secs(86_400),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(authority)?.der().to_vec())
}

/// Resident memory of this process, in KiB.
fn resident() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

fn parts(anchors: Vec<CertificateDer<'static>>, crls: Vec<Crl>) -> ClientAuthSettings {
    ClientAuthSettings {
        auth: ClientAuth::Required,
        anchors,
        pinned: Vec::new(),
        crls,
        crl_expired: CrlExpired::Refuse,
        anchor_validity: AnchorValidity::Enforce,
        clients: TrustedClients::default(),
    }
}

fn authority(
    name: &str,
    issuer: Option<&Authority>,
    algorithm: &'static SignatureAlgorithm,
) -> Result<Authority, Failure> {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate_for(algorithm)?;
    Ok(match issuer {
        Some(issuer) => CertifiedIssuer::signed_by(params, key, issuer)?,
        None => CertifiedIssuer::self_signed(params, key)?,
    })
}

fn client(authority: &Authority, algorithm: &'static SignatureAlgorithm) -> Result<CertificateDer<'static>, Failure> {
    let key = KeyPair::generate_for(algorithm)?;
    Ok(named("client").signed_by(&key, authority)?.der().clone())
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// Number of names, attributes or extensions of a large certificate.
const LARGE: u64 = 2_000;

const ROUNDS: usize = 51;

const LISTS: usize = 20;

const ENTRIES: u32 = 20_000;
