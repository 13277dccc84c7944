//! The upstream's addresses, and what sessions have found out about each: whether it answers, and whether it takes writes.
//! Goes on from one generation to the next.
//!
//! A node is an address of the configuration. Where that is a name there may be several places behind it, one for each
//! address that it resolves to, and all that can be found out is found out of a place: one may be dead and the next one a
//! replica. The name itself can only fail to resolve.

pub(crate) mod health;
pub(crate) mod outage;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::addr::UpstreamAddr;
use crate::upstream::endpoint::health::Health;
use crate::upstream::endpoint::health::{Dial, UpstreamHealth};
use crate::upstream::endpoint::outage::Outage;

/// All addresses of one upstream, in the order of the configuration.
#[derive(Debug, Default)]
pub struct Nodes {
    nodes: Vec<Arc<Node>>,
    /// Told when one is ejected.
    ejected: Arc<Notify>,
    /// What the clients share that wait for it.
    outage: Arc<Outage>,
}

/// One address of an upstream, as configured.
#[derive(Debug)]
pub struct Node {
    address: UpstreamAddr,
    state: Mutex<State>,
    ejected: Arc<Notify>,
}

/// A place where sessions are, or can be.
#[derive(Clone, Debug)]
pub struct Whereabouts {
    /// Which of the upstream's addresses led there.
    pub node: Arc<Node>,
    /// Which of those that it resolved to. None of a Unix socket, nor of a name that does not resolve.
    pub socket: Option<SocketAddr>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether it could be resolved.
    name: Health,
    /// What it resolved to last, in the resolver's order.
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    socket: Option<SocketAddr>,
    health: Health,
    role: Option<Role>,
}

/// What a place has shown to be when it was asked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Primary,
    /// It takes no writes, as it said then. Of several such the next primary is more likely one that has not said so lately.
    Replica(Instant),
    /// It does not say.
    Untold,
}

/// What is known of one place, or of a name that leads to none, for the operator.
#[derive(Clone, Debug)]
pub struct Condition {
    /// Where it is.
    pub socket: Option<SocketAddr>,
    /// Since when it does not answer, and in which words.
    pub silent: Option<(OffsetDateTime, String)>,
    /// Whether it answers.
    pub health: UpstreamHealth,
    /// The last attempt to reach it.
    pub last_dial: Option<Dial>,
    /// Whether it takes writes, where that has been asked.
    pub writes: Option<bool>,
}

