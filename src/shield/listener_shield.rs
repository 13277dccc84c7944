//! The shield of one listener, with its sockets.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::audit::Audit;
use crate::config::Shield;
use crate::metrics::listener::ListenerMetrics;
use crate::policy::{BindAddr, ListenerPolicy};
use crate::shield::flood::FloodDetector;
use crate::shield::{ShieldStatus, drops};
use crate::source::packet_filter::PacketFilter;
use crate::transport::listen_socket::ListenSocket;

/// Drops packets of untrusted sources at the sockets of one listener while it is active.
#[derive(Debug, Default)]
pub(crate) struct ListenerShield {
    sockets: Vec<ShieldedSocket>,
    active: Option<ActiveFilter>,
    flood: FloodDetector,
    /// Whether floods activate it (`shield = "auto"`).
    is_automatic: bool,
    /// Untrusted connections a second at the last check.
    rate: u64,
    /// Packets dropped so far, and at the last check.
    dropped: u64,
    dropped_before: u64,
    /// Receives the dropped packets too. `None` before the first policy.
    metrics: Option<Arc<ListenerMetrics>>,
    /// Whether the kernel does not report dropped packets.
    is_uncounted: bool,
    unavailable_reason: Option<String>,
}

/// A listening socket with its filter.
#[derive(Debug)]
struct ShieldedSocket {
    bind_addr: BindAddr,
    listen_socket: Arc<ListenSocket>,
    filter: Option<PacketFilter>,
    /// The kernel's count of dropped packets at the last reading.
    drops: Option<u32>,
    /// The count of untrusted connections at the last check.
    untrusted: u64,
}

/// An active shield.
#[derive(Debug)]
struct ActiveFilter {
    since: Instant,
    at: OffsetDateTime,
    /// [`ListenerShield::dropped`] at its activation.
    dropped_before: u64,
    /// When its filter was built, and when the next of its rules expires.
    made_at: OffsetDateTime,
    next_expiry: Option<OffsetDateTime>,
}

impl ListenerShield {
    pub(crate) fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// Whether a flood activates it.
    pub(crate) fn waits_for_floods(&self) -> bool {
        self.is_automatic && self.unavailable_reason.is_none()
    }

    /// Whether its state may change within a second.
    pub(crate) fn needs_fast_checks(&self) -> bool {
        self.waits_for_floods() && (self.is_active() || self.rate > 0)
    }

    /// Replaces the sockets. A socket that stays keeps its filter and counts.
    pub(crate) fn set_sockets(&mut self, sockets: Vec<(BindAddr, Arc<ListenSocket>)>) {
        self.count();
        let mut former = std::mem::take(&mut self.sockets);
        for (bind_addr, listen_socket) in sockets {
            let same = former.iter().position(|former| Arc::ptr_eq(&former.listen_socket, &listen_socket));
            let socket = match same {
                Some(index) => former.swap_remove(index),
                None => {
                    let (drops, untrusted) = (drops::read(listen_socket.socket()).ok(), listen_socket.untrusted());
                    ShieldedSocket { bind_addr, listen_socket, filter: None, drops, untrusted }
                }
            };
            self.sockets.push(socket);
        }
    }

    /// Applies the policy in force.
    pub(crate) fn follow(&mut self, policy: &ListenerPolicy, audit: &Audit) {
        self.metrics = Some(Arc::clone(&policy.metrics));
        self.is_automatic = policy.shield == Shield::Auto;
        self.sockets.iter().for_each(|socket| socket.listen_socket.set_watched(self.is_automatic));
        self.unavailable_reason = None;
        let filter = match policy.shield {
            Shield::Off => Err("shield = \"off\"".to_owned()),
            Shield::On | Shield::Auto => {
                policy.packet_filter(None, OffsetDateTime::now_utc()).map_err(|error| error.to_string())
            }
        };
        match filter {
            Err(why) => {
                self.deactivate(&policy.name, &why, audit);
                self.unavailable_reason = (policy.shield != Shield::Off).then_some(why);
            }
            Ok(filter) if self.is_active() => self.attach(&filter, policy),
            Ok(_) if policy.shield == Shield::On => self.activate(policy, "shield = \"on\"", audit),
            Ok(_) => {}
        }
        self.deactivate_if_unavailable(&policy.name, audit);
        if !self.is_active() {
            // A socket may have moved from another listener with its filter.
            self.sockets.iter_mut().for_each(ShieldedSocket::detach);
        }
    }

