use std::future::poll_fn;
use std::io::Write as _;

use tokio::time::{advance, timeout};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(10);

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// Looks at a peer every few seconds and says when it was found dead.
fn judged(peer: &mut Peer, start: Instant, looks: impl IntoIterator<Item = (f64, Sent)>) -> Option<f64> {
    looks
        .into_iter()
        .find_map(|(at, sent)| (peer.judge(sent, start + seconds(at), TIMEOUT) == PeerStatus::Dead).then_some(at))
}

/// Four in the time that a peer has.
fn steps() -> impl Iterator<Item = (u32, f64)> {
    (1..1000_u32).map(|step| (step, f64::from(step) * 2.5))
}

/// A closed window is probed at growing intervals, of a minute in the end.
fn probed(is_healthy: impl Fn(f64) -> bool) -> impl Iterator<Item = (f64, Sent)> {
    steps().map(move |(_, at)| {
        let probes: Vec<f64> = (0..).map(|n| f64::from(n) * 60.0).take_while(|probe| *probe <= at).collect();
        let answered: Vec<f64> =
            probes.iter().copied().filter(|probe| is_healthy(*probe) && probe + 0.001 <= at).collect();
        let heard = answered.last().copied().unwrap_or_default();
        let unanswered = probes.iter().filter(|probe| **probe > heard).count();
        let sent = Sent {
            unsent: 5000,
            probes: u8::try_from(unanswered).unwrap(),
            sent_ago: seconds(at + 1.0),
            heard_ago: seconds(at - heard),
            segments: u32::try_from(answered.len()).unwrap(),
            ..Sent::default()
        };
        (at, sent)
    })
}

#[tokio::test(start_paused = true)]
async fn peer_that_answers_every_probe_of_its_closed_window_is_never_dead() {
    assert_eq!(judged(&mut Peer::default(), Instant::now(), probed(|_| true)), None);
}

#[tokio::test(start_paused = true)]
async fn peer_that_leaves_a_probe_unanswered_is_dead_in_time() {
    let dead = judged(&mut Peer::default(), Instant::now(), probed(|at| at < 300.0)).unwrap();
    assert!((310.0..=312.5).contains(&dead), "{dead}");
}

/// A receiver short of memory closes its window on data that is under way: that is sent again and again, and each time
/// acknowledged as not wanted.
#[tokio::test(start_paused = true)]
async fn peer_that_shrinks_its_window_and_answers_is_never_dead() {
    let looks = steps().map(|(step, at)| {
        let again = (at / 40.0).floor() * 40.0;
        let (sent_ago, heard_ago) = (seconds(at - again), seconds((at - again - 0.004).max(0.0)));
        let segments = step / 16;
        (at, Sent { unacknowledged: 3, unsent: 9, sent_ago, heard_ago, segments, ..Sent::default() })
    });
    assert_eq!(judged(&mut Peer::default(), Instant::now(), looks), None);
}

#[tokio::test(start_paused = true)]
async fn peer_that_acknowledges_no_data_is_dead_in_time_after_the_first_that_was_seen() {
    // Sent again after 0.2 s, 0.4 s and so on.
    let looks = steps().map(|(_, at)| {
        let again = (0..20).map(|n| 0.2 * f64::from((1_u32 << n) - 1)).take_while(|again| *again <= at);
        let again = again.reduce(f64::max).unwrap();
        (
            at,
            Sent {
                unacknowledged: 1,
                sent_ago: seconds(at - again),
                heard_ago: seconds(at + 3600.0),
                ..Sent::default()
            },
        )
    });
    let dead = judged(&mut Peer::default(), Instant::now(), looks).unwrap();
    assert!((10.0..=12.5).contains(&dead), "{dead}");
}

#[tokio::test(start_paused = true)]
async fn question_that_was_answered_does_not_count_for_the_next_one() {
    // At every look something else is under way.
    let looks = steps().map(|(segments, at)| {
        let (sent_ago, heard_ago) = (seconds(0.001), seconds(0.002));
        (at, Sent { unacknowledged: 1, sent_ago, heard_ago, segments, ..Sent::default() })
    });
    assert_eq!(judged(&mut Peer::default(), Instant::now(), looks), None);
}

