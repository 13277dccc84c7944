//! HAProxy, as a load balancer in front of Portcullis or behind it.

use std::fmt::{self, Display, Formatter};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use tempfile::TempDir;

use super::log::Log;
use super::program::{self, Running};
use super::{Client, Event, Portcullis};

/// A running `haproxy` with one address.
#[derive(Debug)]
pub(crate) struct Haproxy {
    address: SocketAddr,
    log: Log,
    _process: Running,
    _directory: TempDir,
}

impl Haproxy {
    /// In front of the listener `main`; `options` are those of its `server` line: `send-proxy`, `source 127.0.0.9`.
    pub(crate) fn before(portcullis: &Portcullis, options: &str) -> Self {
        Self::on("127.0.0.1:0", "", &format!("server main {} {options}", portcullis.address("main")))
    }

    /// At this address, whose `bind` has `options`, with further lines of its section.
    pub(crate) fn on(address: &str, options: &str, lines: &str) -> Self {
        // It inherits its listening socket, so that its port is known and open from the start.
        let listener = TcpListener::bind(address).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let file = directory.path().join("haproxy.cfg");
        let config = format!(
            "global\n    log stderr format raw local0\n    nbthread 1\n    maxconn 200\n\
             defaults\n    mode tcp\n    log global\n    timeout connect 10s\n    timeout client 60s\n    timeout server 60s\n\
             listen main\n    bind fd@0 {options}\n    {lines}\n"
        );
        std::fs::write(&file, config).expect("a file of the test can be written");
        let mut command = program::command("haproxy");
        command.arg("-db").arg("-f").arg(file);
        command.stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Running::start(&mut command);
        let log = Log::of(process.0.stderr.take().expect("stderr is piped"));
        Self { address, log, _process: process, _directory: directory }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the first log line with these words.
    pub(crate) fn line(&self, words: &str) -> String {
        let line = self.log.after(0, words, |line: &Event| line.0.as_str().is_some_and(|line| line.contains(words)));
        line.0.as_str().expect("a line of text").to_owned()
    }

    /// A client that connects here to reach the listener `main`.
    pub(crate) fn client(&self, portcullis: &Portcullis) -> Client {
        portcullis.client().at(self.address)
    }
}

impl Display for Haproxy {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}
