//! Load balancers: whose word on where a client comes from is taken.

use std::net::IpAddr;

use super::rule::Network;
use crate::addr::ClientAddr;

/// The networks of the load balancers that speak for their clients by the PROXY protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balancers(Vec<Network>);

impl Balancers {
    /// Whether a connection from there comes from one of them, and so has to begin with a PROXY header. Who comes to a Unix
    /// socket has no address, and is none.
    pub fn speak_from(&self, from: ClientAddr) -> bool {
        from.ip().is_some_and(|ip| self.around(ip).is_some())
    }

    /// The network of theirs that an address is in.
    pub fn around(&self, ip: IpAddr) -> Option<&Network> {
        self.0.iter().find(|network| network.net().contains(&ip))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As they were written.
    pub fn networks(&self) -> &[Network] {
        &self.0
    }
}

impl FromIterator<Network> for Balancers {
    fn from_iter<T: IntoIterator<Item = Network>>(networks: T) -> Self {
        Self(networks.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_networks_named_are_balancers() {
        let balancers: Balancers =
            ["10.0.0.1", "192.0.2.0/24", "2001:db8::/32"].map(|text| text.parse().unwrap()).into_iter().collect();
        let includes = |ip: &str| balancers.speak_from(ClientAddr::from_ip(ip.parse().unwrap()));
        assert!(includes("10.0.0.1") && includes("192.0.2.200") && includes("2001:db8::9"));
        assert!(!includes("10.0.0.2") && !includes("192.0.3.1") && !includes("2001:db9::1"));
        assert!(includes("::ffff:10.0.0.1") && !balancers.speak_from(ClientAddr::UNIX));
        assert!(Balancers::default().around("10.0.0.1".parse().unwrap()).is_none());
    }
}
