//! Builds the kernel source filter of a listener's shield.

use time::OffsetDateTime;

use crate::addr::ListenAddr;
use crate::policy::ListenerPolicy;
use crate::source::packet_filter::{PacketFilter, ProgramTooLong};
use crate::source::trusted::{Enforcement, TrustedSources};

/// Why the kernel cannot filter the sources of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShieldUnavailable {
    /// The client address is in a PROXY header, which the kernel does not parse.
    #[error(
        "the kernel sees the addresses of the load balancers in proxy_protocol.trusted, not those of their clients"
    )]
    TrustedProxies,
    #[error("enforcement = \"observe\" rejects no source")]
    Observing,
    #[error("clients of Unix sockets have no address")]
    NoPort,
    #[error(transparent)]
    ProgramTooLong(#[from] ProgramTooLong),
}

impl ListenerPolicy {
    /// Builds the program that accepts packets from all sources that are trusted at `now`. While a listen address moves to
    /// another listener, `others` are that listener's sources, which are accepted too.
    ///
    /// # Errors
    /// When the listener cannot have a filter.
    pub fn packet_filter(
        &self,
        others: Option<&TrustedSources>,
        now: OffsetDateTime,
    ) -> Result<PacketFilter, ShieldUnavailable> {
        if self.sources.enforcement == Enforcement::Observe {
            return Err(ShieldUnavailable::Observing);
        }
        if !self.proxies.is_empty() {
            return Err(ShieldUnavailable::TrustedProxies);
        }
        if !self.bind_addrs.iter().any(|bind_addr| matches!(bind_addr.address, ListenAddr::Tcp(_))) {
            return Err(ShieldUnavailable::NoPort);
        }
        let sets = [Some(&*self.sources.trusted), others];
        let networks = sets.into_iter().flatten().flat_map(|sources| sources.live_networks(now));
        Ok(PacketFilter::accepting(networks)?)
    }
}
