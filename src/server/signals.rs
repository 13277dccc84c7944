//! The signals that the process handles.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGHUP, SIGTERM and SIGINT as streams.
#[derive(Debug)]
pub(crate) struct Signals {
    /// SIGHUP: reload.
    pub reload: Signal,
    /// SIGTERM or SIGINT: drain, then exit.
    pub stop: Stop,
}

#[derive(Debug)]
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs handlers, which replace the default actions of the signals.
    ///
    /// # Errors
    /// If a handler cannot be installed.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            reload: signal(SignalKind::hangup())?,
            stop: Stop { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? },
        })
    }
}

#[cfg(test)]
impl Signals {
    /// Signals that are never sent, so that a test can still be interrupted with SIGINT.
    pub(crate) fn unsent() -> io::Result<Self> {
        let unsent = || signal(SignalKind::user_defined2());
        Ok(Self { reload: unsent()?, stop: Stop { terminate: unsent()?, interrupt: unsent()? } })
    }
}

impl Stop {
    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
