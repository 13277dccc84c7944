//! Notifications for systemd over the socket in `NOTIFY_SOCKET` (sd_notify(3)). Does nothing if it is not set.

use std::env;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::time::{ClockId, clock_gettime};

use crate::printable;

/// All listeners are bound, or a reload is complete. `systemctl status` shows `status`.
pub(crate) fn ready(status: &str) {
    send(&format!("READY=1\n{}", status_line(status)));
}

/// A reload begins. [`ready`] must follow, whatever the result of the reload is.
pub(crate) fn reloading() {
    // With the time, systemd does not attribute the message to an earlier reload.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    let now = now.map(|now| format!("\nMONOTONIC_USEC={}", now.as_micros())).unwrap_or_default();
    send(&format!("RELOADING=1{now}"));
}

/// The process is draining its sessions.
pub(crate) fn stopping(status: &str) {
    send(&format!("STOPPING=1\n{}", status_line(status)));
}

/// A line break would start another assignment.
fn status_line(status: &str) -> String {
    format!("STATUS={}", printable::field(status.replace('\n', " ")))
}

fn send(state: &str) {
    let Some(name) = env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes().split_first() {
        Some((b'@', rest)) => SocketAddr::from_abstract_name(rest),
        Some(_) | None => SocketAddr::from_pathname(&name),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        let state = state.lines().next().unwrap_or(state);
        tracing::warn!(state, %error, "cannot notify systemd");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_one_bounded_line() {
        let line = status_line(&format!("rejected: a\nREADY=1\r{}", "x".repeat(10_000)));
        assert!(line.starts_with("STATUS=rejected: a READY=1") && !line.contains(['\n', '\r']), "{line}");
        assert!(line.len() < 600, "{}", line.len());
    }
}
