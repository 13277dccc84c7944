//! Back-pressure: receivers that are slower than their senders.

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

/// Far more than all buffers together.
const ALL: usize = 2 << 20;

/// An upstream whose bytes are always ready, and which counts the bytes read.
struct ReadyUpstream {
    bytes: Vec<u8>,
    taken: usize,
}

impl AsyncRead for ReadyUpstream {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = buffer.remaining().min(self.bytes.len() - self.taken);
        buffer.put_slice(&self.bytes[self.taken..][..count]);
        self.taken += count;
        Poll::Ready(Ok(()))
    }
}

#[test]
fn client_that_does_not_read_stops_the_upstream_and_loses_no_byte() {
    run(async {
        for suite in 0..6 {
            let (mut client, mut ours) = pair(TlsOptions { suite, ..TLS_OPTIONS }).await;
            let mut upstream = ReadyUpstream { bytes: test_bytes(0, ALL), taken: 0 };
            let (mut flow, mut count) = (Flow::new(Vec::new()), 0);
            for _ in 0..100 {
                let polled = poll_fn(|cx| Poll::Ready(flow.poll(&mut upstream, &mut ours, &mut count, cx))).await;
                assert!(polled.is_pending());
            }
            // One read. The bytes that the pipe did not accept are sealed.
            assert_eq!(upstream.taken, READ);
            assert_eq!(count, upstream.taken as u64, "the flow keeps bytes, too");
            assert!(ours.unsent.rest().len() <= READ + max_overhead(READ) - (16 << 10));

            let relay = poll_fn(|cx| flow.poll(&mut upstream, &mut ours, &mut count, cx));
            let mut received = Vec::new();
            let (done, read) = tokio::join!(relay, client.read_to_end(&mut received));
            done.unwrap();
            assert_eq!(read.unwrap(), ALL);
            assert!(received == test_bytes(0, ALL), "other bytes than sent");
        }
    });
}

#[test]
fn upstream_that_does_not_read_stops_the_client_and_loses_no_byte() {
    run(async {
        for suite in 0..6 {
            let (mut client, mut ours) = pair(TlsOptions { suite, ..TLS_OPTIONS }).await;
            let (mut writer, mut upstream) = duplex(1000);
            let (mut flow, mut count) = (Flow::new(Vec::new()), 0);
            let (bytes, mut sent, mut still) = (test_bytes(0, ALL), 0, 0);
            // Until both sides have stalled.
            while still < 100 {
                still += 1;
                let polled = poll_fn(|cx| Poll::Ready(flow.poll(&mut ours, &mut writer, &mut count, cx))).await;
                assert!(polled.is_pending());
                let rest = &bytes[sent..];
                let written = poll_fn(|cx| Poll::Ready(Pin::new(&mut client).poll_write(cx, rest))).await;
                if let Poll::Ready(written) = written {
                    sent += written.unwrap();
                    still = 0;
                }
            }
            assert_eq!(count, 1000);
            assert!(ours.unread.is_empty() && ours.engine.unopened() < 17 << 10);
            // The buffer of the client, the pipe, and one read.
            assert!(sent <= (64 << 10) + (16 << 10) + READ, "{sent} bytes in flight");

            let relay = poll_fn(|cx| flow.poll(&mut ours, &mut writer, &mut count, cx));
            let send = async {
                client.write_all(&bytes[sent..]).await.unwrap();
                client.shutdown().await.unwrap();
            };
            let mut received = Vec::new();
            let (done, (), read) = tokio::join!(relay, send, upstream.read_to_end(&mut received));
            done.unwrap();
            assert_eq!(read.unwrap(), ALL);
            assert!(received == bytes, "other bytes than sent");
        }
    });
}

#[test]
fn bytes_written_after_a_partial_write_arrive_in_order() {
    run(async {
        for suite in 0..6 {
            let (mut client, mut ours) = pair(TlsOptions { suite, ..TLS_OPTIONS }).await;
            let all = test_bytes(0, 500_000);
            let (large, small) = all.split_at(400_000);
            let send = async {
                // No flush in between: each write starts with the rest of the previous one.
                for piece in [large].into_iter().chain(small.chunks(9999)) {
                    ours.write_all(piece).await.unwrap();
                }
                ours.shutdown().await.unwrap();
            };
            let mut received = Vec::new();
            let ((), read) = tokio::join!(send, client.read_to_end(&mut received));
            read.unwrap();
            assert!(received == all, "other bytes than sent");
        }
    });
}
