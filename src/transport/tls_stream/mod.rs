//! TLS over a socket: a client's, or ours towards an upstream.
//!
//! Here the record engine and the socket's readiness meet: tokio says when the socket can be read or written, [`TlsEngine`]
//! makes plaintext of what was read and records of what is to be written. Both pass through the thread's buffer; what the
//! session holds is what could not be moved on.

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

/// A client inside TLS, or an upstream.
///
/// Reading ends with close_notify or with TCP, whichever comes first. Shutting down sends close_notify and leaves reading
/// as it is.
#[derive(Debug)]
pub(crate) struct TlsStream<T = TcpStream, S: Side = Server> {
    socket: T,
    engine: TlsEngine<S>,
    /// Opened, but not read yet: what came with the end of the handshake, or more than the reader had room for.
    unread: PendingBytes,
    /// Sealed, but not taken by the socket yet.
    unsent: PendingBytes,
    /// What is wrong with the records behind those that were opened last.
    broken: Option<io::Error>,
    /// Everything has been sent, the end of the stream included.
    finished: bool,
    /// Reading has ended, or failed, before close_notify came.
    cut: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin, S: Side> TlsStream<T, S> {
    pub(crate) fn new(socket: T, engine: TlsEngine<S>) -> Self {
        let (unread, unsent) = Default::default();
        Self { socket, engine, unread, unsent, broken: None, finished: false, cut: false }
    }

    /// What is known of the TLS.
    pub(crate) fn engine(&self) -> &TlsEngine<S> {
        &self.engine
    }

    /// The socket, to be looked at.
    pub(crate) fn socket(&self) -> &T {
        &self.socket
    }

    /// The socket, whatever is still to be sent or read forgotten.
    pub(crate) fn into_socket(self) -> T {
        self.socket
    }

    /// Whether what was read ended with TCP alone, by a reset, or in what is no TLS. Without close_notify nobody can say
    /// whether it is all that was meant to be said.
    pub(crate) fn is_truncated(&self) -> bool {
        self.cut
    }

    /// Takes the handshake one flight further, and returns how many bytes were received. To be called until it is over.
    ///
    /// # Errors
    /// The socket's, or rustls' inside an [`io::ErrorKind::InvalidData`]; then the other side has been sent the alert.
    pub(crate) async fn next_flight(&mut self) -> io::Result<usize> {
        // A client has the first word.
        self.engine.take_pending(self.unsent.end());
        poll_fn(|cx| self.poll_send(cx)).await?;
        let received = poll_fn(|cx| self.poll_receive(&mut ReadBuf::new(&mut []), cx)).await?;
        let sent = poll_fn(|cx| self.poll_send(cx)).await;
        // Why the other side is refused matters more than that it did not wait to hear it.
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        sent?;
        match received {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            // close_notify in the middle of it.
            _ if self.engine.has_ended() && self.engine.is_handshaking() => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }

    /// Receives once, opens what came whole, and returns how much was received; nothing is the end of TCP. Plaintext for
    /// which there is no room remains to be read.
    fn poll_receive(&mut self, plain: &mut ReadBuf<'_>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Self { socket, engine, unread, unsent, broken, .. } = self;
        with_sealed(|scratch| {
            let kept = engine.unopened();
            // As much as the plaintext of it has room, so that nothing has to wait for it; but not by dribbles.
            let most = plain.remaining().saturating_sub(kept).clamp(SHORTEST_READ, READ);
            let Some(room) = scratch.get_mut(kept..kept + most) else {
                return Poll::Ready(Err(io::Error::other("the buffer for records is too small")));
            };
            let mut room = ReadBuf::new(room);
            ready!(Pin::new(socket).poll_read(cx, &mut room))?;
            let received = room.filled().len();
            let sealed = scratch.get_mut(..kept + received).unwrap_or_default();
            if let Err(error) = engine.open(sealed, |bytes| give(bytes, plain, unread), unsent.end()) {
                *broken = Some(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            Poll::Ready(Ok(received))
        })
    }

    /// Sends what is sealed.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unsent.poll_send(&mut self.socket, &mut 0, cx)
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
            if let Some(error) = this.broken.take() {
                this.cut = true;
                return Poll::Ready(Err(error));
            }
            if this.engine.has_ended() {
                return Poll::Ready(Ok(()));
            }
            // What came may have been part of a record, or nothing that is for the reader.
            match ready!(this.poll_receive(plain, cx)) {
                Ok(1..) => {}
                ended => {
                    this.cut = true;
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
        let Self { socket, engine, unsent, broken, .. } = this;
        with_sealed(|scratch| {
            let sealed = engine.seal(plain, scratch);
            // What the other side broke is the reason, whoever notices first; and the reader shall be told too.
            let sealed = sealed.map_err(|error| broken.as_ref().map_or_else(|| io::Error::other(error), repeat))?;
            unsent.send_or_hold(scratch.get(..sealed).unwrap_or_default(), socket, &mut 0, cx)?;
            Poll::Ready(Ok(plain.len()))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.finished {
            this.engine.close(this.unsent.end());
            ready!(this.poll_send(cx))?;
            ready!(Pin::new(&mut this.socket).poll_shutdown(cx))?;
            this.finished = true;
        }
        Poll::Ready(Ok(()))
    }
}

/// The same error again, in words.
fn repeat(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

/// Fills the reader's room first.
fn give(bytes: &[u8], plain: &mut ReadBuf<'_>, unread: &mut PendingBytes) {
    let fits = if unread.is_empty() { bytes.len().min(plain.remaining()) } else { 0 };
    let (now, later) = bytes.split_at(fits);
    plain.put_slice(now);
    unread.push(later);
}

/// Enough for every flight of an ordinary handshake.
const SHORTEST_READ: usize = 4 << 10;
