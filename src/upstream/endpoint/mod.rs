//! The endpoints of an upstream, with the health and role of each. The status outlives reloads.
//!
//! An upstream has one or more configured addresses. If one is a host name, it has one endpoint for each address that the
//! name resolves to. Health and role belong to the endpoint: one may be unhealthy and the next a replica. A name itself can
//! only fail to resolve.

pub(crate) mod health;
pub(crate) mod outage;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::addr::UpstreamAddr;
use crate::upstream::endpoint::health::{Dial, Health, UpstreamHealth};
use crate::upstream::endpoint::outage::Outage;

/// The endpoints of one upstream by their configured addresses, in the order of the configuration.
#[derive(Debug, Default)]
pub struct Endpoints {
    addresses: Vec<Arc<ConfiguredAddress>>,
    /// Notified when an endpoint is ejected.
    ejected: Arc<Notify>,
    /// The state shared by the clients that wait for this upstream.
    outage: Arc<Outage>,
}

/// One address of an upstream, as configured.
#[derive(Debug)]
pub struct ConfiguredAddress {
    address: UpstreamAddr,
    state: Mutex<AddressState>,
    ejected: Arc<Notify>,
}

/// One address that a configured address resolves to, or the configured address itself.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub configured: Arc<ConfiguredAddress>,
    /// `None` for a Unix socket and for a name as such.
    pub socket: Option<SocketAddr>,
}

#[derive(Debug, Default)]
struct AddressState {
    /// The health of name resolution.
    name: Health,
    /// The addresses of the last resolution, in the resolver's order.
    endpoints: Vec<EndpointState>,
}

#[derive(Debug)]
struct EndpointState {
    socket: Option<SocketAddr>,
    health: Health,
    role: Option<Role>,
}

/// The last role that an endpoint reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Primary,
    /// The time of the report. Among replicas, the one with the oldest report is most likely the next primary.
    Replica(Instant),
    /// The endpoint did not report its role.
    Unknown,
}

/// The status of one endpoint, or of a name that does not resolve, for the operator.
#[derive(Clone, Debug)]
pub struct EndpointStatus {
    pub socket: Option<SocketAddr>,
    /// The start and the last error of an ejection.
    pub ejection: Option<(OffsetDateTime, String)>,
    pub health: UpstreamHealth,
    pub last_dial: Option<Dial>,
    /// `None` if its role is unknown.
    pub is_primary: Option<bool>,
}

impl Endpoints {
    /// The endpoints of `addresses`. Addresses that `before`, the previous generation, also has keep their status.
    pub(crate) fn after(before: Option<&Self>, addresses: &[UpstreamAddr]) -> Self {
        let ejected = before.map(|before| Arc::clone(&before.ejected)).unwrap_or_default();
        let known = |address: &UpstreamAddr| {
            let former = before.into_iter().flat_map(|before| &before.addresses);
            former.into_iter().find(|configured| configured.address == *address).cloned()
        };
        let new = |address: &UpstreamAddr| {
            let (state, ejected) = (Mutex::default(), Arc::clone(&ejected));
            Arc::new(ConfiguredAddress { address: address.clone(), state, ejected })
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

    /// The state shared by the clients that wait because all endpoints refuse connections.
    pub fn outage(&self) -> &Outage {
        &self.outage
    }

    /// The addresses in the order in which to try them: the configured order, then, with `needs_primary`, replicas, then
    /// ejected ones.
    pub fn in_order(&self, needs_primary: bool) -> Vec<Arc<ConfiguredAddress>> {
        let mut addresses = self.addresses.clone();
        addresses.sort_by_cached_key(|configured| configured.state().rank(needs_primary));
        addresses
    }

    /// Healthy if at least one endpoint is healthy and, with `needs_primary`, not a replica. Unknown if no endpoint is, but
    /// some were not dialed yet.
    pub fn health(&self, needs_primary: bool) -> UpstreamHealth {
        let all: Vec<_> =
            self.addresses.iter().flat_map(|configured| configured.state().healths(needs_primary)).collect();
        let is = |health: UpstreamHealth| all.contains(&health);
        match (is(UpstreamHealth::Healthy), is(UpstreamHealth::Unknown)) {
            (true, _) => UpstreamHealth::Healthy,
            (false, true) => UpstreamHealth::Unknown,
            (false, false) => UpstreamHealth::Unhealthy,
        }
    }

    /// Starts the due probes: returns each ejected endpoint, or unresolved name, whose next probe is due by `now`. An endpoint
    /// is not returned again before a result is recorded.
    pub fn take_due(&self, now: Instant) -> Vec<Endpoint> {
        let due = |configured: &Arc<ConfiguredAddress>| {
            let sockets = configured.state().take_due(now);
            sockets.into_iter().map(|socket| configured.at(socket)).collect::<Vec<_>>()
        };
        self.addresses.iter().flat_map(due).collect()
    }

    /// When the next probe is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.addresses.iter().filter_map(|configured| configured.state().next_due()).min()
    }

    /// Returns when an endpoint is ejected.
    pub async fn ejected(&self) {
        self.ejected.notified().await;
    }

    /// Whether more than one endpoint is known.
    pub fn has_several(&self) -> bool {
        self.addresses.len() > 1 || self.addresses.iter().any(|configured| configured.state().endpoints.len() > 1)
    }

    /// In the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ConfiguredAddress>> {
        self.addresses.iter()
    }
}

