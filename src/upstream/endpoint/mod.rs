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
pub struct Endpoints {
    addresses: Vec<Arc<ConfiguredUpstream>>,
    /// Told when one is ejected.
    ejected: Arc<Notify>,
    /// What the clients share that wait for it.
    outage: Arc<Outage>,
}

/// One address of an upstream, as configured.
#[derive(Debug)]
pub struct ConfiguredUpstream {
    address: UpstreamAddr,
    state: Mutex<UpstreamState>,
    ejected: Arc<Notify>,
}

/// A place where sessions are, or can be.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Which of the upstream's addresses led there.
    pub configured: Arc<ConfiguredUpstream>,
    /// Which of those that it resolved to. None of a Unix socket, nor of a name that does not resolve.
    pub socket: Option<SocketAddr>,
}

#[derive(Debug, Default)]
struct UpstreamState {
    /// Whether it could be resolved.
    name: Health,
    /// What it resolved to last, in the resolver's order.
    endpoints: Vec<EndpointState>,
}

#[derive(Debug)]
struct EndpointState {
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
    Unknown,
}

/// What is known of one place, or of a name that leads to none, for the operator.
#[derive(Clone, Debug)]
pub struct EndpointStatus {
    /// Where it is.
    pub socket: Option<SocketAddr>,
    /// Since when it does not answer, and in which words.
    pub unhealthy: Option<(OffsetDateTime, String)>,
    /// Whether it answers.
    pub health: UpstreamHealth,
    /// The last attempt to reach it.
    pub last_dial: Option<Dial>,
    /// Whether it takes writes, where that has been asked.
    pub writes: Option<bool>,
}

impl Endpoints {
    /// Those of `addresses`; of those that were there before what is known is known on.
    pub(crate) fn after(before: Option<&Self>, addresses: &[UpstreamAddr]) -> Self {
        let ejected = before.map(|before| Arc::clone(&before.ejected)).unwrap_or_default();
        let known = |address: &UpstreamAddr| {
            let former = before.into_iter().flat_map(|before| &before.addresses);
            former.into_iter().find(|configured| configured.address == *address).cloned()
        };
        let new = |address: &UpstreamAddr| {
            let (state, ejected) = (Mutex::default(), Arc::clone(&ejected));
            Arc::new(ConfiguredUpstream { address: address.clone(), state, ejected })
        };
        Self {
            addresses: addresses.iter().map(|address| known(address).unwrap_or_else(|| new(address))).collect(),
            ejected,
            outage: before
                .filter(|before| before.addresses.iter().map(|configured| &configured.address).eq(addresses))
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
    pub fn in_order(&self, writes: bool) -> Vec<Arc<ConfiguredUpstream>> {
        let mut addresses = self.addresses.clone();
        addresses.sort_by_cached_key(|configured| configured.state().rank(writes));
        addresses
    }

    /// Whether at least one place answers, and takes writes where they count; unknown as long as none is known to and not
    /// all have been dialled.
    pub fn health(&self, writes: bool) -> UpstreamHealth {
        let all: Vec<_> = self.addresses.iter().flat_map(|configured| configured.state().healths(writes)).collect();
        let is = |health: UpstreamHealth| all.contains(&health);
        match (is(UpstreamHealth::Healthy), is(UpstreamHealth::Unknown)) {
            (true, _) => UpstreamHealth::Healthy,
            (false, true) => UpstreamHealth::Unknown,
            (false, false) => UpstreamHealth::Unhealthy,
        }
    }

    /// Those that have been ejected and are to be asked again by `now`: of a name that does not resolve, that. Each is named
    /// once, until it has answered or not.
    pub fn take_pending(&self, now: Instant) -> Vec<Endpoint> {
        let due = |configured: &Arc<ConfiguredUpstream>| {
            let sockets = configured.state().take_pending(now);
            sockets.into_iter().map(|socket| configured.at(socket)).collect::<Vec<_>>()
        };
        self.addresses.iter().flat_map(due).collect()
    }

    /// When the next of them is to be asked.
    pub fn next_due(&self) -> Option<Instant> {
        self.addresses.iter().filter_map(|configured| configured.state().next_due()).min()
    }

    /// Returns when one is ejected.
    pub async fn ejected(&self) {
        self.ejected.notified().await;
    }

    /// Whether there is more than one place to choose from.
    pub fn has_several(&self) -> bool {
        self.addresses.len() > 1 || self.addresses.iter().any(|configured| configured.state().endpoints.len() > 1)
    }

    /// All of them, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ConfiguredUpstream>> {
        self.addresses.iter()
    }
}

impl ConfiguredUpstream {
    /// Where it is.
    pub fn address(&self) -> &UpstreamAddr {
        &self.address
    }

