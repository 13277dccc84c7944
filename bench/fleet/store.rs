//! An etcd with one member, and what it has done.

use std::fmt;
use std::net::TcpListener;
use std::ops::{Add, Mul, Sub};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use etcd_client::Client;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::fault::{Context as _, Result};
use crate::process::{Running, need};

/// The name of the fleet.
pub(crate) const FLEET: &str = "bench";

#[derive(Debug)]
pub(crate) struct Store {
    port: u16,
    process: Running,
}

/// What the store did in a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) time: Duration,
    pub(crate) work: Work,
}

/// What the store did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// Messages from its clients.
    requests: f64,
    /// To and from its clients, without the headers of gRPC.
    bytes: f64,
    /// CPU time in seconds.
    cpu: f64,
}

/// Values of a real fleet.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// What a member says about itself.
    pub(crate) state: String,
    /// Who has the name of a member.
    pub(crate) alive: String,
    /// The rules of the listener.
    pub(crate) manifest: String,
}

impl Store {
    pub(crate) async fn start(directory: &Path) -> Result<Self> {
        let [port, peer] = [free_port()?, free_port()?];
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(need("etcd")?);
        command.arg("--data-dir").arg(directory.join("etcd"));
        command.args(["--listen-client-urls", &url(port), "--advertise-client-urls", &url(port)]);
        command.args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)]);
        command.args(["--initial-cluster", &format!("default={}", url(peer))]);
        let process = Running::start(command, &directory.join("etcd.log"))?.stop_signal(Signal::SIGKILL);
        let mut store = Self { port, process };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !store.get("/health").await.is_ok_and(|answer| answer.contains("true")) {
            store.process.check_alive()?;
            if Instant::now() > deadline {
                return Err(format!("etcd does not answer; end of its log: {}", store.process.log_tail()).into());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(store)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        Client::connect([self.url()], None).await.context(|| "cannot connect to etcd".to_owned())
    }

    /// Runs something. Returns its result, and what the store did meanwhile.
    pub(crate) async fn usage_during<T>(&self, work: impl AsyncFnOnce() -> Result<T>) -> Result<(T, Usage)> {
        let messages = self.messages().await?;
        let (started, cpu) = (Instant::now(), self.process.tree().cpu()?);
        let result = work().await?;
        let (time, cpu) = (started.elapsed(), self.process.tree().cpu()?.saturating_sub(cpu));
        let messages = self.messages().await? - messages;
        Ok((result, Usage { time, work: Work { cpu: cpu.as_secs_f64(), ..messages } }))
    }

    /// Messages and bytes since the start.
    async fn messages(&self) -> Result<Work> {
        let metrics = self.get("/metrics").await?;
        let sum = |name: &str| -> f64 {
            let series = metrics.lines().filter(|line| line.starts_with(name));
            series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        let bytes = ["sent", "received"].map(|way| sum(&format!("etcd_network_client_grpc_{way}_bytes_total ")));
        Ok(Work { requests: sum("grpc_server_msg_received_total{"), bytes: bytes.iter().sum(), cpu: 0.0 })
    }

    async fn get(&self, path: &str) -> Result<String> {
        let exchange = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        timeout(Duration::from_secs(10), exchange).await?
    }

    /// Values that a real fleet has written.
    pub(crate) async fn sample(&self) -> Result<Sample> {
        let mut kv = self.client().await?.kv_client();
        let mut value = async |key: &str| -> Result<String> {
            let key = format!("/portcullis/{FLEET}/{key}");
            let answer = kv.get(key.clone(), None).await?;
            let found = answer.kvs().first().ok_or_else(|| format!("the store has no key {key}"))?;
            Ok(found.value_str()?.to_owned())
        };
        Ok(Sample {
            state: value("members/m0").await?,
            alive: value("alive/m0").await?,
            manifest: value("shared/rules/cache").await?,
        })
    }
}

impl Usage {
    /// What the store did per second.
    pub(crate) fn rate(&self) -> Work {
        self.work * self.time.as_secs_f64().recip()
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { requests: self.requests + other.requests, bytes: self.bytes + other.bytes, cpu: self.cpu + other.cpu }
    }
}

impl Sub for Work {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + other * -1.0
    }
}

impl Mul<f64> for Work {
    type Output = Self;

    fn mul(self, times: f64) -> Self {
        Self { requests: self.requests * times, bytes: self.bytes * times, cpu: self.cpu * times }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, bytes, cpu } = self;
        write!(f, "{requests:.1} requests, {:.1} kB, {:.1} ms of CPU", bytes / 1e3, cpu * 1e3)
    }
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context(|| "no free port".to_owned())?.local_addr()?.port())
}
