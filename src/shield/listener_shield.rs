//! One listener's shield, with the ports that it is before.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::audit::Audit;
use crate::config::Shield;
use crate::policy::{BindAddr, Terms};
use crate::shield::flood::Flood;
use crate::shield::{Standing, drops};
use crate::source::packet_filter::PacketFilter;
use crate::transport::listen_socket::ListenSocket;

/// Keeps strangers from a listener, or is ready to.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    wards: Vec<Ward>,
    up: Option<Up>,
    flood: Flood,
    /// Whether it waits for floods.
    waits: bool,
    /// How many strangers came through a second, by the last look.
    rate: u64,
    /// Packets dropped while it was up, now and before; and how many those were at the last look.
    dropped: u64,
    dropped_before: u64,
    /// Whether the kernel does not tell how many.
    uncounted: bool,
    obstacle: Option<String>,
}

/// A port that is guarded.
#[derive(Debug)]
struct Ward {
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
struct Up {
    since: Instant,
    at: OffsetDateTime,
    /// [`Guard::dropped`] when it was raised.
    dropped_before: u64,
    /// By which time its filter was made, and when the next of its rules ends.
    made_at: OffsetDateTime,
    next_end: Option<OffsetDateTime>,
}

impl Guard {
    pub(crate) fn is_up(&self) -> bool {
        self.up.is_some()
    }

    /// Whether it is to be raised when there is a flood.
    pub(crate) fn waits_for_floods(&self) -> bool {
        self.waits && self.obstacle.is_none()
    }

    /// Whether something may be about to change from one second to the next.
    pub(crate) fn is_awake(&self) -> bool {
        self.waits_for_floods() && (self.is_up() || self.rate > 0)
    }

    /// Has these ports from now on.
    pub(crate) fn take_over(&mut self, ports: Vec<(BindAddr, Arc<ListenSocket>)>) {
        self.count();
        let mut former = std::mem::take(&mut self.wards);
        for (bind_addr, port) in ports {
            let same = former.iter().position(|ward| Arc::ptr_eq(&ward.port, &port));
            let ward = match same {
                Some(index) => former.swap_remove(index),
                None => {
                    let (drops, untrusted) = (drops::read(port.socket()).ok(), port.untrusted());
                    Ward { bind_addr, port, filter: None, drops, untrusted }
                }
            };
            self.wards.push(ward);
        }
    }

    /// Does what the terms in force want.
    pub(crate) fn follow(&mut self, terms: &Terms, audit: &Audit) {
        self.waits = terms.shield == Shield::Auto;
        self.wards.iter().for_each(|ward| ward.port.watch(self.waits));
        self.obstacle = None;
        let filter = match terms.shield {
            Shield::Off => Err("shield = \"off\"".to_owned()),
            Shield::On | Shield::Auto => {
                terms.packet_filter(None, OffsetDateTime::now_utc()).map_err(|error| error.to_string())
            }
        };
        match filter {
            Err(why) => {
                self.lower(&terms.name, &why, audit);
                self.obstacle = (terms.shield != Shield::Off).then_some(why);
            }
            Ok(filter) if self.is_up() => self.fit(&filter, terms),
            Ok(_) if terms.shield == Shield::On => self.raise(terms, "shield = \"on\"", audit),
            Ok(_) => {}
        }
        self.select(&terms.name, audit);
        if !self.is_up() {
            // A port may have come from another listener, with the filter of that one.
            self.wards.iter_mut().for_each(Ward::open);
        }
    }

    /// Puts other filters before its ports: those that `filter` has for them, or none. It leaves alone those of which that
    /// knows nothing.
    pub(crate) fn refit(&mut self, filter: impl Fn(&BindAddr) -> Option<Option<PacketFilter>>) {
        for ward in self.wards.iter_mut().filter(|ward| ward.filter.is_some()) {
            match filter(&ward.bind_addr) {
                // What the kernel refuses leaves the port open, which is not narrower.
                Some(Some(filter)) => drop(ward.fit(&filter)),
                Some(None) => ward.open(),
                None => {}
            }
        }
    }

    /// Makes the filter anew where time has changed whom the rules trust.
    pub(crate) fn keep_up(&mut self, terms: &Terms, audit: &Audit) {
        let Some(up) = &self.up else { return };
        let now = OffsetDateTime::now_utc();
        if (now < up.made_at || up.next_end.is_some_and(|end| end <= now))
            && let Ok(filter) = terms.packet_filter(None, now)
        {
            self.fit(&filter, terms);
            self.select(&terms.name, audit);
        }
    }

    /// Judges by how many strangers came in this time whether there is a flood.
    pub(crate) fn judge_flood(&mut self, terms: &Terms, elapsed: Duration, audit: &Audit) {
        if !self.waits_for_floods() {
            return;
        }
        let a_second = |count: u64| count.saturating_mul(1000) / u64::try_from(elapsed.as_millis()).unwrap_or(1).max(1);
        let through = self.start_counting();
        self.rate = a_second(through);
        if let Some(Up { since, .. }) = self.up {
            let counted = self.count().is_some();
            let dropped = self.dropped.saturating_sub(std::mem::replace(&mut self.dropped_before, self.dropped));
            let rate = counted.then(|| a_second(dropped.saturating_add(through)));
            if self.flood.ends(rate, since.elapsed()) {
                self.rate = 0;
                let over = "the flood is over";
                let why = if rate.is_some() { over } else { "to find out whether the flood is over" };
                self.lower(&terms.name, why, audit);
            }
        } else if self.flood.begins(self.rate) {
            self.raise(terms, &format!("a flood: {} strangers a second", self.rate), audit);
        }
    }