impl ConfiguredAddress {
    pub fn address(&self) -> &UpstreamAddr {
        &self.address
    }

    /// Stores the resolved addresses, or `None` for a Unix socket. Returns the endpoints in the order in which to try them.
    pub fn set_resolved(self: &Arc<Self>, sockets: &[Option<SocketAddr>], needs_primary: bool) -> Vec<Endpoint> {
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
            state.endpoints.iter().map(|endpoint| (endpoint.rank(needs_primary), endpoint.socket)).collect();
        drop(state);
        endpoints.sort_by_key(|(rank, _)| *rank);
        endpoints.into_iter().map(|(_, socket)| self.at(socket)).collect()
    }

    /// The status of each endpoint. Empty before the first dial.
    pub fn statuses(&self) -> Vec<EndpointStatus> {
        let state = self.state();
        if state.name.is_ejected() || (state.endpoints.is_empty() && state.name.last_dial().is_some()) {
            return vec![status(None, &state.name, None)];
        }
        state.endpoints.iter().map(EndpointState::status).collect()
    }

    /// The name itself, or the endpoint of a Unix socket.
    pub fn as_endpoint(self: &Arc<Self>) -> Endpoint {
        self.at(None)
    }

    fn at(self: &Arc<Self>, socket: Option<SocketAddr>) -> Endpoint {
        Endpoint { configured: Arc::clone(self), socket }
    }

    fn state(&self) -> MutexGuard<'_, AddressState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Endpoint {
    /// Whether this is a host name and not an endpoint that can be dialed.
    pub fn is_name(&self) -> bool {
        self.socket.is_none() && self.configured.address.host().is_some()
    }

    /// Whether the configured address still resolves to this endpoint.
    pub fn is_known(&self) -> bool {
        self.configured.state().find(self.socket).is_some()
    }

    /// Returns whether the endpoint was ejected before.
    pub fn mark_healthy(&self) -> bool {
        self.with_health(|health| health.mark_healthy(None, Instant::now())).unwrap_or(false)
    }

    /// Marks an endpoint that responds but was not used for the reason `error`. Returns whether it was ejected before.
    pub fn mark_unsuitable(&self, error: &str) -> bool {
        self.with_health(|health| health.mark_healthy(Some(error), Instant::now())).unwrap_or(false)
    }

    /// Records a dial that failed because of a local shortage.
    pub fn record_local_failure(&self, error: &str) {
        self.with_health(|health| health.record_local_failure(error));
    }

