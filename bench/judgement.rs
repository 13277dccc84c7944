//! What it costs to judge every open session anew after a reload, and how long the data path waits meanwhile:
//! `cargo bench --bench judgement`.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use portcullis::addr::ClientAddr;
use portcullis::names::Names;
use portcullis::revocation;
use portcullis::sessions::{Presence, Register};
use portcullis::snapshot::{Reliance, Snapshot};
use portcullis::tls::Evidence;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use time::OffsetDateTime;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    println!("{SESSIONS} sessions, {RULES} rules; median of {ROUNDS} rounds, and the worst");
    println!("{:<58}  {:>14}  {:>22}", "", "judged, ms", "longest wait, ms");
    for (what, certificates, change) in [
        ("one certificate, the rules have changed", 1, Change::Rules),
        ("one certificate, the trust has changed", 1, Change::Trust),
        ("a certificate each, the rules have changed", SESSIONS, Change::Rules),
        ("a certificate each, the trust has changed", SESSIONS, Change::Trust),
        ("a certificate each, the revocation list has changed", SESSIONS, Change::List),
    ] {
        let mut rounds = (0..ROUNDS).map(|_| round(certificates, change)).collect::<Result<Vec<_>, _>>()?;
        rounds.sort_by(|one, other| one.judged.total_cmp(&other.judged));
        let worst = |of: fn(&Round) -> f64| rounds.iter().map(of).fold(0.0, f64::max);
        let median = rounds.get(ROUNDS / 2).map_or(f64::NAN, |round| round.judged);
        let (judged, busy, idle) = (worst(|round| round.judged), worst(|round| round.busy), worst(|round| round.idle));
        println!("{what:<58}  {median:>6.0} {judged:>6.0}  {busy:>6.1} ({idle:.1} idle)");
    }
    Ok(())
}

/// What a reload has changed.
#[derive(Debug, Clone, Copy)]
enum Change {
    /// A rule.
    Rules,
    /// A CA that vouches for nobody here.
    Trust,
    /// A revocation list that takes back nothing of theirs: every chain is verified anew.
    List,
}

/// Milliseconds.
struct Round {
    judged: f64,
    /// The longest wait of a neighbour meanwhile, and before.
    busy: f64,
    idle: f64,
}

fn round(certificates: usize, change: Change) -> Result<Round, Failure> {
    let site = Site::new()?;
    let before = site.snapshot(None)?;
    let register = Arc::new(Register::default());
    let chains = (0..certificates).map(|_| site.client()).collect::<Result<Vec<_>, _>>()?;
    let _present = enter(&before, &register, &chains)?;
    match change {
        Change::Rules => site.write_rules(RULES + 1)?,
        Change::Trust => {
            std::fs::write(site.path("clients.pem"), [site.ca.pem(), authority("Other CA")?.pem()].concat())?
        }
        Change::List => site.write_list(2)?,
    }
    let after = site.snapshot(Some(&before))?;

    let now = OffsetDateTime::now_utc();
    let (idle, ()) = waits(&register, || thread::sleep(Duration::from_millis(300)));
    let began = Instant::now();
    let (busy, ()) = waits(&register, || revocation::enforce(&after, &register, &register.all(), now));
    let judged = began.elapsed().as_secs_f64() * 1e3;
    Ok(Round { judged, busy, idle })
}

/// Opens the sessions, which share the certificates that there are.
fn enter(
    snapshot: &Snapshot,
    register: &Arc<Register>,
    chains: &[CertificateDer<'static>],
) -> Result<Vec<Presence>, Failure> {
    let now = OffsetDateTime::now_utc();
    let session = |(number, chain): (usize, &CertificateDer<'static>)| {
        let client = ClientAddr::from_ip(address(number % RULES));
        let evidence = Evidence::Chain(std::slice::from_ref(chain));
        let permission = snapshot.judge("db", client, evidence, now).map_err(|refusal| format!("{refusal:?}"))?;
        let presence = register.enter("db".into(), client);
        presence.stands(Reliance::on(&permission, None));
        Ok(presence)
    };
    chains.iter().cycle().take(SESSIONS).enumerate().map(session).collect()
}

/// Does some work while another thread, as a worker does, wakes every millisecond and lets a connection come and go.
/// Returns by how many milliseconds it was late at worst.
fn waits<T>(register: &Arc<Register>, work: impl FnOnce() -> T) -> (f64, T) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut worst = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(TICK);
                drop(register.enter("db".into(), ClientAddr::new(SocketAddr::new(address(0), 1))));
                worst = worst.max(began.elapsed().saturating_sub(TICK));
            }
            worst
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        (worker.join().map_or(f64::NAN, |worst| worst.as_secs_f64() * 1e3), done)
    })
}

/// A directory with what a configuration needs.
struct Site {
    directory: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Site {
    fn new() -> Result<Self, Failure> {
        let site = Self { directory: tempfile::tempdir()?, ca: authority("Clients CA")? };
        let key = KeyPair::generate()?;
        let server = CertificateParams::new(["localhost".to_owned()])?.signed_by(&key, &site.ca)?;
        std::fs::write(site.path("server.crt"), server.pem())?;
        std::fs::write(site.path("server.key"), key.serialize_pem())?;
        std::fs::write(site.path("clients.pem"), site.ca.pem())?;
        std::fs::write(site.path("portcullis.toml"), CONFIG)?;
        site.write_rules(RULES)?;
        site.write_list(1)?;
        Ok(site)
    }

    /// A revocation list of this number that takes back nothing.
    fn write_list(&self, number: u64) -> Result<(), Failure> {
        let now = OffsetDateTime::now_utc();
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: now + time::Duration::DAY,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(std::fs::write(self.path("clients.crl"), list.signed_by(&self.ca)?.pem()?)?)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        let directory: &Path = self.directory.path();
        directory.join(name)
    }

    fn client(&self) -> Result<CertificateDer<'static>, Failure> {
        let params = CertificateParams::new(Vec::new())?;
        Ok(params.signed_by(&KeyPair::generate()?, &self.ca)?.der().clone())
    }

    fn write_rules(&self, count: usize) -> Result<(), Failure> {
        let mut text = String::new();
        for number in 0..count {
            writeln!(text, "[[rule]]\ntype = \"ip_addr\"\nvalue = \"{}\"", address(number))?;
        }
        Ok(std::fs::write(self.path("sources.toml"), text)?)
    }

    fn snapshot(&self, previous: Option<&Snapshot>) -> Result<Snapshot, Failure> {
        let (built, _) = portcullis::reload::build(&self.path("portcullis.toml"), previous, &Names::default());
        Ok(built.map_err(|problems| problems.to_string())?.snapshot)
    }
}

fn authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>, Failure> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

/// One address for each number below some millions.
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
const RULES: usize = 100_000;
const ROUNDS: usize = 5;
const TICK: Duration = Duration::from_millis(1);
