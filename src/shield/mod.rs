//! The shield, a kernel source filter: while it is active, the kernel drops packets of untrusted sources at the listening socket.
//!
//! It is a classic BPF program built from the trusted sources. For a moment it may admit more than the policy, never less.
//! Sources of a new policy pass before it comes into force ([`Shields::widen`]), and sources that it no longer trusts are
//! dropped afterwards ([`Shields::follow`]). Every connection that passes is judged by the policy all the same.
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
    /// Notified when an untrusted source connects and a flood may be starting.
    alarm: Arc<Notify>,
    listeners: BTreeMap<Arc<str>, ListenerShield>,
    checked: Instant,
    /// The time of the next check, without a notification.
    next_check: Option<Instant>,
    /// Whether checks run every second, so that `alarm` is not needed.
    checks_fast: bool,
}

/// The state of a listener's shield.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShieldStatus {
    /// The configured mode.
    pub mode: Shield,
    /// When the shield became active, if it is.
    pub active_since: Option<OffsetDateTime>,
    /// Packets that the kernel dropped since the start of the process, if the kernel reports it.
    pub dropped: Option<u64>,
    /// Why the shield cannot be active.
    pub unavailable_reason: Option<String>,
}

impl Shields {
    pub(crate) fn new(audit: Audit) -> Self {
        let listeners = BTreeMap::new();
        Self { audit, alarm: Arc::default(), listeners, checked: Instant::now(), next_check: None, checks_fast: false }
    }

    /// The notification that sockets send on an untrusted connection.
    pub(crate) fn alarm(&self) -> &Arc<Notify> {
        &self.alarm
    }

    /// The filter for a new socket of this listener, to be attached before the first client. It also accepts the sources of
    /// the policy `before`, because a client may reach the new socket while that policy is in force.
    pub(crate) fn filter_for(&self, policy: &ListenerPolicy, before: Option<&ListenerPolicy>) -> Option<PacketFilter> {
        let active = self.listeners.get(&policy.name).is_some_and(ListenerShield::is_active);
        let mode = policy.shield == Shield::On || (policy.shield == Shield::Auto && active);
        let others = before.map(|before| &*before.sources.trusted);
        mode.then(|| policy.packet_filter(others, OffsetDateTime::now_utc()).ok()).flatten()
    }

    /// Extends the filters to accept the sources of `next` in addition to those of `current`. Call it before `next` comes into
    /// force.
    pub(crate) fn widen(&mut self, next: &Snapshot, current: &Snapshot) {
        let now = OffsetDateTime::now_utc();
        let active: BTreeSet<_> =
            self.listeners.iter().filter(|(_, shield)| shield.is_active()).map(|(name, _)| Arc::clone(name)).collect();
        for (name, shield) in self.listeners.iter_mut().filter(|(_, shield)| shield.is_active()) {
            let before = current.named(name);
            let filter = |bind_addr: &BindAddr| {
                let policy = next.at_address(bind_addr)?;
                let stays = match policy.shield {
                    Shield::On => true,
                    Shield::Auto => active.contains(&policy.name),
                    Shield::Off => false,
                };
                let others = before.map(|before| &*before.sources.trusted);
                Some(if stays { policy.packet_filter(others, now).ok() } else { None })
            };
            shield.reattach(filter);
        }
    }

