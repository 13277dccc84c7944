//! The client of OpenSSL, which shares no code with rustls.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{ChildStdin, Command, Stdio};

use super::log::Log;
use super::program::{self, Running};
use super::{Event, Portcullis, TestDir};

/// `openssl s_client` that verifies the server and stays until the server closes the connection.
pub(crate) fn s_client(site: &TestDir, address: SocketAddr, options: &[&str]) -> Command {
    let mut command = typed(site, address, options);
    command.arg("-ign_eof");
    command
}

/// The same as at a terminal: a line with a single letter may be a command to the client.
fn typed(site: &TestDir, address: SocketAddr, options: &[&str]) -> Command {
    let mut command = program::command("openssl");
    command.args(["s_client", "-connect", &address.to_string()]);
    command.args(["-verify_return_error", "-CAfile"]).arg(site.path("ca.crt"));
    command.args(options).current_dir(site.directory());
    command
}

/// A running `openssl s_client` with input from the test.
#[derive(Debug)]
pub(crate) struct InteractiveClient {
    _running: Running,
    keyboard: ChildStdin,
    screen: Log,
    errors: Log,
}

impl InteractiveClient {
    pub(crate) fn with(portcullis: &Portcullis, options: &[&str]) -> Self {
        let mut command = typed(&portcullis.site, portcullis.address("main"), options);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running::start(&mut command);
        let keyboard = running.0.stdin.take().expect("stdin is piped");
        let screen = Log::of(running.0.stdout.take().expect("stdout is piped"));
        let errors = Log::of(running.0.stderr.take().expect("stderr is piped"));
        Self { _running: running, keyboard, screen, errors }
    }

    /// Types a line, and waits for `answer` in the output of the server.
    pub(crate) fn ask(&mut self, line: &str, answer: &str) {
        let seen = self.screen.events().len();
        self.enter(line);
        self.screen.after(seen, answer, |line| has(line, answer));
    }

    /// Types a command to the client itself, and waits until its output confirms that.
    pub(crate) fn order(&mut self, letter: &str, word: &str) {
        let seen = self.errors.events().len();
        self.enter(letter);
        self.errors.after(seen, word, |line| has(line, word));
    }

    fn enter(&mut self, line: &str) {
        self.keyboard.write_all(format!("{line}\n").as_bytes()).expect("it listens");
    }
}

/// Not only at the beginning of the line: openssl may have printed half a line already.
fn has(line: &Event, words: &str) -> bool {
    line.0.as_str().is_some_and(|line| line.contains(words))
}

/// Runs any other `openssl` command in the directory.
pub(crate) fn openssl(site: &TestDir, arguments: &[&str]) -> String {
    let mut command = program::command("openssl");
    program::run(command.args(arguments).current_dir(site.directory())).success()
}
