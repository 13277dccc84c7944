use std::task::Poll;

use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;

use super::*;

fn budget(max_connections: usize) -> Descriptors {
    let descriptors = Descriptors::default();
    descriptors.0.max_connections.store(max_connections, Ordering::SeqCst);
    descriptors
}

#[test]
fn reserve_stays_within_its_bounds() {
    assert_eq!([16, 64, 256, 512, 1 << 20].map(reserve), [16, 16, 64, 128, 256]);
}

#[test]
fn max_connections_leaves_the_reserve_and_open_files() {
    for (limit, open, expected) in [(64, 24, 12), (64, 25, 11), (1024, 30, 369), (1 << 20, 30, 524_145), (48, 60, 1)] {
        let max = max_connections(limit, open);
        assert_eq!(max, expected, "{limit} {open}");
        assert!(max == 1 || max * PER_CONNECTION + open + reserve(limit) <= limit);
    }
}

#[test]
fn permit_is_refused_at_the_maximum_and_released_when_dropped() {
    let descriptors = budget(2);
    let (one, mut two) = (descriptors.try_take().unwrap(), descriptors.try_take().unwrap());
    assert!(descriptors.try_take().is_none());
    drop(one);
    two.keep();
    drop(two);
    assert_eq!(descriptors.status().connections, 1);
    descriptors.release();
    assert_eq!(descriptors.status().connections, 0);
}

#[test]
fn budget_counts_open_files_once_and_listening_sockets_each_time() {
    let descriptors = Descriptors::default();
    assert!(descriptors.try_take().is_none(), "nothing is accepted before");
    descriptors.follow(0);
    let before = descriptors.status();
    assert_eq!(before.limit, limit());
    descriptors.follow(20);
    assert_eq!(descriptors.status().max_connections, before.max_connections - 10);
}

#[tokio::test]
async fn waiting_accept_loops_continue_when_descriptors_are_released() {
    let descriptors = budget(3);
    let shares: Vec<_> = (0..3).map(|_| descriptors.try_take().unwrap()).collect();
    let mut waiting = JoinSet::new();
    for _ in 0..3 {
        let descriptors = descriptors.clone();
        waiting.spawn(async move { descriptors.take().await });
    }
    while descriptors.pause().waiting < 3 {
        yield_now().await;
    }
    assert!(descriptors.status().paused_since.is_some());
    drop(shares);
    while let Some(permit) = timeout(Duration::from_secs(30), waiting.join_next()).await.expect("the loop continues") {
        drop(permit.unwrap());
    }
    let status = descriptors.status();
    assert_eq!((status.connections, status.paused_since), (0, None));
    assert!(status.last_paused_at.is_some());
}

#[tokio::test]
async fn descriptors_offered_to_a_loop_that_stopped_go_to_the_next() {
    let descriptors = budget(1);
    let permit = descriptors.try_take();
    let mut first = Box::pin(descriptors.take());
    let mut second = Box::pin(descriptors.take());
    std::future::poll_fn(|cx| {
        assert!(first.as_mut().poll(cx).is_pending() && second.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    drop(permit);
    drop(first);
    timeout(Duration::from_secs(30), second).await.expect("it was woken");
}

#[test]
fn local_shortage_differs_from_a_refused_connection() {
    for code in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL] {
        assert!(is_local_shortage(&io::Error::from_raw_os_error(code)), "{code}");
    }
    for code in [libc::ECONNREFUSED, libc::ETIMEDOUT, libc::ENETUNREACH, libc::EHOSTUNREACH, libc::ECONNRESET] {
        assert!(!is_local_shortage(&io::Error::from_raw_os_error(code)), "{code}");
    }
    assert!(shortage().is_none());
}
