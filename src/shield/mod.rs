//! The shield, a kernel source filter: while it is active, the kernel drops packets of untrusted sources at the listening socket.
//!
//! It is a classic BPF program built from the trusted sources. For a moment it may admit more than the policy, never less: a new
//! policy is admitted before it comes into force ([`Shields::widen`]), and what it no longer trusts is dropped afterwards
//! ([`Shields::follow`]). Every connection that passes is judged by the policy all the same.
//!
//! The main thread owns all shields. With `shield = "auto"` it counts untrusted connections once a second during a flood.

pub(crate) mod drops;
pub(crate) mod flood;
pub(crate) mod listener_shield;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::transport::listen_socket::ListenSocket;

use crate::audit::Audit;
use crate::config::Shield;
use crate::policy::{BindAddr, ListenerPolicy, Snapshot};
use crate::shield::listener_shield::ListenerShield;
use crate::source::packet_filter::PacketFilter;

/// The shields of all listeners.
#[derive(Debug)]
pub(crate) struct Shields {
    audit: Audit,
    /// Rung when a stranger comes where that may be the first of many.
    alarm: Arc<Notify>,
    guards: BTreeMap<Arc<str>, ListenerShield>,
    looked: Instant,
    /// When to look again, whoever comes.
    next: Option<Instant>,
    /// Whether that is soon, so that the alarm has nothing to say.
    awake: bool,
}

/// How the shield of a listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShieldStatus {
    /// What the configuration wants.
    pub mode: Shield,
    /// Since when it is up, where it is.
    pub active_since: Option<OffsetDateTime>,
    /// Packets that the kernel has dropped while it was up, now and before; nothing where it does not tell.
    pub dropped: Option<u64>,
    /// Why it cannot be up.
    pub unavailable_reason: Option<String>,
}

impl Shields {
    /// No listeners yet.
    pub(crate) fn new(audit: Audit) -> Self {
        let guards = BTreeMap::new();
        Self { audit, alarm: Arc::default(), guards, looked: Instant::now(), next: None, awake: false }
    }

    /// What ports ring.
    pub(crate) fn alarm(&self) -> &Arc<Notify> {
        &self.alarm
    }

    /// The filter that a new port of this listener has to have from the first client on. It lets through whom the terms
    /// `before` trust, too: until these are in force a client may come to the new port that belongs to the old one.
    pub(crate) fn filter_for(&self, policy: &ListenerPolicy, before: Option<&ListenerPolicy>) -> Option<PacketFilter> {
        let up = self.guards.get(&policy.name).is_some_and(ListenerShield::is_up);
        let mode = policy.shield == Shield::On || (policy.shield == Shield::Auto && up);
        let others = before.map(|before| &*before.sources.trusted);
        mode.then(|| policy.packet_filter(others, OffsetDateTime::now_utc()).ok()).flatten()
    }

    /// Lets through whom `next` trusts, besides those whom `current` does. To be called before `next` comes into force.
    pub(crate) fn widen(&mut self, next: &Snapshot, current: &Snapshot) {
        let now = OffsetDateTime::now_utc();
        let up: BTreeSet<_> =
            self.guards.iter().filter(|(_, guard)| guard.is_up()).map(|(name, _)| Arc::clone(name)).collect();
        for (name, guard) in self.guards.iter_mut().filter(|(_, guard)| guard.is_up()) {
            let before = current.named(name);
            let filter = |bind_addr: &BindAddr| {
                let policy = next.at_address(bind_addr)?;
                let stays = match policy.shield {
                    Shield::On => true,
                    Shield::Auto => up.contains(&policy.name),
                    Shield::Off => false,
                };
                let others = before.map(|before| &*before.sources.trusted);
                Some(if stays { policy.packet_filter(others, now).ok() } else { None })
            };
            guard.refit(filter);
        }
    }

