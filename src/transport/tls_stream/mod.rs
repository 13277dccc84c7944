//! TLS over a socket, to a client or to an upstream.
//!
//! [`TlsStream`] connects a tokio socket with the record engine ([`TlsEngine`]), which opens received records and seals bytes
//! to be sent. Both use the thread's buffer. A session owns only the bytes that the reader or the socket has not accepted.

#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::tls::engine::{Server, Side, TlsEngine};
use crate::transport::pending::PendingBytes;
use crate::transport::scratch::{READ, with_sealed};

/// A TLS stream to a client or to an upstream.
///
/// Reading ends with close_notify or with the end of TCP, whichever comes first. A shutdown sends close_notify and does not
/// affect reading.
#[derive(Debug)]
pub(crate) struct TlsStream<T = TcpStream, S: Side = Server> {
    socket: T,
    engine: TlsEngine<S>,
    /// Plaintext that was not read yet: it came with the last flight of the handshake, or exceeded the reader's buffer.
    unread: PendingBytes,
    /// Sealed records that the socket has not accepted yet.
    unsent: PendingBytes,
    /// The error of the records after those that were opened last.
    record_error: Option<io::Error>,
    /// All bytes and the end of the stream were sent.
    is_shut_down: bool,
    /// Reading has ended or failed without close_notify.
    is_truncated: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin, S: Side> TlsStream<T, S> {
    pub(crate) fn new(socket: T, engine: TlsEngine<S>) -> Self {
        let (unread, unsent) = Default::default();
        Self { socket, engine, unread, unsent, record_error: None, is_shut_down: false, is_truncated: false }
    }

    pub(crate) fn engine(&self) -> &TlsEngine<S> {
        &self.engine
    }

    pub(crate) fn socket(&self) -> &T {
        &self.socket
    }

    /// Returns the socket. Unsent and unread bytes are discarded.
    pub(crate) fn into_socket(self) -> T {
        self.socket
    }

    /// Whether reading ended with the end of TCP, a reset or an invalid record. Without close_notify, the data may be
    /// incomplete.
    pub(crate) fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    /// Sends and receives one flight of the handshake. Returns the number of received bytes. Call it until the engine no
    /// longer handshakes.
    ///
    /// # Errors
    /// The error of the socket, or that of rustls as [`io::ErrorKind::InvalidData`]. In that case the alert was sent.
    pub(crate) async fn next_flight(&mut self) -> io::Result<usize> {
        // The client side sends first.
        self.engine.take_pending(self.unsent.buffer());
        poll_fn(|cx| self.poll_send(cx)).await?;
        let received = poll_fn(|cx| self.poll_receive(&mut ReadBuf::new(&mut []), cx)).await?;
        let sent = poll_fn(|cx| self.poll_send(cx)).await;
        // The TLS error takes precedence over the error of sending the alert.
        if let Some(error) = self.record_error.take() {
            return Err(error);
        }
        sent?;
        match received {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            // close_notify during the handshake.
            _ if self.engine.has_ended() && self.engine.is_handshaking() => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }

    /// Receives once and opens the complete records. Returns the number of received bytes, 0 at the end of TCP. Plaintext that
    /// exceeds the reader's buffer is kept in `unread`.
    fn poll_receive(&mut self, plain: &mut ReadBuf<'_>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Self { socket, engine, unread, unsent, record_error, .. } = self;
        with_sealed(|scratch| {
            let unopened = engine.unopened();
            // Not more than the plaintext that fits into the reader's buffer, but not less than `MIN_READ`.
            let length = plain.remaining().saturating_sub(unopened).clamp(MIN_READ, READ);
            let Some(buffer) = scratch.get_mut(unopened..unopened + length) else {
                return Poll::Ready(Err(io::Error::other("the buffer for records is too small")));
            };
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(socket).poll_read(cx, &mut buffer))?;
            let received = buffer.filled().len();
            let sealed = scratch.get_mut(..unopened + received).unwrap_or_default();
            if let Err(error) = engine.open(sealed, |bytes| deliver(bytes, plain, unread), unsent.buffer()) {
                *record_error = Some(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            Poll::Ready(Ok(received))
        })
    }

    /// Sends the sealed records.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unsent.poll_write_all(&mut self.socket, &mut 0, cx)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin, S: Side> AsyncRead for TlsStream<T, S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, plain: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = plain.filled().len();
        loop {
            if !this.unread.is_empty() {
                let rest = this.unread.rest();
                let count = rest.len().min(plain.remaining());
                plain.put_slice(rest.get(..count).unwrap_or_default());
                this.unread.advance(count);
            }
            if plain.filled().len() > before || plain.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = this.record_error.take() {
                this.is_truncated = true;
                return Poll::Ready(Err(error));
            }
            if this.engine.has_ended() {
                return Poll::Ready(Ok(()));
            }
            // The received bytes may be an incomplete record, or a record without application data.
            match ready!(this.poll_receive(plain, cx)) {
                Ok(1..) => {}
                ended => {
                    this.is_truncated = true;
                    return Poll::Ready(ended.map(drop));
                }
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin, S: Side> AsyncWrite for TlsStream<T, S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, plain: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        let plain = plain.get(..READ).unwrap_or(plain);
        let Self { socket, engine, unsent, record_error, .. } = this;
        with_sealed(|scratch| {
            let sealed = engine.seal(plain, scratch);
            // A record error of the other side is the cause, also if a write fails first. It is copied, because the reader
            // returns it too.
            let sealed = sealed.map_err(|error| record_error.as_ref().map_or_else(|| io::Error::other(error), copy))?;
            unsent.write_or_keep(scratch.get(..sealed).unwrap_or_default(), socket, &mut 0, cx)?;
            Poll::Ready(Ok(plain.len()))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.is_shut_down {
            this.engine.close(this.unsent.buffer());
            ready!(this.poll_send(cx))?;
            ready!(Pin::new(&mut this.socket).poll_shutdown(cx))?;
            this.is_shut_down = true;
        }
        Poll::Ready(Ok(()))
    }
}

/// Copies an error with its text.
fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

/// Fills the reader's buffer, and keeps the rest in `unread`.
fn deliver(bytes: &[u8], plain: &mut ReadBuf<'_>, unread: &mut PendingBytes) {
    let fits = if unread.is_empty() { bytes.len().min(plain.remaining()) } else { 0 };
    let (now, later) = bytes.split_at(fits);
    plain.put_slice(now);
    unread.push(later);
}

/// Enough for every flight of an ordinary handshake.
const MIN_READ: usize = 4 << 10;
