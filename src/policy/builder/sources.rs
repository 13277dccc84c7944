//! Warnings about trusted sources and load balancers that match every client or no client.

use std::sync::Arc;

use crate::policy::builder::Builder;
use crate::source::rule::{Network, Rule, Source};
use crate::timestamp;

impl Builder<'_> {
    pub(crate) fn warn_about_sources(&mut self) {
        let listener = self.listener;
        let rules = listener.sources.trusted.rules();
        for rule in rules {
            let Source::Network(network) = &rule.source else { continue };
            if network.net().prefix_len() == 0 {
                self.reader
                    .warn(format_args!("the rule {rule} trusts every address of its family; list narrower networks"));
            }
        }
        let networks = rules.iter().filter_map(|rule| rule.source.network());
        for network in networks.chain(listener.proxies.networks()).filter(|network| is_unspecified(network)) {
            let ip = network.net().addr();
            self.reader.warn(format_args!(
                "{ip} is the unspecified address and matches no client; use {ip}/0 for every address of its family"
            ));
        }
        self.warn_about_expired_rules(rules);
    }

    fn warn_about_expired_rules(&mut self, rules: &[Arc<Rule>]) {
        let now = self.now.at;
        let expired: Vec<_> = rules.iter().filter(|rule| !rule.is_live(now)).collect();
        for rule in expired.iter().take(MAX_REPORTED) {
            let end = rule.expires_at.map(timestamp::seconds).unwrap_or_default();
            self.reader.warn(format_args!(
                "the rule {rule} expired at {end} and matches no client; remove it, or set a later expires_at"
            ));
        }
        if expired.len() > MAX_REPORTED {
            self.reader.warn(format_args!(
                "{} more rules have expired and match no client; remove them",
                expired.len().saturating_sub(MAX_REPORTED)
            ));
        }
    }
}

/// Whether a network is the single address 0.0.0.0 or ::, which is never the source of a connection.
fn is_unspecified(network: &Network) -> bool {
    network.is_single_address() && network.net().addr().is_unspecified()
}

/// Maximum number of expired rules that are listed; there may be thousands.
const MAX_REPORTED: usize = 10;
