use std::future::poll_fn;
use std::io::Write as _;

use tokio::time::{advance, sleep, timeout};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(10);

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// Checks a peer at the given times, in seconds, and returns when it was found dead.
fn found_dead(peer: &mut Peer, start: Instant, checks: impl IntoIterator<Item = (f64, TcpInfo)>) -> Option<f64> {
    checks
        .into_iter()
        .find_map(|(at, info)| (peer.check(info, start + seconds(at), TIMEOUT) == PeerStatus::Dead).then_some(at))
}

/// Four checks within the timeout.
fn steps() -> impl Iterator<Item = (u32, f64)> {
    (1..1000_u32).map(|step| (step, f64::from(step) * 2.5))
}

/// A closed window, probed once a minute.
fn probed(is_healthy: impl Fn(f64) -> bool) -> impl Iterator<Item = (f64, TcpInfo)> {
    steps().map(move |(_, at)| {
        let probes: Vec<f64> = (0..).map(|n| f64::from(n) * 60.0).take_while(|probe| *probe <= at).collect();
        let answered: Vec<f64> =
            probes.iter().copied().filter(|probe| is_healthy(*probe) && probe + 0.001 <= at).collect();
        let received = answered.last().copied().unwrap_or_default();
        let unanswered = probes.iter().filter(|probe| **probe > received).count();
        let info = TcpInfo {
            unsent: 5000,
            probes: u8::try_from(unanswered).unwrap(),
            last_sent: seconds(at + 1.0),
            last_received: seconds(at - received),
            segments: u32::try_from(answered.len()).unwrap(),
            ..TcpInfo::default()
        };
        (at, info)
    })
}

#[tokio::test(start_paused = true)]
async fn peer_that_answers_every_window_probe_is_never_dead() {
    assert_eq!(found_dead(&mut Peer::default(), Instant::now(), probed(|_| true)), None);
}

#[tokio::test(start_paused = true)]
async fn peer_that_leaves_a_probe_unanswered_is_dead_after_the_timeout() {
    let dead = found_dead(&mut Peer::default(), Instant::now(), probed(|at| at < 300.0)).unwrap();
    assert!((310.0..=312.5).contains(&dead), "{dead}");
}

/// A receiver short of memory closes its window on data in flight. The data is retransmitted, and each time the receiver
/// responds without accepting it.
#[tokio::test(start_paused = true)]
async fn peer_that_shrinks_its_window_and_answers_is_never_dead() {
    let checks = steps().map(|(step, at)| {
        let again = (at / 40.0).trunc() * 40.0;
        let (last_sent, last_received) = (seconds(at - again), seconds((at - again - 0.004).max(0.0)));
        let segments = step / 16;
        (at, TcpInfo { unacknowledged: 3, unsent: 9, last_sent, last_received, segments, ..TcpInfo::default() })
    });
    assert_eq!(found_dead(&mut Peer::default(), Instant::now(), checks), None);
}

#[tokio::test(start_paused = true)]
async fn peer_that_acknowledges_no_data_is_dead_after_the_timeout() {
    // Retransmitted after 0.2 s, 0.4 s and so on.
    let checks = steps().map(|(_, at)| {
        let again = (0..20).map(|n| 0.2 * f64::from((1_u32 << n) - 1)).take_while(|again| *again <= at);
        let again = again.reduce(f64::max).unwrap();
        (
            at,
            TcpInfo {
                unacknowledged: 1,
                last_sent: seconds(at - again),
                last_received: seconds(at + 3600.0),
                ..TcpInfo::default()
            },
        )
    });
    let dead = found_dead(&mut Peer::default(), Instant::now(), checks).unwrap();
    assert!((10.0..=12.5).contains(&dead), "{dead}");
}

#[tokio::test(start_paused = true)]
async fn acknowledged_data_does_not_count_for_later_data() {
    // At every check, other data is in flight.
    let checks = steps().map(|(segments, at)| {
        let (last_sent, last_received) = (seconds(0.001), seconds(0.002));
        (at, TcpInfo { unacknowledged: 1, last_sent, last_received, segments, ..TcpInfo::default() })
    });
    assert_eq!(found_dead(&mut Peer::default(), Instant::now(), checks), None);
}