    /// Takes over a snapshot that has come into force, and the ports that there are now.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot, port: impl Fn(&BindAddr) -> Option<Arc<ListenSocket>>) {
        let mut former = std::mem::take(&mut self.guards);
        for policy in snapshot.listeners() {
            let mut guard = former.remove(&policy.name).unwrap_or_default();
            let ports = policy.bind_addrs.iter().filter_map(|bind_addr| Some((bind_addr.clone(), port(bind_addr)?)));
            guard.take_over(ports.collect());
            self.guards.insert(Arc::clone(&policy.name), guard);
        }
        for (name, mut guard) in former {
            guard.lower(&name, "the listener was removed", &self.audit);
        }
        for policy in snapshot.listeners() {
            if let Some(guard) = self.guards.get_mut(&policy.name) {
                guard.follow(policy, &self.audit);
            }
        }
        self.plan();
    }

    /// Returns when it is time for a look.
    pub(crate) async fn due(&self) {
        let never = self.next.is_none();
        tokio::select! {
            () = sleep_until(self.next.unwrap_or(self.looked)), if !never => {}
            () = self.alarm.notified(), if !self.awake => {}
        }
    }

    /// Looks how many strangers come, and raises and lowers shields by that.
    pub(crate) fn look(&mut self, snapshot: &Snapshot) {
        let elapsed = self.looked.elapsed();
        self.looked = Instant::now();
        let slept = !self.awake;
        for (name, guard) in &mut self.guards {
            let Some(policy) = snapshot.named(name) else { continue };
            if slept {
                // How long the strangers that rang took to come nobody knows; from here on it is known.
                guard.start_counting();
            } else {
                guard.judge_flood(policy, elapsed, &self.audit);
            }
            guard.keep_up(policy, &self.audit);
        }
        self.next = None;
        self.plan();
        if slept && self.guards.values().any(ListenerShield::waits_for_floods) {
            self.look_in(LOOK_EVERY);
            self.awake = true;
        }
    }

    /// Lowers all shields, with `why`, and forgets the ports.
    pub(crate) fn close(&mut self, why: &str) {
        for (name, guard) in &mut self.guards {
            guard.lower(name, why, &self.audit);
        }
        self.guards.clear();
        self.plan();
    }

    /// Forgets all shields and ports, whatever is before those. The next [`follow`](Self::follow) begins anew.
    pub(crate) fn abandon(&mut self) {
        self.guards.clear();
        self.plan();
    }

    /// How the shield of a listener is.
    pub(crate) fn status(&self, policy: &ListenerPolicy) -> ShieldStatus {
        self.guards.get(&policy.name).map_or(
            ShieldStatus { mode: policy.shield, active_since: None, dropped: None, unavailable_reason: None },
            |guard| guard.status(policy.shield),
        )
    }

    /// Decides when to look next.
    fn plan(&mut self) {
        self.awake = self.guards.values().any(ListenerShield::is_awake);
        if self.awake {
            self.look_in(LOOK_EVERY);
        } else if self.guards.values().any(ListenerShield::is_up) {
            self.look_in(LONGEST_LOOK);
        } else {
            self.next = None;
        }
    }

    /// No later than that: reloads must not put a look off for ever.
    fn look_in(&mut self, pause: Duration) {
        let at = Instant::now() + pause;
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

/// While there may be a flood.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// While a shield is up that is always up: rules end, and the clock may be set.
const LONGEST_LOOK: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use socket2::{Domain, Socket, Type};
    use time::Duration as Days;

    use super::*;
    use crate::audit::LineFormat;
    use crate::policy::fixtures::{Site, listener};

    struct Bound {
        site: Site,
        shields: Shields,
        port: Arc<ListenSocket>,
    }

    impl Bound {
        fn new() -> Self {
            let site = Site::new();
            for name in ["cache", "other"] {
                site.install(name, OffsetDateTime::now_utc() + Days::days(90));
            }
            let shields = Shields::new(Audit::start(LineFormat::Json, None));
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            let port = Arc::new(ListenSocket::listen(socket, 64, None, shields.alarm()).unwrap());
            Self { site, shields, port }
        }

        fn snapshot(&self, text: &str) -> Snapshot {
            self.site.snapshot(text, None)
        }

        fn follow(&mut self, snapshot: &Snapshot) {
            let port = &self.port;
            self.shields.follow(snapshot, |bind_addr| snapshot.at_address(bind_addr).map(|_| Arc::clone(port)));
        }

        /// Whether one SYN is enough: the second would come after a second.
        fn is_let_through(&self, source: &str) -> bool {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::new(source.parse().unwrap(), 0).into()).unwrap();
            let target = self.port.socket().local_addr().unwrap();
            let connected = socket.connect_timeout(&target.into(), Duration::from_millis(200));
            if connected.is_ok() {
                self.port.accept().unwrap();
            }
            connected.is_ok()
        }

        fn let_through(&self) -> Vec<u8> {
            (1..=4).filter(|last| self.is_let_through(&format!("127.0.0.{last}"))).collect()
        }
    }

    fn shielded(sources: &str, shield: &str) -> String {
        let text = listener("cache", 0, sources);
        text.replace("protocol =", &format!("shield = \"{shield}\"\nprotocol ="))
    }

    #[tokio::test]
    async fn before_a_policy_comes_into_force_both_are_let_through_and_afterwards_one() {
        let mut world = Bound::new();
        let first = world.snapshot(&shielded("\"127.0.0.1\", \"127.0.0.2\"", "on"));
        world.follow(&first);
        assert_eq!(world.let_through(), [1, 2]);
        let second = world.snapshot(&shielded("\"127.0.0.2\", \"127.0.0.3\"", "on"));
        world.shields.widen(&second, &first);
        assert_eq!(world.let_through(), [1, 2, 3], "whichever of the two is in force");
        world.follow(&second);
        assert_eq!(world.let_through(), [2, 3]);
        let status = world.shields.status(second.named("cache").unwrap());
        assert!(status.active_since.is_some() && status.dropped.is_some_and(|dropped| dropped >= 5), "{status:?}");
        world.shields.close("the test is over");
        assert_eq!(world.let_through(), [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_policy_that_knows_no_shield_is_open_before_it_comes_into_force() {
        let mut world = Bound::new();
        let observing = shielded("", "on").replace("protocol =", "enforcement = \"observe\"\nprotocol =");
        for open in [shielded("", "off"), observing] {
            let (before, after) = (world.snapshot(&shielded("\"127.0.0.1\"", "on")), world.snapshot(&open));
            world.follow(&before);
            assert_eq!(world.let_through(), [1]);
            world.shields.widen(&after, &before);
            assert_eq!(world.let_through(), [1, 2, 3, 4]);
            world.follow(&after);
            assert_eq!(world.let_through(), [1, 2, 3, 4]);
            assert_eq!(world.shields.status(after.named("cache").unwrap()).active_since, None);
        }
    }

    #[tokio::test]
    async fn a_port_that_goes_to_another_listener_has_that_ones_filter() {
        let mut world = Bound::new();
        let at = |name: &str, sources: &str, shield: &str| {
            // Not port 0, of which every listener has its own. Nothing is bound here.
            listener(name, 7, sources).replace("protocol =", &format!("shield = \"{shield}\"\nprotocol ="))
        };
        let first = world.snapshot(&at("cache", "\"127.0.0.1\"", "on"));
        world.follow(&first);
        assert_eq!(world.let_through(), [1]);
        let second = world.snapshot(&at("other", "\"127.0.0.2\"", "on"));
        world.shields.widen(&second, &first);
        assert_eq!(world.let_through(), [1, 2]);
        world.follow(&second);
        assert_eq!(world.let_through(), [2]);
        let third = world.snapshot(&at("cache", "\"127.0.0.1\"", "auto"));
        world.shields.widen(&third, &second);
        world.follow(&third);
        assert_eq!(world.let_through(), [1, 2, 3, 4], "no flood yet");
    }

    async fn asleep(world: &Bound) -> bool {
        tokio::time::timeout(Duration::from_secs(3600), world.shields.due()).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn the_alarm_wakes_and_a_flood_raises_the_shield_and_its_end_lowers_it() {
        let mut world = Bound::new();
        let snapshot = world.snapshot(&shielded("\"127.0.0.1\"", "auto"));
        world.follow(&snapshot);
        let is_up = |world: &Bound| world.shields.status(snapshot.named("cache").unwrap()).active_since.is_some();
        assert!(asleep(&world).await, "nothing wakes it while nobody comes");
        for second in 0..3 {
            assert!(!is_up(&world), "{second}");
            (0..150).for_each(|_| world.port.count_untrusted());
            world.shields.due().await;
            world.shields.look(&snapshot);
        }
        assert!(is_up(&world));
        assert_eq!(world.let_through(), [1]);
        for _ in 0..10 {
            assert!(is_up(&world));
            world.shields.due().await;
            world.shields.look(&snapshot);
        }
        assert!(!is_up(&world));
        assert_eq!(world.let_through(), [1, 2, 3, 4]);
        assert_eq!(world.shields.status(snapshot.named("cache").unwrap()).dropped, Some(3));
        // What rang last may be heard only now.
        for _ in 0..2 {
            if asleep(&world).await {
                return;
            }
            world.shields.look(&snapshot);
        }
        assert!(asleep(&world).await, "and it sleeps again");
    }

    #[tokio::test]
    async fn a_rule_that_ends_is_kept_out_at_the_next_look() {
        let mut world = Bound::new();
        let end = OffsetDateTime::now_utc() + Days::seconds(1);
        let end = end.format(&time::format_description::well_known::Rfc3339).unwrap();
        let rules = format!("\"127.0.0.1\", {{ type = \"ip_addr\", value = \"127.0.0.2\", expires_at = {end} }}");
        let snapshot = world.snapshot(&shielded(&rules, "on"));
        world.follow(&snapshot);
        assert!(world.is_let_through("127.0.0.2"));
        let deadline = Instant::now() + Duration::from_secs(10);
        while world.is_let_through("127.0.0.2") {
            assert!(Instant::now() < deadline);
            world.shields.look(&snapshot);
        }
        assert_eq!(world.let_through(), [1]);
    }
}
