//! Reads the commands of a client that has not authenticated, within the limits that Redis has for such clients.
//!
//! Redis 7, networking.c: `processInlineBuffer` and `processMultibulkBuffer` with `authRequired`.

use std::mem;

use zeroize::Zeroizing;

use crate::protocol::redis::commands::syntax::{MAX_LINE, number, split_words};
use crate::protocol::redis::commands::{MAX_IDENTITY, Words};

/// A command. Words that nobody looks at may be cut.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) words: Words,
    /// An AUTH or HELLO that is too long to be right.
    pub(super) is_oversized: bool,
}

/// Bytes that Redis rejects. It closes the connection after its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProtocolError {
    InlineTooLong,
    Quotes,
    CountTooLong,
    Count,
    TooManyArguments,
    SizeTooLong,
    NoSize(u8),
    Size,
    ArgumentTooLong,
}

impl ProtocolError {
    /// The reply, byte for byte.
    pub(super) fn reply(self) -> Vec<u8> {
        let what = match self {
            Self::InlineTooLong => "too big inline request",
            Self::Quotes => "unbalanced quotes in request",
            Self::CountTooLong => "too big mbulk count string",
            Self::Count => "invalid multibulk length",
            Self::TooManyArguments => "unauthenticated multibulk length",
            Self::SizeTooLong => "too big bulk count string",
            Self::NoSize(_) => "expected '$', got '",
            Self::Size => "invalid bulk length",
            Self::ArgumentTooLong => "unauthenticated bulk length",
        };
        let mut reply = [b"-ERR Protocol error: ", what.as_bytes()].concat();
        if let Self::NoSize(found) = self {
            reply.extend([if matches!(found, b'\r' | b'\n') { b' ' } else { found }, b'\'']);
        }
        reply.extend(b"\r\n");
        reply
    }
}

/// Reads commands from chunks. It never holds more than a line, or the words of one command.
#[derive(Default)]
pub(super) struct UnauthenticatedReader {
    /// The current line, without its end.
    line: Zeroizing<Vec<u8>>,
    /// Whether the line has a NUL. Redis never finds the end of such a line.
    is_hidden: bool,
    array: Option<Array>,
}

/// An incomplete array.
#[derive(Default)]
struct Array {
    words: Words,
    /// Words that have not begun.
    missing: usize,
    /// Bytes of the current word that are missing, with its line end. `None` before its size has come.
    body: Option<usize>,
    /// Bytes of all words after the name.
    size: usize,
}

