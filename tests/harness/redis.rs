//! A private Redis.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::program::{self, Running};

const READY: &str = "Ready to accept connections";

/// A `redis-server` on a free port of 127.0.0.1 and on a Unix socket, with nothing written to disk.
#[derive(Debug)]
pub(crate) struct Redis {
    process: Option<Running>,
    directory: TempDir,
    port: u16,
}

impl Redis {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let (process, port) = program::serve(READY, |port| server(&directory, port));
        Self { process: Some(process), directory, port }
    }

    /// With more of its options.
    pub(crate) fn with(options: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let (process, port) = program::serve(READY, |port| {
            let mut command = server(&directory, port);
            command.args(options);
            command
        });
        Self { process: Some(process), directory, port }
    }

    /// Sends a signal by its name (`STOP`, `CONT`).
    pub(crate) fn signal(&self, name: &str) {
        self.process.as_ref().expect("it runs").signal(name);
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    /// Kills it, and returns when it is gone.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again, empty, where it was.
    pub(crate) fn start_again(&mut self) {
        let again = program::serve_on(self.port, READY, |port| server(&self.directory, port));
        self.process = Some(again.expect("nobody else took the port"));
    }

    /// A command with the connection options of this server, without TLS and past Portcullis.
    pub(crate) fn cli(&self) -> Command {
        let mut command = program::command("redis-cli");
        command.arg("-s").arg(self.socket());
        command
    }
}

fn server(directory: &TempDir, port: u16) -> Command {
    let mut command = program::command("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.args(["--unixsocket", "redis.sock", "--dir"]).arg(directory.path());
    command
}

impl Display for Redis {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "127.0.0.1:{}", self.port)
    }
}
