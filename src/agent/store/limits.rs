//! What may be sent to a store, and what of its content is passed on.

use crate::fleet::store::{MAX_KEY, MAX_KEYS, MAX_VALUE, Operation};
use crate::printable;

/// Whether an operation can be sent to any engine.
pub(super) fn is_within_limits(operation: &Operation) -> bool {
    match operation {
        Operation::Get { keys } => keys.len() <= MAX_KEYS && keys.iter().all(|key| is_key(key)),
        Operation::List { prefix } | Operation::Keys { prefix } => prefix.is_empty() || is_key(prefix),
        Operation::Put { key, value, .. } | Operation::Hold { key, value, .. } => {
            is_key(key) && value.len() <= MAX_VALUE
        }
        Operation::Delete { key, .. } => is_key(key),
    }
}

/// Whether a key of the store can be one of the fleet. Others are left out.
pub(super) fn is_key(key: &str) -> bool {
    (1..=MAX_KEY).contains(&key.len()) && !key.chars().any(printable::is_hidden)
}

/// A value of the store. One that is too long or no text becomes empty, which is valid for no key: it must not count as absent,
/// and costs no other key.
pub(super) fn text(value: &[u8]) -> String {
    let text = str::from_utf8(value).ok().filter(|text| text.len() <= MAX_VALUE);
    text.unwrap_or_default().to_owned()
}

/// The maximum size of all entries of one answer in bytes, which fits into one message.
pub(super) const MAX_ANSWER: usize = 12 << 20;

/// The maximum size of all shared keys in bytes, which the program accepts within a second.
pub(super) const MAX_SHARED: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::store::Expected;

    #[test]
    fn operation_beyond_the_limits_is_rejected() {
        let put = |key: &str, length| Operation::Put {
            key: key.to_owned(),
            value: "x".repeat(length),
            expected: Expected::Any,
            seconds: None,
        };
        assert!(is_within_limits(&put("shared/epoch", MAX_VALUE)));
        assert!(is_within_limits(&Operation::List { prefix: String::new() }));
        for operation in [
            put("shared/epoch", MAX_VALUE + 1),
            put("", 1),
            put("a\nb", 1),
            put(&"k".repeat(MAX_KEY + 1), 1),
            Operation::Get { keys: vec!["a".to_owned(); MAX_KEYS + 1] },
            Operation::List { prefix: "a\0".to_owned() },
            Operation::Delete { key: "k".repeat(MAX_KEY + 1), expected: Expected::Any },
        ] {
            assert!(!is_within_limits(&operation), "{operation:?}");
        }
    }

    #[test]
    fn value_that_cannot_be_one_is_empty() {
        assert_eq!(text(b"abc"), "abc");
        assert_eq!(text(b"\xff"), "");
        assert_eq!(text("x".repeat(MAX_VALUE + 1).as_bytes()), "");
    }
}
