//! The session of a client that has authenticated, from the client to the database.
//!
//! Redis answers everything. AUTH and HELLO with AUTH are replaced by the same command with a user and a password of the
//! database, so that the reply arrives in its place, also within MULTI, after SUBSCRIBE and with CLIENT REPLY OFF.

use zeroize::Zeroizing;

use super::attempt::Attempt;
use super::encode;
use super::upstream::{DefaultUser, ServerTraits};
use crate::protocol::redis::commands::{CommandFollower, Piece, Words};

/// What to do next with a client's bytes.
#[derive(Debug)]
pub(crate) enum Step<'a> {
    /// These bytes of the chunk go to the database unchanged.
    Pass(&'a [u8]),
    /// These bytes go to the database.
    Send(Zeroizing<Vec<u8>>),
    /// The client has sent a password. [`Attempt::into_command`] goes to the database before the next step.
    Attempt(Attempt),
    /// These bytes go to the database, followed by the end of the stream. The client is no longer authenticated, and the database
    /// would not ask for a password again.
    End(Zeroizing<Vec<u8>>),
}

/// Follows the commands of one client.
#[derive(Debug)]
pub(crate) struct Translator {
    follower: CommandFollower,
    server: ServerTraits,
    has_ended: bool,
}

impl Translator {
    /// `server` is what the login at the database has found.
    pub(crate) fn new(server: ServerTraits) -> Self {
        Self { follower: CommandFollower::default(), server, has_ended: false }
    }

    /// Takes the next step from a chunk. `None` when the chunk is used up.
    pub(crate) fn next<'a>(&mut self, chunk: &mut &'a [u8]) -> Option<Step<'a>> {
        if self.has_ended {
            *chunk = &[];
            return None;
        }
        Some(match self.follower.next(chunk)? {
            Piece::Pass(bytes) => Step::Pass(bytes),
            Piece::PassHeld(bytes) => Step::Send(bytes.into()),
            Piece::Oversized => Step::Attempt(Attempt::oversized()),
            Piece::Identity(words) => match Attempt::parse(words) {
                // The error of the server would show the password.
                Ok(attempt) if attempt.is_hello() && !self.server.has_hello => Step::Send(encode::command(&[b"HELLO"])),
                Ok(attempt) => Step::Attempt(attempt),
                Err(words) => self.without_password(&words),
            },
        })
    }

    /// Whether the client is between two commands.
    #[cfg(test)]
    pub(crate) fn is_at_boundary(&self) -> bool {
        self.follower.is_at_boundary()
    }

    /// Whether no further byte is passed: Redis has rejected something and closes the connection, or [`Step::End`] was returned.
    #[cfg(test)]
    pub(crate) fn is_closed(&self) -> bool {
        self.has_ended || self.follower.is_closed()
    }

    /// RESET, and what Redis answers with an error.
    fn without_password(&mut self, words: &Words) -> Step<'static> {
        let command = encode::command(&words.iter().map(|word| word.as_slice()).collect::<Vec<_>>());
        let is_reset = words.first().is_some_and(|name| name.eq_ignore_ascii_case(b"RESET")) && words.len() == 1;
        // Redis makes the client its default user. Only if that user has a password, Redis asks for it.
        self.has_ended = is_reset && self.server.default_user == DefaultUser::Open;
        if self.has_ended { Step::End(command) } else { Step::Send(command) }
    }
}
