//! Lookups by the system's resolver, so that `/etc/hosts`, nsswitch, search domains and caches apply as configured.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs as _;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::addr::canonical;
use crate::fault;
use crate::resolution::host::Answer;
use crate::source::addresses::Addresses;
use crate::source::host::HostName;

/// Looks a name up. Blocks as long as the system's resolver does, which may be half a minute.
///
/// # Errors
/// A message to append to "cannot be resolved".
pub(crate) fn lookup(name: &HostName) -> Answer {
    let found = (name.as_str(), 0).to_socket_addrs().map_err(|error| {
        let message = error.to_string();
        message.strip_prefix(PREFIX).unwrap_or(&message).to_owned()
    })?;
    Addresses::of(found.map(|found| canonical(found).0)).map_err(|error| error.to_string())
}

/// Looks several names up at the same time, and waits for [`LOOKUP_TIMEOUT`] in total. Threads that are still waiting then end
/// on their own.
pub(crate) fn lookup_all(names: &[HostName]) -> BTreeMap<HostName, Answer> {
    let deadline = Instant::now() + LOOKUP_TIMEOUT;
    let (sender, answers) = mpsc::channel();
    let waiting = Arc::new(Mutex::new(names.to_vec()));
    for _ in 0..names.len().min(MAX_CONCURRENT_LOOKUPS) {
        let (sender, waiting) = (sender.clone(), Arc::clone(&waiting));
        let work = move || {
            while let Some(name) = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop() {
                let answer =
                    fault::contain("resolver", || lookup(&name)).unwrap_or_else(|fault| Err(fault.to_string()));
                if sender.send((name, answer)).is_err() {
                    return;
                }
            }
        };
        // Without a thread there is no answer.
        let _ = thread::Builder::new().name("lookup".to_owned()).spawn(work);
    }
    drop(sender);
    let mut found = BTreeMap::new();
    while let Ok((name, answer)) = answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        found.insert(name, answer);
    }
    for name in names {
        found.entry(name.clone()).or_insert_with(|| Err(format!("no answer within {LOOKUP_TIMEOUT:?}")));
    }
    found
}

/// The prefix of the standard library before the resolver's message.
const PREFIX: &str = "failed to lookup address information: ";

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);
const MAX_CONCURRENT_LOOKUPS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_in_a_lookup_gets_a_result() {
        // In every /etc/hosts, or known to nss-myhostname.
        let names: Vec<HostName> = ["localhost"].iter().map(|name| name.parse().unwrap()).collect();
        let found = lookup_all(&names);
        assert!(found.keys().eq(&names));
        let (addresses, omitted) = found[&names[0]].clone().unwrap();
        assert!(addresses.all().iter().all(|ip| ip.is_loopback()), "{addresses}");
        assert_eq!(omitted, None);
        assert!(lookup_all(&[]).is_empty());
    }
}
