//! Escapes and cuts text that a client, an upstream or a file chooses, so that it can be shown.
//!
//! Such text must not end a line, hide a part of itself, change the direction in which the rest is read, or fill a disk. It is
//! escaped and cut where it becomes text to be shown, and again where it is written. Decisions use the original value.
//!
//! The module escapes the characters that Rust's `str::escape_debug` escapes as not printable. These are the general
//! categories Cc, Cf, Cn, Co, Zl and Zp, every space other than U+0020, and a combining mark at the start of the text. It
//! also escapes the other code points with the property `Default_Ignorable_Code_Point`. A backslash is not escaped, so that
//! escaping twice changes nothing.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt::{self, Display, Write as _};

/// Maximum size of a field in the log, the audit and the answers of the admin API: bytes in JSON, with the mark.
pub(crate) const MAX_FIELD: usize = 512;

/// Maximum size of a name within a sentence, so that the sentence fits a field.
pub(crate) const MAX_QUOTED: usize = 112;

const LIST_SEPARATOR: &str = "; ";

/// Marks the end of a text that was cut.
pub(crate) const MARK: &str = "…[truncated]";

/// Escapes a text and cuts it to [`MAX_FIELD`].
pub(crate) fn field(text: impl Display) -> String {
    cut(text, MAX_FIELD)
}

/// Escapes and cuts a `String`, which is returned as it is if nothing has to change.
pub(crate) fn fitted(text: String) -> String {
    let is_plain = text.len() <= MAX_FIELD && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if is_plain && size_in_json(&text) <= MAX_FIELD { text } else { field(text) }
}

/// Escapes a name and cuts it to [`MAX_QUOTED`].
pub(crate) fn quoted(name: impl Display) -> String {
    cut(name, MAX_QUOTED)
}

/// Joins texts into one field. Where they do not fit, each is cut to its share.
pub(crate) fn list(texts: &[String]) -> String {
    let all = texts.join(LIST_SEPARATOR);
    let share = (MAX_FIELD / texts.len().max(1)).saturating_sub(LIST_SEPARATOR.len());
    if size_in_json(&all) <= MAX_FIELD {
        return field(all);
    }
    field(texts.iter().map(|text| cut(text, share)).collect::<Vec<_>>().join(LIST_SEPARATOR))
}

/// Escapes a text and cuts it to `limit` bytes of JSON, without building the whole of it.
pub(crate) fn cut(text: impl Display, limit: usize) -> String {
    let mut out = BoundedText::new(limit);
    // The error means that the text is full, which `finish` handles.
    let _ = write!(out, "{text}");
    out.finish()
}

/// Escapes a text and cuts it to `limit` bytes of JSON, but keeps line feeds.
pub(crate) fn cut_lines(text: &str, limit: usize) -> String {
    let mut out = BoundedText { keeps_lines: true, ..BoundedText::new(limit) };
    let _ = out.write_str(text);
    out.finish()
}

/// Escapes a text of several lines and keeps its line feeds. It is not cut.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    let is_fit = |character: char| character == '\n' || !is_hidden(character);
    if text.chars().all(is_fit) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_fit(character) {
            out.push(character);
        } else {
            out.extend(character.escape_default());
        }
    }
    Cow::Owned(out)
}

/// Bytes that an escaped text takes in JSON, without the quotes.
pub(crate) fn size_in_json(text: &str) -> usize {
    text.len() + text.bytes().filter(|byte| matches!(byte, b'"' | b'\\' | b'\n')).count()
}

/// Splits an escaped text into characters and whole escape sequences.
pub(crate) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (piece, behind) = rest.split_at_checked(piece_length(rest)?)?;
        rest = behind;
        Some(piece)
    })
}

/// Builds an escaped text of bounded size. Each character written to it is escaped where necessary.
#[derive(Debug)]
pub(crate) struct BoundedText {
    text: String,
    /// Bytes in JSON.
    size: usize,
    limit: usize,
    is_full: bool,
    keeps_lines: bool,
}

impl BoundedText {
    /// An empty text of at most `limit` bytes of JSON, or the size of the mark if that is larger.
    pub(crate) const fn new(limit: usize) -> Self {
        Self { text: String::new(), size: 0, limit, is_full: false, keeps_lines: false }
    }