    /// Notes what it resolves to: addresses, or one Unix socket. Returns the places in the order in which to try them.
    pub fn resolved(self: &Arc<Self>, sockets: &[Option<SocketAddr>], writes: bool) -> Vec<Endpoint> {
        let mut state = self.state();
        if !state.endpoints.iter().map(|endpoint| endpoint.socket).eq(sockets.iter().copied()) {
            let mut former = std::mem::take(&mut state.endpoints);
            let mut known = |socket| {
                let index = former.iter().position(|endpoint| endpoint.socket == socket);
                index.map_or_else(|| EndpointState::new(socket), |index| former.swap_remove(index))
            };
            state.endpoints = sockets.iter().map(|socket| known(*socket)).collect();
        }
        let mut endpoints: Vec<_> =
            state.endpoints.iter().map(|endpoint| (endpoint.rank(writes), endpoint.socket)).collect();
        drop(state);
        endpoints.sort_by_key(|(rank, _)| *rank);
        endpoints.into_iter().map(|(_, socket)| self.at(socket)).collect()
    }

    /// What is known of the places behind it; nothing where nobody has asked yet.
    pub fn statuses(&self) -> Vec<EndpointStatus> {
        let state = self.state();
        if state.name.is_ejected() || (state.endpoints.is_empty() && state.name.last_dial().is_some()) {
            return vec![status(None, &state.name, None)];
        }
        state.endpoints.iter().map(EndpointState::status).collect()
    }

    /// The name itself, where it is one, or its only place.
    pub fn as_endpoint(self: &Arc<Self>) -> Endpoint {
        self.at(None)
    }

    fn at(self: &Arc<Self>, socket: Option<SocketAddr>) -> Endpoint {
        Endpoint { configured: Arc::clone(self), socket }
    }

    fn state(&self) -> MutexGuard<'_, UpstreamState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Endpoint {
    /// Whether it is a name, which only leads somewhere.
    pub fn is_name(&self) -> bool {
        self.socket.is_none() && self.configured.address.host().is_some()
    }

    /// Whether its node still leads here.
    pub fn is_known(&self) -> bool {
        self.configured.state().find(self.socket).is_some()
    }

    /// It answers. Returns whether that is news.
    pub fn mark_healthy(&self) -> bool {
        self.health(|health| health.mark_healthy(None, Instant::now())).unwrap_or(false)
    }

    /// It answers, and for this reason cannot be taken. Returns whether it is news that it answers.
    pub fn mark_unsuitable(&self, words: &str) -> bool {
        self.health(|health| health.mark_healthy(Some(words), Instant::now())).unwrap_or(false)
    }

    /// It could not be dialled for want of something on this machine.
    pub fn record_local_failure(&self, words: &str) {
        self.health(|health| health.record_local_failure(words));
    }

    /// The same when it was to be asked again.
    pub fn record_local_probe_failure(&self, words: &str) {
        self.health(|health| health.record_local_probe_failure(words, Instant::now()));
    }

    /// Whether nobody has dialled it yet.
    pub fn is_untested(&self) -> bool {
        self.health(|health| health.state() == UpstreamHealth::Unknown).unwrap_or(false)
    }

