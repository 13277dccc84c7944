//! The cost of judging every open session again after a reload, and how long the data path waits meanwhile:
//! `cargo bench --bench judgement`.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use portcullis::internals::ClientAddr;
use portcullis::internals::PresentedIdentity;
use portcullis::internals::ResolutionCache;
use portcullis::internals::revocation;
use portcullis::internals::{Authorization, Snapshot};
use portcullis::internals::{ConnectionGuard, ConnectionRegistry};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, GeneralSubtree,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, NameConstraints, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    if std::env::args().any(|argument| argument == "parked") {
        return parked();
    }
    println!("{SESSIONS} sessions, {RULES} rules; median of {ROUNDS} rounds, and the worst");
    println!("{:<58}  {:>14}  {:>22}", "", "judged, ms", "longest wait, ms");
    for (what, certificates, issuer, change) in [
        ("one certificate, rules changed", 1, By::Root, Change::Rules),
        ("one certificate, trust anchors changed", 1, By::Root, Change::Trust),
        ("a certificate each, rules changed", SESSIONS, By::Root, Change::Rules),
        ("a certificate each, trust anchors changed", SESSIONS, By::Root, Change::Trust),
        ("a certificate each, CA certificate renewed", SESSIONS, By::Root, Change::Renewal),
        ("a certificate each, CA replaced under the same name", SESSIONS, By::Root, Change::NewKey),
        ("a certificate each, CRL of the CA changed", SESSIONS, By::Root, Change::List(By::Root)),
        ("  and revokes all of them", SESSIONS, By::Root, Change::Revocation(By::Root)),
        ("  issued by an intermediate, CRL of the root changed", SESSIONS, By::Between, Change::List(By::Root)),
        ("  issued by an intermediate, its CRL changed", SESSIONS, By::Between, Change::List(By::Between)),
        ("  and revokes all of them", SESSIONS, By::Between, Change::Revocation(By::Between)),
        ("  issued by an intermediate, which the root revokes", SESSIONS, By::Between, Change::Revocation(By::Root)),
    ] {
        let mut rounds = (0..ROUNDS).map(|_| round(certificates, issuer, change)).collect::<Result<Vec<_>, _>>()?;
        rounds.sort_by(|one, other| one.judged.total_cmp(&other.judged));
        let worst = |of: fn(&Round) -> f64| rounds.iter().map(of).fold(0.0, f64::max);
        let median = rounds.get(ROUNDS / 2).map_or(f64::NAN, |round| round.judged);
        let (judged, busy, idle) = (worst(|round| round.judged), worst(|round| round.busy), worst(|round| round.idle));
        println!("{what:<58}  {median:>6.0} {judged:>6.0}  {busy:>6.1} ({idle:.1} idle)");
    }
    parked()
}

/// One client holds sessions with a different chain each, which have to be verified again because their CA is replaced. The
/// certificates of all other clients are revoked.
fn parked() -> Result<(), Failure> {
    println!("\n{:<58}  {:>14}  {:>14}", "sessions of one client with different chains", "others, ms", "all, ms");
    for hostile in [0, PARKED, SESSIONS / 2] {
        let site = Site::new()?;
        let [old, new] = ["Old CA", "New CA"]
            .map(|name| Ok::<_, Failure>(CertifiedIssuer::self_signed(authority_params(name), KeyPair::generate()?)?));
        let (old, new) = (old?, new?);
        let key = KeyPair::generate()?;
        let mut limited = authority_params("Limited CA");
        let excluded_subtrees =
            (0..SUBTREES).map(|number| GeneralSubtree::DnsName(format!("x{number}.test"))).collect();
        limited.name_constraints = Some(NameConstraints { permitted_subtrees: Vec::new(), excluded_subtrees });
        let by_new = limited.signed_by(&key, &new)?.der().clone();
        let between = CertifiedIssuer::signed_by(limited, key, &old)?;
        let names: Vec<_> = (0..SUBTREES).map(|number| format!("n{number}.example")).collect();
        let leaf = CertificateParams::new(names)?.signed_by(&KeyPair::generate()?, &between)?.der().clone();
        let junk = || Ok::<_, Failure>(authority_params("Old CA").self_signed(&KeyPair::generate()?)?.der().clone());

        std::fs::write(site.path("clients.pem"), [site.root.pem(), old.pem()].concat())?;
        site.write_list(By::Root, 1, &[])?;
        let before = site.snapshot(None)?;
        let registry = Arc::new(ConnectionRegistry::default());
        let chains = (hostile..SESSIONS).map(|_| site.client(By::Root)).collect::<Result<Vec<_>, _>>()?;
        let others = open_sessions(&before, &registry, &chains, chains.len())?;
        let own = || Ok(vec![leaf.clone(), between.der().clone(), by_new.clone(), junk()?]);
        let own_chains = (0..hostile).map(|_| own()).collect::<Result<Vec<_>, Failure>>()?;
        let _parked = open_sessions(&before, &registry, &own_chains, hostile)?;
        std::fs::write(site.path("clients.pem"), [site.root.pem(), new.pem()].concat())?;
        site.write_list(By::Root, 2, &chains.iter().filter_map(|chain| chain.first()).collect::<Vec<_>>())?;
        let after = site.snapshot(Some(&before))?;

        let began = Instant::now();
        let ended = thread::scope(|scope| {
            let watching = scope.spawn(|| {
                while !others.iter().all(is_terminated) {
                    thread::sleep(TICK);
                }
                began.elapsed()
            });
            enforce(&after, &registry);
            watching.join().unwrap_or(Duration::MAX)
        });
        let all = began.elapsed();
        println!("{hostile:<58}  {:>14}  {:>14}", ended.as_millis(), all.as_millis());
    }
    Ok(())
}

