//! Drivers of Redis in Python and JavaScript.

use std::cell::Cell;
use std::io::Write as _;
use std::process::{ChildStdin, Stdio};

use serde_json::{Value, json};

use super::Portcullis;
use super::log::Log;
use super::packages::Packages;
use super::program::Running;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    RedisPy,
    Ioredis,
}

/// A program that runs commands with a driver. tests/clients/cache.py states their form, and that of results.
#[derive(Debug)]
pub(crate) struct CacheClient {
    _process: Running,
    commands: ChildStdin,
    results: Log,
    sent: Cell<usize>,
}

impl Driver {
    pub(crate) const ALL: [Self; 2] = [Self::RedisPy, Self::Ioredis];

    /// A program that connects to the listener `main` with RESP2 or RESP3, and presents the certificate in `NAME.crt` and
    /// `NAME.key`.
    pub(crate) fn start(self, portcullis: &Portcullis, protocol: u32, certificate: Option<&str>) -> CacheClient {
        let (packages, site) = (Packages::installed(), &portcullis.site);
        let mut command = match self {
            Self::RedisPy => packages.python_script("cache.py"),
            Self::Ioredis => packages.node_script("cache.mjs", site),
        };
        let port = portcullis.address("main").port();
        let mut server = json!({ "port": port, "ca": site.path("ca.crt"), "protocol": protocol });
        if let Some(name) = certificate {
            server["cert"] = json!(site.path(&format!("{name}.crt")));
            server["key"] = json!(site.path(&format!("{name}.key")));
        }
        command.arg(server.to_string());
        let mut process = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let commands = process.0.stdin.take().expect("stdin is piped");
        let results = Log::of(process.0.stdout.take().expect("stdout is piped"));
        CacheClient { _process: process, commands, results, sent: Cell::new(0) }
    }
}

impl CacheClient {
    /// Performs one command.
    pub(crate) fn perform(&self, command: &Value) -> Value {
        let number = self.sent.replace(self.sent.get() + 1);
        writeln!(&self.commands, "{command}").expect("the program reads its commands");
        self.results.after(number, &format!("the result of {command}"), |_| true).0
    }

    /// Performs one command that must succeed.
    pub(crate) fn answer(&self, command: &Value) -> Value {
        let result = self.perform(command);
        result.get("answer").unwrap_or_else(|| panic!("{command}: {result}")).clone()
    }
}
