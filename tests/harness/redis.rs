//! A Redis server for one test.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::program::{self, Running};
use super::{Leaf, TestDir};

const READY: &str = "Ready to accept connections";

/// The option with which a server with TLS requires no client certificate.
pub(crate) const ANY_CLIENT: &[&str] = &["--tls-auth-clients", "no"];

/// A `redis-server` on a free port of 127.0.0.1 and on a Unix socket, with nothing written to disk.
#[derive(Debug)]
pub(crate) struct Redis {
    process: Option<Running>,
    directory: TempDir,
    port: u16,
    /// The options for its port.
    options: Vec<String>,
}

impl Redis {
    pub(crate) fn start() -> Self {
        Self::start_with(tempfile::tempdir().expect("a temporary directory can be made"), &["--port"])
    }

    /// One that accepts only TLS, presents `own`, verifies clients by the CA of the directory, and has these options
    /// besides.
    pub(crate) fn with_tls(site: &TestDir, own: &Leaf, options: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        install(&directory, "first", own, &site.ca.pem());
        let files =
            ["--tls-cert-file", "first.crt", "--tls-key-file", "first.key", "--tls-ca-cert-file", "first-ca.crt"];
        Self::start_with(directory, &[&["--port", "0"], &files[..], options, &["--tls-port"]].concat())
    }

    fn start_with(directory: TempDir, options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let (process, port) = program::serve(READY, |port| server(&directory, port, &options));
        Self { process: Some(process), directory, port, options }
    }

    /// Presents another certificate from now on, and verifies clients by these CAs.
    pub(crate) fn use_certificate(&self, own: &Leaf, clients: &str) {
        install(&self.directory, "next", own, clients);
        let settings = ["tls-cert-file", "next.crt", "tls-key-file", "next.key", "tls-ca-cert-file", "next-ca.crt"];
        let output = program::run(self.cli().args(["CONFIG", "SET"]).args(settings)).success();
        assert_eq!(output, "OK\n");
    }

    /// With further options.
    pub(crate) fn with(options: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        Self::start_with(directory, &[options, &["--port"]].concat())
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

    /// Kills it, and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again, empty, on the same port.
    pub(crate) fn start_again(&mut self) {
        let again = program::serve_on(self.port, READY, |port| server(&self.directory, port, &self.options));
        self.process = Some(again.expect("nobody else took the port"));
    }

    /// A command with the connection options of this server, without TLS and not through Portcullis.
    pub(crate) fn cli(&self) -> Command {
        let mut command = program::command("redis-cli");
        command.arg("-s").arg(self.socket());
        command
    }
}

/// Writes a certificate, its key, and the CAs of clients into the directory of the server.
fn install(directory: &TempDir, name: &str, own: &Leaf, clients: &str) {
    let files = [(".crt", own.pem()), (".key", own.key_pem()), ("-ca.crt", clients.to_owned())];
    for (ending, text) in files {
        let path = directory.path().join(format!("{name}{ending}"));
        fs::write(path, text).expect("a file of the test can be written");
    }
}

/// Redis uses the last one of a repeated option. The very last option gets the port.
fn server(directory: &TempDir, port: u16, options: &[String]) -> Command {
    let mut command = program::command("redis-server");
    command.current_dir(directory.path()).args(["--bind", "127.0.0.1", "--save", ""]);
    command.args(["--unixsocket", "redis.sock", "--dir"]).arg(directory.path());
    command.args(options).arg(port.to_string());
    command
}

impl Display for Redis {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "127.0.0.1:{}", self.port)
    }
}
