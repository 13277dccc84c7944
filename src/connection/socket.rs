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

/// Silence after which the other side is asked whether it is still there. Below the five minutes after which cloud load balancers
/// and NAT gateways commonly forget a connection.
const IDLE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_secs(15);
/// Only where there is no TCP_USER_TIMEOUT, which takes the place of the count.
const RETRIES: u32 = 16;

/// How long the other side may leave probes or bytes unacknowledged before it counts as dead. The kernel counts one that is
/// alive but does not read here too, as soon as its window is full; so this is also the longest pause a client can make in
/// the middle of a result, and should not be shorter than somebody looks at a page of it.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn an_accepted_socket_is_kept_alive_as_its_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        keep_alive(&listener).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap() && accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), IDLE);
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), INTERVAL);
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), RETRIES);
        #[cfg(target_os = "linux")]
        assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
    }
}
