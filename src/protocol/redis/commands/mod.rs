//! Finds the commands that change who a client is (AUTH, HELLO, RESET) in what it sends to Redis, and leaves all other bytes as
//! they are.
//!
//! The parser decides where commands begin exactly as Redis does (networking.c: `processInputBuffer`, `processMultibulkBuffer`,
//! `processInlineBuffer`), with its peculiarities: the byte after a carriage return is not looked at, a NUL hides the rest of a
//! line, and an empty array is no command. After something that Redis rejects, nothing more is passed, because Redis answers it
//! and closes the connection.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod rest;
mod start;
pub(crate) mod syntax;
#[cfg(test)]
mod tests;
mod usual;

use std::mem;

use zeroize::{Zeroize as _, Zeroizing};

use rest::{Part, Progress, Rest};
use start::{Start, start};
use syntax::{MAX_LINE, text};

/// The words of a command, its name first.
pub(crate) type Words = Vec<Zeroizing<Vec<u8>>>;

/// A part of what a client has sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes of other commands, from the current chunk.
    Pass(&'a [u8]),
    /// Bytes of other commands, of which the first came with an earlier chunk.
    PassHeld(Vec<u8>),
    /// A whole AUTH, HELLO or RESET. Its name may have a NUL, behind which it may be cut.
    Identity(Words),
    /// An AUTH, HELLO or RESET that is too long to be right. Its bytes are dropped.
    Oversized,
}

/// Follows the commands of one client.
#[derive(Default)]
pub struct CommandFollower {
    state: State,
    /// The first bytes of a command, as long as they do not tell its name.
    held: Vec<u8>,
}

#[derive(Default)]
enum State {
    /// At the start of a command, or within its first bytes.
    #[default]
    Begin,
    /// Within another command.
    Other(Rest),
    /// Within an AUTH, HELLO or RESET. The last word may be incomplete.
    Identity { rest: Rest, words: Words, size: usize },
    /// After something that Redis rejects.
    Closed,
}

