//! What an operator should know of the load balancers whose word is taken.

use crate::policy::builder::Builder;
use crate::source::rule::Network;

impl Builder<'_> {
    pub(crate) fn warn_about_balancers(&mut self) {
        let listener = self.listener;
        for network in listener.proxies.networks() {
            if is_wide(network) {
                self.warn(format_args!(
                    "proxy_protocol.trusted has {network}, and whoever is there can pass for any client; name the load balancers alone"
                ));
            }
            let inside = listener.sources.trusted.rules().iter().find(|rule| {
                let source = rule.source.network().filter(|_| !network.is_one_host());
                source.is_some_and(|source| network.net().contains(&source.net()))
            });
            if let Some(rule) = inside {
                self.warn(format_args!(
                    "the rule {rule} is within {network} of proxy_protocol.trusted: its clients are refused without a PROXY header, \
                     and with one can pass for any other; name the load balancers alone"
                ));
            }
        }
    }
}

/// More than a site has for its load balancers, or a cloud for its health checks.
fn is_wide(network: &Network) -> bool {
    network.net().prefix_len() < if network.net().addr().is_ipv4() { 16 } else { 48 }
}
