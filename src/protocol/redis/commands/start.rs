//! What the first bytes of a command tell.

use super::rest::{Bulk, Header, Rest, bulk, header};
use super::syntax::{MAX_LINE, number, split_words};
use super::{LINE_END, LONGEST_NAME, SHORTEST_NAME, Words, changes_identity};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Too little.
    Incomplete,
    /// Redis rejects the line that ends at `length`.
    Rejected { length: usize },
    /// Redis rejects the line in the same way as `rejected`, which is sent in its place.
    Endless { rejected: &'static [u8] },
    /// Another command, or none. Its rest begins at `length`.
    Other { length: usize, rest: Rest },
    /// An array that begins with the name of a command that is searched for.
    Identity { name: Vec<u8>, length: usize, rest: Rest },
    /// A line with a command that is searched for.
    Inline { words: Words, length: usize },
}

pub(super) fn start(bytes: &[u8]) -> Start {
    if bytes.first() != Some(&b'*') {
        return inline(bytes);
    }
    let (count, length) = match header(bytes) {
        Header::Line(line, length) => (number(line), length),
        Header::Incomplete => return Start::Incomplete,
        Header::TooLong => return Start::Endless { rejected: b"*x\r\n" },
    };
    let arguments = match count {
        Some(count) if count > i64::from(i32::MAX) => return Start::Rejected { length },
        Some(count) if count > 0 => usize::try_from(count).unwrap_or_default(),
        Some(_) => return Start::Other { length, rest: Rest::default() },
        None => return Start::Rejected { length },
    };
    let behind = bytes.get(length..).unwrap_or_default();
    let (size, name_at) = match bulk(behind) {
        Bulk::Size(size, line) => (size, length + line),
        Bulk::Incomplete => return Start::Incomplete,
        Bulk::Rejected(line) => return Start::Rejected { length: length + line },
        Bulk::Endless => return Start::Endless { rejected: b"*1\r\n$x\r\n" },
    };
    let left = arguments - 1;
    if size > MAX_BULK {
        return Start::Rejected { length: name_at };
    }
    // Enough to see a NUL behind the longest name that is searched for.
    let looked_at = size.min(LONGEST_NAME + 1);
    if size < SHORTEST_NAME {
        return Start::Other { length: name_at, rest: Rest::within(size.saturating_add(LINE_END), left) };
    }
    let Some(name) = bytes.get(name_at..name_at + looked_at) else { return Start::Incomplete };
    let length = name_at + looked_at;
    let rest = Rest::within((size - looked_at).saturating_add(LINE_END), left);
    match changes_identity(name) {
        true if size == looked_at => Start::Identity { name: name.to_vec(), length, rest: rest.between() },
        // The rest of the name is behind a NUL.
        true => Start::Identity { name: name.to_vec(), length, rest },
        false => Start::Other { length, rest },
    }
}

/// A command in one line.
fn inline(bytes: &[u8]) -> Start {
    let looked_at = bytes.get(..=MAX_LINE).unwrap_or(bytes);
    // Redis looks for the end of the line with strchr, which stops at a NUL.
    let end = looked_at.iter().position(|byte| *byte == b'\n' || *byte == 0);
    let Some(end) = end.filter(|end| bytes.get(*end) == Some(&b'\n')) else {
        return if bytes.len() > MAX_LINE { Start::Endless { rejected: TOO_LONG } } else { Start::Incomplete };
    };
    let line = bytes.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let length = end + 1;
    match split_words(line) {
        None => Start::Endless { rejected: b"\"\r\n" },
        Some(words) if words.first().is_some_and(|name| changes_identity(name)) => Start::Inline { words, length },
        Some(_) => Start::Other { length, rest: Rest::default() },
    }
}

/// `proto-max-bulk-len` of Redis by default. A server may allow more, but no command has such a name.
const MAX_BULK: usize = 512 * 1024 * 1024;

/// A line that is too long for every server. Not the line of the client, because another server could find an end in it.
const TOO_LONG: &[u8] = &[b'x'; MAX_LINE + 1];
