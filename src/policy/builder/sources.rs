//! Warnings about trusted sources and load balancers that match every client or no client.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::policy::builder::Builder;
use crate::policy::builder::reader::Reader;
use crate::source::rule::{Network, Rule, Source};
use crate::timestamp;

impl Builder<'_> {
    pub(crate) fn warn_about_sources(&mut self) {
        let listener = self.listener;
        let now = self.now.at;
        warn_about_rules(listener.sources.trusted.rules(), &mut self.reader, now);
        listener.proxies.networks().iter().for_each(|network| warn_if_unspecified(network, &mut self.reader));
    }
}

/// Warns about rules of a listener or a group.
pub(crate) fn warn_about_rules(rules: &[Arc<Rule>], reader: &mut Reader<'_>, now: OffsetDateTime) {
    for rule in rules {
        let Source::Network(network) = &rule.source else { continue };
        if network.net().prefix_len() == 0 {
            reader.warn(format_args!("the rule {rule} trusts every address of its family; list narrower networks"));
        }
    }
    for network in rules.iter().filter_map(|rule| rule.source.network()) {
        warn_if_unspecified(network, reader);
    }
    warn_about_expired_rules(rules, reader, now);
}

fn warn_about_expired_rules(rules: &[Arc<Rule>], reader: &mut Reader<'_>, now: OffsetDateTime) {
    let expired: Vec<_> = rules.iter().filter(|rule| !rule.is_live(now)).collect();
    for rule in expired.iter().take(MAX_REPORTED) {
        let end = rule.expires_at.map(timestamp::seconds).unwrap_or_default();
        reader.warn(format_args!(
            "the rule {rule} expired at {end} and matches no client; remove it, or set a later expires_at"
        ));
    }
    if expired.len() > MAX_REPORTED {
        reader.warn(format_args!(
            "{} more rules have expired and match no client; remove them",
            expired.len().saturating_sub(MAX_REPORTED)
        ));
    }
}

/// Warns about the single address 0.0.0.0 or ::, which is never the source of a connection.
fn warn_if_unspecified(network: &Network, reader: &mut Reader<'_>) {
    let ip = network.net().addr();
    if network.is_single_address() && ip.is_unspecified() {
        reader.warn(format_args!(
            "{ip} is the unspecified address and matches no client; use {ip}/0 for every address of its family"
        ));
    }
}

/// Maximum number of expired rules that are listed; there may be thousands.
const MAX_REPORTED: usize = 10;
