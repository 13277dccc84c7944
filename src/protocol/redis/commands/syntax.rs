//! Numbers and lines as Redis reads them.

use super::Words;

/// A number as `string2ll` of Redis reads it: no sign but a minus, no leading zeros, no spaces.
pub(crate) fn number(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_plain = match digits {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    std::str::from_utf8(text).ok().filter(|_| is_plain)?.parse().ok()
}

/// Splits a line into words as `sdssplitargs` of Redis does. `None` if quotes are not balanced.
pub(crate) fn split_words(line: &[u8]) -> Option<Words> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        while let [first, behind @ ..] = rest
            && is_space(*first)
        {
            rest = behind;
        }
        if rest.is_empty() {
            return Some(words);
        }
        let mut word = Vec::new();
        loop {
            match rest {
                [] => break,
                [first, behind @ ..] if is_space(*first) => {
                    rest = behind;
                    break;
                }
                [b'"', behind @ ..] => rest = double_quoted(behind, &mut word)?,
                [b'\'', behind @ ..] => rest = single_quoted(behind, &mut word)?,
                [first, behind @ ..] => {
                    word.push(*first);
                    rest = behind;
                }
            }
        }
        words.push(word.into());
    }
}

/// Reads to the closing quote, which must end the word.
fn double_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [b'\\', b'x', high, low, behind @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digits = [*high, *low];
                word.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
                behind
            }
            [b'\\', escaped, behind @ ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                behind
            }
            [b'"', behind @ ..] => return ends_word(behind),
            [byte, behind @ ..] => {
                word.push(*byte);
                behind
            }
            [] => return None,
        };
    }
}

fn single_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [b'\\', b'\'', behind @ ..] => {
                word.push(b'\'');
                behind
            }
            [b'\'', behind @ ..] => return ends_word(behind),
            [byte, behind @ ..] => {
                word.push(*byte);
                behind
            }
            [] => return None,
        };
    }
}

fn ends_word(rest: &[u8]) -> Option<&[u8]> {
    rest.first().is_none_or(|byte| is_space(*byte)).then_some(rest)
}

/// `isspace` of C, which unlike Rust's counts the vertical tab.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// A word as C reads it: up to a NUL. Redis compares the names of commands and options in this way.
pub(crate) fn text(word: &[u8]) -> &[u8] {
    word.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// `PROTO_INLINE_MAX_SIZE` of Redis.
pub(crate) const MAX_LINE: usize = 64 * 1024;