    /// It does not answer to a client. Until it does again the others are tried first. Returns whether that is news.
    pub fn eject(&self, words: &str) -> bool {
        let news = self.health(|health| health.eject(words, Instant::now())).unwrap_or(false);
        if news {
            self.configured.ejected.notify_one();
        }
        news
    }

    /// It has been asked again, and still does not answer.
    pub fn record_probe_failure(&self, words: &str) {
        self.health(|health| health.record_probe_failure(words, Instant::now()));
    }

    /// Notes whether it takes writes. Returns whether that is news.
    pub fn set_role(&self, writes: bool) -> bool {
        let former = self.replace_role(if writes { Role::Primary } else { Role::Replica(Instant::now()) });
        former.is_some_and(|former| matches!(former, Some(Role::Replica(_))) == writes)
    }

    /// It does not say whether it takes writes. Returns whether that is news.
    pub fn set_role_unknown(&self) -> bool {
        self.replace_role(Role::Unknown).is_some_and(|former| former != Some(Role::Unknown))
    }

    /// What it was before; nothing if it is no more.
    fn replace_role(&self, role: Role) -> Option<Option<Role>> {
        let mut state = self.configured.state();
        let endpoint = state.endpoints.iter_mut().find(|endpoint| endpoint.socket == self.socket)?;
        Some(endpoint.role.replace(role))
    }

    fn health<T>(&self, change: impl FnOnce(&mut Health) -> T) -> Option<T> {
        self.configured.state().find(self.socket).map(change)
    }
}

/// As configured, and behind a name where it led to.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.configured.address.to_string();
        match self.socket {
            Some(socket) if socket.to_string() != address => write!(f, "{address} ({socket})"),
            _ => f.write_str(&address),
        }
    }
}

/// The lower, the sooner it is tried.
type Rank = (bool, Option<Instant>);

impl UpstreamState {
    /// What is known of a place, or of the name; nothing of a place that is no more.
    fn find(&mut self, socket: Option<SocketAddr>) -> Option<&mut Health> {
        let endpoint = self.endpoints.iter_mut().find(|endpoint| endpoint.socket == socket);
        match endpoint {
            Some(endpoint) => Some(&mut endpoint.health),
            None if socket.is_none() => Some(&mut self.name),
            None => None,
        }
    }

    /// Of each place, or of the name where it leads to none.
    fn healths(&self, writes: bool) -> Vec<UpstreamHealth> {
        if self.name.is_ejected() || self.endpoints.is_empty() {
            return vec![if self.name.is_ejected() { UpstreamHealth::Unhealthy } else { UpstreamHealth::Unknown }];
        }
        let usable = |endpoint: &EndpointState| match endpoint.role {
            Some(Role::Replica(_)) if writes => UpstreamHealth::Unhealthy,
            _ => endpoint.health.state(),
        };
        self.endpoints.iter().map(usable).collect()
    }

    /// That of its best place.
    fn rank(&self, writes: bool) -> Rank {
        if self.name.is_ejected() {
            return (true, None);
        }
        self.endpoints.iter().map(|endpoint| endpoint.rank(writes)).min().unwrap_or_default()
    }

    fn next_due(&self) -> Option<Instant> {
        let endpoints = self.endpoints.iter().map(|endpoint| &endpoint.health);
        endpoints.chain([&self.name]).filter_map(Health::due).min()
    }

    fn take_pending(&mut self, now: Instant) -> Vec<Option<SocketAddr>> {
        let endpoints = self.endpoints.iter_mut().map(|endpoint| (endpoint.socket, &mut endpoint.health));
        let take = |(socket, health): (_, &mut Health)| health.take_pending(now).then_some(socket);
        endpoints.chain([(None, &mut self.name)]).filter_map(take).collect()
    }
}

impl EndpointState {
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

