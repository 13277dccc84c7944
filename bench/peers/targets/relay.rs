//! The plain relay: the cost of copying bytes without TLS or an allowlist. It is a part of this program and runs as a separate
//! process.

use std::env;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Abilities, Launch, Program, Setup};
use crate::databases::local;
use crate::fault::{Context, Result};
use crate::route::Route;

/// Size of the buffer of each direction in bytes.
const BUFFER: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct PlainRelay;

impl Program for PlainRelay {
    fn find(&self) -> Option<PathBuf> {
        env::current_exe().ok()
    }

    fn version(&self, _: &Path) -> String {
        "plain relay, one thread, 64 KiB buffers, no TLS".to_owned()
    }

    fn abilities(&self) -> Abilities {
        Abilities { routes: Route::ALL, tls: false, allowlist: false, hybrid: false, many_rules: false }
    }

    fn launch(&self, setup: &Setup<'_>) -> Result<Launch> {
        let pairs = setup.listeners.iter().map(|listener| format!("{}={}", listener.port, listener.upstream));
        let arguments: Vec<String> = ["relay".to_owned()].into_iter().chain(pairs).collect();
        Ok(Launch { configuration: arguments.join(" "), arguments })
    }
}

/// Listens on the first port of each pair and connects to the second.
pub(crate) async fn run(pairs: &[(u16, u16)]) -> Result<()> {
    let mut loops = JoinSet::new();
    for &(port, upstream) in pairs {
        let listener = TcpListener::bind(local(port)).await.context(|| format!("cannot listen on port {port}"))?;
        loops.spawn(accept_loop(listener, upstream));
    }
    while let Some(ended) = loops.join_next().await {
        ended??;
    }
    Ok(())
}

async fn accept_loop(listener: TcpListener, upstream: u16) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted?;
                connections.spawn(connection(client, upstream));
            }
            // The client reports how a connection ended.
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(mut client: TcpStream, upstream: u16) -> Result<()> {
    client.set_nodelay(true)?;
    let mut server = TcpStream::connect(local(upstream)).await?;
    server.set_nodelay(true)?;
    tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await?;
    Ok(())
}
