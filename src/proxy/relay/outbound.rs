//! The bytes of the upstream, before they are sent to the client.
//!
//! They pass two stages ([`Stage`]). During the startup of a PostgreSQL session, messages are parsed one by one. After that,
//! bytes pass unchanged, and only message boundaries are tracked.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::protocol::Protocol;
use crate::protocol::postgres::frame::FrameTracker;
use crate::proxy::relay::startup::StartupRelay;
use crate::transport::{Stream, UpstreamStream};
use crate::upstream::cancel_keys::CancelRegistration;

/// The upstream of a session. Reading from it yields what the client receives.
#[derive(Debug)]
pub(crate) struct Outbound {
    wire: Wire,
    stage: Stage,
    /// Tracks message boundaries in PostgreSQL, where a farewell message may stand only between two messages. It counts the
    /// bytes that were read: those that the client has not received yet are sent before the farewell.
    frames: Option<FrameTracker>,
    /// Registers the session's key for CancelRequests.
    cancel_registration: Option<Box<CancelRegistration>>,
}

#[derive(Debug)]
enum Stage {
    /// Startup of a PostgreSQL session.
    Startup(Box<StartupRelay>),
    Open,
}

/// The stream, and why the last write to it failed.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: UpstreamStream,
    write_error: Option<io::Error>,
}

impl Outbound {
    pub(crate) fn new(stream: UpstreamStream, protocol: Protocol, startup: Option<Box<StartupRelay>>) -> Self {
        Self {
            wire: Wire { stream, write_error: None },
            stage: startup.map_or(Stage::Open, Stage::Startup),
            frames: (protocol == Protocol::Postgres).then(FrameTracker::default),
            cancel_registration: None,
        }
    }

    pub(crate) fn stream(&self) -> &UpstreamStream {
        &self.wire.stream
    }

    /// The direction from the client to the upstream.
    pub(crate) fn writer(&mut self) -> &mut UpstreamStream {
        &mut self.wire.stream
    }

    /// Records why a write failed. Reads then return this error instead of an end of stream.
    pub(crate) fn note_write_error(&mut self, error: io::Error) {
        // The kernel reports EPIPE only after the upstream has closed by itself.
        self.wire.write_error = Some(error).filter(|error| error.kind() != io::ErrorKind::BrokenPipe);
    }

    /// Whether a farewell message may be sent now: between two messages of the upstream.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.frames.is_some_and(FrameTracker::is_at_boundary)
    }
}

impl AsyncRead for Outbound {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { wire, stage, frames, cancel_registration } = self.get_mut();
        let before = buffer.filled().len();
        if let Stage::Startup(startup) = stage {
            let read = startup.poll_read(wire, buffer, cx);
            if startup.is_over() && !startup.has_pending() {
                *cancel_registration = startup.register_cancel_key().map(Box::new);
                *stage = Stage::Open;
            }
            ready!(read)?;
        }
        if matches!(stage, Stage::Open) && buffer.filled().len() == before {
            ready!(wire.poll_read(buffer, cx))?;
        }
        if let Some(frames) = frames {
            frames.follow(buffer.filled().get(before..).unwrap_or_default());
        }
        Poll::Ready(Ok(()))
    }
}

impl Wire {
    /// Reads. An end of stream that may be a truncation is returned as an error.
    pub(crate) fn poll_read(&mut self, buffer: &mut ReadBuf<'_>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            return Poll::Ready(Ok(()));
        }
        match &self.stream {
            Stream::Tls(stream) if stream.is_truncated() => {
                let detail = "closed without close_notify, its last data may be missing";
                Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, detail)))
            }
            // The kernel reports a socket error once. If the writer received it, the reader sees only an end of stream.
            Stream::Plain(_) => Poll::Ready(self.write_error.take().map_or(Ok(()), Err)),
            Stream::Tls(_) => Poll::Ready(Ok(())),
        }
    }
}