    fn status(&self) -> EndpointStatus {
        let writes = match self.role {
            Some(Role::Primary) => Some(true),
            Some(Role::Replica(_)) => Some(false),
            Some(Role::Unknown) | None => None,
        };
        status(self.socket, &self.health, writes)
    }
}

fn status(socket: Option<SocketAddr>, health: &Health, writes: Option<bool>) -> EndpointStatus {
    let (state, last_dial) = (health.state(), health.last_dial().cloned());
    EndpointStatus { socket, unhealthy: health.unhealthy(), health: state, last_dial, writes }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(port: u16) -> UpstreamAddr {
        UpstreamAddr::Tcp { host: "db.test".to_owned(), port }
    }

    fn ports(addresses: &[Arc<ConfiguredUpstream>]) -> Vec<u16> {
        let port = |configured: &Arc<ConfiguredUpstream>| match configured.address() {
            UpstreamAddr::Tcp { port, .. } => *port,
            UpstreamAddr::Unix(_) => 0,
        };
        addresses.iter().map(port).collect()
    }

    fn socket(last: u8) -> Option<SocketAddr> {
        Some(SocketAddr::from(([10, 0, 0, last], 1)))
    }

    /// Nodes on these ports, each with one place.
    fn addresses(ports: impl IntoIterator<Item = u16>) -> (Endpoints, Vec<Endpoint>) {
        let addresses: Vec<_> = ports.into_iter().map(address).collect();
        let addresses = Endpoints::after(None, &addresses);
        let endpoints = addresses.iter().flat_map(|configured| configured.resolved(&[socket(1)], false)).collect();
        (addresses, endpoints)
    }

    #[test]
    fn one_that_does_not_answer_is_tried_last_until_it_does() {
        let (addresses, endpoints) = addresses([1, 2, 3]);
        assert_eq!(ports(&addresses.in_order(false)), [1, 2, 3]);
        assert!(endpoints[0].eject("refused"), "news");
        assert!(!endpoints[0].eject("refused"), "no news");
        assert_eq!(ports(&addresses.in_order(false)), [2, 3, 1]);
        assert!(endpoints[0].mark_healthy() && !endpoints[0].mark_healthy());
        assert_eq!(ports(&addresses.in_order(false)), [1, 2, 3]);
        assert_eq!(addresses.next_due(), None);
    }

    #[test]
    fn it_is_asked_again_by_one_at_a_time_and_no_client_puts_that_off() {
        let (addresses, endpoints) = addresses([1, 2]);
        endpoints[0].eject("refused");
        let due = addresses.next_due().unwrap();
        endpoints[0].eject("refused");
        assert_eq!(addresses.next_due(), Some(due));
        assert!(addresses.take_pending(due - Duration::from_millis(1)).is_empty());
        assert_eq!(addresses.take_pending(due).len(), 1);
        assert!(addresses.take_pending(due + Duration::from_secs(3600)).is_empty(), "it is being asked");
        assert_eq!(addresses.next_due(), None);
        endpoints[0].record_probe_failure("refused");
        assert!(addresses.next_due().is_some_and(|next| next > due));
    }

    #[test]
    fn one_that_takes_no_writes_is_behind_the_others_where_that_counts() {
        let (addresses, endpoints) = addresses([1, 2, 3]);
        assert!(endpoints[0].set_role(false), "news");
        assert!(!endpoints[0].set_role(false) && !endpoints[1].set_role(true), "no news");
        assert!(endpoints[2].set_role_unknown() && !endpoints[2].set_role_unknown());
        endpoints[1].eject("refused");
        assert_eq!(ports(&addresses.in_order(true)), [3, 1, 2]);
        assert_eq!(ports(&addresses.in_order(false)), [1, 3, 2]);
        assert!(endpoints[0].set_role(true));
        assert_eq!(ports(&addresses.in_order(true)), [1, 3, 2]);
    }

    #[test]
    fn of_several_that_take_no_writes_the_one_that_said_so_last_is_tried_last() {
        let (addresses, endpoints) = addresses([1, 2, 3]);
        for next in [1, 2, 0, 1, 2] {
            let first = ports(&addresses.in_order(true))[0];
            let endpoint =
                endpoints.iter().find(|endpoint| ports(&[Arc::clone(&endpoint.configured)]) == [first]).unwrap();
            endpoint.set_role(false);
            assert_eq!(ports(&addresses.in_order(true))[0], [1, 2, 3][next], "none is asked twice before another");
        }
    }

    #[test]
    fn health_is_that_of_the_best_place_that_will_do() {
        let (addresses, endpoints) = addresses([1, 2]);
        let both = || (addresses.health(false), addresses.health(true));
        assert_eq!(both(), (UpstreamHealth::Unknown, UpstreamHealth::Unknown));
        endpoints[0].eject("refused");
        assert_eq!(addresses.health(false), UpstreamHealth::Unknown, "the other has not been dialled");
        endpoints[1].mark_healthy();
        endpoints[1].set_role(false);
        assert_eq!(both(), (UpstreamHealth::Healthy, UpstreamHealth::Unhealthy));
        endpoints[1].set_role(true);
        assert_eq!(addresses.health(true), UpstreamHealth::Healthy);
        endpoints[1].eject("refused");
        assert_eq!(both(), (UpstreamHealth::Unhealthy, UpstreamHealth::Unhealthy));
        endpoints[0].record_local_failure("no file");
        assert_eq!(addresses.health(false), UpstreamHealth::Unhealthy);
    }

    #[test]
    fn what_is_known_outlives_a_reload() {
        let (before, endpoints) = addresses([1, 2]);
        endpoints[0].eject("refused");
        let after = Endpoints::after(Some(&before), &[address(3), address(1), address(4)]);
        assert_eq!(ports(&after.in_order(false)), [3, 4, 1]);
    }

    #[test]
    fn the_places_behind_a_name_are_told_apart_as_long_as_it_leads_to_them() {
        let (addresses, _) = addresses([1, 2]);
        let configured = &addresses.addresses[0];
        let sockets = |endpoints: Vec<Endpoint>| endpoints.iter().map(|endpoint| endpoint.socket).collect::<Vec<_>>();
        let [one, two, three] = [1, 2, 3].map(socket);
        let endpoints = configured.resolved(&[one, two], false);
        endpoints[0].eject("refused");
        assert_eq!(sockets(configured.resolved(&[one, two], false)), [two, one]);
        assert_eq!(ports(&addresses.in_order(false)), [1, 2], "one place is left");
        endpoints[1].eject("refused");
        assert_eq!(ports(&addresses.in_order(false)), [2, 1]);
        assert_eq!(sockets(configured.resolved(&[one, three], false)), [three, one]);
        assert_eq!(ports(&addresses.in_order(false)), [1, 2]);
        assert!(!endpoints[1].is_known() && !endpoints[1].eject("refused") && !endpoints[1].mark_healthy());
        assert_eq!(endpoints[0].to_string(), "db.test:1 (10.0.0.1:1)");
    }

    #[test]
    fn a_name_that_does_not_resolve_is_tried_last_until_it_does() {
        let addresses = Endpoints::after(None, &[address(1), address(2)]);
        let name = addresses.addresses[0].as_endpoint();
        assert!(name.is_name() && name.eject("no such name"));
        assert_eq!(ports(&addresses.in_order(false)), [2, 1]);
        assert!(addresses.take_pending(addresses.next_due().unwrap())[0].is_name());
        assert_eq!(addresses.addresses[0].statuses()[0].unhealthy.as_ref().unwrap().1, "no such name");
        addresses.addresses[0].resolved(&[socket(1)], false);
        assert!(name.mark_healthy());
        assert_eq!(ports(&addresses.in_order(false)), [1, 2]);
    }
}
