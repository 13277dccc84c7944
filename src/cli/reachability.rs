//! Whether upstreams answer: each is connected to once, and left again without a byte.

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

/// What is wrong with the upstreams of these listeners, in words for the operator.
pub(crate) fn warnings(listeners: &[Listener]) -> Vec<String> {
    let of_listener = |listener: &Listener| {
        let addresses = listener.upstream.addresses.clone();
        addresses.into_iter().map(|address| (listener.name.clone(), address)).collect::<Vec<_>>()
    };
    let wanted: Vec<_> = listeners.iter().flat_map(of_listener).collect();
    let by_text: BTreeMap<String, UpstreamAddr> =
        wanted.iter().map(|(_, address)| (address.to_string(), address.clone())).collect();
    let found = dial_all(by_text);
    let warning = |(listener, address): &(String, UpstreamAddr)| {
        let why = found.get(&address.to_string())?.as_ref()?;
        Some(format!("listener {listener}: the upstream {address} {why}"))
    };
    wanted.iter().filter_map(warning).collect()
}

/// Why each of these cannot be reached; nothing where it can. All are asked at once. Threads that still wait at the end are
/// left to end by themselves: the system's resolver may take half a minute.
fn dial_all(wanted: BTreeMap<String, UpstreamAddr>) -> BTreeMap<String, Option<String>> {
    let turns = u32::try_from(wanted.len().div_ceil(MOST_AT_ONCE)).unwrap_or(u32::MAX);
    let deadline = Instant::now() + PATIENCE.saturating_mul(turns).min(MOST_PATIENCE) + SCHEDULING;
    let mut found: BTreeMap<_, _> = wanted.keys().map(|text| (text.clone(), Some(silent()))).collect();
    let (sender, results) = mpsc::channel();
    let count = wanted.len().min(MOST_AT_ONCE);
    let waiting = Arc::new(Mutex::new(wanted));
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

/// A host can be reached if one of its addresses can.
fn dial_host(host: &str, port: u16) -> Option<String> {
    let deadline = Instant::now() + PATIENCE;
    let addresses: Vec<SocketAddr> = match (host, port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            let words = error.to_string();
            let words = words.strip_prefix("failed to lookup address information: ").unwrap_or(&words);
            return Some(format!("cannot be resolved: {words}; change its name, or mend the resolver of this machine"));
        }
    };
    let mut why = Some("cannot be resolved: the name has no address; change its name".to_owned());
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Some(silent());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(_) => return None,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => why = Some(silent()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                why = Some("refuses connections; start it, or change its address".to_owned());
            }
            Err(error) => why = Some(format!("cannot be reached: {error}; change its address, or mend the network")),
        }
    }
    why
}

fn refused_socket(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refuses connections; start it, or change its path".to_owned(),
        io::ErrorKind::PermissionDenied => {
            let fix = permissions::fix_for_writing(path).map(|fix| format!("; run: {fix}")).unwrap_or_default();
            format!("{}{fix}", permissions::cannot("cannot be connected to", error))
        }
        _ => format!("cannot be reached: {error}; start it, or change its path"),
    }
}

fn silent() -> String {
    format!("has not answered within {PATIENCE:?}; change its address, or open the firewall")
}

/// How long each upstream may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// For the threads to be heard on a busy machine.
const SCHEDULING: Duration = Duration::from_millis(500);

/// How long all of them may take together, where they cannot all be asked at once.
const MOST_PATIENCE: Duration = Duration::from_secs(10);
const MOST_AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn told(address: UpstreamAddr) -> Option<String> {
        dial_all([(address.to_string(), address)].into()).into_values().next().unwrap()
    }

    fn tcp(host: &str, port: u16) -> UpstreamAddr {
        UpstreamAddr::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn listening_upstreams_are_reached_and_closed_ones_refuse() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(told(tcp("127.0.0.1", port)), None);
        drop(listener);
        assert!(told(tcp("127.0.0.1", port)).unwrap().starts_with("refuses connections"));
    }

    #[test]
    fn unix_sockets_are_reached_where_somebody_listens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        assert!(told(UpstreamAddr::Unix(path.clone())).unwrap().starts_with("cannot be reached: No such file"));
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(told(UpstreamAddr::Unix(path.clone())), None);
        drop(listener);
        assert!(told(UpstreamAddr::Unix(path)).unwrap().starts_with("refuses connections"));
    }
}
