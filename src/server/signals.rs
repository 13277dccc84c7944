//! The signals this process listens to.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGHUP, SIGTERM and SIGINT as streams.
#[derive(Debug)]
pub(crate) struct Signals {
    /// "Read everything again."
    pub reload: Signal,
    /// "Stop", SIGTERM or SIGINT.
    pub stop: Stop,
}

/// SIGTERM, or SIGINT from a terminal.
#[derive(Debug)]
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from their default actions.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            reload: signal(SignalKind::hangup())?,
            stop: Stop { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? },
        })
    }
}

#[cfg(test)]
impl Signals {
    /// Signals that nobody sends, so that a test stays as easy to interrupt as it was.
    pub(crate) fn unsent() -> io::Result<Self> {
        let unsent = || signal(SignalKind::user_defined2());
        Ok(Self { reload: unsent()?, stop: Stop { terminate: unsent()?, interrupt: unsent()? } })
    }
}

impl Stop {
    /// Returns at the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
