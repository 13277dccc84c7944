//! The conversation with a client that has not authenticated: what Redis with a password answers, byte for byte.

use std::fmt;

use zeroize::Zeroizing;

use super::attempt::Attempt;
use super::known;
use super::reader::{Command, ProtocolError, UnauthenticatedReader};
use crate::protocol::redis::commands::Words;
use crate::protocol::redis::commands::syntax::{number, text};

/// What follows from a client's bytes.
#[derive(Debug)]
pub(crate) enum Event {
    /// The client receives these bytes.
    Reply(Vec<u8>),
    /// The client has sent a password. If it is right, [`Attempt::into_opening`] tells what happens, and the rest of the chunk
    /// follows through a [`super::translate::Translator`]. If it is wrong, the client receives [`WRONG_PASSWORD`], and the
    /// conversation continues.
    Attempt(Attempt),
    /// The client receives these bytes, which may be none. Then the connection is closed.
    Close(Vec<u8>),
}

/// The reply to a wrong password.
pub(crate) const WRONG_PASSWORD: &[u8] = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n";

/// The conversation before a client has authenticated. It holds one incomplete command at most.
#[derive(Default)]
pub(crate) struct Conversation {
    reader: UnauthenticatedReader,
    is_closed: bool,
}

impl Conversation {
    /// Takes the next command from a chunk. `None` when the chunk is used up. After an event, the rest of the chunk has not been
    /// looked at.
    pub(crate) fn next(&mut self, chunk: &mut &[u8]) -> Option<Event> {
        if self.is_closed {
            *chunk = &[];
            return None;
        }
        let event = match self.reader.next(chunk)? {
            Ok(command) => answer(command),
            Err(error) => Event::Close(ProtocolError::reply(error)),
        };
        self.is_closed = matches!(event, Event::Close(_));
        Some(event)
    }
}

fn answer(command: Command) -> Event {
    let Command { words, is_oversized } = command;
    let name = words.first().map(|name| name.to_ascii_lowercase()).unwrap_or_default();
    match name.as_slice() {
        b"quit" => Event::Close(b"+OK\r\n".to_vec()),
        b"reset" if words.len() == 1 => Event::Reply(b"+RESET\r\n".to_vec()),
        b"auth" if words.len() > 3 => Event::Reply(b"-ERR syntax error\r\n".to_vec()),
        b"auth" if words.len() > 1 && is_oversized => Event::Attempt(Attempt::oversized()),
        b"hello" if is_oversized => Event::Attempt(Attempt::oversized()),
        b"hello" => match hello_problem(&words) {
            Some(reply) => Event::Reply(reply),
            None => attempt(words),
        },
        b"auth" => attempt(words),
        name if known::is_http(name) => Event::Close(Vec::new()),
        _ => Event::Reply(known::refusal(&words)),
    }
}

fn attempt(words: Words) -> Event {
    match Attempt::parse(words) {
        Ok(attempt) => Event::Attempt(attempt),
        Err(words) if words.len() == 1 => Event::Reply(known::refusal(&words)),
        Err(_) => Event::Reply(HELLO_WITHOUT_AUTH.to_vec()),
    }
}

/// The error of a HELLO before its first AUTH. Redis authenticates before it looks at what follows.
pub(super) fn hello_problem(words: &[Zeroizing<Vec<u8>>]) -> Option<Vec<u8>> {
    let Some((version, mut options)) = words.get(1..).and_then(<[_]>::split_first) else {
        return Some(HELLO_WITHOUT_AUTH.to_vec());
    };
    match number(version) {
        None => return Some(b"-ERR Protocol version is not an integer or out of range\r\n".to_vec()),
        Some(2 | 3) => {}
        Some(_) => return Some(b"-NOPROTO unsupported protocol version\r\n".to_vec()),
    }
    loop {
        options = match options {
            [] => return None,
            [option, _, _, ..] if text(option).eq_ignore_ascii_case(b"AUTH") => return None,
            [option, name, rest @ ..] if text(option).eq_ignore_ascii_case(b"SETNAME") => {
                if !name.iter().all(|byte| matches!(byte, b'!'..=b'~')) {
                    return Some(INVALID_NAME.to_vec());
                }
                rest
            }
            [option, ..] => {
                let shown = [b"Syntax error in HELLO option '", text(option), b"'"].concat();
                return Some(known::error(&shown));
            }
        };
    }
}

/// The reply to a HELLO without AUTH, in the words of Redis 7.0.
const HELLO_WITHOUT_AUTH: &[u8] = b"-NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO \
    AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time\r\n";

const INVALID_NAME: &[u8] = b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n";

/// Shows no bytes of the client.
impl fmt::Debug for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conversation").field("is_closed", &self.is_closed).finish_non_exhaustive()
    }
}
