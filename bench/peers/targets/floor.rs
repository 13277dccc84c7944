//! The floor: what moving the bytes costs without TLS, an allowlist or anything else. A relay of this program's own, as a
//! process of its own.

use std::env;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Abilities, Grounds, Launch, Program};
use crate::databases::local;
use crate::door::Door;
use crate::fault::{Context, Result};

/// For each direction of each connection.
const BUFFER: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Floor;

impl Program for Floor {
    fn find(&self) -> Option<PathBuf> {
        env::current_exe().ok()
    }

    fn version(&self, _: &Path) -> String {
        "plain relay, one thread, 64 KiB buffers, no TLS".to_owned()
    }

    fn abilities(&self) -> Abilities {
        Abilities { doors: Door::ALL, tls: false, allowlist: false, hybrid: false, many_rules: false }
    }

    fn launch(&self, grounds: &Grounds<'_>) -> Result<Launch> {
        let pairs = grounds.openings.iter().map(|opening| format!("{}={}", opening.port, opening.upstream));
        let arguments: Vec<String> = ["floor".to_owned()].into_iter().chain(pairs).collect();
        Ok(Launch { configuration: arguments.join(" "), arguments })
    }
}

/// The relay: listens on one port of each pair and connects to the other.
pub(crate) async fn relay(pairs: &[(u16, u16)]) -> Result<()> {
    let mut gates = JoinSet::new();
    for &(port, upstream) in pairs {
        let listener = TcpListener::bind(local(port)).await.context(|| format!("cannot listen on port {port}"))?;
        gates.spawn(gate(listener, upstream));
    }
    while let Some(ended) = gates.join_next().await {
        ended??;
    }
    Ok(())
}

async fn gate(listener: TcpListener, upstream: u16) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted?;
                connections.spawn(connection(client, upstream));
            }
            // How a connection ended is its clients' affair.
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
