//! nginx, as a proxy behind Portcullis that reads PROXY headers and logs them.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::process::Command;

use tempfile::TempDir;

use super::eventually;
use super::program::{self, Running};

/// A running `nginx` that forwards one port.
#[derive(Debug)]
pub(crate) struct Nginx {
    _process: Running,
    directory: TempDir,
    port: u16,
}

impl Nginx {
    pub(crate) fn before(upstream: impl Display) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        // The last line before it serves.
        let (process, port) = program::serve("getrlimit", |port| server(&directory, port, &upstream));
        Self { _process: process, directory, port }
    }

    /// The first client that a header announced, logged when it closes: address, port, and the address that it connected to.
    pub(crate) fn first_client(&self) -> String {
        eventually("nginx notes a connection", || {
            let log = fs::read_to_string(self.directory.path().join("clients.log")).unwrap_or_default();
            log.split_once('\n').map(|(first, _)| first.to_owned())
        })
    }
}

fn server(directory: &TempDir, port: u16, upstream: &impl Display) -> Command {
    let config = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
         daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr notice;\nevents {{}}\n\
         stream {{\n\
             log_format clients '$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_addr:$proxy_protocol_server_port';\n\
             access_log clients.log clients;\n\
             server {{ listen 127.0.0.1:{port} proxy_protocol; proxy_pass {upstream}; }}\n\
         }}\n"
    );
    fs::write(directory.path().join("nginx.conf"), config).expect("a file of the test can be written");
    let mut command = program::command("nginx");
    command.arg("-p").arg(directory.path()).args(["-c", "nginx.conf", "-e", "stderr"]);
    command
}

impl Display for Nginx {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "127.0.0.1:{}", self.port)
    }
}
