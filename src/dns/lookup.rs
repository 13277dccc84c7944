//! Asking the system's resolver, as every program of the machine does: `/etc/hosts`, nsswitch, search domains and caches
//! count as the operator has set them up.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs as _;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::addr::canonical;
use crate::fault;
use crate::source::host::{Addresses, HostName, OmittedAddresses};

/// What a look has brought: addresses and what was left out of them, or why there are none.
pub(crate) type Answer = Result<(Addresses, Option<OmittedAddresses>), String>;

/// Looks a name up. Blocks for as long as the system's resolver does, which may be half a minute.
///
/// # Errors
/// Words that fit behind "cannot be resolved".
pub(crate) fn ask(name: &HostName) -> Answer {
    let found = (name.as_str(), 0).to_socket_addrs().map_err(|error| {
        let words = error.to_string();
        words.strip_prefix(PREFIX).unwrap_or(&words).to_owned()
    })?;
    Addresses::of(found.map(|found| canonical(found).0)).map_err(|error| error.to_string())
}

/// Looks several names up at once, and waits for all of them together no longer than a start may take. Threads that are
/// still waiting then are left to end by themselves.
pub(crate) fn ask_all(names: &[HostName]) -> BTreeMap<HostName, Answer> {
    let deadline = Instant::now() + PATIENCE;
    let (sender, answers) = mpsc::channel();
    let waiting = Arc::new(Mutex::new(names.to_vec()));
    for _ in 0..names.len().min(MOST_AT_ONCE) {
        let (sender, waiting) = (sender.clone(), Arc::clone(&waiting));
        let work = move || {
            while let Some(name) = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop() {
                let answer = fault::contain("resolver", || ask(&name)).unwrap_or_else(|fault| Err(fault.to_string()));
                if sender.send((name, answer)).is_err() {
                    return;
                }
            }
        };
        // Where there is no thread, there is no answer.
        let _ = thread::Builder::new().name("lookup".to_owned()).spawn(work);
    }
    drop(sender);
    let mut found = BTreeMap::new();
    while let Ok((name, answer)) = answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        found.insert(name, answer);
    }
    for name in names {
        found.entry(name.clone()).or_insert_with(|| Err(format!("no answer within {PATIENCE:?}")));
    }
    found
}

/// What std puts before the resolver's own words.
const PREFIX: &str = "failed to lookup address information: ";

const PATIENCE: Duration = Duration::from_secs(3);
const MOST_AT_ONCE: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_is_asked_for_has_an_answer() {
        // In every /etc/hosts, or known to nss-myhostname.
        let names: Vec<HostName> = ["localhost"].iter().map(|name| name.parse().unwrap()).collect();
        let found = ask_all(&names);
        assert!(found.keys().eq(&names));
        let (addresses, omitted) = found[&names[0]].clone().unwrap();
        assert!(addresses.all().iter().all(|ip| ip.is_loopback()), "{addresses}");
        assert_eq!(omitted, None);
        assert!(ask_all(&[]).is_empty());
    }
}
