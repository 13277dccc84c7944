//! The servers behind the targets: two Redis, one of them for background load, and a PostgreSQL.

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

use crate::client::{Exchange, Session, Way};
use crate::fault::{Context, Result};
use crate::process::{Manner, Running, need};

/// Size of the values of the bulk rows.
pub(crate) const BULK: usize = 1 << 20;
/// Size of the values of the small rows.
pub(crate) const SMALL: usize = 50;
/// How long anything may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Redis {
    pub(crate) port: u16,
    _process: Running,
}

impl Redis {
    pub(crate) async fn start(name: &str, directory: &Path, manner: Manner, files: u64) -> Result<Self> {
        let port = free_port()?;
        let clients = files.saturating_sub(64).to_string();
        let mut command = manner.command(&need("redis-server")?);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.args(["--maxclients", &clients, "--tcp-backlog", "4096"]).arg("--dir").arg(directory);
        let mut process = Running::start(command, &directory.join(format!("{name}.log")))?;
        let way = Way { address: local(port), tls: None };
        ready(name, &mut process, || ping(way.clone())).await?;
        fill(&way).await.context(|| format!("{name}: cannot be filled"))?;
        Ok(Self { port, _process: process })
    }
}

/// Puts the values there that the clients will read.
async fn fill(way: &Way) -> Result<()> {
    let (mut session, mut buffer) = (Session::open(way).await?, vec![0; 1024]);
    for (key, size) in [("bulk", BULK), ("small", SMALL)] {
        session.exchange(&Exchange::set(key, &value(size)), &mut buffer).await?;
    }
    session.close().await
}

pub(crate) async fn ping(way: Way) -> Result<()> {
    let mut session = Session::open(&way).await?;
    session.exchange(&Exchange::ping(), &mut [0; 64]).await?;
    session.close().await
}

/// Bytes without a pattern that a mistake would keep, and the same in every run.
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

/// The user, also of the database.
pub(crate) const USER: &str = "app";
pub(crate) const DATABASE: &str = "postgres";

impl Postgres {
    pub(crate) async fn start(directory: &Path, core: usize) -> Result<Self> {
        let home = directory.join("postgres");
        fs::create_dir(&home).context(|| format!("cannot make {}", home.display()))?;
        own(&home)?;
        let data = home.join("data");
        let manner = Manner { servant: true, ..Manner::on(core) };
        let mut init = manner.command(&need("initdb")?);
        init.current_dir("/").args(["-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]);
        run(init.arg(&data))?;
        let port = free_port()?;
        let mut command = manner.command(&need("postgres")?);
        command.current_dir("/").arg("-D").arg(&data).arg("-k").arg(&home).args(["-p", &port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "fsync=off", "autovacuum=off", "max_connections=200"] {
            command.args(["-c", setting]);
        }
        let mut process = Running::start(command, &directory.join("postgres.log"))?.farewell(Signal::SIGQUIT);
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
    /// A command without what its user has set up for PostgreSQL's clients.
    pub(crate) fn command(&self, tls: &str) -> Command {
        let mut command = Manner::on(self.core).command(&self.program);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        let target =
            format!("host=localhost hostaddr=127.0.0.1 port={} user={USER} dbname={DATABASE} {tls}", self.port);
        // The connection string stands in the name of the database; pgbench has no other place for it.
        command.env("HOME", "/nonexistent").arg(target);
        command
    }
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Result<()> {
    let output = command.output().context(|| format!("cannot start {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// Tries until it works, for as long as the process is there.
pub(crate) async fn ready<F>(name: &str, process: &mut Running, attempt: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let begun = Instant::now();
    loop {
        process.still_there().context(|| name.to_owned())?;
        let reason = match timeout(Duration::from_secs(5), attempt()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => "no answer in 5 s".into(),
        };
        if begun.elapsed() > PATIENCE {
            let words = process.last_words();
            return Err(format!("{name}: not ready in {PATIENCE:?}: {reason}; its last words: {words}").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Gives a directory to the user that PostgreSQL and PgBouncer run as when root starts them.
pub(crate) fn own(path: &Path) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let servant = User::from_name("postgres")?.ok_or("there is no user postgres, who runs PostgreSQL for root")?;
    chown(path, Some(servant.uid.as_raw()), Some(servant.gid.as_raw()))
        .context(|| format!("cannot give {} to postgres", path.display()))
}

pub(crate) fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A port on which nobody listens, below those that the kernel gives to clients: thousands of connections are about to take
/// some of these.
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