    /// Adds a piece that is escaped already, whole or not at all.
    ///
    /// # Errors
    /// When the text is full. It accepts nothing from then on.
    pub(crate) fn push(&mut self, piece: &str) -> fmt::Result {
        let size = self.size + size_in_json(piece);
        self.is_full |= size > self.limit;
        if self.is_full {
            return Err(fmt::Error);
        }
        self.text.push_str(piece);
        self.size = size;
        Ok(())
    }

    /// Returns the text, with the mark if something did not fit, and without spare capacity.
    pub(crate) fn finish(mut self) -> String {
        if self.is_full {
            let end = cut_position(&self.text, self.limit.saturating_sub(MARK.len()));
            self.text.truncate(end);
            self.text.push_str(MARK);
        }
        self.text.shrink_to_fit();
        self.text
    }
}

impl fmt::Write for BoundedText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // Most text is printable ASCII, which is added at once.
        let plain = text.bytes().take_while(|byte| matches!(byte, b' '..=b'~')).count();
        let (plain, rest) = text.split_at_checked(plain).unwrap_or((text, ""));
        if self.size + size_in_json(plain) <= self.limit {
            self.push(plain)?;
        } else {
            plain.chars().try_for_each(|character| self.write_char(character))?;
        }
        rest.chars().try_for_each(|character| self.write_char(character))
    }

    fn write_char(&mut self, character: char) -> fmt::Result {
        let mut utf8 = [0; 4];
        let begins_on_nothing = self.text.is_empty() && is_combining(character);
        if begins_on_nothing || (is_hidden(character) && !(self.keeps_lines && character == '\n')) {
            self.push(&character.escape_default().to_string())
        } else {
            self.push(character.encode_utf8(&mut utf8))
        }
    }
}

/// Whether a character is invisible, moves the cursor or changes the direction of text.
pub(crate) fn is_hidden(character: char) -> bool {
    if character.is_ascii() {
        return character.is_ascii_control();
    }
    if IGNORABLE.iter().any(|(first, last)| (*first..=*last).contains(&character)) {
        return true;
    }
    // `escape_debug` also escapes a combining mark at the start of a text, but not after a letter.
    escapes(character) && !['a', character].iter().collect::<String>().escape_debug().eq(['a', character])
}

/// Whether a character is a combining mark, which is drawn over the character before it.
pub(crate) fn is_combining(character: char) -> bool {
    !character.is_ascii() && escapes(character) && !is_hidden(character)
}

fn escapes(character: char) -> bool {
    character.escape_debug().nth(1).is_some()
}

/// The end of the longest prefix of an escaped text that has at most `most` bytes in JSON and consists of whole pieces.
fn cut_position(text: &str, most: usize) -> usize {
    let (mut end, mut size) = (0, 0);
    for piece in pieces(text) {
        size += size_in_json(piece);
        if size > most {
            break;
        }
        end += piece.len();
    }
    end
}

/// The length of the first piece: a character, `\u{202e}`, `\n`, or the UTF-8 of one character in RFC 4514 form, `\e2\80\ae`.
fn piece_length(text: &str) -> Option<usize> {
    let first = text.chars().next()?;
    let Some(behind) = text.strip_prefix('\\') else { return Some(first.len_utf8()) };
    if let Some(digits) = behind.strip_prefix("u{") {
        let count = digits.bytes().take_while(u8::is_ascii_hexdigit).count();
        if digits.as_bytes().get(count) == Some(&b'}') {
            return Some("\\u{}".len() + count);
        }
    }
    let Some(first) = hex_pair(text) else {
        return Some(1 + behind.chars().next().map_or(0, char::len_utf8));
    };
    let mut length = PAIR;
    if first >= 0xc0 {
        while text.get(length..).and_then(hex_pair).is_some_and(|byte| (0x80..0xc0).contains(&byte)) {
            length += PAIR;
        }
    }
    Some(length)
}

/// The byte that an escape sequence such as `\e2` at the start of the text stands for.
fn hex_pair(text: &str) -> Option<u8> {
    let digits = text.get(1..PAIR).filter(|digits| text.starts_with('\\') && digits.is_ascii())?;
    u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
}

/// The length of `\e2`.
const PAIR: usize = 3;

/// Code points with the property `Default_Ignorable_Code_Point` (Unicode 16.0, DerivedCoreProperties.txt) that no category above
/// covers: fillers, joiners and variation selectors.
const IGNORABLE: [(char, char); 9] = [
    ('\u{34f}', '\u{34f}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180d}'),
    ('\u{180f}', '\u{180f}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{e0100}', '\u{e01ef}'),
];