    /// Replaces the filters of its sockets by `filter`, which returns a filter, `Some(None)` for no filter, or `None` to leave
    /// the socket as it is.
    pub(crate) fn reattach(&mut self, filter: impl Fn(&BindAddr) -> Option<Option<PacketFilter>>) {
        for socket in self.sockets.iter_mut().filter(|socket| socket.filter.is_some()) {
            match filter(&socket.bind_addr) {
                // If the kernel rejects the filter, the socket accepts all sources, which is not narrower.
                Some(Some(filter)) => drop(socket.attach(&filter)),
                Some(None) => socket.detach(),
                None => {}
            }
        }
    }

    /// Counts dropped packets. Rebuilds the filter if a rule has expired or the clock was set back.
    pub(crate) fn refresh(&mut self, policy: &ListenerPolicy, audit: &Audit) {
        self.count();
        let Some(up) = &self.active else { return };
        let now = OffsetDateTime::now_utc();
        if (now < up.made_at || up.next_expiry.is_some_and(|end| end <= now))
            && let Ok(filter) = policy.packet_filter(None, now)
        {
            self.attach(&filter, policy);
            self.deactivate_if_unavailable(&policy.name, audit);
        }
    }

    /// Activates or deactivates the shield by the number of untrusted connections in `elapsed`.
    pub(crate) fn judge_flood(&mut self, policy: &ListenerPolicy, elapsed: Duration, audit: &Audit) {
        if !self.waits_for_floods() {
            return;
        }
        let a_second = |count: u64| count.saturating_mul(1000) / u64::try_from(elapsed.as_millis()).unwrap_or(1).max(1);
        let through = self.count_untrusted();
        self.rate = a_second(through);
        if let Some(ActiveFilter { since, .. }) = self.active {
            let counted = self.count().is_some();
            let dropped = self.dropped.saturating_sub(std::mem::replace(&mut self.dropped_before, self.dropped));
            let rate = counted.then(|| a_second(dropped.saturating_add(through)));
            if self.flood.observe_end(rate, since.elapsed()) {
                self.rate = 0;
                let over = "the flood is over";
                let why = if rate.is_some() { over } else { "to check whether the flood is over" };
                self.deactivate(&policy.name, why, audit);
            }
        } else if self.flood.observe_start(self.rate) {
            self.activate(policy, &format!("flood: {} untrusted connections a second", self.rate), audit);
        }
    }

    /// Returns the number of untrusted connections since the last call.
    pub(crate) fn count_untrusted(&mut self) -> u64 {
        let since = |socket: &mut ShieldedSocket| {
            let now = socket.listen_socket.untrusted();
            now.saturating_sub(std::mem::replace(&mut socket.untrusted, now))
        };
        self.sockets.iter_mut().map(since).sum()
    }

    fn activate(&mut self, policy: &ListenerPolicy, why: &str, audit: &Audit) {
        let now = OffsetDateTime::now_utc();
        let filter = match policy.packet_filter(None, now) {
            Ok(filter) => filter,
            Err(error) => {
                self.unavailable_reason = Some(error.to_string());
                return;
            }
        };
        self.sockets.iter_mut().for_each(|socket| socket.drops = drops::read(socket.listen_socket.socket()).ok());
        let up = ActiveFilter {
            since: Instant::now(),
            at: now,
            dropped_before: self.dropped,
            made_at: now,
            next_expiry: None,
        };
        self.active = Some(up);
        self.dropped_before = self.dropped;
        self.attach(&filter, policy);
        if self.has_no_filter() {
            self.active = None;
            return;
        }
        audit.shield_on(&policy.name, why, policy.sources.trusted.count(), policy.shield == Shield::Auto);
        if self.sockets.iter().any(|socket| socket.drops.is_none()) && !self.is_uncounted {
            self.is_uncounted = true;
            info!(listener = %policy.name, "the kernel does not report packets dropped by the shield");
        }
    }