fn enforce(snapshot: &Snapshot, registry: &ConnectionRegistry) {
    let apply = |verdict: &mut dyn FnMut()| {
        verdict();
        true
    };
    revocation::enforce(snapshot, registry, &registry.all(), OffsetDateTime::now_utc(), &apply);
}

/// The issuer of a certificate.
#[derive(Debug, Clone, Copy)]
enum By {
    /// The trust anchor.
    Root,
    /// An intermediate below it.
    Between,
}

/// The change in a reload.
#[derive(Debug, Clone, Copy)]
enum Change {
    /// A rule.
    Rules,
    /// A CA that has issued none of the certificates.
    Trust,
    /// The CA certificate is replaced by one with the same key.
    Renewal,
    /// The CA certificate is replaced by one with the same name and a new key.
    NewKey,
    /// A revocation list that revokes none of the certificates.
    List(By),
    /// A revocation list that revokes all certificates of its issuer.
    Revocation(By),
}

/// Times in milliseconds.
struct Round {
    judged: f64,
    /// The longest wait of a worker during the pass, and before.
    busy: f64,
    idle: f64,
}

fn round(certificates: usize, issuer: By, change: Change) -> Result<Round, Failure> {
    let site = Site::new()?;
    let lists_of = if let Change::List(by) | Change::Revocation(by) = change { by } else { By::Root };
    site.write_list(lists_of, 1, &[])?;
    let before = site.snapshot(None)?;
    let registry = Arc::new(ConnectionRegistry::default());
    let chains = (0..certificates).map(|_| site.client(issuer)).collect::<Result<Vec<_>, _>>()?;
    let sessions = open_sessions(&before, &registry, &chains, SESSIONS)?;
    match change {
        Change::Rules => site.write_rules(RULES + 1)?,
        Change::Trust => {
            let other = authority_params("Other CA").self_signed(&KeyPair::generate()?)?;
            std::fs::write(site.path("clients.pem"), [site.root.pem(), other.pem()].concat())?
        }
        Change::Renewal => {
            let renewed = authority_params("Clients CA").self_signed(site.root.key())?;
            std::fs::write(site.path("clients.pem"), renewed.pem())?
        }
        Change::NewKey => {
            let other = CertifiedIssuer::self_signed(authority_params("Clients CA"), KeyPair::generate()?)?;
            std::fs::write(site.path("clients.pem"), other.pem())?;
            site.write_list_of(&other, 1, &[])?
        }
        Change::List(by) => site.write_list(by, 2, &[])?,
        Change::Revocation(by) => {
            let of_intermediate = site.between.der().clone();
            let issued = chains.iter().filter_map(|chain| chain.first()).chain([&of_intermediate]);
            site.write_list(by, 2, &issued.collect::<Vec<_>>())?
        }
    }
    let after = site.snapshot(Some(&before))?;

    let (idle, ()) = waits(&registry, || thread::sleep(Duration::from_millis(300)));
    let began = Instant::now();
    let (busy, ()) = waits(&registry, || enforce(&after, &registry));
    let judged = began.elapsed().as_secs_f64() * 1e3;
    let ended = sessions.iter().filter(|guard| is_terminated(guard)).count();
    let expected = if matches!(change, Change::Revocation(_) | Change::NewKey) { SESSIONS } else { 0 };
    if ended == expected { Ok(Round { judged, busy, idle }) } else { Err(format!("{change:?}: {ended} ended").into()) }
}

fn is_terminated(guard: &ConnectionGuard) -> bool {
    pin!(guard.terminated()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// Opens `count` sessions, which share the given chains.
fn open_sessions(
    snapshot: &Snapshot,
    registry: &Arc<ConnectionRegistry>,
    chains: &[Vec<CertificateDer<'static>>],
    count: usize,
) -> Result<Vec<ConnectionGuard>, Failure> {
    let now = OffsetDateTime::now_utc();
    let session = |(number, chain): (usize, &Vec<CertificateDer<'static>>)| {
        let client = ClientAddr::from_ip(address(number % RULES));
        let presented = PresentedIdentity::Chain(chain);
        let permit =
            snapshot.authorize("db", client.into(), presented, now).map_err(|refusal| format!("{refusal:?}"))?;
        let guard = registry.enter("db".into(), client);
        guard.activate(Authorization::on(&permit, None));
        Ok(guard)
    };
    chains.iter().cycle().take(count).enumerate().map(session).collect()
}

/// Does some work while another thread, like a worker, wakes every millisecond and registers a connection. Returns the maximum
/// delay of that thread in milliseconds.
fn waits<T>(registry: &Arc<ConnectionRegistry>, work: impl FnOnce() -> T) -> (f64, T) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut worst = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(TICK);
                drop(registry.enter("db".into(), ClientAddr::new(SocketAddr::new(address(0), 1))));
                worst = worst.max(began.elapsed().saturating_sub(TICK));
            }
            worst
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        (worker.join().map_or(f64::NAN, |worst| worst.as_secs_f64() * 1e3), done)
    })
}

