//! The upstreams of the targets: two Redis, one of them for background load, and a PostgreSQL.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};
use tokio::time::{sleep, timeout};

use crate::client::{Endpoint, Exchange, Session};
use crate::fault::{Context, Result};
use crate::process::{Placement, Running, need};

/// Size of the values of the bulk rows in bytes.
pub(crate) const BULK: usize = 1 << 20;
/// Size of the values of the small rows in bytes.
pub(crate) const SMALL: usize = 50;
/// The time for a program to start.
const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Redis {
    pub(crate) port: u16,
    _process: Running,
}

impl Redis {
    pub(crate) async fn start(name: &str, directory: &Path, placement: Placement, files: u64) -> Result<Self> {
        let port = free_port()?;
        let clients = files.saturating_sub(64).to_string();
        let mut command = placement.command(&need("redis-server")?);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.args(["--maxclients", &clients, "--tcp-backlog", "4096"]).arg("--dir").arg(directory);
        let mut process = Running::start(command, &directory.join(format!("{name}.log")))?;
        let endpoint = Endpoint { address: local(port), tls: None };
        ready(name, &mut process, || ping(endpoint.clone())).await?;
        fill(&endpoint).await.context(|| format!("{name}: cannot store the values"))?;
        Ok(Self { port, _process: process })
    }
}

/// Stores the values that clients read.
async fn fill(endpoint: &Endpoint) -> Result<()> {
    let (mut session, mut buffer) = (Session::open(endpoint).await?, vec![0; 1024]);
    for (key, size) in [("bulk", BULK), ("small", SMALL)] {
        session.exchange(&Exchange::set(key, &value(size)), &mut buffer).await?;
    }
    session.close().await
}

pub(crate) async fn ping(endpoint: Endpoint) -> Result<()> {
    let mut session = Session::open(&endpoint).await?;
    session.exchange(&Exchange::ping(), &mut [0; 64]).await?;
    session.close().await
}

/// Pseudo-random bytes, the same in every run, so that a swapped block is detected.
pub(crate) fn value(size: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..size).map(|_| next()).collect()
}

#[derive(Debug)]
pub(crate) struct Postgres {
    pub(crate) port: u16,
    _process: Running,
}

/// The user of the database.
pub(crate) const USER: &str = "app";
pub(crate) const DATABASE: &str = "postgres";

impl Postgres {
    pub(crate) async fn start(directory: &Path, core: usize) -> Result<Self> {
        let home = directory.join("postgres");
        fs::create_dir(&home).context(|| format!("cannot make {}", home.display()))?;
        own(&home)?;
        let data = home.join("data");
        let placement = Placement { as_postgres: true, ..Placement::on(core) };
        let mut init = placement.command(&need("initdb")?);
        init.current_dir("/").args(["-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]);
        run(init.arg(&data))?;
        let port = free_port()?;
        let mut command = placement.command(&need("postgres")?);
        command.current_dir("/").arg("-D").arg(&data).arg("-k").arg(&home).args(["-p", &port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "fsync=off", "autovacuum=off", "max_connections=200"] {
            command.args(["-c", setting]);
        }
        let mut process = Running::start(command, &directory.join("postgres.log"))?.stop_signal(Signal::SIGQUIT);
        let init = pgbench(core, port)?;
        ready("postgres", &mut process, || async { run(&mut fill_pgbench(&init)) }).await?;
        Ok(Self { port, _process: process })
    }
}

fn fill_pgbench(program: &Pgbench) -> Command {
    let mut command = program.command("sslmode=disable");
    command.args(["--initialize", "--quiet", "--scale=1"]);
    command
}

/// pgbench towards a port.
#[derive(Debug, Clone)]
pub(crate) struct Pgbench {
    program: std::path::PathBuf,
    core: usize,
    port: u16,
}

pub(crate) fn pgbench(core: usize, port: u16) -> Result<Pgbench> {
    Ok(Pgbench { program: need("pgbench")?, core, port })
}

impl Pgbench {
    /// A command without the PG* variables of the user.
    pub(crate) fn command(&self, tls: &str) -> Command {
        let mut command = Placement::on(self.core).command(&self.program);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        let target =
            format!("host=localhost hostaddr=127.0.0.1 port={} user={USER} dbname={DATABASE} {tls}", self.port);
        // pgbench accepts a connection string only as the database name.
        command.env("HOME", "/nonexistent").arg(target);
        command
    }
}

/// Runs a command until it ends.
fn run(command: &mut Command) -> Result<()> {
    let output = command.output().context(|| format!("cannot start {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// Repeats an attempt until it succeeds, while the process is alive.
pub(crate) async fn ready<F>(name: &str, process: &mut Running, attempt: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let begun = Instant::now();
    loop {
        process.check_alive().context(|| name.to_owned())?;
        let reason = match timeout(Duration::from_secs(5), attempt()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => "no answer within 5 s".into(),
        };
        if begun.elapsed() > TIMEOUT {
            let log = process.log_tail();
            return Err(format!("{name}: not ready in {TIMEOUT:?}: {reason}; end of its log: {log}").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Changes the owner of a directory to the user that PostgreSQL and PgBouncer run as if root starts them.
pub(crate) fn own(path: &Path) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let user =
        User::from_name("postgres")?.ok_or("the user postgres does not exist; create it, or do not run as root")?;
    chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
        .context(|| format!("cannot give {} to postgres", path.display()))
}

pub(crate) fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A free port below the ephemeral range, whose ports thousands of client connections use.
pub(crate) fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    if NEXT.load(Ordering::Relaxed) == 0 {
        NEXT.store(20_000 + u16::try_from(std::process::id() % 8_000)?, Ordering::Relaxed);
    }
    (0..4_000)
        .map(|_| NEXT.fetch_add(1, Ordering::Relaxed))
        .find(|port| TcpListener::bind(local(*port)).is_ok())
        .ok_or_else(|| "no free port between 20000 and 32000".into())
}