    /// Attaches a filter to every socket, and logs a failure.
    fn attach(&mut self, filter: &PacketFilter, policy: &ListenerPolicy) {
        for socket in &mut self.sockets {
            if let Err(error) = socket.attach(filter) {
                let length = filter.instructions().len();
                let message = format!(
                    "cannot attach the packet filter of {length} instructions to {}: {error}{}",
                    socket.bind_addr.address,
                    if error.raw_os_error() == Some(libc::ENOMEM) { "; increase net.core.optmem_max" } else { "" }
                );
                warn!(listener = %policy.name, error = %message, "shield unavailable");
                self.unavailable_reason = Some(message);
            }
        }
        if let Some(up) = &mut self.active {
            let now = OffsetDateTime::now_utc();
            (up.made_at, up.next_expiry) = (now, policy.sources.trusted.next_expiry(now));
        }
    }

    /// Deactivates the shield if the kernel has rejected its filter at every socket.
    fn deactivate_if_unavailable(&mut self, listener: &str, audit: &Audit) {
        if self.is_active() && self.has_no_filter() {
            let why = self.unavailable_reason.clone().unwrap_or_default();
            self.deactivate(listener, &why, audit);
        }
    }

    fn has_no_filter(&self) -> bool {
        self.sockets.iter().all(|socket| socket.filter.is_none())
    }

    /// Detaches the filters. An inactive shield stays inactive.
    pub(crate) fn deactivate(&mut self, listener: &str, why: &str, audit: &Audit) {
        let counted = self.count().is_some();
        let Some(up) = self.active.take() else { return };
        self.sockets.iter_mut().for_each(ShieldedSocket::detach);
        let dropped = counted.then(|| self.dropped.saturating_sub(up.dropped_before));
        audit.shield_off(listener, why, dropped);
    }

    /// Adds the packets dropped since the last call. Returns their number, if the kernel reports it for all sockets.
    fn count(&mut self) -> Option<u64> {
        self.active.as_ref()?;
        let mut all = Some(0_u64);
        for socket in &mut self.sockets {
            let now = drops::read(socket.listen_socket.socket()).ok();
            let more = socket.drops.zip(now).map(|(before, now)| u64::from(now.wrapping_sub(before)));
            self.dropped = self.dropped.saturating_add(more.unwrap_or(0));
            self.metrics.iter().for_each(|metrics| metrics.note_shield_drops(more.unwrap_or(0)));
            all = all.zip(more).map(|(all, more)| all.saturating_add(more));
            socket.drops = now.or(socket.drops);
        }
        all
    }

    pub(crate) fn status(&self, mode: Shield) -> ShieldStatus {
        let more = |socket: &ShieldedSocket| {
            Some(u64::from(drops::read(socket.listen_socket.socket()).ok()?.wrapping_sub(socket.drops?)))
        };
        let more = match self.active {
            Some(_) => self.sockets.iter().try_fold(0_u64, |all, socket| Some(all.saturating_add(more(socket)?))),
            None => Some(0),
        };
        ShieldStatus {
            mode,
            active_since: self.active.as_ref().map(|up| up.at),
            dropped: more.filter(|_| !self.is_uncounted).map(|more| self.dropped.saturating_add(more)),
            unavailable_reason: self.unavailable_reason.clone(),
        }
    }
}

impl ShieldedSocket {
    fn attach(&mut self, filter: &PacketFilter) -> std::io::Result<()> {
        if self.filter.as_ref() == Some(filter) {
            return Ok(());
        }
        let attached = self.listen_socket.attach_filter(filter);
        self.filter = attached.is_ok().then(|| filter.clone());
        attached
    }

    fn detach(&mut self) {
        self.listen_socket.detach_filter();
        self.filter = None;
    }
}
