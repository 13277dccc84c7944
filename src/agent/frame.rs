//! Messages on a stream: 4 bytes of length in network byte order, then one JSON object.
//!
//! Reader and writer keep their progress. A future that is dropped loses no byte, so both are used in `select!`.

use std::io;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};

use crate::agent::message::MAX_MESSAGE;

/// Why no message is read or written. The stream is then unusable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error(transparent)]
    Stream(#[from] io::Error),
    #[error("the stream ended within a message")]
    Cut,
    #[error("the rest of a message did not arrive within {MESSAGE_TIMEOUT:?}")]
    Slow,
    #[error("a message has {0} bytes, and {MAX_MESSAGE} are allowed")]
    TooLong(usize),
    #[error("invalid message: {0}")]
    Invalid(#[source] serde_json::Error),
}

/// Reads messages from a stream.
#[derive(Debug)]
pub(crate) struct MessageReader<R> {
    stream: R,
    /// The message so far, with its length.
    buffer: Vec<u8>,
    /// When the first bytes of the message arrived.
    begun: Option<Instant>,
    /// The length of the last message.
    last_length: usize,
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    pub(crate) const fn new(stream: R) -> Self {
        Self { stream, buffer: Vec::new(), begun: None, last_length: 0 }
    }

    /// The next message, or `None` at the end of the stream. Dropping the future loses nothing.
    ///
    /// # Errors
    /// If the bytes are not a message, or its rest does not arrive in time.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        while let Some(missing) = self.missing()? {
            if self.fill(missing).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Cut) };
            }
            self.begun.get_or_insert_with(Instant::now);
        }
        let message = serde_json::from_slice(self.buffer.get(LENGTH..).unwrap_or_default());
        self.begun = None;
        self.last_length = self.buffer.len();
        self.buffer.clear();
        self.buffer.shrink_to(KEPT_BUFFER);
        message.map(Some).map_err(FrameError::Invalid)
    }

    /// The length of the last message in bytes.
    pub(crate) const fn last_length(&self) -> usize {
        self.last_length
    }

    /// How many bytes of the length or of the message are still to come; `None` when it is complete.
    fn missing(&self) -> Result<Option<usize>, FrameError> {
        let Some(length) = self.buffer.first_chunk::<LENGTH>() else {
            return Ok(Some(LENGTH - self.buffer.len()));
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(FrameError::TooLong(length));
        }
        let missing = (LENGTH + length).saturating_sub(self.buffer.len());
        Ok((missing > 0).then_some(missing))
    }

    /// Reads some of the missing bytes. The buffer grows with the bytes that arrive, not with the announced length.
    async fn fill(&mut self, missing: usize) -> Result<usize, FrameError> {
        if self.buffer.len() == self.buffer.capacity() {
            self.buffer.reserve_exact(self.buffer.len().max(MIN_BUFFER).min(missing));
        }
        let mut rest = (&mut self.stream).take(u64::try_from(missing).unwrap_or(u64::MAX));
        let read = rest.read_buf(&mut self.buffer);
        Ok(match self.begun {
            Some(begun) => timeout_at(begun + MESSAGE_TIMEOUT, read).await.map_err(|_| FrameError::Slow)??,
            None => read.await?,
        })
    }
}

/// Writes messages to a stream.
#[derive(Debug)]
pub(crate) struct MessageWriter<W> {
    stream: W,
    buffer: Vec<u8>,
    /// How much of the buffer is written.
    written: usize,
}

impl<W: AsyncWrite + Unpin> MessageWriter<W> {
    pub(crate) const fn new(stream: W) -> Self {
        Self { stream, buffer: Vec::new(), written: 0 }
    }

    /// Adds a message to those that [`Self::flush`] writes.
    ///
    /// # Errors
    /// If it is too long. Then nothing is added.
    pub(crate) fn push(&mut self, message: &impl Serialize) -> Result<(), FrameError> {
        let body = serde_json::to_vec(message).map_err(FrameError::Invalid)?;
        let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_MESSAGE);
        let length = length.ok_or(FrameError::TooLong(body.len()))?;
        self.buffer.extend_from_slice(&length.to_be_bytes());
        self.buffer.extend_from_slice(&body);
        Ok(())
    }

    /// Bytes that are not written yet.
    pub(crate) fn pending(&self) -> usize {
        self.buffer.len().saturating_sub(self.written)
    }

    /// Writes everything that is pending. Dropping the future loses nothing.
    ///
    /// # Errors
    /// If the stream is closed.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        while let Some(rest) = self.buffer.get(self.written..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => self.written = self.written.saturating_add(count),
            }
        }
        self.written = 0;
        self.buffer.clear();
        self.buffer.shrink_to(KEPT_BUFFER);
        Ok(())
    }
}