    /// Records a probe that failed because of a local shortage.
    pub fn record_local_probe_failure(&self, error: &str) {
        self.with_health(|health| health.record_local_probe_failure(error, Instant::now()));
    }

    pub fn is_undialed(&self) -> bool {
        self.with_health(|health| health.state() == UpstreamHealth::Unknown).unwrap_or(false)
    }

    /// Ejects the endpoint: it is tried last until it is healthy again. Returns whether it was not ejected before.
    pub fn eject(&self, error: &str) -> bool {
        let changed = self.with_health(|health| health.eject(error, Instant::now())).unwrap_or(false);
        if changed {
            self.configured.ejected.notify_one();
        }
        changed
    }

    pub fn record_probe_failure(&self, error: &str) {
        self.with_health(|health| health.record_probe_failure(error, Instant::now()));
    }

    /// Returns whether the role has changed. The first report of a primary is not a change.
    pub fn set_role(&self, is_primary: bool) -> bool {
        let former = self.replace_role(if is_primary { Role::Primary } else { Role::Replica(Instant::now()) });
        former.is_some_and(|former| matches!(former, Some(Role::Replica(_))) == is_primary)
    }

    /// Returns whether the role was known, or not queried, before.
    pub fn set_role_unknown(&self) -> bool {
        self.replace_role(Role::Unknown).is_some_and(|former| former != Some(Role::Unknown))
    }

    /// Returns the former role. `None` if the endpoint no longer exists.
    fn replace_role(&self, role: Role) -> Option<Option<Role>> {
        let mut state = self.configured.state();
        let endpoint = state.endpoints.iter_mut().find(|endpoint| endpoint.socket == self.socket)?;
        Some(endpoint.role.replace(role))
    }

    fn with_health<T>(&self, change: impl FnOnce(&mut Health) -> T) -> Option<T> {
        self.configured.state().find(self.socket).map(change)
    }
}

/// The configured address, with the resolved address in parentheses if it is a name.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.configured.address.to_string();
        match self.socket {
            Some(socket) if socket.to_string() != address => write!(f, "{address} ({socket})"),
            _ => f.write_str(&address),
        }
    }
}

/// Whether the endpoint is ejected, and since when it is a replica. A lower rank is tried first.
type Rank = (bool, Option<Instant>);

impl AddressState {
    /// The health of an endpoint or of the name. `None` if the endpoint no longer exists.
    fn find(&mut self, socket: Option<SocketAddr>) -> Option<&mut Health> {
        let endpoint = self.endpoints.iter_mut().find(|endpoint| endpoint.socket == socket);
        match endpoint {
            Some(endpoint) => Some(&mut endpoint.health),
            None if socket.is_none() => Some(&mut self.name),
            None => None,
        }
    }

    /// The health of each endpoint, or of the name if it has none.
    fn healths(&self, needs_primary: bool) -> Vec<UpstreamHealth> {
        if self.name.is_ejected() || self.endpoints.is_empty() {
            return vec![if self.name.is_ejected() { UpstreamHealth::Unhealthy } else { UpstreamHealth::Unknown }];
        }
        let usable = |endpoint: &EndpointState| match endpoint.role {
            Some(Role::Replica(_)) if needs_primary => UpstreamHealth::Unhealthy,
            _ => endpoint.health.state(),
        };
        self.endpoints.iter().map(usable).collect()
    }

    /// The rank of the best endpoint.
    fn rank(&self, needs_primary: bool) -> Rank {
        if self.name.is_ejected() {
            return (true, None);
        }
        self.endpoints.iter().map(|endpoint| endpoint.rank(needs_primary)).min().unwrap_or_default()
    }

    fn next_due(&self) -> Option<Instant> {
        let endpoints = self.endpoints.iter().map(|endpoint| &endpoint.health);
        endpoints.chain([&self.name]).filter_map(Health::due).min()
    }

