//! Drivers of PostgreSQL in Python and JavaScript.

use std::cell::Cell;
use std::io::Write as _;
use std::process::{ChildStdin, Stdio};

use serde_json::{Value, json};

use super::log::Log;
use super::packages::Packages;
use super::program::Running;
use super::{Portcullis, TestDir};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// With libpq.
    Psycopg,
    Asyncpg,
    NodePostgres,
}

/// A program that runs commands with a driver. tests/clients/database.py states their form, and that of results.
#[derive(Debug)]
pub(crate) struct DatabaseClient {
    _process: Running,
    commands: ChildStdin,
    results: Log,
    sent: Cell<usize>,
}

impl Driver {
    pub(crate) const ALL: [Self; 3] = [Self::Psycopg, Self::Asyncpg, Self::NodePostgres];

    /// A program that connects to the listener `main` with these options, such as `{"binding": "require"}`.
    pub(crate) fn start(self, portcullis: &Portcullis, options: &Value) -> DatabaseClient {
        let (packages, site) = (Packages::installed(), &portcullis.site);
        let (mut command, name) = match self {
            Self::Psycopg => (packages.python_script("database.py"), "psycopg"),
            Self::Asyncpg => (packages.python_script("database.py"), "asyncpg"),
            Self::NodePostgres => (packages.node_script("database.mjs", site), "pg"),
        };
        let mut server = json!({ "port": portcullis.address("main").port(), "ca": site.path("ca.crt") });
        let options = options.as_object().expect("options are an object").clone();
        server.as_object_mut().expect("it is an object").extend(options);
        command.arg(name).arg(server.to_string()).env("HOME", "/nonexistent");
        let mut process = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let commands = process.0.stdin.take().expect("stdin is piped");
        let results = Log::of(process.0.stdout.take().expect("stdout is piped"));
        DatabaseClient { _process: process, commands, results, sent: Cell::new(0) }
    }

    /// The options for a client certificate in `NAME.crt` and `NAME.key`.
    pub(crate) fn certificate(site: &TestDir, name: &str) -> Value {
        json!({ "cert": site.path(&format!("{name}.crt")), "key": site.path(&format!("{name}.key")) })
    }
}

impl DatabaseClient {
    /// Performs one command.
    pub(crate) fn perform(&self, command: &Value) -> Value {
        let number = self.sent.replace(self.sent.get() + 1);
        writeln!(&self.commands, "{command}").expect("the program reads its commands");
        self.results.after(number, &format!("the result of {command}"), |_| true).0
    }
}
