//! Many clients, and an upstream that returns what it receives.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::fault::{Context as _, Result};
use crate::member::{Site, since_1970};
use crate::process::Running;
use crate::tls::Offer;

/// An upstream in another process, because the open files of one are not enough for both ends of all sessions.
#[derive(Debug)]
pub(crate) struct Echo {
    address: SocketAddr,
    _process: Running,
}

impl Echo {
    pub(crate) async fn start(directory: &Path) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(env::current_exe()?).arg("--upstream");
        let log = directory.join("upstream.log");
        let mut process = Running::start(command, &log)?;
        loop {
            if let Some(address) = fs::read_to_string(&log)?.strip_suffix('\n') {
                let address = address.parse().context(|| format!("upstream: {address}"))?;
                return Ok(Self { address, _process: process });
            }
            process.check_alive()?;
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Runs the upstream.
pub(crate) async fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let mut open = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        open.spawn(echo(stream));
        while open.try_join_next().is_some() {}
    }
}

/// Returns the bytes of one connection, until either side ends it.
async fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 64];
    while let Ok(1..) = stream.read(&mut buffer).await {
        if stream.write_all(b"x").await.is_err() {
            return;
        }
    }
}

/// Open sessions.
#[derive(Debug)]
pub(crate) struct Sessions(JoinSet<Result<Duration>>);

impl Sessions {
    /// Waits until all have ended. Returns when the client of each noticed it, since 1970.
    pub(crate) async fn ends(mut self) -> Result<Vec<Duration>> {
        let mut ends = Vec::with_capacity(self.0.len());
        while !self.0.is_empty() {
            let end = timeout(PATIENCE, self.0.join_next()).await;
            let end = end.context(|| format!("{} sessions have not ended within {PATIENCE:?}", self.0.len()))?;
            ends.extend(end.transpose()?.transpose()?);
        }
        Ok(ends)
    }
}

/// Opens sessions at these addresses in turn. Each has exchanged a byte with the upstream.
pub(crate) async fn open(site: &Site, addresses: &[Option<SocketAddr>], count: u32) -> Result<Sessions> {
    let connector = TlsConnector::from(Offer::default().config(&site.pki.ca_der, None)?);
    let limit = Arc::new(Semaphore::new(PARALLEL));
    let (mut opening, mut open) = (JoinSet::new(), JoinSet::new());
    for address in addresses.iter().flatten().cycle().take(usize::try_from(count)?) {
        let (connector, limit, address) = (connector.clone(), Arc::clone(&limit), *address);
        opening.spawn(async move {
            let _permit = limit.acquire_owned().await?;
            connect(&connector, address).await.context(|| format!("a session at {address}"))
        });
    }
    while let Some(session) = opening.join_next().await {
        let session = session??;
        open.spawn(end(session));
    }
    Ok(Sessions(open))
}

async fn connect(connector: &TlsConnector, address: SocketAddr) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let mut session = connector.connect(ServerName::try_from("localhost")?, stream).await?;
    session.write_all(b"x").await?;
    session.read_exact(&mut [0; 1]).await?;
    Ok(session)
}

/// Waits for the end of a session, in whatever form.
async fn end(mut session: TlsStream<TcpStream>) -> Result<Duration> {
    let read = session.read(&mut [0; 1]).await;
    let now = since_1970();
    if let Ok(1..) = read { Err("a session received a byte".into()) } else { Ok(now) }
}

/// Handshakes at a time.
const PARALLEL: usize = 64;

/// How long after the previous one a session may end.
const PATIENCE: Duration = Duration::from_secs(60);
