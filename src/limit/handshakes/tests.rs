use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use proptest::prelude::*;

use super::*;

/// A listener with a limit, and the permits of its connections.
struct Listener {
    handshakes: Arc<HandshakeLimiter>,
    limit: NonZeroU32,
    next: u64,
    held: HashMap<u64, HandshakePermit>,
}

impl Listener {
    fn new(limit: u32) -> Self {
        let limit = NonZeroU32::new(limit).unwrap();
        Self { handshakes: Arc::default(), limit, next: 0, held: HashMap::new() }
    }

    /// The number of the connection, and the number of the displaced one.
    fn acquire(&mut self, client: ClientAddr) -> Result<(u64, Option<u64>), HandshakeLimitReached> {
        self.next += 1;
        let AcquiredHandshake { handshake, displaced } = self.handshakes.acquire(client, self.next, self.limit)?;
        self.held.insert(self.next, handshake);
        Ok((self.next, displaced))
    }

    fn connections(&mut self, from: &str, count: usize) -> Vec<u64> {
        (0..count).map(|_| self.acquire(client(from)).unwrap().0).collect()
    }

    fn of(&self, ip: &str) -> usize {
        self.handshakes.open().sources.get(&client(ip).source_key()).map_or(0, BTreeSet::len)
    }
}

fn client(ip: &str) -> ClientAddr {
    ClientAddr::from_ip(ip.parse().unwrap())
}

const FULL: Result<(u64, Option<u64>), HandshakeLimitReached> =
    Err(HandshakeLimitReached::Full(NonZeroU32::new(4).unwrap()));

#[test]
fn one_source_can_use_all_handshakes_up_to_the_limit() {
    let mut listener = Listener::new(4);
    let connections = listener.connections("10.0.0.1", 4);
    assert_eq!(listener.acquire(client("10.0.0.1")), FULL);
    assert_eq!(listener.handshakes.count(), 4);
    listener.held.remove(&connections[1]).unwrap().finish().unwrap();
    assert!(matches!(listener.acquire(client("10.0.0.1")), Ok((_, None))));
    listener.held.clear();
    assert_eq!(listener.handshakes.count(), 0);
    assert!(listener.handshakes.open().sources.is_empty(), "a source without handshakes is forgotten");
}

#[test]
fn new_source_at_the_limit_displaces_the_oldest_of_the_largest() {
    let mut listener = Listener::new(4);
    let connections = listener.connections("10.0.0.1", 4);
    assert_eq!(listener.acquire(client("10.0.0.2")).unwrap().1, Some(connections[0]));
    assert_eq!(listener.acquire(client("10.0.0.2")).unwrap().1, Some(connections[1]));
    // Both have two now, so neither can displace the other.
    assert_eq!(listener.acquire(client("10.0.0.2")), FULL);
    assert_eq!(listener.acquire(client("10.0.0.1")), FULL);
    assert_eq!(listener.acquire(client("10.0.0.3")).map(|(_, displaced)| displaced.is_some()), Ok(true));
    assert_eq!(listener.handshakes.count(), 4);
    for displaced in &connections[..2] {
        assert_eq!(listener.held.remove(displaced).unwrap().finish(), Err(HandshakeLimitReached::Displaced));
    }
    assert_eq!(listener.handshakes.count(), 4, "a displaced handshake is not subtracted again");
}

#[test]
fn sources_with_one_handshake_each_are_not_displaced() {
    let mut listener = Listener::new(4);
    for number in 1..=4_u32 {
        listener.acquire(ClientAddr::from_ip(Ipv4Addr::from(number).into())).unwrap();
    }
    assert_eq!(listener.acquire(client("10.0.0.9")), FULL);
}

#[test]
fn clients_of_one_ipv6_64_and_of_unix_sockets_are_one_source_each() {
    let mut listener = Listener::new(4);
    let v6 = listener.connections("2001:db8::1", 2);
    let v6 = [v6[0], listener.acquire(client("2001:db8::2")).unwrap().0];
    assert_eq!(listener.acquire(ClientAddr::UNIX).unwrap().1, None);
    assert_eq!(listener.acquire(ClientAddr::UNIX).unwrap().1, Some(v6[0]));
    assert_eq!(listener.acquire(client("2001:db8::3")), FULL);
    assert_eq!(listener.acquire(ClientAddr::UNIX), FULL);
}

