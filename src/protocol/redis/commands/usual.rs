//! The usual form of commands, skipped as fast as possible.
//!
//! Nearly all bytes of nearly all clients are whole commands of this form. It is a part of what `start` and `Rest` accept, with
//! the same result.

use super::{LINE_END, LONGEST_NAME, SHORTEST_NAME, changes_identity};

/// The length of the commands at the start of a chunk that are complete, of the usual form, and not searched for.
pub(super) fn length(chunk: &[u8]) -> usize {
    let mut rest = chunk;
    while let Some(behind) = command(rest) {
        rest = behind;
    }
    chunk.len() - rest.len()
}

/// Skips one command.
fn command(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.first() != Some(&b'*') {
        return line(bytes);
    }
    let (words, rest) = header(bytes, b'*')?;
    let (size, rest) = header(rest, b'$')?;
    let name = rest.get(..size.min(LONGEST_NAME + 1))?;
    // A NUL may hide a name that is searched for.
    if matches!(size, SHORTEST_NAME..=LONGEST_NAME) && changes_identity(name) || name.contains(&0) {
        return None;
    }
    let mut rest = rest.get(size + LINE_END..)?;
    for _ in 1..words {
        let (size, body) = header(rest, b'$')?;
        rest = body.get(size + LINE_END..)?;
    }
    Some(rest)
}

/// Skips a line that begins with the letters of a name and has no quotes.
fn line(bytes: &[u8]) -> Option<&[u8]> {
    let size = bytes.iter().take(MAX_NAME).position(|byte| !byte.is_ascii_alphabetic())?;
    let (name, rest) = bytes.split_at_checked(size)?;
    if !matches!(rest.first(), Some(b' ' | b'\r' | b'\n')) || size == 0 || changes_identity(name) {
        return None;
    }
    let end = rest.iter().take(MAX_USUAL).position(|byte| matches!(byte, b'\n' | b'"' | b'\'' | 0))?;
    rest.get(end..)?.strip_prefix(b"\n")
}

/// A header with a number of one to four digits, and the bytes after it.
#[inline]
fn header(bytes: &[u8], sign: u8) -> Option<(usize, &[u8])> {
    let digit = |byte: u8| usize::from(byte - b'0');
    match bytes {
        [first, a @ b'1'..=b'9', b'\r', _, rest @ ..] if *first == sign => Some((digit(*a), rest)),
        [first, a @ b'1'..=b'9', b @ b'0'..=b'9', b'\r', _, rest @ ..] if *first == sign => {
            Some((10 * digit(*a) + digit(*b), rest))
        }
        [first, a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b'\r', _, rest @ ..] if *first == sign => {
            Some((100 * digit(*a) + 10 * digit(*b) + digit(*c), rest))
        }
        [first, a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', d @ b'0'..=b'9', b'\r', _, rest @ ..]
            if *first == sign =>
        {
            Some((1000 * digit(*a) + 100 * digit(*b) + 10 * digit(*c) + digit(*d), rest))
        }
        _ => None,
    }
}

const MAX_NAME: usize = 32;

/// Of a line, in bytes.
const MAX_USUAL: usize = 1024;