    /// Applies a snapshot that has come into force, and the present sockets.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot, socket: impl Fn(&BindAddr) -> Option<Arc<ListenSocket>>) {
        let mut former = std::mem::take(&mut self.listeners);
        for policy in snapshot.listeners() {
            let mut shield = former.remove(&policy.name).unwrap_or_default();
            let sockets =
                policy.bind_addrs.iter().filter_map(|bind_addr| Some((bind_addr.clone(), socket(bind_addr)?)));
            shield.set_sockets(sockets.collect());
            self.listeners.insert(Arc::clone(&policy.name), shield);
        }
        for (name, mut shield) in former {
            shield.deactivate(&name, "the listener was removed", &self.audit);
        }
        for policy in snapshot.listeners() {
            if let Some(shield) = self.listeners.get_mut(&policy.name) {
                shield.follow(policy, &self.audit);
            }
        }
        self.plan();
    }

    /// Returns when a check is due.
    pub(crate) async fn due(&self) {
        let never = self.next_check.is_none();
        tokio::select! {
            () = sleep_until(self.next_check.unwrap_or(self.checked)), if !never => {}
            () = self.alarm.notified(), if !self.checks_fast => {}
        }
    }

    /// Counts untrusted connections, and activates or deactivates shields.
    pub(crate) fn check(&mut self, snapshot: &Snapshot) {
        let elapsed = self.checked.elapsed();
        self.checked = Instant::now();
        let was_idle = !self.checks_fast;
        for (name, shield) in &mut self.listeners {
            let Some(policy) = snapshot.named(name) else { continue };
            if was_idle {
                // The count since the last check covers an unknown time. The next one covers a known time.
                shield.count_untrusted();
            } else {
                shield.judge_flood(policy, elapsed, &self.audit);
            }
            shield.refresh(policy, &self.audit);
        }
        self.next_check = None;
        self.plan();
        if was_idle && self.listeners.values().any(ListenerShield::waits_for_floods) {
            self.check_in(FAST_CHECK_INTERVAL);
            self.checks_fast = true;
        }
    }

    /// Deactivates all shields, with the reason `why`, and drops the sockets.
    pub(crate) fn close(&mut self, why: &str) {
        for (name, shield) in &mut self.listeners {
            shield.deactivate(name, why, &self.audit);
        }
        self.listeners.clear();
        self.plan();
    }

    /// Drops all shields and sockets without detaching filters. The next [`follow`](Self::follow) starts anew.
    pub(crate) fn abandon(&mut self) {
        self.listeners.clear();
        self.plan();
    }

    /// The state of the shield of a listener.
    pub(crate) fn status(&self, policy: &ListenerPolicy) -> ShieldStatus {
        self.listeners.get(&policy.name).map_or(
            ShieldStatus { mode: policy.shield, active_since: None, dropped: None, unavailable_reason: None },
            |shield| shield.status(policy.shield),
        )
    }

    /// Schedules the next check.
    fn plan(&mut self) {
        self.checks_fast = self.listeners.values().any(ListenerShield::needs_fast_checks);
        if self.checks_fast {
            self.check_in(FAST_CHECK_INTERVAL);
        } else if self.listeners.values().any(ListenerShield::is_active) {
            self.check_in(SLOW_CHECK_INTERVAL);
        } else {
            self.next_check = None;
        }
    }

    /// Schedules a check after `pause` at the latest. Repeated reloads must not postpone it.
    fn check_in(&mut self, pause: Duration) {
        let at = Instant::now() + pause;
        self.next_check = Some(self.next_check.map_or(at, |next| next.min(at)));
    }
}

