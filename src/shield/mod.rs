//! The shield: where it is up, the kernel drops the packets of strangers at the listening socket, before their handshake. So
//! a stranger costs no connection, no descriptor and no line in the log, and sees nobody answer.
//!
//! It is a packet filter made from the trusted sources. It may be wider than the policy for a moment and never narrower: a
//! policy that is about to come into force is let through before that ([`Shields::widen`]), and what it no longer trusts is
//! kept out after it ([`Shields::follow`]). Who gets through is judged as ever.
//!
//! One owner has all shields, on the main thread. For `shield = "auto"` it looks once a second while strangers come, and
//! sleeps while none do.

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
use crate::policy::{BindAddr, Snapshot, Terms};
use crate::shield::listener_shield::Guard;
use crate::source::packet_filter::PacketFilter;

/// The shields of all listeners.
#[derive(Debug)]
pub struct Shields {
    audit: Audit,
    /// Rung when a stranger comes where that may be the first of many.
    alarm: Arc<Notify>,
    guards: BTreeMap<Arc<str>, Guard>,
    looked: Instant,
    /// When to look again, whoever comes.
    next: Option<Instant>,
    /// Whether that is soon, so that the alarm has nothing to say.
    awake: bool,
}

/// How the shield of a listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What the configuration wants.
    pub wanted: Shield,
    /// Since when it is up, where it is.
    pub up_since: Option<OffsetDateTime>,
    /// Packets that the kernel has dropped while it was up, now and before; nothing where it does not tell.
    pub dropped: Option<u64>,
    /// Why it cannot be up.
    pub obstacle: Option<String>,
}

impl Shields {
    /// No listeners yet.
    pub fn new(audit: Audit) -> Self {
        let guards = BTreeMap::new();
        Self { audit, alarm: Arc::default(), guards, looked: Instant::now(), next: None, awake: false }
    }

    /// What ports ring.
    pub fn alarm(&self) -> &Arc<Notify> {
        &self.alarm
    }

    /// The filter that a new port of this listener has to have from the first client on. It lets through whom the terms
    /// `before` trust, too: until these are in force a client may come to the new port that belongs to the old one.
    pub fn filter_for(&self, terms: &Terms, before: Option<&Terms>) -> Option<PacketFilter> {
        let up = self.guards.get(&terms.name).is_some_and(Guard::is_up);
        let wanted = terms.shield == Shield::On || (terms.shield == Shield::Auto && up);
        let others = before.map(|before| &*before.sources.trusted);
        wanted.then(|| terms.packet_filter(others, OffsetDateTime::now_utc()).ok()).flatten()
    }

    /// Lets through whom `next` trusts, besides those whom `current` does. To be called before `next` comes into force.
    pub fn widen(&mut self, next: &Snapshot, current: &Snapshot) {
        let now = OffsetDateTime::now_utc();
        let up: BTreeSet<_> =
            self.guards.iter().filter(|(_, guard)| guard.is_up()).map(|(name, _)| Arc::clone(name)).collect();
        for (name, guard) in self.guards.iter_mut().filter(|(_, guard)| guard.is_up()) {
            let before = current.named(name);
            let filter = |bind_addr: &BindAddr| {
                let terms = next.at_address(bind_addr)?;
                let stays = match terms.shield {
                    Shield::On => true,
                    Shield::Auto => up.contains(&terms.name),
                    Shield::Off => false,
                };
                let others = before.map(|before| &*before.sources.trusted);
                Some(if stays { terms.packet_filter(others, now).ok() } else { None })
            };
            guard.refit(filter);
        }
    }

    /// Takes over a snapshot that has come into force, and the ports that there are now.
    pub fn follow(&mut self, snapshot: &Snapshot, port: impl Fn(&BindAddr) -> Option<Arc<ListenSocket>>) {
        let mut former = std::mem::take(&mut self.guards);
        for terms in snapshot.listeners() {
            let mut guard = former.remove(&terms.name).unwrap_or_default();
            let ports = terms.bind_addrs.iter().filter_map(|bind_addr| Some((bind_addr.clone(), port(bind_addr)?)));
            guard.take_over(ports.collect());
            self.guards.insert(Arc::clone(&terms.name), guard);
        }
        for (name, mut guard) in former {
            guard.lower(&name, "the listener was removed", &self.audit);
        }
        for terms in snapshot.listeners() {
            if let Some(guard) = self.guards.get_mut(&terms.name) {
                guard.follow(terms, &self.audit);
            }
        }
        self.plan();
    }

