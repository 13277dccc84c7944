//! One listener's shield, with the ports that it is before.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::audit::Audit;
use crate::config::Shield;
use crate::policy::{BindAddr, ListenerPolicy};
use crate::shield::flood::FloodDetector;
use crate::shield::{ShieldStatus, drops};
use crate::source::packet_filter::PacketFilter;
use crate::transport::listen_socket::ListenSocket;

/// Keeps strangers from a listener, or is ready to.
#[derive(Debug, Default)]
pub(crate) struct ListenerShield {
    sockets: Vec<ShieldedSocket>,
    up: Option<ActiveFilter>,
    flood: FloodDetector,
    /// Whether it waits for floods.
    waits: bool,
    /// How many strangers came through a second, by the last look.
    rate: u64,
    /// Packets dropped while it was up, now and before; and how many those were at the last look.
    dropped: u64,
    dropped_before: u64,
    /// Whether the kernel does not tell how many.
    uncounted: bool,
    unavailable_reason: Option<String>,
}

/// A port that is guarded.
#[derive(Debug)]
struct ShieldedSocket {
    bind_addr: BindAddr,
    port: Arc<ListenSocket>,
    /// What is before it.
    filter: Option<PacketFilter>,
    /// The kernel's count of dropped packets when it was read last.
    drops: Option<u32>,
    /// Strangers that had come through at the last look.
    untrusted: u64,
}

/// A shield that is up.
#[derive(Debug)]
struct ActiveFilter {
    since: Instant,
    at: OffsetDateTime,
    /// [`ListenerShield::dropped`] when it was raised.
    dropped_before: u64,
    /// By which time its filter was made, and when the next of its rules ends.
    made_at: OffsetDateTime,
    next_expiry: Option<OffsetDateTime>,
}

impl ListenerShield {
    pub(crate) fn is_up(&self) -> bool {
        self.up.is_some()
    }

    /// Whether it is to be raised when there is a flood.
    pub(crate) fn waits_for_floods(&self) -> bool {
        self.waits && self.unavailable_reason.is_none()
    }

    /// Whether something may be about to change from one second to the next.
    pub(crate) fn is_awake(&self) -> bool {
        self.waits_for_floods() && (self.is_up() || self.rate > 0)
    }

    /// Has these ports from now on.
    pub(crate) fn take_over(&mut self, ports: Vec<(BindAddr, Arc<ListenSocket>)>) {
        self.count();
        let mut former = std::mem::take(&mut self.sockets);
        for (bind_addr, port) in ports {
            let same = former.iter().position(|socket| Arc::ptr_eq(&socket.port, &port));
            let socket = match same {
                Some(index) => former.swap_remove(index),
                None => {
                    let (drops, untrusted) = (drops::read(port.socket()).ok(), port.untrusted());
                    ShieldedSocket { bind_addr, port, filter: None, drops, untrusted }
                }
            };
            self.sockets.push(socket);
        }
    }

    /// Does what the terms in force want.
    pub(crate) fn follow(&mut self, policy: &ListenerPolicy, audit: &Audit) {
        self.waits = policy.shield == Shield::Auto;
        self.sockets.iter().for_each(|socket| socket.port.set_watched(self.waits));
        self.unavailable_reason = None;
        let filter = match policy.shield {
            Shield::Off => Err("shield = \"off\"".to_owned()),
            Shield::On | Shield::Auto => {
                policy.packet_filter(None, OffsetDateTime::now_utc()).map_err(|error| error.to_string())
            }
        };
        match filter {
            Err(why) => {
                self.lower(&policy.name, &why, audit);
                self.unavailable_reason = (policy.shield != Shield::Off).then_some(why);
            }
            Ok(filter) if self.is_up() => self.fit(&filter, policy),
            Ok(_) if policy.shield == Shield::On => self.raise(policy, "shield = \"on\"", audit),
            Ok(_) => {}
        }
        self.select(&policy.name, audit);
        if !self.is_up() {
            // A port may have come from another listener, with the filter of that one.
            self.sockets.iter_mut().for_each(ShieldedSocket::open);
        }
    }

    /// Puts other filters before its ports: those that `filter` has for them, or none. It leaves alone those of which that
    /// knows nothing.
    pub(crate) fn refit(&mut self, filter: impl Fn(&BindAddr) -> Option<Option<PacketFilter>>) {
        for socket in self.sockets.iter_mut().filter(|socket| socket.filter.is_some()) {
            match filter(&socket.bind_addr) {
                // What the kernel refuses leaves the port open, which is not narrower.
                Some(Some(filter)) => drop(socket.fit(&filter)),
                Some(None) => socket.open(),
                None => {}
            }
        }
    }

    /// Makes the filter anew where time has changed whom the rules trust.
    pub(crate) fn keep_up(&mut self, policy: &ListenerPolicy, audit: &Audit) {
        let Some(up) = &self.up else { return };
        let now = OffsetDateTime::now_utc();
        if (now < up.made_at || up.next_expiry.is_some_and(|end| end <= now))
            && let Ok(filter) = policy.packet_filter(None, now)
        {
            self.fit(&filter, policy);
            self.select(&policy.name, audit);
        }
    }

