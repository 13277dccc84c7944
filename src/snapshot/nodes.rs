//! The upstream's addresses, and what sessions have found out about each: whether it answers, and whether it takes writes.
//! Goes on from one generation to the next.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::addr::UpstreamAddr;

/// All addresses of one upstream, in the order of the configuration.
#[derive(Debug, Default)]
pub struct Nodes {
    nodes: Vec<Arc<Node>>,
    /// Told when one is ejected.
    ejected: Arc<Notify>,
}

/// One address of an upstream.
#[derive(Debug)]
pub struct Node {
    address: UpstreamAddr,
    state: Mutex<State>,
    ejected: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// Since it did not answer.
    ejection: Option<Ejection>,
    /// It answers, but takes no writes.
    replica: bool,
    /// Of what its name resolves to, those that did not answer lately.
    silent: HashMap<SocketAddr, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Ejection {
    /// How often it has failed in a row.
    failures: u32,
    /// When it may be asked again whether it is back.
    due: Instant,
}

impl Nodes {
    /// Those of `addresses`; of those that were there before what is known is known on.
    pub(super) fn after(before: Option<&Self>, addresses: &[UpstreamAddr]) -> Self {
        let ejected = before.map(|before| Arc::clone(&before.ejected)).unwrap_or_default();
        let known = |address: &UpstreamAddr| {
            let former = before.into_iter().flat_map(|before| &before.nodes);
            former.into_iter().find(|node| node.address == *address).cloned()
        };
        let new = |address: &UpstreamAddr| {
            let (state, ejected) = (Mutex::default(), Arc::clone(&ejected));
            Arc::new(Node { address: address.clone(), state, ejected })
        };
        Self {
            nodes: addresses.iter().map(|address| known(address).unwrap_or_else(|| new(address))).collect(),
            ejected,
        }
    }

    /// In which order to try them: as they are configured, but behind the others those that take no writes, where that
    /// counts, and last of all those that did not answer.
    pub fn in_order(&self, writes: bool) -> Vec<Arc<Node>> {
        let mut nodes = self.nodes.clone();
        nodes.sort_by_cached_key(|node| {
            let state = node.state();
            (state.ejection.is_some(), writes && state.replica)
        });
        nodes
    }

    /// Whether two sessions can be at different places.
    pub fn can_be_elsewhere(&self) -> bool {
        let has_name = |node: &Arc<Node>| node.address.host().is_some_and(|host| host.parse::<IpAddr>().is_err());
        self.nodes.len() > 1 || self.nodes.iter().any(has_name)
    }

    /// Those that have been ejected and may be asked again by `now`.
    pub fn due(&self, now: Instant) -> Vec<Arc<Node>> {
        let is_due = |node: &&Arc<Node>| node.state().ejection.is_some_and(|ejection| ejection.due <= now);
        self.nodes.iter().filter(is_due).cloned().collect()
    }

    /// When the next of them may be asked.
    pub fn next_due(&self) -> Option<Instant> {
        self.nodes.iter().filter_map(|node| Some(node.state().ejection?.due)).min()
    }

    /// Returns when one is ejected.
    pub async fn ejected(&self) {
        self.ejected.notified().await;
    }

    /// All of them, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.iter()
    }
}

impl Node {
    /// Where it is.
    pub fn address(&self) -> &UpstreamAddr {
        &self.address
    }

    /// It answers. Returns whether that is news.
    pub fn answers(&self) -> bool {
        self.state().ejection.take().is_some()
    }

    /// It does not answer. Until it does again the others are tried first. Returns whether that is news.
    pub fn is_silent(&self, now: Instant) -> bool {
        let mut state = self.state();
        let failures = state.ejection.map_or(0, |ejection| ejection.failures).saturating_add(1);
        let news = state.ejection.is_none();
        let wait = FIRST_WAIT.saturating_mul(1 << failures.min(MOST_DOUBLINGS)) / 2;
        state.ejection = Some(Ejection { failures, due: now + wait.min(LONGEST_WAIT) });
        drop(state);
        self.ejected.notify_one();
        news
    }

    /// Whether it has been ejected.
    pub fn is_ejected(&self) -> bool {
        self.state().ejection.is_some()
    }

    /// Notes whether it takes writes. Returns whether that is news.
    pub fn takes_writes(&self, writes: bool) -> bool {
        std::mem::replace(&mut self.state().replica, !writes) == writes
    }

    /// Whether it answers, but is known to take no writes.
    pub fn is_replica(&self) -> bool {
        self.state().replica
    }

