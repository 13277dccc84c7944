//! Whether upstreams accept connections: each is dialled once, and the connection is closed without sending a byte.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::addr::UpstreamAddr;
use crate::config::Listener;
use crate::permissions;

/// Returns one warning for each upstream that cannot be reached.
pub(crate) fn warnings(listeners: &[Listener]) -> Vec<String> {
    let of_listener = |listener: &Listener| {
        let addresses = listener.upstream.addresses.clone();
        addresses.into_iter().map(|address| (listener.name.clone(), address)).collect::<Vec<_>>()
    };
    let upstreams: Vec<_> = listeners.iter().flat_map(of_listener).collect();
    let by_text: BTreeMap<String, UpstreamAddr> =
        upstreams.iter().map(|(_, address)| (address.to_string(), address.clone())).collect();
    let found = dial_all(by_text);
    let warning = |(listener, address): &(String, UpstreamAddr)| {
        let why = found.get(&address.to_string())?.as_ref()?;
        Some(format!("listener {listener}: upstream {address} {why}"))
    };
    upstreams.iter().filter_map(warning).collect()
}

/// Dials all addresses in parallel and returns why each cannot be reached, or `None` if it can.
///
/// Threads that still wait at the deadline are left behind: the system resolver may block for half a minute.
fn dial_all(addresses: BTreeMap<String, UpstreamAddr>) -> BTreeMap<String, Option<String>> {
    let turns = u32::try_from(addresses.len().div_ceil(MAX_PARALLEL)).unwrap_or(u32::MAX);
    let deadline = Instant::now() + DIAL_TIMEOUT.saturating_mul(turns).min(TOTAL_TIMEOUT) + SCHEDULING_ALLOWANCE;
    let mut found: BTreeMap<_, _> = addresses.keys().map(|text| (text.clone(), Some(timed_out()))).collect();
    let (sender, results) = mpsc::channel();
    let count = addresses.len().min(MAX_PARALLEL);
    let waiting = Arc::new(Mutex::new(addresses));
    for _ in 0..count {
        let (sender, waiting) = (sender.clone(), Arc::clone(&waiting));
        let next = move || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
        let work = move || {
            while let Some((text, address)) = next() {
                if sender.send((text, dial(&address))).is_err() {
                    return;
                }
            }
        };
        let _ = thread::Builder::new().name("dial".to_owned()).spawn(work);
    }
    drop(sender);
    while let Ok((text, why)) = results.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        found.insert(text, why);
    }
    found
}

fn dial(address: &UpstreamAddr) -> Option<String> {
    match address {
        UpstreamAddr::Tcp { host, port } => dial_host(host, *port),
        UpstreamAddr::Unix(path) => UnixStream::connect(path).err().map(|error| refused_socket(path, &error)),
    }
}

/// A host is reachable if one of its addresses is.
fn dial_host(host: &str, port: u16) -> Option<String> {
    let deadline = Instant::now() + DIAL_TIMEOUT;
    let addresses: Vec<SocketAddr> = match (host, port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            let text = error.to_string();
            let text = text.strip_prefix("failed to lookup address information: ").unwrap_or(&text);
            return Some(format!("cannot be resolved: {text}; correct the host name or the resolver of this machine"));
        }
    };
    let mut why = Some("cannot be resolved: the name has no address; correct the host name".to_owned());
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Some(timed_out());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(_) => return None,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => why = Some(timed_out()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                why = Some("refuses connections; start it or correct its address".to_owned());
            }
            Err(error) => why = Some(format!("cannot be reached: {error}; correct its address or the network")),
        }
    }
    why
}

fn refused_socket(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refuses connections; start it or correct its path".to_owned(),
        io::ErrorKind::PermissionDenied => {
            let fix = permissions::fix_for_writing(path).map(|fix| format!("; run: {fix}")).unwrap_or_default();
            format!("{}{fix}", permissions::cannot("cannot be connected to", error))
        }
        _ => format!("cannot be reached: {error}; start it or correct its path"),
    }
}

fn timed_out() -> String {
    format!("did not answer within {DIAL_TIMEOUT:?}; correct its address or open the firewall")
}

const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Added to the deadline so that threads on a busy machine can report their result.
const SCHEDULING_ALLOWANCE: Duration = Duration::from_millis(500);

/// Bounds the total time when there are more than [`MAX_PARALLEL`] upstreams.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_PARALLEL: usize = 64;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn dial_error(address: UpstreamAddr) -> Option<String> {
        dial_all([(address.to_string(), address)].into()).into_values().next().unwrap()
    }

    fn tcp(host: &str, port: u16) -> UpstreamAddr {
        UpstreamAddr::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn listening_upstream_is_reached_and_closed_port_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(dial_error(tcp("127.0.0.1", port)), None);
        drop(listener);
        assert!(dial_error(tcp("127.0.0.1", port)).unwrap().starts_with("refuses connections"));
    }

    #[test]
    fn unix_socket_is_reached_only_with_a_listening_server() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        assert!(dial_error(UpstreamAddr::Unix(path.clone())).unwrap().starts_with("cannot be reached: No such file"));
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(dial_error(UpstreamAddr::Unix(path.clone())), None);
        drop(listener);
        assert!(dial_error(UpstreamAddr::Unix(path)).unwrap().starts_with("refuses connections"));
    }
}
