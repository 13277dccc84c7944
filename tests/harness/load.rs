//! Load on a listener for as long as a test needs it, however fast the machine is.

use std::io;
use std::process::{Command, Stdio};

use super::program::Running;

/// The options of a pgbench that outlasts every test.
pub(crate) const UNTIL_STOPPED: [&str; 2] = ["-T", "3600"];

/// A program that runs until it is stopped, and reports on standard error or ends if a client fails.
#[derive(Debug)]
pub(crate) struct Load(Running);

impl Load {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped())))
    }

    /// Stops it, and checks that no client has failed. It closes connections that are being set up, which Portcullis logs
    /// as denied.
    pub(crate) fn stop_without_error(self) {
        let Self(mut running) = self;
        assert!(running.0.try_wait().expect("a child can be waited for").is_none(), "the load ended early");
        running.signal("INT");
        running.exit_code();
        let errors = running.0.stderr.take().map(io::read_to_string).expect("stderr is piped").expect("it can be read");
        assert!(!errors.to_lowercase().contains("error") && !errors.contains("aborted"), "{errors}");
    }
}