    /// Judges by how many strangers came in this time whether there is a flood.
    pub(crate) fn judge_flood(&mut self, policy: &ListenerPolicy, elapsed: Duration, audit: &Audit) {
        if !self.waits_for_floods() {
            return;
        }
        let a_second = |count: u64| count.saturating_mul(1000) / u64::try_from(elapsed.as_millis()).unwrap_or(1).max(1);
        let through = self.start_counting();
        self.rate = a_second(through);
        if let Some(ActiveFilter { since, .. }) = self.up {
            let counted = self.count().is_some();
            let dropped = self.dropped.saturating_sub(std::mem::replace(&mut self.dropped_before, self.dropped));
            let rate = counted.then(|| a_second(dropped.saturating_add(through)));
            if self.flood.observe_end(rate, since.elapsed()) {
                self.rate = 0;
                let over = "the flood is over";
                let why = if rate.is_some() { over } else { "to find out whether the flood is over" };
                self.lower(&policy.name, why, audit);
            }
        } else if self.flood.observe_start(self.rate) {
            self.raise(policy, &format!("a flood: {} strangers a second", self.rate), audit);
        }
    }

    /// Counts the strangers that come from now on. Returns how many have come through since it was last called.
    pub(crate) fn start_counting(&mut self) -> u64 {
        let since = |socket: &mut ShieldedSocket| {
            let now = socket.port.untrusted();
            now.saturating_sub(std::mem::replace(&mut socket.untrusted, now))
        };
        self.sockets.iter_mut().map(since).sum()
    }

    fn raise(&mut self, policy: &ListenerPolicy, why: &str, audit: &Audit) {
        let now = OffsetDateTime::now_utc();
        let filter = match policy.packet_filter(None, now) {
            Ok(filter) => filter,
            Err(error) => {
                self.unavailable_reason = Some(error.to_string());
                return;
            }
        };
        self.sockets.iter_mut().for_each(|socket| socket.drops = drops::read(socket.port.socket()).ok());
        let up = ActiveFilter {
            since: Instant::now(),
            at: now,
            dropped_before: self.dropped,
            made_at: now,
            next_expiry: None,
        };
        self.up = Some(up);
        self.dropped_before = self.dropped;
        self.fit(&filter, policy);
        if self.is_nowhere() {
            self.up = None;
            return;
        }
        audit.shield_on(&policy.name, why, policy.sources.trusted.rules().len(), policy.shield == Shield::Auto);
        if self.sockets.iter().any(|socket| socket.drops.is_none()) && !self.uncounted {
            self.uncounted = true;
            info!(listener = %policy.name, "the kernel does not report packets dropped by the shield");
        }
    }

    /// Puts a filter before every port, and says where that cannot be.
    fn fit(&mut self, filter: &PacketFilter, policy: &ListenerPolicy) {
        for socket in &mut self.sockets {
            if let Err(error) = socket.fit(filter) {
                let length = filter.instructions().len();
                let words = format!(
                    "the kernel refuses the packet filter of {length} instructions for {}: {error}{}",
                    socket.bind_addr.address,
                    if error.raw_os_error() == Some(libc::ENOMEM) {
                        "; net.core.optmem_max allows no more"
                    } else {
                        ""
                    }
                );
                warn!(listener = %policy.name, error = %words, "shield unavailable");
                self.unavailable_reason = Some(words);
            }
        }
        if let Some(up) = &mut self.up {
            let now = OffsetDateTime::now_utc();
            (up.made_at, up.next_expiry) = (now, policy.sources.trusted.next_expiry(now));
        }
    }

    /// Has it down where the kernel refuses it everywhere.
    fn select(&mut self, listener: &str, audit: &Audit) {
        if self.is_up() && self.is_nowhere() {
            let why = self.unavailable_reason.clone().unwrap_or_default();
            self.lower(listener, &why, audit);
        }
    }

    fn is_nowhere(&self) -> bool {
        self.sockets.iter().all(|socket| socket.filter.is_none())
    }

    /// Takes the shield down. Where it is down, nothing happens.
    pub(crate) fn lower(&mut self, listener: &str, why: &str, audit: &Audit) {
        let counted = self.count().is_some();
        let Some(up) = self.up.take() else { return };
        self.sockets.iter_mut().for_each(ShieldedSocket::open);
        let dropped = counted.then(|| self.dropped.saturating_sub(up.dropped_before));
        audit.shield_off(listener, why, dropped);
    }

    /// Adds up what was dropped since it was last asked. Returns that, where it can be known of all ports.
    fn count(&mut self) -> Option<u64> {
        self.up.as_ref()?;
        let mut all = Some(0_u64);
        for socket in &mut self.sockets {
            let now = drops::read(socket.port.socket()).ok();
            let more = socket.drops.zip(now).map(|(before, now)| u64::from(now.wrapping_sub(before)));
            self.dropped = self.dropped.saturating_add(more.unwrap_or(0));
            all = all.zip(more).map(|(all, more)| all.saturating_add(more));
            socket.drops = now.or(socket.drops);
        }
        all
    }

    pub(crate) fn status(&self, mode: Shield) -> ShieldStatus {
        let more = |socket: &ShieldedSocket| {
            Some(u64::from(drops::read(socket.port.socket()).ok()?.wrapping_sub(socket.drops?)))
        };
        let more = match self.up {
            Some(_) => self.sockets.iter().try_fold(0_u64, |all, socket| Some(all.saturating_add(more(socket)?))),
            None => Some(0),
        };
        ShieldStatus {
            mode,
            active_since: self.up.as_ref().map(|up| up.at),
            dropped: more.filter(|_| !self.uncounted).map(|more| self.dropped.saturating_add(more)),
            unavailable_reason: self.unavailable_reason.clone(),
        }
    }
}

impl ShieldedSocket {
    fn fit(&mut self, filter: &PacketFilter) -> std::io::Result<()> {
        if self.filter.as_ref() == Some(filter) {
            return Ok(());
        }
        let fitted = self.port.attach_filter(filter);
        self.filter = fitted.is_ok().then(|| filter.clone());
        fitted
    }

    fn open(&mut self) {
        self.port.detach_filter();
        self.filter = None;
    }
}
