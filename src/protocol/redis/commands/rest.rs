//! What remains of an array after its first bytes.

use super::LINE_END;
use super::syntax::number;

/// What remains of an array.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rest {
    /// Bytes of the current argument that remain, with its line end.
    body: usize,
    /// Arguments after the current one.
    left: usize,
    /// The header of the next argument, as far as it has come.
    header: Vec<u8>,
    /// Whether `body` is only a line end, which belongs to no argument.
    is_between: bool,
}

/// A part of the arguments of an array.
pub(super) enum Part<'a> {
    /// An argument of this size begins.
    Argument(usize),
    /// Bytes of the current argument.
    Bytes(&'a [u8]),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Over,
    Rejected,
}

impl Rest {
    /// Within an argument: `body` bytes of it remain with its line end, and `left` further arguments.
    pub(super) fn within(body: usize, left: usize) -> Self {
        Self { body, left, ..Self::default() }
    }

    /// The bytes of the argument have all come, and what remains of it is only its line end.
    pub(super) fn between(self) -> Self {
        Self { is_between: true, ..self }
    }

    pub(super) fn is_over(&self) -> bool {
        self.body == 0 && self.left == 0
    }

    /// Reads on. Returns how many bytes belong to the command, and whether it is over.
    pub(super) fn advance(&mut self, bytes: &[u8], mut sink: impl FnMut(Part<'_>)) -> (usize, Progress) {
        let mut used = 0;
        loop {
            let rest = bytes.get(used..).unwrap_or_default();
            if self.body > 0 {
                let taken = self.body.min(rest.len());
                let own = self.body.saturating_sub(LINE_END).min(taken);
                if own > 0 && !self.is_between {
                    sink(Part::Bytes(rest.get(..own).unwrap_or_default()));
                }
                self.body -= taken;
                used += taken;
                if self.body > 0 {
                    return (used, Progress::More);
                }
                self.is_between = false;
                continue;
            }
            if self.left == 0 {
                return (used, Progress::Over);
            }
            let (size, length) = match self.next_header(rest) {
                Ok(Some(found)) => found,
                Ok(None) => return (bytes.len(), Progress::More),
                Err(length) => return (used + length, Progress::Rejected),
            };
            used += length;
            self.left -= 1;
            self.body = size.saturating_add(LINE_END);
            sink(Part::Argument(size));
        }
    }

    /// The size of the next argument, and how many bytes its header has here. Keeps a header that is incomplete.
    ///
    /// # Errors
    /// The length of a header that Redis rejects.
    fn next_header(&mut self, bytes: &[u8]) -> Result<Option<(usize, usize)>, usize> {
        if self.header.is_empty() {
            match bulk(bytes) {
                Bulk::Size(size, length) => return Ok(Some((size, length))),
                Bulk::Rejected(length) => return Err(length),
                Bulk::Incomplete | Bulk::Endless => {}
            }
        }
        for (index, byte) in bytes.iter().enumerate() {
            if self.header.len() == MAX_HEADER {
                // No number is as long, so Redis rejects the line at its end.
                if self.header.last() == Some(&b'\r') {
                    return Err(index + 1);
                }
                self.header.pop();
            }
            self.header.push(*byte);
            match bulk(&self.header) {
                Bulk::Size(size, _) => {
                    self.header = Vec::new();
                    return Ok(Some((size, index + 1)));
                }
                Bulk::Rejected(_) => return Err(index + 1),
                Bulk::Incomplete | Bulk::Endless => {}
            }
        }
        Ok(None)
    }
}

/// A line that announces the size of an argument.
pub(super) enum Bulk {
    Incomplete,
    /// The size, and the length of the line.
    Size(usize, usize),
    /// The length of a line that Redis rejects.
    Rejected(usize),
    /// Redis rejects the line wherever it ends.
    Endless,
}

pub(super) fn bulk(bytes: &[u8]) -> Bulk {
    match header(bytes) {
        Header::Incomplete => Bulk::Incomplete,
        Header::TooLong => Bulk::Endless,
        Header::Line(line, length) => {
            let size = number(line).filter(|_| bytes.first() == Some(&b'$'));
            match size.and_then(|size| usize::try_from(size).ok()) {
                // Redis' own limit can be raised.
                Some(size) => Bulk::Size(size, length),
                None => Bulk::Rejected(length),
            }
        }
    }
}

/// A line before its carriage return, without its first byte, and its length with the line end.
pub(super) enum Header<'a> {
    Incomplete,
    TooLong,
    Line(&'a [u8], usize),
}

pub(super) fn header(bytes: &[u8]) -> Header<'_> {
    let end = bytes.iter().take(MAX_HEADER).position(|byte| matches!(byte, b'\r' | 0));
    match end {
        // The byte after the carriage return is not looked at.
        Some(end) if bytes.get(end) == Some(&b'\r') && bytes.len() >= end + LINE_END => {
            Header::Line(bytes.get(1..end).unwrap_or_default(), end + LINE_END)
        }
        Some(end) if bytes.get(end) == Some(&b'\r') => Header::Incomplete,
        _ if bytes.len() >= MAX_HEADER => Header::TooLong,
        _ => Header::Incomplete,
    }
}

/// Longer than any number that Redis accepts.
const MAX_HEADER: usize = 64;