/// Runs for so long, or until a peer is dead.
async fn run(peers: &mut DeadPeers, time: Duration, sent: impl Fn(Side) -> Known) -> Option<Side> {
    timeout(time, poll_fn(|cx| peers.poll(false, &sent, cx))).await.ok()
}

async fn carry(peers: &mut DeadPeers) {
    let dead = poll_fn(|cx| Poll::Ready(peers.poll(true, |_| Known::Nothing, cx).is_ready())).await;
    assert!(!dead);
}

#[tokio::test(start_paused = true)]
async fn session_that_is_idle_and_acknowledged_is_not_looked_at() {
    let mut peers = DeadPeers::new(TIMEOUT);
    assert_eq!(run(&mut peers, TIMEOUT * 10, |_| unreachable!()).await, None);
    carry(&mut peers).await;
    assert!(peers.watch.is_some());
    assert_eq!(run(&mut peers, TIMEOUT, |_| Known::Sent(Sent::default())).await, None);
    assert!(peers.watch.is_none(), "an idle session pays for it");
}

#[tokio::test(start_paused = true)]
async fn peer_that_dies_while_the_other_one_goes_on_is_found() {
    for dead in [Side::Client, Side::Upstream] {
        let mut peers = DeadPeers::new(TIMEOUT);
        carry(&mut peers).await;
        let start = Instant::now();
        let sent = |side| {
            let sent_ago = start.elapsed();
            let lost = Sent { unacknowledged: 1, sent_ago, heard_ago: sent_ago + seconds(60.0), ..Sent::default() };
            Known::Sent(if side == dead { lost } else { Sent::default() })
        };
        assert_eq!(run(&mut peers, TIMEOUT * 10, sent).await, Some(dead));
        let taken = start.elapsed();
        assert!((TIMEOUT..=TIMEOUT + TIMEOUT / LOOKS).contains(&taken), "{taken:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn peer_that_cannot_be_asked_about_for_a_while_is_looked_at_again() {
    let mut peers = DeadPeers::new(TIMEOUT);
    carry(&mut peers).await;
    let start = Instant::now();
    let sent = |side| {
        let sent_ago = start.elapsed();
        match side {
            _ if sent_ago < TIMEOUT * 2 => Known::NotNow,
            Side::Client => Known::Nothing,
            Side::Upstream => Known::Sent(Sent {
                unacknowledged: 1,
                sent_ago,
                heard_ago: sent_ago + seconds(60.0),
                ..Sent::default()
            }),
        }
    };
    assert_eq!(run(&mut peers, TIMEOUT * 10, sent).await, Some(Side::Upstream));
}

/// Progress is no reason to put the next look off.
#[tokio::test(start_paused = true)]
async fn session_that_carries_bytes_all_the_time_is_looked_at() {
    let mut peers = DeadPeers::new(TIMEOUT);
    let mut looks = 0;
    for _ in 0..100 {
        let looked = poll_fn(|cx| {
            let look = |_| {
                looks += 1;
                Known::Nothing
            };
            Poll::Ready(peers.poll(true, look, cx).is_ready())
        });
        assert!(!looked.await);
        advance(seconds(0.5)).await;
    }
    assert!((20..=40).contains(&looks), "{looks}");
}

#[tokio::test]
async fn kernel_tells_of_a_peer_that_does_not_read() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let _silent = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[0; 65_536]).is_ok() {}
    let stream = TcpStream::from_std(stream).unwrap();
    let Known::Sent(sent) = Sent::over(&stream) else { panic!("the kernel tells") };
    assert!(sent.unsent > 0, "{sent:?}");
    assert_eq!(Peer::default().judge(sent, Instant::now(), TIMEOUT), PeerStatus::Owes(None), "{sent:?}");
}
