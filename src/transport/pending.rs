//! Bytes that a writer has not accepted yet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// Bytes to be written later, in order. It owns no memory while it is empty, which is always the case in most sessions.
#[derive(Debug, Default)]
pub(crate) struct PendingBytes {
    bytes: Vec<u8>,
    /// The number of bytes at the front that were already written.
    written: usize,
}

impl PendingBytes {
    pub(crate) fn is_empty(&self) -> bool {
        self.written >= self.bytes.len()
    }

    /// The bytes that are still to be written.
    pub(crate) fn rest(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }

    /// Removes the first `count` bytes.
    pub(crate) fn advance(&mut self, count: usize) {
        self.written += count;
        if self.is_empty() {
            *self = Self::default();
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The buffer, for appending.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Writes all bytes and adds their number to `count`. Ready when none is left.
    pub(crate) fn poll_write_all<W>(
        &mut self,
        writer: &mut W,
        count: &mut u64,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        while !self.is_empty() {
            let accepted = ready!(poll_write(writer, self.rest(), cx))?;
            *count += accepted as u64;
            self.advance(accepted);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes `bytes`, adds to `count` what the writer accepts, and keeps the rest. No byte may be pending.
    pub(crate) fn write_or_keep<W>(
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
            let Poll::Ready(accepted) = poll_write(writer, bytes, cx) else {
                self.push(bytes);
                break;
            };
            let accepted = accepted?;
            *count += accepted as u64;
            bytes = bytes.get(accepted..).unwrap_or_default();
        }
        Ok(())
    }
}

impl From<Vec<u8>> for PendingBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, written: 0 }
    }
}

/// Writes at least one byte.
fn poll_write<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(writer).poll_write(cx, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        count => Poll::Ready(Ok(count)),
    }
}