    /// Returns when it is time for a look.
    pub async fn due(&self) {
        let never = self.next.is_none();
        tokio::select! {
            () = sleep_until(self.next.unwrap_or(self.looked)), if !never => {}
            () = self.alarm.notified(), if !self.awake => {}
        }
    }

    /// Looks how many strangers come, and raises and lowers shields by that.
    pub fn look(&mut self, snapshot: &Snapshot) {
        let elapsed = self.looked.elapsed();
        self.looked = Instant::now();
        let slept = !self.awake;
        for (name, guard) in &mut self.guards {
            let Some(terms) = snapshot.named(name) else { continue };
            if slept {
                // How long the strangers that rang took to come nobody knows; from here on it is known.
                guard.start_counting();
            } else {
                guard.judge_flood(terms, elapsed, &self.audit);
            }
            guard.keep_up(terms, &self.audit);
        }
        self.next = None;
        self.plan();
        if slept && self.guards.values().any(Guard::waits_for_floods) {
            self.look_in(LOOK_EVERY);
            self.awake = true;
        }
    }

    /// Lowers all shields, with `why`, and forgets the ports.
    pub fn close(&mut self, why: &str) {
        for (name, guard) in &mut self.guards {
            guard.lower(name, why, &self.audit);
        }
        self.guards.clear();
        self.plan();
    }

    /// Forgets all shields and ports, whatever is before those. The next [`follow`](Self::follow) begins anew.
    pub fn abandon(&mut self) {
        self.guards.clear();
        self.plan();
    }

    /// How the shield of a listener is.
    pub fn standing(&self, terms: &Terms) -> Standing {
        self.guards
            .get(&terms.name)
            .map_or(Standing { wanted: terms.shield, up_since: None, dropped: None, obstacle: None }, |guard| {
                guard.standing(terms.shield)
            })
    }

    /// Decides when to look next.
    fn plan(&mut self) {
        self.awake = self.guards.values().any(Guard::is_awake);
        if self.awake {
            self.look_in(LOOK_EVERY);
        } else if self.guards.values().any(Guard::is_up) {
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

    struct World {
        site: Site,
        shields: Shields,
        port: Arc<ListenSocket>,
    }

    impl World {
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
        let mut world = World::new();
        let first = world.snapshot(&shielded("\"127.0.0.1\", \"127.0.0.2\"", "on"));
        world.follow(&first);
        assert_eq!(world.let_through(), [1, 2]);
        let second = world.snapshot(&shielded("\"127.0.0.2\", \"127.0.0.3\"", "on"));
        world.shields.widen(&second, &first);
        assert_eq!(world.let_through(), [1, 2, 3], "whichever of the two is in force");
        world.follow(&second);
        assert_eq!(world.let_through(), [2, 3]);
        let standing = world.shields.standing(second.named("cache").unwrap());
        assert!(standing.up_since.is_some() && standing.dropped.is_some_and(|dropped| dropped >= 5), "{standing:?}");
        world.shields.close("the test is over");
        assert_eq!(world.let_through(), [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_policy_that_knows_no_shield_is_open_before_it_comes_into_force() {
        let mut world = World::new();
        let observing = shielded("", "on").replace("protocol =", "enforcement = \"observe\"\nprotocol =");
        for open in [shielded("", "off"), observing] {
            let (before, after) = (world.snapshot(&shielded("\"127.0.0.1\"", "on")), world.snapshot(&open));
            world.follow(&before);
            assert_eq!(world.let_through(), [1]);
            world.shields.widen(&after, &before);
            assert_eq!(world.let_through(), [1, 2, 3, 4]);
            world.follow(&after);
            assert_eq!(world.let_through(), [1, 2, 3, 4]);
            assert_eq!(world.shields.standing(after.named("cache").unwrap()).up_since, None);
        }
    }

    #[tokio::test]
    async fn a_port_that_goes_to_another_listener_has_that_ones_filter() {
        let mut world = World::new();
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

    async fn asleep(world: &World) -> bool {
        tokio::time::timeout(Duration::from_secs(3600), world.shields.due()).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn the_alarm_wakes_and_a_flood_raises_the_shield_and_its_end_lowers_it() {
        let mut world = World::new();
        let snapshot = world.snapshot(&shielded("\"127.0.0.1\"", "auto"));
        world.follow(&snapshot);
        let is_up = |world: &World| world.shields.standing(snapshot.named("cache").unwrap()).up_since.is_some();
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
        assert_eq!(world.shields.standing(snapshot.named("cache").unwrap()).dropped, Some(3));
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
        let mut world = World::new();
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
