//! One direction of a session.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::yield_now;

use crate::transport::pending::PendingBytes;
use crate::transport::scratch::with_plain;

/// Moves bytes from a reader to a writer, and the reader's end after them.
///
/// It borrows the thread's buffer while it runs. Bytes it cannot get rid of it holds, and it reads no more until they are
/// gone: that is all the back-pressure there is, and an idle flow holds nothing.
#[derive(Debug)]
pub(crate) struct Flow {
    pending: PendingBytes,
    state: FlowState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlowState {
    /// More may come.
    Open,
    /// The reader has ended; its end is still to be passed on.
    Ended,
    /// The writer knows.
    Done,
}

/// A flow that broke, and at which end.
#[derive(Debug)]
pub(crate) enum FlowError {
    Reading(io::Error),
    Writing(io::Error),
}

impl Flow {
    /// A flow that begins with bytes read earlier.
    pub(crate) fn new(first: Vec<u8>) -> Self {
        Self { pending: first.into(), state: FlowState::Open }
    }

    /// Whether the reader has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.state != FlowState::Open
    }

    /// Whether there is nothing left to do.
    pub(crate) fn is_done(&self) -> bool {
        self.state == FlowState::Done
    }

    /// What has been read and not written yet.
    pub(crate) fn pending(&self) -> &[u8] {
        self.pending.rest()
    }

    /// Gives up on bytes the writer will never take.
    pub(crate) fn abandon(&mut self) {
        self.pending = PendingBytes::default();
        self.state = FlowState::Done;
    }

    /// Moves what can be moved now. Ready when the reader has ended and the writer knows it.
    pub(crate) fn poll<R, W>(
        &mut self,
        reader: &mut R,
        writer: &mut W,
        count: &mut u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), FlowError>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..MOST_TURNS {
            if self.is_done() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_held(writer, count, cx)).map_err(FlowError::Writing)?;
            if self.has_ended() {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(FlowError::Writing)?;
                self.state = FlowState::Done;
            } else {
                ready!(self.poll_transfer(reader, writer, count, cx))?;
            }
        }
        // There may be more, but it is the turn of the other direction, and of other sessions. A plain wake-up would come
        // before the runtime looks at the sockets again; this one comes after.
        let _ = pin!(yield_now()).poll(cx);
        Poll::Pending
    }

    /// Sends what is held here and in the writer.
    fn poll_held<W>(&mut self, writer: &mut W, count: &mut u64, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        ready!(self.pending.poll_send(writer, count, cx))?;
        Pin::new(writer).poll_flush(cx)
    }

    /// Reads once and writes what came.
    fn poll_transfer<R, W>(
        &mut self,
        reader: &mut R,
        writer: &mut W,
        count: &mut u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), FlowError>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        with_plain(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(reader).poll_read(cx, &mut buffer)).map_err(FlowError::Reading)?;
            if buffer.filled().is_empty() {
                self.state = FlowState::Ended;
            }
            self.pending.send_or_hold(buffer.filled(), writer, count, cx).map_err(FlowError::Writing).into()
        })
    }
}

/// Reads in a row before others get their turn: enough for a few TLS records, too few to be felt by a neighbour.
const MOST_TURNS: u32 = 8;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::timeout;

    use super::*;

    /// Sends `chunks` through a flow between two pipes of the given capacities, and returns what arrives.
    async fn carried(chunks: &[Vec<u8>], near: usize, far: usize) -> (Vec<u8>, u64) {
        let (mut sender, mut reader) = duplex(near);
        let (mut writer, mut receiver) = duplex(far);
        let send = async {
            for chunk in chunks {
                sender.write_all(chunk).await.unwrap();
                yield_now().await;
            }
            sender.shutdown().await.unwrap();
        };
        let relay = async {
            let (mut flow, mut count) = (Flow::new(b"first".to_vec()), 0);
            poll_fn(|cx| flow.poll(&mut reader, &mut writer, &mut count, cx)).await.unwrap();
            assert!(flow.is_done() && flow.pending.is_empty());
            count
        };
        let receive = async {
            let mut bytes = Vec::new();
            // Ends only if the flow passes the end on.
            receiver.read_to_end(&mut bytes).await.unwrap();
            bytes
        };
        let ((), count, bytes) = tokio::join!(send, relay, receive);
        (bytes, count)
    }

    proptest! {
        #[test]
        fn every_byte_arrives_in_order_and_the_end_after_them(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..20),
            near in 1_usize..200,
            far in 1_usize..200,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (bytes, count) = runtime.block_on(carried(&chunks, near, far));
            let sent = [b"first".to_vec(), chunks.concat()].concat();
            prop_assert_eq!(count, sent.len() as u64);
            prop_assert_eq!(bytes, sent);
        }
    }

    /// A reader that always has something, up to a point far behind any turn.
    struct Fountain(usize);

    impl AsyncRead for Fountain {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.0 += 1;
            assert!(self.0 < 1000, "the others never get their turn");
            buffer.put_slice(&[7]);
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_flow_that_could_go_on_for_ever_lets_others_have_their_turn_and_comes_back() {
        let (mut fountain, mut sink) = (Fountain(0), tokio::io::sink());
        let (mut flow, mut count) = (Flow::new(Vec::new()), 0);
        let turns = 3 * u64::from(MOST_TURNS);
        let several_turns = poll_fn(|cx| match flow.poll(&mut fountain, &mut sink, &mut count, cx) {
            // Nobody else wakes it.
            Poll::Pending if count < turns => Poll::Pending,
            Poll::Pending => Poll::Ready(()),
            Poll::Ready(result) => unreachable!("it has no end: {result:?}"),
        });
        timeout(Duration::from_secs(10), several_turns).await.expect("it comes back by itself");
        assert_eq!(count, turns);
    }

    #[tokio::test]
    async fn a_writer_that_takes_nothing_stops_the_reading_and_bounds_what_is_held() {
        let (mut sender, mut reader) = duplex(1 << 20);
        let (mut writer, _receiver) = duplex(1);
        sender.write_all(&vec![7; 1 << 20]).await.unwrap();
        let (mut flow, mut count) = (Flow::new(Vec::new()), 0);
        for _ in 0..100 {
            let polled = poll_fn(|cx| Poll::Ready(flow.poll(&mut reader, &mut writer, &mut count, cx))).await;
            assert!(polled.is_pending());
        }
        assert_eq!(count, 1);
        assert!(flow.pending.rest().len() <= 64 << 10, "{} bytes are held", flow.pending.rest().len());
    }
}