impl CommandFollower {
    /// Takes the next piece from a chunk. `None` when the chunk is used up.
    pub fn next<'a>(&mut self, chunk: &mut &'a [u8]) -> Option<Piece<'a>> {
        while !chunk.is_empty() {
            let piece = match mem::take(&mut self.state) {
                State::Begin if self.held.is_empty() => self.begin(chunk),
                State::Begin => self.begin_held(chunk),
                State::Other(rest) => Some(Piece::Pass(take(chunk, self.skip(rest, chunk)))),
                State::Identity { rest, words, size } => self.collect(rest, words, size, chunk),
                State::Closed => {
                    self.state = State::Closed;
                    *chunk = &[];
                    None
                }
            };
            if piece.is_some() {
                return piece;
            }
        }
        None
    }

    /// Whether the client is between two commands.
    pub fn is_at_boundary(&self) -> bool {
        matches!(self.state, State::Begin) && self.held.is_empty()
    }

    /// Whether Redis has rejected something, and closes the connection.
    #[cfg(test)]
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Passes the commands at the start of a chunk up to one that is searched for.
    fn begin<'a>(&mut self, chunk: &mut &'a [u8]) -> Option<Piece<'a>> {
        let mut passed = usual::length(chunk);
        while let (State::Begin, Some(bytes)) = (&self.state, chunk.get(passed..).filter(|bytes| !bytes.is_empty())) {
            match start(bytes) {
                Start::Other { length, rest } => {
                    let skipped = self.skip(rest, bytes.get(length..).unwrap_or_default());
                    passed += length + skipped;
                    passed += usual::length(chunk.get(passed..).filter(|_| self.is_at_boundary()).unwrap_or_default());
                }
                Start::Rejected { length } => {
                    passed += length;
                    self.state = State::Closed;
                }
                _ if passed > 0 => break,
                Start::Incomplete => {
                    self.held.extend(take(chunk, bytes.len()));
                    return None;
                }
                Start::Endless { rejected } => {
                    self.state = State::Closed;
                    return Some(Piece::Pass(rejected));
                }
                Start::Identity { name, length, rest } => {
                    take(chunk, length);
                    self.state = identity(name, rest);
                    return None;
                }
                Start::Inline { words, length } => {
                    take(chunk, length);
                    return Some(Piece::Identity(words));
                }
            }
        }
        (passed > 0).then(|| Piece::Pass(take(chunk, passed)))
    }

    /// The same for a command whose first bytes are held.
    fn begin_held<'a>(&mut self, chunk: &mut &'a [u8]) -> Option<Piece<'a>> {
        // A command must not be decided with bytes of the next one, so they are added one at a time. The first bytes of an array
        // are few. Those of a line are not, but only its end decides.
        let hold = if self.held.first() == Some(&b'*') { 1 } else { self.undecided(chunk) };
        let added = take(chunk, hold);
        self.held.extend_from_slice(added);
        if self.held.first() != Some(&b'*') && self.held.len() <= MAX_LINE && !added.contains(&b'\n') {
            // The line is not looked at again for each of its bytes.
            return None;
        }
        match start(&self.held) {
            Start::Incomplete => None,
            Start::Other { rest, .. } => {
                self.state = if rest.is_over() { State::Begin } else { State::Other(rest) };
                Some(Piece::PassHeld(mem::take(&mut self.held)))
            }
            Start::Rejected { .. } => {
                self.state = State::Closed;
                Some(Piece::PassHeld(mem::take(&mut self.held)))
            }
            Start::Endless { rejected } => {
                self.state = State::Closed;
                self.held = Vec::new();
                Some(Piece::Pass(rejected))
            }
            Start::Identity { name, rest, .. } => {
                self.held.zeroize();
                self.state = identity(name, rest);
                None
            }
            Start::Inline { words, .. } => {
                self.held.zeroize();
                Some(Piece::Identity(words))
            }
        }
    }

    /// The number of bytes that belong to the line that is held, with its end or as many as are looked at.
    fn undecided(&self, chunk: &[u8]) -> usize {
        let room = (MAX_LINE + 1).saturating_sub(self.held.len()).max(1);
        let line = chunk.get(..room).unwrap_or(chunk);
        // Redis never finds the end of a line with a NUL.
        let end = if self.held.contains(&0) { None } else { line.iter().position(|byte| *byte == b'\n') };
        end.map_or(line.len(), |end| end + 1)
    }

    /// Skips the rest of a command. Returns how many bytes of the chunk belong to it.
    fn skip(&mut self, mut rest: Rest, bytes: &[u8]) -> usize {
        let (used, progress) = rest.advance(bytes, |_| {});
        self.state = match progress {
            Progress::Over => State::Begin,
            Progress::More => State::Other(rest),
            Progress::Rejected => State::Closed,
        };
        used
    }

    fn collect<'a>(
        &mut self,
        mut rest: Rest,
        mut words: Words,
        mut size: usize,
        chunk: &mut &'a [u8],
    ) -> Option<Piece<'a>> {
        let (used, progress) = rest.advance(chunk, |part| match part {
            Part::Argument(length) => {
                size = size.saturating_add(ARGUMENT_OVERHEAD);
                if size <= MAX_IDENTITY {
                    // Once and for all, so that no copy of a password is left behind.
                    words.push(Vec::with_capacity(length.min(MAX_IDENTITY)).into());
                }
            }
            Part::Bytes(bytes) => {
                size = size.saturating_add(bytes.len());
                if let Some(last) = words.last_mut().filter(|_| size <= MAX_IDENTITY) {
                    last.extend_from_slice(bytes);
                }
            }
        });
        take(chunk, used);
        match progress {
            Progress::Over if size > MAX_IDENTITY => Some(Piece::Oversized),
            Progress::Over => Some(Piece::Identity(words)),
            Progress::More => {
                if size > MAX_IDENTITY {
                    words = Vec::new();
                }
                self.state = State::Identity { rest, words, size };
                None
            }
            Progress::Rejected => {
                self.state = State::Closed;
                // Redis rejects any such line in the same way.
                Some(Piece::Pass(b"*1\r\n!\r\n"))
            }
        }
    }
}

fn identity(name: Vec<u8>, rest: Rest) -> State {
    State::Identity { rest, words: vec![name.into()], size: 0 }
}

/// Removes the first bytes of a chunk and returns them.
fn take<'a>(chunk: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = chunk.split_at_checked(length).unwrap_or((chunk, &[]));
    *chunk = rest;
    taken
}

/// Shows no bytes, because they may be a password.
impl std::fmt::Debug for CommandFollower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match self.state {
            State::Begin => "begin",
            State::Other(_) => "other",
            State::Identity { .. } => "identity",
            State::Closed => "closed",
        };
        f.debug_struct("CommandFollower").field("state", &state).finish_non_exhaustive()
    }
}

/// Whether a command changes who the client is. Redis compares names up to a NUL.
fn changes_identity(name: &[u8]) -> bool {
    let is = |other: &[u8]| text(name).eq_ignore_ascii_case(other);
    is(b"AUTH") || is(b"HELLO") || is(b"RESET")
}

/// The lengths of the names of such commands.
const SHORTEST_NAME: usize = 4;
const LONGEST_NAME: usize = 5;

/// A carriage return and the byte after it.
const LINE_END: usize = 2;

/// A longer AUTH or HELLO holds no password that was ever set.
pub(crate) const MAX_IDENTITY: usize = 16 * 1024;

/// What an argument costs beside its bytes.
const ARGUMENT_OVERHEAD: usize = 32;
