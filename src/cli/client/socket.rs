//! The admin socket of a program on this machine.

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use crate::cli::Failure;
use crate::cli::client::http::BoxedStream;
use crate::config::Config;

/// The path of an admin socket.
#[derive(Debug)]
pub(crate) struct AdminSocket(PathBuf);

impl AdminSocket {
    /// Uses `socket`, or else the socket in the configuration file.
    pub(crate) fn find(socket: Option<&Path>, config: &Path) -> Result<Self, Failure> {
        match socket {
            Some(socket) => Ok(Self(socket.to_owned())),
            None => configured_socket(config).map(Self),
        }
    }

    pub(crate) async fn connect(&self) -> Result<BoxedStream, Failure> {
        match UnixStream::connect(&self.0).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(self.unreachable(&error)),
        }
    }

    /// Explains why the socket cannot be connected to, and how to fix it.
    fn unreachable(&self, error: &io::Error) -> Failure {
        let socket = self.0.display();
        self.failure(match error.kind() {
            io::ErrorKind::NotFound => format!(
                "no running program: there is no such socket. Start one that has [admin] listen = \"unix:{socket}\", \
                 or pass another socket with --socket"
            ),
            io::ErrorKind::ConnectionRefused => {
                "no running program: the one that created this socket has stopped. Start it again".to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "permission denied: only root and the user of the running program may use it; run the command with sudo -u USER".to_owned()
            }
            io::ErrorKind::WouldBlock => "too many requests are pending; try again".to_owned(),
            _ => format!("cannot be connected to: {error}"),
        })
    }

    pub(crate) fn failure(&self, why: impl std::fmt::Display) -> Failure {
        Failure::file(&self.0, why)
    }
}

/// Reads the admin socket from the configuration. Other parts of the file may be invalid.
fn configured_socket(config: &Path) -> Result<PathBuf, Failure> {
    match Config::admin_of(config) {
        Ok(Some(admin)) => admin.socket().map(Path::to_owned).ok_or_else(|| Failure::file(config, NO_SOCKET)),
        Ok(None) => Err(Failure::file(
            config,
            "has no [admin] section, so a program that uses it has no admin socket. Add\n\n    \
             [admin]\n    listen = \"unix:/run/portcullis/admin.sock\"\n\n\
             and reload with SIGHUP, or pass the socket of another program with --socket",
        )),
        Err(problems) => {
            if !config.exists() {
                crate::cli::hint(&crate::cli::missing_configuration(config));
            }
            crate::cli::hint("use --socket PATH or --url URL to reach a running program without a configuration file");
            Err(Failure::Configuration(problems))
        }
    }
}

const NO_SOCKET: &str =
    "has no Unix socket in admin.listen; use --url and a token, or add \"unix:/run/portcullis/admin.sock\"";
