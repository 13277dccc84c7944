//! Trusted proxies: the load balancers whose PROXY headers are accepted.

use std::net::IpAddr;

use crate::addr::ClientAddr;
use crate::source::rule::Network;

/// The networks of the load balancers that announce client addresses with the PROXY protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    networks: Vec<Network>,
    /// Networks whose health checks are counted and not audited.
    health_checkers: Vec<Network>,
}

impl TrustedProxies {
    /// Whether a connection comes from a load balancer and so must start with a PROXY header. Clients of Unix sockets have no
    /// address and are never load balancers.
    pub fn contains(&self, from: ClientAddr) -> bool {
        from.ip().is_some_and(|ip| self.covering(ip).is_some())
    }

    /// Whether health checks from this address are counted and not audited. A health check is a connection that ends without
    /// announcing a client.
    pub fn is_health_checker(&self, from: ClientAddr) -> bool {
        let is_in = |ip: IpAddr| self.health_checkers.iter().any(|network| network.net().contains(&ip));
        from.ip().is_some_and(is_in)
    }

    pub fn health_checkers(&self) -> &[Network] {
        &self.health_checkers
    }

    /// Returns the same load balancers with these health check networks.
    #[must_use]
    pub fn with_health_checkers(self, networks: Vec<Network>) -> Self {
        Self { health_checkers: networks, ..self }
    }

    /// The first network that contains an address.
    pub fn covering(&self, ip: IpAddr) -> Option<&Network> {
        self.networks.iter().find(|network| network.net().contains(&ip))
    }

    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    pub fn networks(&self) -> &[Network] {
        &self.networks
    }
}

impl FromIterator<Network> for TrustedProxies {
    fn from_iter<T: IntoIterator<Item = Network>>(networks: T) -> Self {
        Self { networks: networks.into_iter().collect(), health_checkers: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_in_listed_networks_are_proxies() {
        let proxies: TrustedProxies =
            ["10.0.0.1", "192.0.2.0/24", "2001:db8::/32"].map(|text| text.parse().unwrap()).into_iter().collect();
        let includes = |ip: &str| proxies.contains(ClientAddr::from_ip(ip.parse().unwrap()));
        assert!(includes("10.0.0.1") && includes("192.0.2.200") && includes("2001:db8::9"));
        assert!(!includes("10.0.0.2") && !includes("192.0.3.1") && !includes("2001:db9::1"));
        assert!(includes("::ffff:10.0.0.1") && !proxies.contains(ClientAddr::UNIX));
        let checks =
            |proxies: &TrustedProxies, ip: &str| proxies.is_health_checker(ClientAddr::from_ip(ip.parse().unwrap()));
        assert!(!checks(&proxies, "192.0.2.200"));
        let apart = proxies.with_health_checkers(vec!["10.0.0.2".parse().unwrap()]);
        assert!(
            checks(&apart, "10.0.0.2") && !checks(&apart, "192.0.2.200") && !apart.is_health_checker(ClientAddr::UNIX)
        );
        assert!(TrustedProxies::default().covering("10.0.0.1".parse().unwrap()).is_none());
    }
}
