//! What an upstream sends, on its way to the client.
//!
//! It is a [`Stage`] behind the other: while a PostgreSQL session starts, its messages are read one by one; from then on
//! bytes pass as they are, and only the boundaries of messages are tracked.

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
    /// Where the messages end, in a protocol that has a farewell message between two of them. What has been read counts:
    /// what of it the client has not been sent yet goes before the farewell.
    frames: Option<FrameTracker>,
    /// Lets a CancelRequest find the session.
    cancel_registration: Option<Box<CancelRegistration>>,
}

#[derive(Debug)]
enum Stage {
    /// A PostgreSQL session starts.
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

    /// Where the client's bytes go.
    pub(crate) fn writer(&mut self) -> &mut UpstreamStream {
        &mut self.wire.stream
    }

    /// Notes why nothing more can be written. Reading ends with that error, and not as if the upstream had ended.
    pub(crate) fn note_write_error(&mut self, error: io::Error) {
        // A pipe is broken only behind the upstream's own end.
        self.wire.write_error = Some(error).filter(|error| error.kind() != io::ErrorKind::BrokenPipe);
    }

    /// Whether a farewell message would stand between two messages of the upstream.
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
    /// Reads, and does not take for the end what may have been cut short.
    pub(crate) fn poll_read(&mut self, buffer: &mut ReadBuf<'_>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            return Poll::Ready(Ok(()));
        }
        match &self.stream {
            Stream::Tls(stream) if stream.is_truncated() => {
                let words = "it ended without close_notify, so what it said last may be missing";
                Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, words)))
            }
            // What the kernel has told the writer it does not tell the reader, who is shown an end.
            Stream::Plain(_) => Poll::Ready(self.write_error.take().map_or(Ok(()), Err)),
            Stream::Tls(_) => Poll::Ready(Ok(())),
        }
    }
}
