//! Warnings about `proxy_protocol.trusted`.

use crate::policy::builder::Builder;
use crate::source::rule::Network;
use crate::source::trusted::TrustedSources;

impl Builder<'_> {
    pub(crate) fn warn_about_proxies(&mut self, trusted: &TrustedSources) {
        let listener = self.listener;
        for network in listener.proxies.networks() {
            if is_wide(network) {
                self.reader.warn(format_args!(
                    "every host in {network} (proxy_protocol.trusted) can announce any client address; list only the load balancers"
                ));
            }
            let inside = trusted.all_rules().find(|rule| {
                let source = rule.source.network().filter(|_| !network.is_single_address());
                source.is_some_and(|source| network.net().contains(&source.net()))
            });
            if let Some(rule) = inside {
                self.reader.warn(format_args!(
                    "the rule {rule} is within {network} of proxy_protocol.trusted: its clients are rejected without a PROXY header, \
                     and can announce any address with one; list only the load balancers"
                ));
            }
        }
    }
}

/// Whether a network is larger than those of load balancers at one site, or of a cloud's health checks.
fn is_wide(network: &Network) -> bool {
    network.net().prefix_len() < if network.net().addr().is_ipv4() { 16 } else { 48 }
}