/// Runs for `time` or until a peer is dead.
async fn run(peers: &mut DeadPeers, time: Duration, peer_info: impl Fn(Side) -> PeerInfo) -> Option<Side> {
    timeout(time, poll_fn(|cx| peers.poll(false, &peer_info, cx))).await.ok()
}

async fn make_progress(peers: &mut DeadPeers) {
    let dead = poll_fn(|cx| Poll::Ready(peers.poll(true, |_| PeerInfo::Unavailable, cx).is_ready())).await;
    assert!(!dead);
}

#[tokio::test(start_paused = true)]
async fn idle_session_with_acknowledged_data_is_not_checked() {
    let mut peers = DeadPeers::new(TIMEOUT);
    assert_eq!(run(&mut peers, TIMEOUT * 10, |_| unreachable!()).await, None);
    make_progress(&mut peers).await;
    assert!(peers.watch.is_some());
    assert_eq!(run(&mut peers, TIMEOUT, |_| PeerInfo::Tcp(TcpInfo::default())).await, None);
    assert!(peers.watch.is_none(), "an idle session has no timer");
}

#[tokio::test(start_paused = true)]
async fn dead_peer_is_found_while_the_other_peer_is_alive() {
    for dead in [Side::Client, Side::Upstream] {
        let mut peers = DeadPeers::new(TIMEOUT);
        make_progress(&mut peers).await;
        let start = Instant::now();
        let sent = |side| {
            let last_sent = start.elapsed();
            let lost = TcpInfo {
                unacknowledged: 1,
                last_sent,
                last_received: last_sent + seconds(60.0),
                ..TcpInfo::default()
            };
            PeerInfo::Tcp(if side == dead { lost } else { TcpInfo::default() })
        };
        assert_eq!(run(&mut peers, TIMEOUT * 10, sent).await, Some(dead));
        let taken = start.elapsed();
        assert!((TIMEOUT..=TIMEOUT + TIMEOUT / CHECKS_PER_TIMEOUT).contains(&taken), "{taken:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn peer_is_checked_again_after_a_local_shortage() {
    let mut peers = DeadPeers::new(TIMEOUT);
    make_progress(&mut peers).await;
    let start = Instant::now();
    let sent = |side| {
        let last_sent = start.elapsed();
        match side {
            _ if last_sent < TIMEOUT * 2 => PeerInfo::LocalShortage,
            Side::Client => PeerInfo::Unavailable,
            Side::Upstream => PeerInfo::Tcp(TcpInfo {
                unacknowledged: 1,
                last_sent,
                last_received: last_sent + seconds(60.0),
                ..TcpInfo::default()
            }),
        }
    };
    assert_eq!(run(&mut peers, TIMEOUT * 10, sent).await, Some(Side::Upstream));
}

#[tokio::test(start_paused = true)]
async fn session_with_constant_progress_is_checked() {
    let mut peers = DeadPeers::new(TIMEOUT);
    let mut checks = 0;
    for _ in 0..100 {
        let dead = poll_fn(|cx| {
            let peer_info = |_| {
                checks += 1;
                PeerInfo::Unavailable
            };
            Poll::Ready(peers.poll(true, peer_info, cx).is_ready())
        });
        assert!(!dead.await);
        advance(seconds(0.5)).await;
    }
    assert!((20..=40).contains(&checks), "{checks}");
}

#[tokio::test]
async fn peer_that_does_not_read_is_waited_for() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let _silent = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[0; 65_536]).is_ok() {}
    let stream = TcpStream::from_std(stream).unwrap();
    let all_answered = async {
        loop {
            let PeerInfo::Tcp(sent) = TcpInfo::read(&stream) else { panic!("TCP_INFO is unavailable") };
            assert!(sent.unsent > 0, "{sent:?}");
            if Peer::default().check(sent, Instant::now(), TIMEOUT) == PeerStatus::Waiting(None) {
                break;
            }
            // On a busy machine the kernel has not yet received its own acknowledgement. There is no event for that.
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(60), all_answered).await.expect("the peer acknowledges everything");
}
