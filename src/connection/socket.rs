//! What every TCP socket of this program is told: send small writes at once, and notice when the other side is dead.

use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Sets TCP_NODELAY, keepalive and TCP_USER_TIMEOUT.
///
/// # Errors
/// The kernel's, for example when the other side is gone already.
pub fn keep_alive(socket: &impl AsFd) -> std::io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let probes = TcpKeepalive::new().with_time(IDLE).with_interval(INTERVAL).with_retries(RETRIES);
    socket.set_tcp_keepalive(&probes)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}

/// Silence after which a peer is asked whether it is still there. Below the five minutes after which cloud load balancers
/// and NAT gateways commonly forget a connection.
const IDLE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_secs(15);
/// With the two above a dead peer is noticed after two minutes.
const RETRIES: u32 = 4;

/// Longest time sent bytes may go unacknowledged. The kernel counts a peer that is alive but does not read (zero window)
/// here too, so this must be longer than a client may pause in the middle of a result.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(900);