    /// Counts the strangers that come from now on. Returns how many have come through since it was last called.
    pub(crate) fn start_counting(&mut self) -> u64 {
        let since = |ward: &mut Ward| {
            let now = ward.port.untrusted();
            now.saturating_sub(std::mem::replace(&mut ward.untrusted, now))
        };
        self.wards.iter_mut().map(since).sum()
    }

    fn raise(&mut self, terms: &Terms, why: &str, audit: &Audit) {
        let now = OffsetDateTime::now_utc();
        let filter = match terms.packet_filter(None, now) {
            Ok(filter) => filter,
            Err(error) => {
                self.obstacle = Some(error.to_string());
                return;
            }
        };
        self.wards.iter_mut().for_each(|ward| ward.drops = drops::read(ward.port.socket()).ok());
        let up = Up { since: Instant::now(), at: now, dropped_before: self.dropped, made_at: now, next_end: None };
        self.up = Some(up);
        self.dropped_before = self.dropped;
        self.fit(&filter, terms);
        if self.is_nowhere() {
            self.up = None;
            return;
        }
        audit.shield_on(&terms.name, why, terms.sources.trusted.rules().len(), terms.shield == Shield::Auto);
        if self.wards.iter().any(|ward| ward.drops.is_none()) && !self.uncounted {
            self.uncounted = true;
            info!(listener = %terms.name, "the kernel does not report packets dropped by the shield");
        }
    }

    /// Puts a filter before every port, and says where that cannot be.
    fn fit(&mut self, filter: &PacketFilter, terms: &Terms) {
        for ward in &mut self.wards {
            if let Err(error) = ward.fit(filter) {
                let length = filter.instructions().len();
                let words = format!(
                    "the kernel refuses the packet filter of {length} instructions for {}: {error}{}",
                    ward.bind_addr.address,
                    if error.raw_os_error() == Some(libc::ENOMEM) {
                        "; net.core.optmem_max allows no more"
                    } else {
                        ""
                    }
                );
                warn!(listener = %terms.name, error = %words, "shield unavailable");
                self.obstacle = Some(words);
            }
        }
        if let Some(up) = &mut self.up {
            let now = OffsetDateTime::now_utc();
            (up.made_at, up.next_end) = (now, terms.sources.trusted.next_end(now));
        }
    }

    /// Has it down where the kernel refuses it everywhere.
    fn select(&mut self, listener: &str, audit: &Audit) {
        if self.is_up() && self.is_nowhere() {
            let why = self.obstacle.clone().unwrap_or_default();
            self.lower(listener, &why, audit);
        }
    }

    fn is_nowhere(&self) -> bool {
        self.wards.iter().all(|ward| ward.filter.is_none())
    }

    /// Takes the shield down. Where it is down, nothing happens.
    pub(crate) fn lower(&mut self, listener: &str, why: &str, audit: &Audit) {
        let counted = self.count().is_some();
        let Some(up) = self.up.take() else { return };
        self.wards.iter_mut().for_each(Ward::open);
        let dropped = counted.then(|| self.dropped.saturating_sub(up.dropped_before));
        audit.shield_off(listener, why, dropped);
    }

    /// Adds up what was dropped since it was last asked. Returns that, where it can be known of all ports.
    fn count(&mut self) -> Option<u64> {
        self.up.as_ref()?;
        let mut all = Some(0_u64);
        for ward in &mut self.wards {
            let now = drops::read(ward.port.socket()).ok();
            let more = ward.drops.zip(now).map(|(before, now)| u64::from(now.wrapping_sub(before)));
            self.dropped = self.dropped.saturating_add(more.unwrap_or(0));
            all = all.zip(more).map(|(all, more)| all.saturating_add(more));
            ward.drops = now.or(ward.drops);
        }
        all
    }

    pub(crate) fn standing(&self, wanted: Shield) -> Standing {
        let more = |ward: &Ward| Some(u64::from(drops::read(ward.port.socket()).ok()?.wrapping_sub(ward.drops?)));
        let more = match self.up {
            Some(_) => self.wards.iter().try_fold(0_u64, |all, ward| Some(all.saturating_add(more(ward)?))),
            None => Some(0),
        };
        Standing {
            wanted,
            up_since: self.up.as_ref().map(|up| up.at),
            dropped: more.filter(|_| !self.uncounted).map(|more| self.dropped.saturating_add(more)),
            obstacle: self.obstacle.clone(),
        }
    }
}

impl Ward {
    fn fit(&mut self, filter: &PacketFilter) -> std::io::Result<()> {
        if self.filter.as_ref() == Some(filter) {
            return Ok(());
        }
        let fitted = self.port.fit(filter);
        self.filter = fitted.is_ok().then(|| filter.clone());
        fitted
    }

    fn open(&mut self) {
        self.port.open();
        self.filter = None;
    }
}