#[test]
fn announced_client_counts_for_its_own_source() {
    let mut listener = Listener::new(4);
    let connections = listener.connections("10.9.0.1", 3);
    for number in &connections {
        listener.held.get_mut(number).unwrap().set_client(client("10.0.0.1"));
    }
    assert_eq!((listener.of("10.9.0.1"), listener.of("10.0.0.1"), listener.handshakes.count()), (0, 3, 3));
    listener.connections("10.9.0.1", 1);
    assert_eq!(listener.acquire(client("10.9.0.1")).unwrap().1, Some(connections[0]));
    // It was displaced before its client was announced.
    let mut displaced = listener.held.remove(&connections[0]).unwrap();
    displaced.set_client(client("10.0.0.7"));
    assert_eq!((listener.of("10.0.0.7"), displaced.finish()), (0, Err(HandshakeLimitReached::Displaced)));
    assert_eq!(listener.handshakes.count(), 4);
}

#[test]
fn lowered_limit_keeps_handshakes_and_admits_none_until_enough_have_ended() {
    let mut listener = Listener::new(8);
    let connections = listener.connections("10.0.0.1", 6);
    listener.limit = NonZeroU32::new(4).unwrap();
    assert_eq!(listener.acquire(client("10.0.0.1")), FULL);
    assert_eq!(listener.acquire(client("10.0.0.2")).unwrap().1, Some(connections[0]));
    assert_eq!(listener.handshakes.count(), 6);
    connections.iter().for_each(|number| drop(listener.held.remove(number)));
    assert_eq!(listener.handshakes.count(), 1);
    listener.connections("10.0.0.1", 3);
}

#[test]
fn panic_releases_the_permit() {
    let mut listener = Listener::new(1);
    let (number, _) = listener.acquire(client("10.0.0.1")).unwrap();
    let handshake = listener.held.remove(&number).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _held = handshake;
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(panicked.is_err());
    assert_eq!(listener.handshakes.count(), 0);
}

#[test]
fn built_in_limit_is_a_quarter_of_the_open_files_within_bounds() {
    let limit = |files| built_in_limit(files).get();
    assert_eq!([Some(48), Some(1024), Some(8192), Some(20_000)].map(limit), [64, 256, 2048, 4096]);
    assert_eq!([Some(u64::MAX), None].map(limit), [4096, 4096]);
}

#[test]
fn concurrent_handshakes_never_exceed_the_limit() {
    let handshakes = Arc::new(HandshakeLimiter::default());
    let limit = NonZeroU32::new(3).unwrap();
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for number in 0..6_u8 {
            let (handshakes, next) = (&handshakes, &next);
            scope.spawn(move || {
                let client = client(["10.0.0.1", "10.0.0.2", "10.0.0.3"][usize::from(number % 3)]);
                for _ in 0..5_000 {
                    let connection = next.fetch_add(1, Ordering::Relaxed);
                    let Ok(acquired) = handshakes.acquire(client, connection, limit) else { continue };
                    assert!(handshakes.count() <= limit.get());
                    let _ = acquired.handshake.finish();
                }
            });
        }
    });
    assert_eq!(handshakes.count(), 0);
}

proptest! {
    /// The count is correct, the limit holds, and at the limit a source is rejected only if no other source has at least two more.
    #[test]
    fn handshakes_are_shared_fairly_between_sources(limit in 1_u32..12, turns in prop::collection::vec((0_u32..5, any::<bool>()), 0..120)) {
        let mut listener = Listener::new(limit);
        for (source, leaves) in turns {
            let client = ClientAddr::from_ip(Ipv4Addr::from(source).into());
            if leaves {
                let of_source = listener.held.iter().find(|(_, held)| held.source == client.source_key());
                let number = of_source.map(|(number, _)| *number);
                number.map(|number| listener.held.remove(&number));
            } else {
                let counts = |listener: &Listener| -> HashMap<_, usize> {
                    listener.handshakes.open().sources.iter().map(|(source, all)| (*source, all.len())).collect()
                };
                let before = counts(&listener);
                let own = before.get(&client.source_key()).copied().unwrap_or(0);
                let most = before.values().max().copied().unwrap_or(0);
                match listener.acquire(client) {
                    Ok((_, None)) => prop_assert!(before.values().sum::<usize>() < limit as usize),
                    Ok((_, Some(displaced))) => {
                        prop_assert!(most > own + 1);
                        let loser = listener.held.remove(&displaced).unwrap();
                        prop_assert_eq!(before[&loser.source], most);
                        prop_assert_eq!(loser.finish(), Err(HandshakeLimitReached::Displaced));
                    }
                    Err(_) => prop_assert!(most <= own + 1 && before.values().sum::<usize>() == limit as usize),
                }
            }
            prop_assert_eq!(listener.handshakes.count() as usize, listener.held.len());
            prop_assert!(listener.handshakes.count() <= limit);
        }
    }
}