    /// Puts those behind the others that did not answer lately.
    pub fn sort(&self, addresses: &mut [SocketAddr], now: Instant) {
        let mut state = self.state();
        state.silent.retain(|_, since| now.saturating_duration_since(*since) < SILENT_FOR);
        addresses.sort_by_key(|address| state.silent.contains_key(address));
    }

    /// One of the addresses that its name resolves to did not answer.
    pub fn address_is_silent(&self, address: SocketAddr, now: Instant) {
        let mut state = self.state();
        if state.silent.len() < MOST_SILENT {
            state.silent.insert(address, now);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long one that has failed for the first time is left alone; twice as long after each further failure.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
const MOST_DOUBLINGS: u32 = 8;

/// How long an address that did not answer is tried behind the others of its name.
const SILENT_FOR: Duration = Duration::from_secs(30);

/// More addresses than a name has.
const MOST_SILENT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> UpstreamAddr {
        UpstreamAddr::Tcp { host: "db.test".to_owned(), port }
    }

    fn ports(nodes: &[Arc<Node>]) -> Vec<u16> {
        let port = |node: &Arc<Node>| match node.address() {
            UpstreamAddr::Tcp { port, .. } => *port,
            UpstreamAddr::Unix(_) => 0,
        };
        nodes.iter().map(port).collect()
    }

    #[test]
    fn one_that_does_not_answer_is_tried_last_until_it_does() {
        let nodes = Nodes::after(None, &[address(1), address(2), address(3)]);
        assert_eq!(ports(&nodes.in_order(false)), [1, 2, 3]);
        let now = Instant::now();
        let first = Arc::clone(&nodes.in_order(false)[0]);
        assert!(first.is_silent(now), "news");
        assert!(!first.is_silent(now), "no news");
        assert_eq!(ports(&nodes.in_order(false)), [2, 3, 1]);
        assert!(nodes.due(now).is_empty());
        assert_eq!(ports(&nodes.due(now + LONGEST_WAIT)), [1]);
        assert!(first.answers() && !first.answers());
        assert_eq!(ports(&nodes.in_order(false)), [1, 2, 3]);
        assert_eq!(nodes.next_due(), None);
    }

    #[test]
    fn one_that_takes_no_writes_is_behind_the_others_where_that_counts() {
        let nodes = Nodes::after(None, &[address(1), address(2), address(3)]);
        let all = nodes.in_order(true);
        assert!(all[0].takes_writes(false), "news");
        assert!(!all[0].takes_writes(false) && !all[1].takes_writes(true), "no news");
        all[1].is_silent(Instant::now());
        assert_eq!(ports(&nodes.in_order(true)), [3, 1, 2]);
        assert_eq!(ports(&nodes.in_order(false)), [1, 3, 2]);
        assert!(all[0].takes_writes(true));
        assert_eq!(ports(&nodes.in_order(true)), [1, 3, 2]);
    }

    #[test]
    fn it_is_left_alone_longer_each_time_but_never_for_long() {
        let nodes = Nodes::after(None, &[address(1)]);
        let node = &nodes.nodes[0];
        let now = Instant::now();
        let mut last = Duration::ZERO;
        for _ in 0..100 {
            node.is_silent(now);
            let wait = nodes.next_due().unwrap() - now;
            assert!(wait >= last && wait <= LONGEST_WAIT && wait >= FIRST_WAIT, "{wait:?}");
            last = wait;
        }
        assert_eq!(last, LONGEST_WAIT);
    }

    #[test]
    fn what_is_known_outlives_a_reload() {
        let before = Nodes::after(None, &[address(1), address(2)]);
        before.nodes[0].is_silent(Instant::now());
        let after = Nodes::after(Some(&before), &[address(3), address(1)]);
        assert_eq!(ports(&after.in_order(false)), [3, 1]);
        assert!(after.nodes[1].is_ejected());
    }

    #[test]
    fn a_silent_address_of_a_name_is_tried_behind_the_others_for_a_while() {
        let nodes = Nodes::after(None, &[address(1)]);
        let node = &nodes.nodes[0];
        let [one, other]: [SocketAddr; 2] = ["10.0.0.1:1", "10.0.0.2:1"].map(|text| text.parse().unwrap());
        let now = Instant::now();
        node.address_is_silent(one, now);
        let order = |at| {
            let mut addresses = [one, other];
            node.sort(&mut addresses, at);
            addresses
        };
        assert_eq!(order(now), [other, one]);
        assert_eq!(order(now + SILENT_FOR), [one, other]);
    }
}
