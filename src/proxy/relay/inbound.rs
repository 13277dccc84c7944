//! The bytes of the client, before they are sent to the upstream.
//!
//! They pass unchanged, except on a listener for Redis with `[listener.credentials]`: there a password of the client is checked,
//! and the password of the database takes its place.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::yield_now;
use zeroize::Zeroizing;

use crate::login::redis::attempt::{Attempt, Verdict};
use crate::login::redis::translate::{Step, Translator};
use crate::login::redis::upstream::ServerTraits;
use crate::proxy::phase::authenticate::FAULT;
use crate::proxy::relay::reauthenticate::{Account, Checked, Checking};
use crate::transport::ClientStream;

/// The client of a session. Reading from it yields what the upstream receives.
#[derive(Debug)]
pub(crate) struct Inbound {
    client: ClientStream,
    passwords: Option<Box<PasswordTranslation>>,
}

/// Replaces the passwords of a client of Redis.
#[derive(Debug)]
pub(crate) struct PasswordTranslation {
    translator: Translator,
    /// What the client has sent and is not translated yet.
    waiting: Unsent,
    /// For the upstream.
    translated: Unsent,
    /// A password that is being checked. It comes after what is translated, and before what is waiting.
    checking: Option<(Attempt, Checking)>,
    /// Nothing more is sent after what is translated.
    is_last: bool,
    account: Account,
}

/// Bytes of which the first may have been taken.
#[derive(Debug, Default)]
struct Unsent {
    bytes: Zeroizing<Vec<u8>>,
    taken: usize,
}

impl Inbound {
    /// `passwords` is present if the client has authenticated to Portcullis with Redis.
    pub(crate) fn new(client: ClientStream, passwords: Option<Box<PasswordTranslation>>) -> Self {
        Self { client, passwords }
    }

    pub(crate) fn stream(&self) -> &ClientStream {
        &self.client
    }

    /// The direction from the upstream to the client.
    pub(crate) fn writer(&mut self) -> &mut ClientStream {
        &mut self.client
    }

    pub(crate) fn into_stream(self) -> ClientStream {
        self.client
    }
}

impl AsyncRead for Inbound {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { client, passwords } = self.get_mut();
        match passwords {
            None => Pin::new(client).poll_read(cx, buffer),
            Some(passwords) => passwords.poll_read(client, cx, buffer),
        }
    }
}

impl PasswordTranslation {
    /// Sends `first`, then translates `waiting`, which the client has sent after it.
    pub(crate) fn new(server: ServerTraits, account: Account, first: Zeroizing<Vec<u8>>, waiting: Vec<u8>) -> Self {
        Self {
            translator: Translator::new(server),
            waiting: Unsent { bytes: waiting.into(), taken: 0 },
            translated: Unsent { bytes: first, taken: 0 },
            checking: None,
            is_last: false,
            account,
        }
    }

    fn poll_read(
        &mut self,
        client: &mut ClientStream,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.translated.is_empty() {
                self.translated.move_to(buffer);
                return Poll::Ready(Ok(()));
            }
            if self.is_last {
                return Poll::Ready(Ok(()));
            }
            if let Some((_, checking)) = &mut self.checking {
                let checked = ready!(checking.as_mut().poll(cx));
                let command = self.checking.take().map(|(attempt, _)| match &checked {
                    Checked::Right(credentials) => Ok(attempt.into_command(Verdict::Right(credentials))),
                    Checked::Wrong => Ok(attempt.into_command(Verdict::Wrong)),
                    Checked::Fault => Err(io::Error::other(FAULT)),
                });
                self.translated.bytes = command.transpose()?.unwrap_or_default();
            } else if !self.waiting.is_empty() {
                self.translate();
            } else if let Poll::Ready(()) = ready!(self.poll_client(client, cx, buffer))? {
                return Poll::Ready(Ok(()));
            } else if !self.has_work() {
                // The bytes belong to a command that is collected or dropped. Other sessions get their turn before the next ones.
                let _ = pin!(yield_now()).poll(cx);
                return Poll::Pending;
            }
        }
    }

    fn has_work(&self) -> bool {
        self.is_last || self.checking.is_some() || !(self.translated.is_empty() && self.waiting.is_empty())
    }

    /// Reads from the client. Ready inside if the bytes are to be sent as they are, or the client has ended.
    fn poll_client(
        &mut self,
        client: &mut ClientStream,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Poll<()>>> {
        let before = buffer.filled().len();
        ready!(Pin::new(client).poll_read(cx, buffer))?;
        let chunk = buffer.filled().get(before..).unwrap_or_default();
        let mut rest = chunk;
        match self.translator.next(&mut rest) {
            _ if chunk.is_empty() => return Poll::Ready(Ok(Poll::Ready(()))),
            // Nearly always. Compared by address: what passes in the place of a rejected command is not what was read.
            Some(Step::Pass(bytes)) if std::ptr::eq(bytes, chunk) => return Poll::Ready(Ok(Poll::Ready(()))),
            Some(step) => Self::apply(step, &mut self.translated, &mut self.checking, &self.account, &mut self.is_last),
            None => {}
        }
        self.waiting.set(rest);
        buffer.set_filled(before);
        Poll::Ready(Ok(Poll::Pending))
    }

    /// Translates what is waiting up to the next password.
    fn translate(&mut self) {
        let Self { translator, waiting, translated, checking, is_last, account } = self;
        let mut rest = waiting.rest();
        while checking.is_none()
            && !*is_last
            && let Some(step) = translator.next(&mut rest)
        {
            Self::apply(step, translated, checking, account, is_last);
        }
        let left = rest.len();
        waiting.keep_last(left);
    }

    fn apply(
        step: Step<'_>,
        translated: &mut Unsent,
        checking: &mut Option<(Attempt, Checking)>,
        account: &Account,
        is_last: &mut bool,
    ) {
        match step {
            Step::Pass(bytes) => translated.bytes.extend_from_slice(bytes),
            Step::Send(bytes) => translated.bytes.extend_from_slice(&bytes),
            Step::End(bytes) => {
                translated.bytes.extend_from_slice(&bytes);
                *is_last = true;
            }
            Step::Attempt(attempt) => {
                let check = account.check(&attempt);
                *checking = Some((attempt, check));
            }
        }
    }
}

impl Unsent {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.taken..).unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.rest().is_empty()
    }

    fn set(&mut self, bytes: &[u8]) {
        *self = Self { bytes: bytes.to_vec().into(), taken: 0 };
    }

    /// Keeps only the last bytes. Without any, the memory is freed: most sessions authenticate once.
    fn keep_last(&mut self, count: usize) {
        self.taken = self.bytes.len().saturating_sub(count);
        if self.is_empty() {
            *self = Self::default();
        }
    }

    fn move_to(&mut self, buffer: &mut ReadBuf<'_>) {
        let rest = self.rest();
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(rest.get(..count).unwrap_or_default());
        let left = rest.len() - count;
        self.keep_last(left);
    }
}