impl UnauthenticatedReader {
    /// Reads to the end of the next command, and removes its bytes from the chunk. `None` if the command is incomplete.
    pub(super) fn next(&mut self, chunk: &mut &[u8]) -> Option<Result<Command, ProtocolError>> {
        while !chunk.is_empty() {
            let read = match mem::take(&mut self.array) {
                Some(array) => self.read_array(array, chunk),
                None if self.line.first().or(chunk.first()) == Some(&b'*') => self.read_count(chunk),
                None => self.read_inline(chunk),
            };
            match read {
                Ok(None) => {}
                Ok(Some(command)) if command.words.is_empty() => {}
                Ok(Some(command)) => return Some(Ok(command)),
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }

    fn read_inline(&mut self, chunk: &mut &[u8]) -> Result<Option<Command>, ProtocolError> {
        let Some(line) = self.read_line(chunk, LineEnd::Newline).ok_or(ProtocolError::InlineTooLong)? else {
            return Ok(None);
        };
        let words = split_words(&line).ok_or(ProtocolError::Quotes)?;
        let is_oversized = words.iter().skip(1).map(|word| word.len()).sum::<usize>() > MAX_IDENTITY;
        Ok(Some(Command { words, is_oversized }))
    }

    fn read_count(&mut self, chunk: &mut &[u8]) -> Result<Option<Command>, ProtocolError> {
        let Some(line) = self.read_line(chunk, LineEnd::CarriageReturn).ok_or(ProtocolError::CountTooLong)? else {
            return Ok(None);
        };
        let count = line.get(1..).and_then(number).filter(|count| *count <= i64::from(i32::MAX));
        let count = count.ok_or(ProtocolError::Count)?;
        if count > MAX_ARGUMENTS {
            return Err(ProtocolError::TooManyArguments);
        }
        let missing = usize::try_from(count).unwrap_or_default();
        self.array = (missing > 0).then(|| Array { missing, ..Array::default() });
        Ok(None)
    }

    fn read_array(&mut self, mut array: Array, chunk: &mut &[u8]) -> Result<Option<Command>, ProtocolError> {
        match array.body {
            None => {
                let line = self.read_line(chunk, LineEnd::CarriageReturn).ok_or(ProtocolError::SizeTooLong)?;
                if let Some(line) = line {
                    array.begin(argument_size(&line)?);
                }
            }
            Some(missing) => {
                let (bytes, rest) = chunk.split_at_checked(missing).unwrap_or((chunk, &[]));
                array.extend(bytes, missing);
                *chunk = rest;
            }
        }
        if array.missing == 0 && array.body.is_none() {
            let is_oversized = array.size > MAX_IDENTITY;
            return Ok(Some(Command { words: array.words, is_oversized }));
        }
        self.array = Some(array);
        Ok(None)
    }

    /// Reads to the end of the current line. `None` if the line is too long, `Some(None)` if it is incomplete.
    fn read_line(&mut self, chunk: &mut &[u8], end: LineEnd) -> Option<Option<Zeroizing<Vec<u8>>>> {
        while let Some((byte, rest)) = chunk.split_first() {
            *chunk = rest;
            let ends = match end {
                LineEnd::Newline => *byte == b'\n',
                LineEnd::CarriageReturn => self.line.last() == Some(&b'\r'),
            };
            if ends && !self.is_hidden {
                let mut line = mem::take(&mut self.line);
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Some(Some(line));
            }
            self.is_hidden |= *byte == 0;
            self.line.push(*byte);
            if self.line.len() > MAX_LINE {
                return None;
            }
        }
        Some(None)
    }
}

#[derive(Clone, Copy)]
enum LineEnd {
    Newline,
    /// And one more byte, which Redis does not look at.
    CarriageReturn,
}

impl Array {
    /// Begins a word of this size.
    fn begin(&mut self, size: usize) {
        // Once and for all, so that no copy of a password is left behind.
        self.words.push(Vec::with_capacity(self.room().min(size)).into());
        self.missing = self.missing.saturating_sub(1);
        self.body = Some(size + LINE_END);
    }

    /// Adds bytes to the current word, of which so many are missing with its line end.
    fn extend(&mut self, bytes: &[u8], missing: usize) {
        let own = bytes.get(..missing.saturating_sub(LINE_END)).unwrap_or(bytes);
        let is_name = self.words.len() == 1;
        if !is_name {
            self.size += own.len();
        }
        let room = self.room();
        if let Some(word) = self.words.last_mut() {
            let room = room.saturating_sub(word.len());
            word.extend_from_slice(own.get(..room).unwrap_or(own));
        }
        self.body = Some(missing - bytes.len()).filter(|missing| *missing > 0);
    }

    /// The size to which the current word is kept.
    fn room(&self) -> usize {
        if self.size > MAX_IDENTITY {
            return 0;
        }
        let is_identity =
            |name: &Zeroizing<Vec<u8>>| name.eq_ignore_ascii_case(b"AUTH") || name.eq_ignore_ascii_case(b"HELLO");
        if self.words.first().is_some_and(is_identity) { MAX_IDENTITY } else { MAX_SHOWN + 1 }
    }
}

/// The size of an argument from its line.
fn argument_size(line: &[u8]) -> Result<usize, ProtocolError> {
    let first = line.first().copied().unwrap_or(b'\r');
    if first != b'$' {
        return Err(ProtocolError::NoSize(first));
    }
    let size = line.get(1..).and_then(number).filter(|size| *size <= MAX_BULK).ok_or(ProtocolError::Size)?;
    let size = usize::try_from(size).map_err(|_| ProtocolError::Size)?;
    if size > MAX_ARGUMENT { Err(ProtocolError::ArgumentTooLong) } else { Ok(size) }
}

/// The bytes of a word that an error of Redis shows.
pub(super) const MAX_SHOWN: usize = 128;

const MAX_ARGUMENTS: i64 = 10;

const MAX_ARGUMENT: usize = 16384;

/// The default of `proto-max-bulk-len`.
const MAX_BULK: i64 = 512 << 20;

/// A carriage return and the byte after it.
const LINE_END: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_lines_take_bounded_memory() {
        let long = [b"$16384\r\n", &[b'x'; 16_384][..], b"\r\n"].concat();
        let many = |first: &[u8]| [b"*10\r\n", first, &long.repeat(8)].concat();
        for stream in
            [many(b"$4\r\nAUTH\r\n"), many(b"$5\r\nhello\r\n"), many(b"$3\r\nGET\r\n"), many(&long), vec![b'x'; 65_536]]
        {
            for size in [1000, stream.len()] {
                let mut reader = UnauthenticatedReader::default();
                for mut chunk in stream.chunks(size) {
                    assert!(reader.next(&mut chunk).is_none());
                    let words = reader.array.iter().flat_map(|array| &array.words);
                    let held = words.map(|word| word.capacity()).sum::<usize>() + reader.line.len();
                    assert!(held <= 4 * MAX_IDENTITY, "{held}");
                }
            }
        }
    }
}
