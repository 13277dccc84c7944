//! One direction of a session.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::yield_now;

use crate::transport::pending::PendingBytes;
use crate::transport::scratch::with_plain;

/// Moves bytes from a reader to a writer, then passes on the reader's end of stream.
///
/// A flow borrows the thread's buffer while it runs. It keeps the bytes that the writer does not accept and reads no more
/// until they are written, which is the back-pressure. An idle flow owns no buffer.
#[derive(Debug)]
pub(crate) struct Flow {
    pending: PendingBytes,
    state: FlowState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlowState {
    Open,
    /// The reader has ended. The writer is still to be shut down.
    Ended,
    /// The writer is shut down.
    Done,
}

#[derive(Debug)]
pub(crate) enum FlowError {
    Reading(io::Error),
    Writing(io::Error),
}

impl Flow {
    /// `first` are bytes that were read earlier.
    pub(crate) fn new(first: Vec<u8>) -> Self {
        Self { pending: first.into(), state: FlowState::Open }
    }

    /// Whether the reader has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.state != FlowState::Open
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state == FlowState::Done
    }

    /// The bytes that were read and not written yet.
    pub(crate) fn pending(&self) -> &[u8] {
        self.pending.rest()
    }

    /// Discards the bytes that the writer will never accept.
    pub(crate) fn abandon(&mut self) {
        self.pending = PendingBytes::default();
        self.state = FlowState::Done;
    }

    /// Moves bytes until one side is not ready. Ready when the reader has ended and the writer is shut down.
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
        for _ in 0..MAX_TURNS {
            if self.is_done() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_pending(writer, count, cx)).map_err(FlowError::Writing)?;
            if self.has_ended() {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(FlowError::Writing)?;
                self.state = FlowState::Done;
            } else {
                ready!(self.poll_transfer(reader, writer, count, cx))?;
            }
        }
        // More bytes may be ready, but the other direction and other sessions get their turn first. A plain wake-up would run
        // this task before the runtime polls the sockets again; `yield_now` runs it after.
        let _ = pin!(yield_now()).poll(cx);
        Poll::Pending
    }

    /// Writes the pending bytes and flushes the writer.
    fn poll_pending<W>(&mut self, writer: &mut W, count: &mut u64, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        ready!(self.pending.poll_write_all(writer, count, cx))?;
        Pin::new(writer).poll_flush(cx)
    }

    /// Reads once and writes the bytes.
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
            self.pending.write_or_keep(buffer.filled(), writer, count, cx).map_err(FlowError::Writing).into()
        })
    }
}

/// Reads in a row before others get their turn. Enough for a few TLS records, and too few to delay other sessions.
const MAX_TURNS: u32 = 8;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::timeout;

    use super::*;

    /// Sends `chunks` through a flow between two pipes of the given capacities, and returns what arrives.
    async fn relayed(chunks: &[Vec<u8>], near: usize, far: usize) -> (Vec<u8>, u64) {
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
            // Returns only if the flow shuts the writer down.
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
            let (bytes, count) = runtime.block_on(relayed(&chunks, near, far));
            let sent = [b"first".to_vec(), chunks.concat()].concat();
            prop_assert_eq!(count, sent.len() as u64);
            prop_assert_eq!(bytes, sent);
        }
    }

    /// A reader that always has a byte. It panics after many more reads than a turn has.
    struct EndlessReader(usize);

    impl AsyncRead for EndlessReader {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.0 += 1;
            assert!(self.0 < 1000, "the flow never yields");
            buffer.put_slice(&[7]);
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn flow_with_an_endless_reader_yields_and_resumes() {
        let (mut reader, mut sink) = (EndlessReader(0), tokio::io::sink());
        let (mut flow, mut count) = (Flow::new(Vec::new()), 0);
        let turns = 3 * u64::from(MAX_TURNS);
        let several_turns = poll_fn(|cx| match flow.poll(&mut reader, &mut sink, &mut count, cx) {
            // Nothing else wakes the task.
            Poll::Pending if count < turns => Poll::Pending,
            Poll::Pending => Poll::Ready(()),
            Poll::Ready(result) => unreachable!("the reader has no end: {result:?}"),
        });
        timeout(Duration::from_secs(10), several_turns).await.expect("the flow resumes by itself");
        assert_eq!(count, turns);
    }

    #[tokio::test]
    async fn writer_that_accepts_nothing_stops_reading_and_bounds_pending_bytes() {
        let (mut sender, mut reader) = duplex(1 << 20);
        let (mut writer, _receiver) = duplex(1);
        sender.write_all(&vec![7; 1 << 20]).await.unwrap();
        let (mut flow, mut count) = (Flow::new(Vec::new()), 0);
        for _ in 0..100 {
            let polled = poll_fn(|cx| Poll::Ready(flow.poll(&mut reader, &mut writer, &mut count, cx))).await;
            assert!(polled.is_pending());
        }
        assert_eq!(count, 1);
        assert!(flow.pending.rest().len() <= 64 << 10, "{} bytes are pending", flow.pending.rest().len());
    }
}
