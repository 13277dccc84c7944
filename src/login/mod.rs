//! Authentication of a client by Portcullis, and of Portcullis by a database.
//!
//! The module is pure: bytes in, bytes and verdicts out.

pub(crate) mod postgres;
pub(crate) mod redis;

use crate::printable::is_hidden;

/// The name of a user that a client claims to be, for messages, the log and the audit: at most 63 bytes, as PostgreSQL cuts it,
/// and on one line.
fn shown_name(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let visible = text.chars().map(|sign| if is_hidden(sign) { '?' } else { sign });
    visible
        .scan(0, |length, sign| {
            *length += sign.len_utf8();
            (*length <= MAX_NAME).then_some(sign)
        })
        .collect()
}

/// Whether a text contains a secret; never an empty one.
fn contains(text: &[u8], secret: &[u8]) -> bool {
    !secret.is_empty() && text.windows(secret.len()).any(|part| part == secret)
}

/// NAMEDATALEN of PostgreSQL without its NUL, in bytes.
const MAX_NAME: usize = 63;