    fn take_due(&mut self, now: Instant) -> Vec<Option<SocketAddr>> {
        let endpoints = self.endpoints.iter_mut().map(|endpoint| (endpoint.socket, &mut endpoint.health));
        let take = |(socket, health): (_, &mut Health)| health.start_probe(now).then_some(socket);
        endpoints.chain([(None, &mut self.name)]).filter_map(take).collect()
    }
}

impl EndpointState {
    fn new(socket: Option<SocketAddr>) -> Self {
        Self { socket, health: Health::default(), role: None }
    }

    fn rank(&self, needs_primary: bool) -> Rank {
        let replica = match self.role {
            Some(Role::Replica(since)) if needs_primary => Some(since),
            _ => None,
        };
        (self.health.is_ejected(), replica)
    }

    fn status(&self) -> EndpointStatus {
        let is_primary = match self.role {
            Some(Role::Primary) => Some(true),
            Some(Role::Replica(_)) => Some(false),
            Some(Role::Unknown) | None => None,
        };
        status(self.socket, &self.health, is_primary)
    }
}

fn status(socket: Option<SocketAddr>, health: &Health, is_primary: Option<bool>) -> EndpointStatus {
    let (state, last_dial) = (health.state(), health.last_dial().cloned());
    EndpointStatus { socket, ejection: health.ejection(), health: state, last_dial, is_primary }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(port: u16) -> UpstreamAddr {
        UpstreamAddr::Tcp { host: "db.test".to_owned(), port }
    }

    fn ports(addresses: &[Arc<ConfiguredAddress>]) -> Vec<u16> {
        let port = |configured: &Arc<ConfiguredAddress>| match configured.address() {
            UpstreamAddr::Tcp { port, .. } => *port,
            UpstreamAddr::Unix(_) => 0,
        };
        addresses.iter().map(port).collect()
    }

    fn socket(last: u8) -> Option<SocketAddr> {
        Some(SocketAddr::from(([10, 0, 0, last], 1)))
    }

    /// One address with one endpoint for each port.
    fn addresses(ports: impl IntoIterator<Item = u16>) -> (Endpoints, Vec<Endpoint>) {
        let addresses: Vec<_> = ports.into_iter().map(address).collect();
        let addresses = Endpoints::after(None, &addresses);
        let endpoints = addresses.iter().flat_map(|configured| configured.set_resolved(&[socket(1)], false)).collect();
        (addresses, endpoints)
    }

    #[test]
    fn ejected_endpoint_is_tried_last_until_it_is_healthy() {
        let (addresses, endpoints) = addresses([1, 2, 3]);
        assert_eq!(ports(&addresses.in_order(false)), [1, 2, 3]);
        assert!(endpoints[0].eject("refused"), "a change");
        assert!(!endpoints[0].eject("refused"), "no change");
        assert_eq!(ports(&addresses.in_order(false)), [2, 3, 1]);
        assert!(endpoints[0].mark_healthy() && !endpoints[0].mark_healthy());
        assert_eq!(ports(&addresses.in_order(false)), [1, 2, 3]);
        assert_eq!(addresses.next_due(), None);
    }

    #[test]
    fn ejected_endpoint_has_one_probe_at_a_time_that_clients_do_not_postpone() {
        let (addresses, endpoints) = addresses([1, 2]);
        endpoints[0].eject("refused");
        let due = addresses.next_due().unwrap();
        endpoints[0].eject("refused");
        assert_eq!(addresses.next_due(), Some(due));
        assert!(addresses.take_due(due - Duration::from_millis(1)).is_empty());
        assert_eq!(addresses.take_due(due).len(), 1);
        assert!(addresses.take_due(due + Duration::from_secs(3600)).is_empty(), "a probe runs");
        assert_eq!(addresses.next_due(), None);
        endpoints[0].record_probe_failure("refused");
        assert!(addresses.next_due().is_some_and(|next| next > due));
    }

    #[test]
    fn replica_is_tried_after_the_others_if_a_primary_is_needed() {
        let (addresses, endpoints) = addresses([1, 2, 3]);
        assert!(endpoints[0].set_role(false), "a change");
        assert!(!endpoints[0].set_role(false) && !endpoints[1].set_role(true), "no change");
        assert!(endpoints[2].set_role_unknown() && !endpoints[2].set_role_unknown());
        endpoints[1].eject("refused");
        assert_eq!(ports(&addresses.in_order(true)), [3, 1, 2]);
        assert_eq!(ports(&addresses.in_order(false)), [1, 3, 2]);
        assert!(endpoints[0].set_role(true));
        assert_eq!(ports(&addresses.in_order(true)), [1, 3, 2]);
    }

    #[test]
    fn replica_with_the_latest_report_is_tried_last() {
        let (addresses, endpoints) = addresses([1, 2, 3]);
        for next in [1, 2, 0, 1, 2] {
            let first = ports(&addresses.in_order(true))[0];
            let endpoint =
                endpoints.iter().find(|endpoint| ports(&[Arc::clone(&endpoint.configured)]) == [first]).unwrap();
            endpoint.set_role(false);
            assert_eq!(ports(&addresses.in_order(true))[0], [1, 2, 3][next], "each replica is tried in turn");
        }
    }

    #[test]
    fn health_is_that_of_the_best_suitable_endpoint() {
        let (addresses, endpoints) = addresses([1, 2]);
        let both = || (addresses.health(false), addresses.health(true));
        assert_eq!(both(), (UpstreamHealth::Unknown, UpstreamHealth::Unknown));
        endpoints[0].eject("refused");
        assert_eq!(addresses.health(false), UpstreamHealth::Unknown, "the other endpoint was not dialed");
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
    fn endpoint_status_outlives_a_reload() {
        let (before, endpoints) = addresses([1, 2]);
        endpoints[0].eject("refused");
        let after = Endpoints::after(Some(&before), &[address(3), address(1), address(4)]);
        assert_eq!(ports(&after.in_order(false)), [3, 4, 1]);
    }

    #[test]
    fn endpoints_of_a_name_have_separate_health_while_the_name_resolves_to_them() {
        let (addresses, _) = addresses([1, 2]);
        let configured = &addresses.addresses[0];
        let sockets = |endpoints: Vec<Endpoint>| endpoints.iter().map(|endpoint| endpoint.socket).collect::<Vec<_>>();
        let [one, two, three] = [1, 2, 3].map(socket);
        let endpoints = configured.set_resolved(&[one, two], false);
        endpoints[0].eject("refused");
        assert_eq!(sockets(configured.set_resolved(&[one, two], false)), [two, one]);
        assert_eq!(ports(&addresses.in_order(false)), [1, 2], "one endpoint is healthy");
        endpoints[1].eject("refused");
        assert_eq!(ports(&addresses.in_order(false)), [2, 1]);
        assert_eq!(sockets(configured.set_resolved(&[one, three], false)), [three, one]);
        assert_eq!(ports(&addresses.in_order(false)), [1, 2]);
        assert!(!endpoints[1].is_known() && !endpoints[1].eject("refused") && !endpoints[1].mark_healthy());
        assert_eq!(endpoints[0].to_string(), "db.test:1 (10.0.0.1:1)");
    }

    #[test]
    fn name_that_does_not_resolve_is_tried_last_until_it_resolves() {
        let addresses = Endpoints::after(None, &[address(1), address(2)]);
        let name = addresses.addresses[0].as_endpoint();
        assert!(name.is_name() && name.eject("no such name"));
        assert_eq!(ports(&addresses.in_order(false)), [2, 1]);
        assert!(addresses.take_due(addresses.next_due().unwrap())[0].is_name());
        assert_eq!(addresses.addresses[0].statuses()[0].ejection.as_ref().unwrap().1, "no such name");
        addresses.addresses[0].set_resolved(&[socket(1)], false);
        assert!(name.mark_healthy());
        assert_eq!(ports(&addresses.in_order(false)), [1, 2]);
    }
}
