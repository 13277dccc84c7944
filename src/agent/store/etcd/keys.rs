//! Names of keys, and entries, between the fleet and etcd.

use etcd_client::KeyValue;

use crate::agent::store::limits::{is_key, text};
use crate::fleet::store::Entry;

/// The place of a fleet among the keys: `/portcullis/prod/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Root(String);

impl Root {
    pub(super) fn new(prefix: &str, fleet: &str) -> Self {
        Self(format!("{prefix}/{fleet}/"))
    }

    /// The key in etcd.
    pub(super) fn full(&self, key: &str) -> String {
        format!("{}{key}", self.0)
    }

    /// The key of the fleet; `None` if it is none.
    pub(super) fn own<'a>(&self, key: &'a [u8]) -> Option<&'a str> {
        str::from_utf8(key).ok()?.strip_prefix(&self.0).filter(|key| is_key(key))
    }

    pub(super) fn entry(&self, found: &KeyValue) -> Option<Entry> {
        let key = self.own(found.key())?.to_owned();
        Some(Entry { key, value: text(found.value()), version: found.mod_revision().to_string() })
    }
}

/// The first key behind all that begin with this text.
pub(super) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // No byte of UTF-8 is 0xff.
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_of_the_fleet_is_below_its_root() {
        let root = Root::new("/portcullis", "prod");
        assert_eq!(root.full("shared/rules/cache"), "/portcullis/prod/shared/rules/cache");
        assert_eq!(root.own(b"/portcullis/prod/shared/epoch"), Some("shared/epoch"));
        let long = format!("/portcullis/prod/{}", "x".repeat(257));
        for key in [&b"/portcullis/production/a"[..], b"/portcullis/prod/", b"/portcullis/prod/\xff", long.as_bytes()] {
            assert_eq!(root.own(key), None, "{key:?}");
        }
    }

    #[test]
    fn end_is_behind_every_key_with_the_prefix() {
        assert_eq!(end_of("/a/"), b"/a0");
        assert!(end_of("ä").as_slice() > "ä\u{10ffff}".as_bytes());
    }
}
