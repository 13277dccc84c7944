//! Load on a listener for as long as a test needs it, however fast the machine is.

use std::io;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use super::program::Running;

/// The options of a pgbench that outlasts every test.
pub(crate) const UNTIL_STOPPED: [&str; 2] = ["-T", "3600"];

/// A program that runs until it is stopped, and reports on standard error or ends if a client fails.
#[derive(Debug)]
pub(crate) struct Load {
    running: Running,
    /// What it reports. Read while it runs, or a full pipe would stop it.
    errors: JoinHandle<String>,
}

impl Load {
    pub(crate) fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut running = Running::start(command);
        let stderr = running.0.stderr.take().expect("stderr is piped");
        let errors = thread::spawn(move || io::read_to_string(stderr).expect("it can be read"));
        Self { running, errors }
    }

    /// Stops it, and checks that no client has failed. It closes connections that are being set up, which Portcullis logs
    /// as denied.
    pub(crate) fn stop_without_error(self) {
        let Self { mut running, errors } = self;
        assert!(running.0.try_wait().expect("a child can be waited for").is_none(), "the load ended early");
        running.signal("INT");
        running.exit_code();
        let errors = errors.join().expect("the reader does not panic");
        assert!(!errors.to_lowercase().contains("error") && !errors.contains("aborted"), "{errors}");
    }
}
