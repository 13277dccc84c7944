//! What `[listener.credentials]` costs: CPU time of Portcullis for each command and each connection of Redis clients, with and
//! without it, in one run. `cargo bench --bench credentials` runs it; docs/PERFORMANCE.md has the results.
//!
//! Without credentials the clients send their password to Redis. With them Portcullis checks it and uses its own.

#[path = "peers/account.rs"]
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod account;
#[path = "peers/fault.rs"]
mod fault;
#[path = "peers/pki.rs"]
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod pki;
#[path = "peers/process.rs"]
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod process;

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;

use fault::{Context as _, Result};
use pki::Pki;
use process::{Placement, Running, need};

/// What is measured.
#[derive(Debug, Parser)]
struct Options {
    /// Samples of each work and listener
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Commands in a sample
    #[arg(long, default_value_t = 200_000)]
    commands: usize,
    /// Connections in a sample
    #[arg(long, default_value_t = 2_000)]
    connections: usize,
    /// Clients whose first connection is measured
    #[arg(long, default_value_t = 100)]
    clients: usize,
    /// The program
    #[arg(long, default_value = env!("CARGO_BIN_EXE_portcullis"))]
    binary: PathBuf,
    /// Given by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("credentials: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let site = Site::start(options)?;
    let load = |pipeline: usize, requests: usize| {
        ["-c", "50", "-n", &requests.to_string(), "-P", &pipeline.to_string()].map(str::to_owned).to_vec()
    };
    let fresh = ["-c", "10", "-k", "0", "-n", &options.connections.to_string()].map(str::to_owned).to_vec();
    println!("CPU time of Portcullis, median of {} samples (lowest to highest):\n", options.rounds);
    for (name, unit, arguments, amount) in [
        ("GET, one at a time", "command", load(1, options.commands), options.commands),
        ("GET, 16 at a time", "command", load(16, 4 * options.commands), 4 * options.commands),
        ("connection with one GET", "connection", fresh, options.connections),
    ] {
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            for (port, samples) in [(site.plain, &mut without), (site.gate, &mut with)] {
                samples.push(site.cpu_of(amount, || site.benchmark(port, "app", &arguments))?);
            }
        }
        let (without, with) = (Figure::of(without), Figure::of(with));
        let more = (with.median / without.median - 1.0) * 100.0;
        println!("{name}: {without} without credentials, {with} with, a {unit} ({more:+.1} %)");
    }
    let once = ["-c", "1", "-n", "1"].map(str::to_owned).to_vec();
    let connect = |number: usize| site.benchmark(site.gate, &format!("u{number}"), &once);
    for name in ["first connection of a client", "second connection of the client"] {
        let samples = (0..options.clients).map(|number| site.cpu_of(1, || connect(number))).collect::<Result<_>>()?;
        println!("{name}: {}", Figure::of(samples));
    }
    Ok(())
}

/// Microseconds.
struct Figure {
    lowest: f64,
    median: f64,
    highest: f64,
}

impl Figure {
    fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |index: usize| samples.get(index).copied().unwrap_or(f64::NAN);
        Self { lowest: at(0), median: at(samples.len() / 2), highest: at(samples.len().saturating_sub(1)) }
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} µs ({:.2} to {:.2})", self.median, self.lowest, self.highest)
    }
}

/// Redis, and Portcullis with two listeners in front of it.
struct Site {
    portcullis: Running,
    _redis: Running,
    _directory: tempfile::TempDir,
    pki: Pki,
    plain: u16,
    gate: u16,
}

impl Site {
    fn start(options: &Options) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path();
        let pki = Pki::make(path)?;
        let [upstream, plain, gate] = free_ports()?;
        let password = format!(">{PASSWORD}");
        let mut redis = Placement::on(1).command(&need("redis-server")?);
        redis.current_dir(path).args(["--port", &upstream.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        redis.args(["--requirepass", DATABASE_PASSWORD, "--user", "app", "on", &password, "~*", "&*", "+@all"]);
        let redis = Running::start(redis, &path.join("redis.log"))?;
        add_clients(options, path)?;
        let password_file = path.join("db.password");
        fs::write(&password_file, DATABASE_PASSWORD)?;
        fs::set_permissions(&password_file, Permissions::from_mode(0o600))?;
        let (cert, key) = (pki.ecdsa.cert.display(), pki.ecdsa.key.display());
        let listener = |name: &str, port: u16| {
            format!(
                "[[listener]]\nname = \"{name}\"\nprotocol = \"redis\"\nlisten = \"127.0.0.1:{port}\"\n\
                 upstream = \"127.0.0.1:{upstream}\"\ntrusted_sources = [\"127.0.0.1\"]\n\
                 tls.certificates = [{{ cert = \"{cert}\", key = \"{key}\" }}]\n"
            )
        };
        let credentials =
            "[listener.credentials]\nclients_file = \"clients.toml\"\nupstream_password_file = \"db.password\"\n";
        let config = path.join("portcullis.toml");
        fs::write(&config, format!("{}{}{credentials}", listener("plain", plain), listener("gate", gate)))?;
        let mut portcullis = Placement::on(0).command(&options.binary);
        portcullis.arg("run").arg("-c").arg(&config);
        let portcullis = Running::start(portcullis, &path.join("portcullis.log"))?;
        let mut site = Self { portcullis, _redis: redis, _directory: directory, pki, plain, gate };
        for port in [upstream, plain, gate] {
            site.wait_for(port)?;
        }
        Ok(site)
    }

    fn wait_for(&mut self, port: u16) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            self.portcullis.check_alive()?;
            if Instant::now() > deadline {
                return Err(format!("port {port} does not open; {}", self.portcullis.log_tail()).into());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Microseconds of CPU time that Portcullis needs for each unit of a work.
    fn cpu_of(&self, amount: usize, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let tree = self.portcullis.tree();
        let before = tree.cpu()?;
        work()?;
        // The end of the last connections belongs to the sample.
        sleep(Duration::from_millis(20));
        Ok((tree.cpu()? - before).as_secs_f64() * 1e6 / amount as f64)
    }

    /// Runs redis-benchmark, which fails if Redis answers with an error.
    fn benchmark(&self, port: u16, user: &str, arguments: &[String]) -> Result<()> {
        let mut command = Placement::on(1).command(&need("redis-benchmark")?);
        command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "--tls", "--cacert"]).arg(&self.pki.ca);
        command.args(["--user", user, "-a", PASSWORD, "-t", "get", "-q"]).args(arguments);
        let output = command.stdin(Stdio::null()).output().context(|| format!("cannot start {command:?}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() || errors.contains("rror") {
            return Err(format!("redis-benchmark: {errors}").into());
        }
        Ok(())
    }
}

/// The clients `app` and `u0`, `u1` and so on, each with its own salt.
fn add_clients(options: &Options, directory: &Path) -> Result<()> {
    for user in std::iter::once("app".to_owned()).chain((0..options.clients).map(|number| format!("u{number}"))) {
        let mut command = Command::new(&options.binary);
        command.args(["password", "add", &user, "-f"]).arg(directory.join("clients.toml"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(PASSWORD.as_bytes())?;
        }
        if !child.wait()?.success() {
            return Err(format!("{command:?} failed").into());
        }
    }
    Ok(())
}

fn free_ports() -> Result<[u16; 3]> {
    let listeners = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(listeners) {
        *port = listener?.local_addr()?.port();
    }
    Ok(ports)
}

const PASSWORD: &str = "Apples-4-pears";
const DATABASE_PASSWORD: &str = "known-to-portcullis-alone";
