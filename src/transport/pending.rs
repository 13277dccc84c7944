//! Bytes on their way that could not be moved on yet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// Bytes that wait, in order. Empty, it owns no memory: most sessions never need any.
#[derive(Debug, Default)]
pub(crate) struct PendingBytes {
    bytes: Vec<u8>,
    /// How many at the front are gone already.
    gone: usize,
}

impl PendingBytes {
    pub(crate) fn is_empty(&self) -> bool {
        self.gone >= self.bytes.len()
    }

    /// What waits.
    pub(crate) fn rest(&self) -> &[u8] {
        self.bytes.get(self.gone..).unwrap_or_default()
    }

    /// The first `count` have been moved on.
    pub(crate) fn advance(&mut self, count: usize) {
        self.gone += count;
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// Puts more behind what waits.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Where more can be put behind what waits.
    pub(crate) fn end(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Writes what waits, and counts it. Ready when nothing does.
    pub(crate) fn poll_send<W>(&mut self, writer: &mut W, count: &mut u64, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        while !self.is_empty() {
            let taken = ready!(poll_write(writer, self.rest(), cx))?;
            *count += taken as u64;
            self.advance(taken);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes `bytes`, counts what the writer takes and holds what it does not. Nothing may wait already.
    pub(crate) fn send_or_hold<W>(
        &mut self,
        mut bytes: &[u8],
        writer: &mut W,
        count: &mut u64,
        cx: &mut Context<'_>,
    ) -> io::Result<()>
    where
        W: AsyncWrite + Unpin,
    {
        while !bytes.is_empty() {
            let Poll::Ready(taken) = poll_write(writer, bytes, cx) else {
                self.push(bytes);
                break;
            };
            let taken = taken?;
            *count += taken as u64;
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        Ok(())
    }
}

impl From<Vec<u8>> for PendingBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, gone: 0 }
    }
}

/// Writes at least one byte.
fn poll_write<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(writer).poll_write(cx, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        taken => Poll::Ready(Ok(taken)),
    }
}