impl Nodes {
    /// Those of `addresses`; of those that were there before what is known is known on.
    pub(crate) fn after(before: Option<&Self>, addresses: &[UpstreamAddr]) -> Self {
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
            outage: before
                .filter(|before| before.nodes.iter().map(|node| &node.address).eq(addresses))
                .map(|before| Arc::clone(&before.outage))
                .unwrap_or_default(),
        }
    }

    /// What the clients share that wait because all of them refuse connections.
    pub fn outage(&self) -> &Outage {
        &self.outage
    }

    /// In which order to try them: as they are configured, but behind the others those that take no writes, where that
    /// counts, and last of all those that did not answer.
    pub fn in_order(&self, writes: bool) -> Vec<Arc<Node>> {
        let mut nodes = self.nodes.clone();
        nodes.sort_by_cached_key(|node| node.state().rank(writes));
        nodes
    }

    /// Whether at least one place answers, and takes writes where they count; unknown as long as none is known to and not
    /// all have been dialled.
    pub fn health(&self, writes: bool) -> UpstreamHealth {
        let all: Vec<_> = self.nodes.iter().flat_map(|node| node.state().healths(writes)).collect();
        let is = |health: UpstreamHealth| all.contains(&health);
        match (is(UpstreamHealth::Healthy), is(UpstreamHealth::Unknown)) {
            (true, _) => UpstreamHealth::Healthy,
            (false, true) => UpstreamHealth::Unknown,
            (false, false) => UpstreamHealth::Unhealthy,
        }
    }

    /// Those that have been ejected and are to be asked again by `now`: of a name that does not resolve, that. Each is named
    /// once, until it has answered or not.
    pub fn take_pending(&self, now: Instant) -> Vec<Whereabouts> {
        let due = |node: &Arc<Node>| {
            let sockets = node.state().take_pending(now);
            sockets.into_iter().map(|socket| node.at(socket)).collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(due).collect()
    }

    /// When the next of them is to be asked.
    pub fn next_due(&self) -> Option<Instant> {
        self.nodes.iter().filter_map(|node| node.state().next_due()).min()
    }

    /// Returns when one is ejected.
    pub async fn ejected(&self) {
        self.ejected.notified().await;
    }

    /// Whether there is more than one place to choose from.
    pub fn has_several(&self) -> bool {
        self.nodes.len() > 1 || self.nodes.iter().any(|node| node.state().places.len() > 1)
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

    /// Notes what it resolves to: addresses, or one Unix socket. Returns the places in the order in which to try them.
    pub fn resolved(self: &Arc<Self>, sockets: &[Option<SocketAddr>], writes: bool) -> Vec<Whereabouts> {
        let mut state = self.state();
        if !state.places.iter().map(|place| place.socket).eq(sockets.iter().copied()) {
            let mut former = std::mem::take(&mut state.places);
            let mut known = |socket| {
                let index = former.iter().position(|place| place.socket == socket);
                index.map_or_else(|| Place::new(socket), |index| former.swap_remove(index))
            };
            state.places = sockets.iter().map(|socket| known(*socket)).collect();
        }
        let mut places: Vec<_> = state.places.iter().map(|place| (place.rank(writes), place.socket)).collect();
        drop(state);
        places.sort_by_key(|(rank, _)| *rank);
        places.into_iter().map(|(_, socket)| self.at(socket)).collect()
    }

    /// What is known of the places behind it; nothing where nobody has asked yet.
    pub fn conditions(&self) -> Vec<Condition> {
        let state = self.state();
        if state.name.is_ejected() || (state.places.is_empty() && state.name.last_dial().is_some()) {
            return vec![condition(None, &state.name, None)];
        }
        state.places.iter().map(Place::condition).collect()
    }

    /// The name itself, where it is one, or its only place.
    pub fn itself(self: &Arc<Self>) -> Whereabouts {
        self.at(None)
    }

    fn at(self: &Arc<Self>, socket: Option<SocketAddr>) -> Whereabouts {
        Whereabouts { node: Arc::clone(self), socket }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Whereabouts {
    /// Whether it is a name, which only leads somewhere.
    pub fn is_name(&self) -> bool {
        self.socket.is_none() && self.node.address.host().is_some()
    }

    /// Whether its node still leads here.
    pub fn is_known(&self) -> bool {
        self.node.state().find(self.socket).is_some()
    }

    /// It answers. Returns whether that is news.
    pub fn answers(&self) -> bool {
        self.health(|health| health.answers(None, Instant::now())).unwrap_or(false)
    }

    /// It answers, and for this reason cannot be taken. Returns whether it is news that it answers.
    pub fn is_unsuitable(&self, words: &str) -> bool {
        self.health(|health| health.answers(Some(words), Instant::now())).unwrap_or(false)
    }

    /// It could not be dialled for want of something on this machine.
    pub fn is_not_dialled(&self, words: &str) {
        self.health(|health| health.not_dialled(words));
    }

    /// The same when it was to be asked again.
    pub fn is_not_dialled_again(&self, words: &str) {
        self.health(|health| health.not_dialled_again(words, Instant::now()));
    }

    /// Whether nobody has dialled it yet.
    pub fn is_unknown(&self) -> bool {
        self.health(|health| health.state() == UpstreamHealth::Unknown).unwrap_or(false)
    }

    /// It does not answer to a client. Until it does again the others are tried first. Returns whether that is news.
    pub fn is_silent(&self, words: &str) -> bool {
        let news = self.health(|health| health.eject(words, Instant::now())).unwrap_or(false);
        if news {
            self.node.ejected.notify_one();
        }
        news
    }

    /// It has been asked again, and still does not answer.
    pub fn is_silent_still(&self, words: &str) {
        self.health(|health| health.fail_again(words, Instant::now()));
    }

    /// Notes whether it takes writes. Returns whether that is news.
    pub fn takes_writes(&self, writes: bool) -> bool {
        let former = self.turn_out(if writes { Role::Primary } else { Role::Replica(Instant::now()) });
        former.is_some_and(|former| matches!(former, Some(Role::Replica(_))) == writes)
    }

    /// It does not say whether it takes writes. Returns whether that is news.
    pub fn is_untold(&self) -> bool {
        self.turn_out(Role::Untold).is_some_and(|former| former != Some(Role::Untold))
    }

    /// What it was before; nothing if it is no more.
    fn turn_out(&self, role: Role) -> Option<Option<Role>> {
        let mut state = self.node.state();
        let place = state.places.iter_mut().find(|place| place.socket == self.socket)?;
        Some(place.role.replace(role))
    }

    fn health<T>(&self, change: impl FnOnce(&mut Health) -> T) -> Option<T> {
        self.node.state().find(self.socket).map(change)
    }
}

/// As configured, and behind a name where it led to.
impl fmt::Display for Whereabouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.node.address.to_string();
        match self.socket {
            Some(socket) if socket.to_string() != address => write!(f, "{address} ({socket})"),
            _ => f.write_str(&address),
        }
    }
}

/// The lower, the sooner it is tried.
type Rank = (bool, Option<Instant>);

impl State {
    /// What is known of a place, or of the name; nothing of a place that is no more.
    fn find(&mut self, socket: Option<SocketAddr>) -> Option<&mut Health> {
        let place = self.places.iter_mut().find(|place| place.socket == socket);
        match place {
            Some(place) => Some(&mut place.health),
            None if socket.is_none() => Some(&mut self.name),
            None => None,
        }
    }

    /// Of each place, or of the name where it leads to none.
    fn healths(&self, writes: bool) -> Vec<UpstreamHealth> {
        if self.name.is_ejected() || self.places.is_empty() {
            return vec![if self.name.is_ejected() { UpstreamHealth::Unhealthy } else { UpstreamHealth::Unknown }];
        }
        let usable = |place: &Place| match place.role {
            Some(Role::Replica(_)) if writes => UpstreamHealth::Unhealthy,
            _ => place.health.state(),
        };
        self.places.iter().map(usable).collect()
    }

    /// That of its best place.
    fn rank(&self, writes: bool) -> Rank {
        if self.name.is_ejected() {
            return (true, None);
        }
        self.places.iter().map(|place| place.rank(writes)).min().unwrap_or_default()
    }

    fn next_due(&self) -> Option<Instant> {
        let places = self.places.iter().map(|place| &place.health);
        places.chain([&self.name]).filter_map(Health::due).min()
    }

    fn take_pending(&mut self, now: Instant) -> Vec<Option<SocketAddr>> {
        let places = self.places.iter_mut().map(|place| (place.socket, &mut place.health));
        let take = |(socket, health): (_, &mut Health)| health.take_pending(now).then_some(socket);
        places.chain([(None, &mut self.name)]).filter_map(take).collect()
    }
}

impl Place {
    fn new(socket: Option<SocketAddr>) -> Self {
        Self { socket, health: Health::default(), role: None }
    }

    fn rank(&self, writes: bool) -> Rank {
        let replica = match self.role {
            Some(Role::Replica(since)) if writes => Some(since),
            _ => None,
        };
        (self.health.is_ejected(), replica)
    }

    fn condition(&self) -> Condition {
        let writes = match self.role {
            Some(Role::Primary) => Some(true),
            Some(Role::Replica(_)) => Some(false),
            Some(Role::Untold) | None => None,
        };
        condition(self.socket, &self.health, writes)
    }
}

fn condition(socket: Option<SocketAddr>, health: &Health, writes: Option<bool>) -> Condition {
    let (state, last_dial) = (health.state(), health.last_dial().cloned());
    Condition { socket, silent: health.silent(), health: state, last_dial, writes }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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

    fn socket(last: u8) -> Option<SocketAddr> {
        Some(SocketAddr::from(([10, 0, 0, last], 1)))
    }

    /// Nodes on these ports, each with one place.
    fn nodes(ports: impl IntoIterator<Item = u16>) -> (Nodes, Vec<Whereabouts>) {
        let addresses: Vec<_> = ports.into_iter().map(address).collect();
        let nodes = Nodes::after(None, &addresses);
        let places = nodes.iter().flat_map(|node| node.resolved(&[socket(1)], false)).collect();
        (nodes, places)
    }

    #[test]
    fn one_that_does_not_answer_is_tried_last_until_it_does() {
        let (nodes, places) = nodes([1, 2, 3]);
        assert_eq!(ports(&nodes.in_order(false)), [1, 2, 3]);
        assert!(places[0].is_silent("refused"), "news");
        assert!(!places[0].is_silent("refused"), "no news");
        assert_eq!(ports(&nodes.in_order(false)), [2, 3, 1]);
        assert!(places[0].answers() && !places[0].answers());
        assert_eq!(ports(&nodes.in_order(false)), [1, 2, 3]);
        assert_eq!(nodes.next_due(), None);
    }

    #[test]
    fn it_is_asked_again_by_one_at_a_time_and_no_client_puts_that_off() {
        let (nodes, places) = nodes([1, 2]);
        places[0].is_silent("refused");
        let due = nodes.next_due().unwrap();
        places[0].is_silent("refused");
        assert_eq!(nodes.next_due(), Some(due));
        assert!(nodes.take_pending(due - Duration::from_millis(1)).is_empty());
        assert_eq!(nodes.take_pending(due).len(), 1);
        assert!(nodes.take_pending(due + Duration::from_secs(3600)).is_empty(), "it is being asked");
        assert_eq!(nodes.next_due(), None);
        places[0].is_silent_still("refused");
        assert!(nodes.next_due().is_some_and(|next| next > due));
    }

    #[test]
    fn one_that_takes_no_writes_is_behind_the_others_where_that_counts() {
        let (nodes, places) = nodes([1, 2, 3]);
        assert!(places[0].takes_writes(false), "news");
        assert!(!places[0].takes_writes(false) && !places[1].takes_writes(true), "no news");
        assert!(places[2].is_untold() && !places[2].is_untold());
        places[1].is_silent("refused");
        assert_eq!(ports(&nodes.in_order(true)), [3, 1, 2]);
        assert_eq!(ports(&nodes.in_order(false)), [1, 3, 2]);
        assert!(places[0].takes_writes(true));
        assert_eq!(ports(&nodes.in_order(true)), [1, 3, 2]);
    }

    #[test]
    fn of_several_that_take_no_writes_the_one_that_said_so_last_is_tried_last() {
        let (nodes, places) = nodes([1, 2, 3]);
        for next in [1, 2, 0, 1, 2] {
            let first = ports(&nodes.in_order(true))[0];
            let place = places.iter().find(|place| ports(&[Arc::clone(&place.node)]) == [first]).unwrap();
            place.takes_writes(false);
            assert_eq!(ports(&nodes.in_order(true))[0], [1, 2, 3][next], "none is asked twice before another");
        }
    }

    #[test]
    fn health_is_that_of_the_best_place_that_will_do() {
        let (nodes, places) = nodes([1, 2]);
        let both = || (nodes.health(false), nodes.health(true));
        assert_eq!(both(), (UpstreamHealth::Unknown, UpstreamHealth::Unknown));
        places[0].is_silent("refused");
        assert_eq!(nodes.health(false), UpstreamHealth::Unknown, "the other has not been dialled");
        places[1].answers();
        places[1].takes_writes(false);
        assert_eq!(both(), (UpstreamHealth::Healthy, UpstreamHealth::Unhealthy));
        places[1].takes_writes(true);
        assert_eq!(nodes.health(true), UpstreamHealth::Healthy);
        places[1].is_silent("refused");
        assert_eq!(both(), (UpstreamHealth::Unhealthy, UpstreamHealth::Unhealthy));
        places[0].is_not_dialled("no file");
        assert_eq!(nodes.health(false), UpstreamHealth::Unhealthy);
    }

    #[test]
    fn what_is_known_outlives_a_reload() {
        let (before, places) = nodes([1, 2]);
        places[0].is_silent("refused");
        let after = Nodes::after(Some(&before), &[address(3), address(1), address(4)]);
        assert_eq!(ports(&after.in_order(false)), [3, 4, 1]);
    }

    #[test]
    fn the_places_behind_a_name_are_told_apart_as_long_as_it_leads_to_them() {
        let (nodes, _) = nodes([1, 2]);
        let node = &nodes.nodes[0];
        let sockets = |places: Vec<Whereabouts>| places.iter().map(|place| place.socket).collect::<Vec<_>>();
        let [one, two, three] = [1, 2, 3].map(socket);
        let places = node.resolved(&[one, two], false);
        places[0].is_silent("refused");
        assert_eq!(sockets(node.resolved(&[one, two], false)), [two, one]);
        assert_eq!(ports(&nodes.in_order(false)), [1, 2], "one place is left");
        places[1].is_silent("refused");
        assert_eq!(ports(&nodes.in_order(false)), [2, 1]);
        assert_eq!(sockets(node.resolved(&[one, three], false)), [three, one]);
        assert_eq!(ports(&nodes.in_order(false)), [1, 2]);
        assert!(!places[1].is_known() && !places[1].is_silent("refused") && !places[1].answers());
        assert_eq!(places[0].to_string(), "db.test:1 (10.0.0.1:1)");
    }

    #[test]
    fn a_name_that_does_not_resolve_is_tried_last_until_it_does() {
        let nodes = Nodes::after(None, &[address(1), address(2)]);
        let name = nodes.nodes[0].itself();
        assert!(name.is_name() && name.is_silent("no such name"));
        assert_eq!(ports(&nodes.in_order(false)), [2, 1]);
        assert!(nodes.take_pending(nodes.next_due().unwrap())[0].is_name());
        assert_eq!(nodes.nodes[0].conditions()[0].silent.as_ref().unwrap().1, "no such name");
        nodes.nodes[0].resolved(&[socket(1)], false);
        assert!(name.answers());
        assert_eq!(ports(&nodes.in_order(false)), [1, 2]);
    }
}