/// The length field of a message.
const LENGTH: usize = 4;

/// How long the rest of a message may take once its first byte has arrived.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

const MIN_BUFFER: usize = 4096;

/// A larger buffer is returned after the message.
const KEPT_BUFFER: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::agent::message::{FromAgent, ToAgent};

    fn message(body: &[u8]) -> Vec<u8> {
        [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
    }

    async fn read(bytes: &[u8]) -> Result<Option<Value>, FrameError> {
        MessageReader::new(bytes).next().await
    }

    #[tokio::test]
    async fn messages_arrive_as_they_were_sent() {
        let (near, far) = tokio::io::duplex(7);
        let (mut reader, mut writer) = (MessageReader::new(near), MessageWriter::new(far));
        let messages = [json!({}), json!({ "text": "a".repeat(20_000) }), json!([1, 2])];
        for message in &messages {
            writer.push(message).unwrap();
        }
        assert_eq!(writer.pending(), 4 * 3 + 2 + 20_011 + 5);
        let write = async {
            writer.flush().await.unwrap();
            assert_eq!(writer.pending(), 0);
            drop(writer);
        };
        let read = async {
            for message in messages {
                assert_eq!(reader.next::<Value>().await.unwrap(), Some(message));
            }
            assert!(reader.next::<Value>().await.unwrap().is_none());
        };
        tokio::join!(write, read);
    }

    #[tokio::test]
    async fn invalid_message_is_an_error() {
        assert!(matches!(read(b"").await, Ok(None)));
        assert!(matches!(read(b"\0\0").await, Err(FrameError::Cut)));
        assert!(matches!(read(b"\0\0\0\x05{}").await, Err(FrameError::Cut)));
        assert!(matches!(read(b"\0\0\0\0").await, Err(FrameError::Invalid(_))));
        assert!(matches!(read(&message(b"{}}")).await, Err(FrameError::Invalid(_))));
        assert!(matches!(read(b"\x01\0\0\x01").await, Err(FrameError::TooLong(0x0100_0001))));
        assert!(matches!(read(b"GET / HTTP/1.1\r\n").await, Err(FrameError::TooLong(_))));
        for body in
            [r#"{"pong":{}}"#, r#"{"pong":{"number":1,"a":[]}}"#, r#"{"bye":{}}"#, r#"{"ping":{"number":1}}"#, "7"]
        {
            let message = message(body.as_bytes());
            let read = MessageReader::new(&message[..]).next::<FromAgent>().await;
            assert!(matches!(read, Err(FrameError::Invalid(_))), "{body}");
        }
    }

    #[tokio::test]
    async fn message_that_is_too_long_is_not_added() {
        let mut writer = MessageWriter::new(tokio::io::sink());
        assert!(matches!(writer.push(&"a".repeat(MAX_MESSAGE - 1)), Err(FrameError::TooLong(_))));
        assert_eq!(writer.pending(), 0);
        writer.push(&"a".repeat(MAX_MESSAGE - 2)).unwrap();
        assert_eq!(writer.pending(), LENGTH + MAX_MESSAGE);
    }

    #[tokio::test(start_paused = true)]
    async fn begun_message_has_a_time_limit_and_silence_has_none() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut reader = MessageReader::new(near);
        let waited = tokio::time::timeout(Duration::from_secs(3600), reader.next::<Value>()).await;
        assert!(waited.is_err(), "nothing has begun");
        far.write_all(b"\0\0\0\x02{").await.unwrap();
        let begun = Instant::now();
        assert!(matches!(reader.next::<Value>().await, Err(FrameError::Slow)));
        assert_eq!(begun.elapsed().as_secs(), MESSAGE_TIMEOUT.as_secs());
    }

    #[tokio::test]
    async fn memory_grows_with_the_bytes_that_arrive() {
        let announced = [&u32::try_from(MAX_MESSAGE).unwrap().to_be_bytes()[..], &[b' '; 10_000]].concat();
        let mut reader = MessageReader::new(&announced[..]);
        assert!(matches!(reader.next::<Value>().await, Err(FrameError::Cut)));
        assert!(reader.buffer.capacity() <= 20_008, "{}", reader.buffer.capacity());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_within_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..200), small: bool) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let bytes = if small { [&[0, 0, 0], &bytes[..]].concat() } else { bytes };
            runtime.block_on(async {
                let mut reader = MessageReader::new(&bytes[..]);
                while let Ok(Some(_)) = reader.next::<ToAgent>().await {}
                assert!(reader.buffer.capacity() <= MIN_BUFFER + LENGTH);
            });
        }
    }
}