/// A directory with the files of a configuration.
struct Site {
    directory: TempDir,
    root: CertifiedIssuer<'static, KeyPair>,
    between: CertifiedIssuer<'static, KeyPair>,
}

impl Site {
    fn new() -> Result<Self, Failure> {
        let root = CertifiedIssuer::self_signed(authority_params("Clients CA"), KeyPair::generate()?)?;
        let between = CertifiedIssuer::signed_by(authority_params("Team CA"), KeyPair::generate()?, &root)?;
        let site = Self { directory: tempfile::tempdir()?, root, between };
        let key = KeyPair::generate()?;
        let server = CertificateParams::new(["localhost".to_owned()])?.signed_by(&key, &site.root)?;
        std::fs::write(site.path("server.crt"), server.pem())?;
        std::fs::write(site.path("server.key"), key.serialize_pem())?;
        std::fs::write(site.path("clients.pem"), site.root.pem())?;
        std::fs::write(site.path("portcullis.toml"), CONFIG)?;
        site.write_rules(RULES)?;
        Ok(site)
    }

    /// Writes a revocation list with this number.
    fn write_list(&self, by: By, number: u64, revoked: &[&CertificateDer<'static>]) -> Result<(), Failure> {
        self.write_list_of(self.authority(by), number, revoked)
    }

    fn write_list_of(
        &self,
        issuer: &CertifiedIssuer<'static, KeyPair>,
        number: u64,
        revoked: &[&CertificateDer<'static>],
    ) -> Result<(), Failure> {
        let now = OffsetDateTime::now_utc();
        let revoked = revoked.iter().map(|der| {
            let (_, certificate) = X509Certificate::from_der(der)?;
            let serial_number = SerialNumber::from_slice(certificate.raw_serial());
            Ok(RevokedCertParams { serial_number, revocation_time: now, reason_code: None, invalidity_date: None })
        });
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: now + time::Duration::DAY,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect::<Result<_, Failure>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(std::fs::write(self.path("clients.crl"), list.signed_by(issuer)?.pem()?)?)
    }

    fn authority(&self, by: By) -> &CertifiedIssuer<'static, KeyPair> {
        match by {
            By::Root => &self.root,
            By::Between => &self.between,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        let directory: &Path = self.directory.path();
        directory.join(name)
    }

    /// The chain of a new client, leaf first.
    fn client(&self, issuer: By) -> Result<Vec<CertificateDer<'static>>, Failure> {
        let params = CertificateParams::new(Vec::new())?;
        let leaf = params.signed_by(&KeyPair::generate()?, self.authority(issuer))?.der().clone();
        Ok(match issuer {
            By::Root => vec![leaf],
            By::Between => vec![leaf, self.between.der().clone()],
        })
    }

    fn write_rules(&self, count: usize) -> Result<(), Failure> {
        let mut text = String::new();
        for number in 0..count {
            writeln!(text, "[[rule]]\ntype = \"ip_addr\"\nvalue = \"{}\"", address(number))?;
        }
        Ok(std::fs::write(self.path("sources.toml"), text)?)
    }

    fn snapshot(&self, previous: Option<&Snapshot>) -> Result<Snapshot, Failure> {
        let (built, _) =
            portcullis::internals::build_policy(&self.path("portcullis.toml"), previous, &ResolutionCache::default());
        Ok(built.map_err(|problems| problems.to_string())?.snapshot)
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A different address for each number.
fn address(number: usize) -> IpAddr {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    IpAddr::V4((0x0a00_0000 | number).into())
}

const CONFIG: &str = r#"
[[listener]]
name = "db"
protocol = "tcp"
listen = "127.0.0.1:0"
upstream = "127.0.0.1:1"
sources_file = "sources.toml"
tls.certificates = [{ cert = "server.crt", key = "server.key" }]
tls.client_auth = "required"
tls.client_ca = "clients.pem"
tls.client_crl = "clients.crl"
"#;

const SESSIONS: usize = 10_000;
/// Sessions of the client with many chains.
const PARKED: usize = 400;
/// Number of names, and of name constraints.
const SUBTREES: usize = 40;
const RULES: usize = 100_000;
const ROUNDS: usize = 5;
const TICK: Duration = Duration::from_millis(1);