/// The interval of checks while there may be a flood.
const FAST_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The interval of checks while a shield is active without a flood: rules expire, and the clock may be set.
const SLOW_CHECK_INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use socket2::{Domain, Socket, Type};
    use time::Duration as Days;

    use super::*;
    use crate::audit::LineFormat;
    use crate::policy::fixtures::{ConfigDir, listener};

    struct Fixture {
        dir: ConfigDir,
        shields: Shields,
        socket: Arc<ListenSocket>,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = ConfigDir::new();
            for name in ["cache", "other"] {
                dir.install(name, OffsetDateTime::now_utc() + Days::days(90));
            }
            let shields = Shields::new(Audit::start(LineFormat::Json, None));
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            let socket = Arc::new(ListenSocket::listen(socket, 64, None, shields.alarm()).unwrap());
            Self { dir, shields, socket }
        }

        fn snapshot(&self, text: &str) -> Snapshot {
            self.dir.snapshot(text, None)
        }

        fn follow(&mut self, snapshot: &Snapshot) {
            let socket = &self.socket;
            self.shields.follow(snapshot, |bind_addr| snapshot.at_address(bind_addr).map(|_| Arc::clone(socket)));
        }

        /// Whether the kernel accepts a connection from `source`. The limit is below the retransmission of the SYN (1 s).
        fn is_accepted(&self, source: &str) -> bool {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::new(source.parse().unwrap(), 0).into()).unwrap();
            let target = self.socket.socket().local_addr().unwrap();
            let connected = socket.connect_timeout(&target.into(), Duration::from_millis(200));
            if connected.is_ok() {
                self.socket.accept().unwrap();
            }
            connected.is_ok()
        }

        fn accepted(&self) -> Vec<u8> {
            (1..=4).filter(|last| self.is_accepted(&format!("127.0.0.{last}"))).collect()
        }
    }

    fn shielded(sources: &str, shield: &str) -> String {
        let text = listener("cache", 0, sources);
        text.replace("protocol =", &format!("shield = \"{shield}\"\nprotocol ="))
    }

    #[tokio::test]
    async fn sources_of_both_policies_are_accepted_before_the_new_one_is_in_force() {
        let mut fixture = Fixture::new();
        let first = fixture.snapshot(&shielded("\"127.0.0.1\", \"127.0.0.2\"", "on"));
        fixture.follow(&first);
        assert_eq!(fixture.accepted(), [1, 2]);
        let second = fixture.snapshot(&shielded("\"127.0.0.2\", \"127.0.0.3\"", "on"));
        fixture.shields.widen(&second, &first);
        assert_eq!(fixture.accepted(), [1, 2, 3], "either policy may be in force");
        fixture.follow(&second);
        assert_eq!(fixture.accepted(), [2, 3]);
        let status = fixture.shields.status(second.named("cache").unwrap());
        assert!(status.active_since.is_some() && status.dropped.is_some_and(|dropped| dropped >= 5), "{status:?}");
        fixture.shields.close("the test is over");
        assert_eq!(fixture.accepted(), [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn policy_without_a_shield_accepts_all_sources_before_it_is_in_force() {
        let mut fixture = Fixture::new();
        let observing = shielded("", "on").replace("protocol =", "enforcement = \"observe\"\nprotocol =");
        for open in [shielded("", "off"), observing] {
            let (before, after) = (fixture.snapshot(&shielded("\"127.0.0.1\"", "on")), fixture.snapshot(&open));
            fixture.follow(&before);
            assert_eq!(fixture.accepted(), [1]);
            fixture.shields.widen(&after, &before);
            assert_eq!(fixture.accepted(), [1, 2, 3, 4]);
            fixture.follow(&after);
            assert_eq!(fixture.accepted(), [1, 2, 3, 4]);
            assert_eq!(fixture.shields.status(after.named("cache").unwrap()).active_since, None);
        }
    }

    #[tokio::test]
    async fn socket_that_moves_to_another_listener_gets_its_filter() {
        let mut fixture = Fixture::new();
        let at = |name: &str, sources: &str, shield: &str| {
            // Not port 0, which differs for every listener. Nothing is bound here.
            listener(name, 7, sources).replace("protocol =", &format!("shield = \"{shield}\"\nprotocol ="))
        };
        let first = fixture.snapshot(&at("cache", "\"127.0.0.1\"", "on"));
        fixture.follow(&first);
        assert_eq!(fixture.accepted(), [1]);
        let second = fixture.snapshot(&at("other", "\"127.0.0.2\"", "on"));
        fixture.shields.widen(&second, &first);
        assert_eq!(fixture.accepted(), [1, 2]);
        fixture.follow(&second);
        assert_eq!(fixture.accepted(), [2]);
        let third = fixture.snapshot(&at("cache", "\"127.0.0.1\"", "auto"));
        fixture.shields.widen(&third, &second);
        fixture.follow(&third);
        assert_eq!(fixture.accepted(), [1, 2, 3, 4], "no flood yet");
    }

    async fn is_idle(fixture: &Fixture) -> bool {
        tokio::time::timeout(Duration::from_secs(3600), fixture.shields.due()).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn flood_activates_the_shield_and_its_end_deactivates_it() {
        let mut fixture = Fixture::new();
        let snapshot = fixture.snapshot(&shielded("\"127.0.0.1\"", "auto"));
        fixture.follow(&snapshot);
        let is_active =
            |fixture: &Fixture| fixture.shields.status(snapshot.named("cache").unwrap()).active_since.is_some();
        assert!(is_idle(&fixture).await, "no check is due without untrusted connections");
        for second in 0..3 {
            assert!(!is_active(&fixture), "{second}");
            (0..150).for_each(|_| fixture.socket.count_untrusted());
            fixture.shields.due().await;
            fixture.shields.check(&snapshot);
        }
        assert!(is_active(&fixture));
        assert_eq!(fixture.accepted(), [1]);
        for _ in 0..10 {
            assert!(is_active(&fixture));
            fixture.shields.due().await;
            fixture.shields.check(&snapshot);
        }
        assert!(!is_active(&fixture));
        assert_eq!(fixture.accepted(), [1, 2, 3, 4]);
        assert_eq!(fixture.shields.status(snapshot.named("cache").unwrap()).dropped, Some(3));
        // The last notification may arrive only now.
        for _ in 0..2 {
            if is_idle(&fixture).await {
                return;
            }
            fixture.shields.check(&snapshot);
        }
        assert!(is_idle(&fixture).await, "no check is due after the flood");
    }

    #[tokio::test]
    async fn expired_rule_is_removed_from_the_filter_at_the_next_check() {
        let mut fixture = Fixture::new();
        let end = OffsetDateTime::now_utc() + Days::seconds(1);
        let end = end.format(&time::format_description::well_known::Rfc3339).unwrap();
        let rules = format!("\"127.0.0.1\", {{ type = \"ip_addr\", value = \"127.0.0.2\", expires_at = {end} }}");
        let snapshot = fixture.snapshot(&shielded(&rules, "on"));
        fixture.follow(&snapshot);
        assert!(fixture.is_accepted("127.0.0.2"));
        let deadline = Instant::now() + Duration::from_secs(10);
        while fixture.is_accepted("127.0.0.2") {
            assert!(Instant::now() < deadline);
            fixture.shields.check(&snapshot);
        }
        assert_eq!(fixture.accepted(), [1]);
    }
}
