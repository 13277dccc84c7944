//! Receivers that are slower than their senders.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, ReadBuf, duplex};

use crate::proxy::relay::flow::Flow;
use crate::tls::engine::max_overhead;
use crate::tls::fixtures::{TlsOptions, test_bytes};
use crate::transport::scratch::READ;
use crate::transport::tls_stream::tests::{TLS_OPTIONS, pair, run};

/// Far more than all that waits on the way together.
const ALL: usize = 2 << 20;

/// An upstream that has everything at hand, and knows how much of it was taken.
struct Spring {
    water: Vec<u8>,
    taken: usize,
}

impl AsyncRead for Spring {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = room.remaining().min(self.water.len() - self.taken);
        room.put_slice(&self.water[self.taken..][..count]);
        self.taken += count;
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_client_that_does_not_read_stops_the_upstream_and_misses_nothing() {
    run(async {
        for suite in 0..6 {
            let (mut client, mut ours) = pair(TlsOptions { suite, ..TLS_OPTIONS }).await;
            let mut spring = Spring { water: test_bytes(0, ALL), taken: 0 };
            let (mut flow, mut count) = (Flow::new(Vec::new()), 0);
            for _ in 0..100 {
                let polled = poll_fn(|cx| Poll::Ready(flow.poll(&mut spring, &mut ours, &mut count, cx))).await;
                assert!(polled.is_pending());
            }
            // Read once, and sealed but for what the pipe has taken.
            assert_eq!(spring.taken, READ);
            assert_eq!(count, spring.taken as u64, "the flow holds some as well");
            assert!(ours.unsent.rest().len() <= READ + max_overhead(READ) - (16 << 10));

            let relay = poll_fn(|cx| flow.poll(&mut spring, &mut ours, &mut count, cx));
            let mut heard = Vec::new();
            let (done, read) = tokio::join!(relay, client.read_to_end(&mut heard));
            done.unwrap();
            assert_eq!(read.unwrap(), ALL);
            assert!(heard == test_bytes(0, ALL), "not what was sent");
        }
    });
}

#[test]
fn an_upstream_that_does_not_read_stops_the_client_and_misses_nothing() {
    run(async {
        for suite in 0..6 {
            let (mut client, mut ours) = pair(TlsOptions { suite, ..TLS_OPTIONS }).await;
            let (mut writer, mut upstream) = duplex(1000);
            let (mut flow, mut count) = (Flow::new(Vec::new()), 0);
            let (water, mut sent, mut still) = (test_bytes(0, ALL), 0, 0);
            // Until neither side has moved for long.
            while still < 100 {
                still += 1;
                let polled = poll_fn(|cx| Poll::Ready(flow.poll(&mut ours, &mut writer, &mut count, cx))).await;
                assert!(polled.is_pending());
                let rest = &water[sent..];
                let written = poll_fn(|cx| Poll::Ready(Pin::new(&mut client).poll_write(cx, rest))).await;
                if let Poll::Ready(written) = written {
                    sent += written.unwrap();
                    still = 0;
                }
            }
            assert_eq!(count, 1000);
            assert!(ours.unread.is_empty() && ours.engine.unopened() < 17 << 10);
            // What the client keeps itself, the pipe, and what we read at once.
            assert!(sent <= (64 << 10) + (16 << 10) + READ, "{sent} bytes are on the way");

            let relay = poll_fn(|cx| flow.poll(&mut ours, &mut writer, &mut count, cx));
            let say = async {
                client.write_all(&water[sent..]).await.unwrap();
                client.shutdown().await.unwrap();
            };
            let mut heard = Vec::new();
            let (done, (), read) = tokio::join!(relay, say, upstream.read_to_end(&mut heard));
            done.unwrap();
            assert_eq!(read.unwrap(), ALL);
            assert!(heard == water, "not what was sent");
        }
    });
}

#[test]
fn what_is_written_behind_what_the_socket_did_not_take_arrives_behind_it() {
    run(async {
        for suite in 0..6 {
            let (mut client, mut ours) = pair(TlsOptions { suite, ..TLS_OPTIONS }).await;
            let all = test_bytes(0, 500_000);
            let (large, small) = all.split_at(400_000);
            let say = async {
                // Nobody flushes in between: each write meets what is left of the last one.
                for piece in [large].into_iter().chain(small.chunks(9999)) {
                    ours.write_all(piece).await.unwrap();
                }
                ours.shutdown().await.unwrap();
            };
            let mut heard = Vec::new();
            let ((), read) = tokio::join!(say, client.read_to_end(&mut heard));
            read.unwrap();
            assert!(heard == all, "not what was sent");
        }
    });
}
