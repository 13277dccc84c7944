//! Whether the kernel can turn strangers away for a listener, and by which program.

use time::OffsetDateTime;

use crate::addr::ListenAddr;
use crate::policy::ListenerPolicy;
use crate::source::packet_filter::{PacketFilter, ProgramTooLong};
use crate::source::trusted::{Enforcement, TrustedSources};

/// Why the kernel cannot turn strangers away for a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShieldUnavailable {
    /// The source is in a header that only load balancers know how to write.
    #[error(
        "the kernel sees the addresses of the load balancers in proxy_protocol.trusted and not those of their clients"
    )]
    TrustedProxies,
    /// Nobody is turned away.
    #[error("enforcement = \"observe\" turns nobody away")]
    Observing,
    /// Clients of Unix sockets have no address.
    #[error("clients of Unix sockets have no address")]
    NoPort,
    /// They are too many.
    #[error(transparent)]
    ProgramTooLong(#[from] ProgramTooLong),
}

impl ListenerPolicy {
    /// The program that lets through whom these terms trust at `now`; and whom `others` trust, where an address is about to
    /// change from one to the other.
    ///
    /// # Errors
    /// When there can be none.
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
