//! Whole sessions: client, TLS, two flows, upstream. The result is the same as with tokio-rustls and `copy_bidirectional`.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex, split};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio_rustls::TlsAcceptor;

use crate::proxy::relay::flow::Flow;
use crate::tls::fixtures::{TlsOptions, test_bytes};
use crate::transport::tls_stream::tests::{TLS_OPTIONS, accept, assert_owns_no_bytes, connect, run};

/// The side that ends first. The other side waits for that end in the middle of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Client,
    Upstream,
    Neither,
}

#[derive(Clone, Debug)]
struct Script {
    options: TlsOptions,
    first: First,
    /// The lengths of the writes of the client, and of the upstream.
    writes: [Vec<usize>; 2],
    /// The capacities of the pipes on both sides of the relay.
    pipes: [usize; 2],
    /// The most bytes of one read or write of the client's socket.
    width: usize,
}

fn scripts() -> impl Strategy<Value = Script> {
    let record = prop_oneof![2 => Just(None), 1 => (32_usize..5000).prop_map(Some)];
    let options = (0_usize..6, record).prop_map(|(suite, record)| TlsOptions { suite, record, ..TLS_OPTIONS });
    let first = prop::sample::select(vec![First::Client, First::Upstream, First::Neither]);
    let length = prop_oneof![2 => 1_usize..100, 1 => 1_usize..20_000, 1 => Just(16_385)];
    let writes = prop::collection::vec(length, 0..6);
    // With less capacity than a change_cipher_spec, the client of tokio-rustls does not complete its handshake.
    let pipes = [16_usize..2000, 2000..100_000].map(|range| prop_oneof![1 => 16_usize..100, 2 => range]);
    let width = prop_oneof![1_usize..10, 10_usize..20_000, Just(usize::MAX)];
    let all = (options, first, [writes.clone(), writes], pipes, width);
    all.prop_map(|(options, first, writes, pipes, width)| Script { options, first, writes, pipes, width })
}

/// A socket whose reads and writes are short.
struct Narrow(DuplexStream, usize);

impl AsyncRead for Narrow {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self(socket, width) = self.get_mut();
        let mut some = vec![0; buffer.remaining().min(*width)];
        let mut some = ReadBuf::new(&mut some);
        ready!(Pin::new(socket).poll_read(cx, &mut some))?;
        buffer.put_slice(some.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Narrow {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self(socket, width) = self.get_mut();
        Pin::new(socket).poll_write(cx, &bytes[..bytes.len().min(*width)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Sends all bytes, then ends. If `wait` is given, it is awaited after half of the writes.
async fn send(mut to: impl AsyncWrite + Unpin, lengths: &[usize], mut wait: Option<oneshot::Receiver<()>>) {
    let all = test_bytes(0, lengths.iter().sum());
    let mut rest = all.as_slice();
    for (turn, length) in lengths.iter().enumerate() {
        if let Some(wait) = wait.take_if(|_| turn == lengths.len() / 2) {
            wait.await.unwrap();
        }
        let (now, later) = rest.split_at(*length);
        to.write_all(now).await.unwrap();
        to.flush().await.unwrap();
        yield_now().await;
        rest = later;
    }
    if let Some(wait) = wait {
        wait.await.unwrap();
    }
    to.shutdown().await.unwrap();
}

/// Reads to the end of the stream, and signals that end.
async fn receive(mut from: impl AsyncRead + Unpin, ended: oneshot::Sender<()>) -> Vec<u8> {
    let mut received = Vec::new();
    from.read_to_end(&mut received).await.unwrap();
    // Fails if the other side does not wait.
    let _ = ended.send(());
    received
}

async fn ours(options: TlsOptions, socket: Narrow, mut upstream: DuplexStream) -> [u64; 2] {
    let mut client = accept(options, socket).await;
    let (mut inbound, mut outbound) = (Flow::new(Vec::new()), Flow::new(Vec::new()));
    let (mut up, mut down) = (0, 0);
    poll_fn(|cx| {
        let both = [
            inbound.poll(&mut client, &mut upstream, &mut up, cx).map(Result::unwrap),
            outbound.poll(&mut upstream, &mut client, &mut down, cx).map(Result::unwrap),
        ];
        if both.iter().all(Poll::is_ready) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    assert_owns_no_bytes(&client);
    [up, down]
}

async fn reference(options: TlsOptions, socket: Narrow, mut upstream: DuplexStream) -> [u64; 2] {
    let mut client = TlsAcceptor::from(options.server_config()).accept(socket).await.unwrap();
    tokio::io::copy_bidirectional(&mut client, &mut upstream).await.unwrap().into()
}

/// The bytes that the upstream and the client received, and the counts of the relay.
type SessionResult = (Vec<u8>, Vec<u8>, [u64; 2]);

async fn run_script<R: Future<Output = [u64; 2]>>(
    script: &Script,
    relay: impl FnOnce(TlsOptions, Narrow, DuplexStream) -> R,
) -> SessionResult {
    let [(client, near), (far, upstream)] = script.pipes.map(duplex);
    let (client_ended, client_end) = oneshot::channel();
    let (upstream_ended, upstream_end) = oneshot::channel();
    let upstream_waits = (script.first == First::Client).then_some(client_end);
    let client_waits = (script.first == First::Upstream).then_some(upstream_end);
    let client = async {
        let (from, to) = split(connect(script.options, client).await);
        tokio::join!(receive(from, upstream_ended), send(to, &script.writes[0], client_waits)).0
    };
    let upstream = async {
        let (from, to) = split(upstream);
        tokio::join!(receive(from, client_ended), send(to, &script.writes[1], upstream_waits)).0
    };
    let relay = relay(script.options, Narrow(near, script.width), far);
    let (at_client, at_upstream, counts) = tokio::join!(client, upstream, relay);
    (at_upstream, at_client, counts)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn session_has_the_same_result_as_with_tokio_rustls(script in scripts()) {
        let ours = run(run_script(&script, ours));
        let reference = run(run_script(&script, reference));
        prop_assert!(ours == reference, "different results: {:?} and {:?} bytes", ours.2, reference.2);
        prop_assert!(ours.0 == test_bytes(0, script.writes[0].iter().sum()));
        prop_assert!(ours.1 == test_bytes(0, script.writes[1].iter().sum()));
    }
}
