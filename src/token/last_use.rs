//! When and from where each token was last used. Not kept across restarts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;

use crate::token::{Token, TokenDigest};

/// The last successful authentication with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastUse {
    pub(crate) at: OffsetDateTime,
    pub(crate) source: IpAddr,
}

/// The last use of each token. Only a valid token gets an entry, and [`Self::keep_only`] runs at every reload, so there are at
/// most as many entries as tokens.
#[derive(Debug, Default)]
pub(crate) struct LastUses(Mutex<BTreeMap<String, Entry>>);

#[derive(Debug)]
struct Entry {
    /// A new token with the name of a revoked one does not inherit its use.
    digest: TokenDigest,
    last: LastUse,
}

impl LastUses {
    pub(crate) fn record(&self, token: &Token, source: IpAddr, now: OffsetDateTime) {
        let last = LastUse { at: now, source };
        let mut entries = self.lock();
        match entries.get_mut(&token.name) {
            Some(entry) => *entry = Entry { digest: token.digest, last },
            None => drop(entries.insert(token.name.clone(), Entry { digest: token.digest, last })),
        }
    }

    /// The last use of a token; `None` if it has not been used since the start of the program.
    pub(crate) fn of(&self, token: &Token) -> Option<LastUse> {
        self.lock().get(&token.name).filter(|entry| entry.digest == token.digest).map(|entry| entry.last)
    }

    /// Drops the entries of all other tokens.
    pub(crate) fn keep_only(&self, tokens: &[Token]) {
        let is_known = |name: &String, entry: &mut Entry| {
            tokens.iter().any(|token| token.name == *name && token.digest == entry.digest)
        };
        self.lock().retain(is_known);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::token::fixtures::token;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn last_of_several_uses_is_kept() {
        let (uses, token) = (LastUses::default(), token("ci", "text"));
        assert_eq!(uses.of(&token), None);
        let later = NOW + time::Duration::SECOND;
        let source = "10.1.2.3".parse().unwrap();
        uses.record(&token, SOURCE, NOW);
        uses.record(&token, source, later);
        assert_eq!(uses.of(&token), Some(LastUse { at: later, source }));
    }

    #[test]
    fn entries_of_removed_tokens_are_dropped() {
        let (uses, tokens) = (LastUses::default(), ["one", "two", "three"].map(|name| token(name, name)));
        tokens.iter().for_each(|token| uses.record(token, SOURCE, NOW));
        uses.keep_only(&tokens[1..]);
        assert_eq!(uses.of(&tokens[0]), None);
        assert!(uses.of(&tokens[1]).is_some());
        assert_eq!(uses.lock().len(), 2);
    }

    #[test]
    fn new_token_with_the_name_of_a_revoked_one_has_not_been_used() {
        let uses = LastUses::default();
        uses.record(&token("ci", "old"), SOURCE, NOW);
        let new = [token("ci", "new")];
        assert_eq!(uses.of(&new[0]), None);
        uses.keep_only(&new);
        assert!(uses.lock().is_empty());
    }
}
