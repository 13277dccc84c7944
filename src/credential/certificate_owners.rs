//! Which client a certificate belongs to, found without a comparison with every client.

use std::collections::HashMap;

use crate::identity::trusted_clients::ClientPattern;
use crate::x509::subject_name::SubjectName;

/// The owner of each pattern, as the position of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CertificateOwners {
    owners: HashMap<ClientPattern, usize>,
    /// In bytes: of `uri:…/*`.
    longest_path: usize,
}

/// The names of one certificate belong to two clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TwoOwners(pub(crate) [usize; 2]);

impl CertificateOwners {
    /// Adds a pattern, and returns the owner if it is another client.
    pub(crate) fn insert(&mut self, pattern: &ClientPattern, owner: usize) -> Option<usize> {
        if let ClientPattern::UriBelow(path) = pattern {
            self.longest_path = self.longest_path.max(path.len());
        }
        let known = *self.owners.entry(pattern.clone()).or_insert(owner);
        Some(known).filter(|known| *known != owner)
    }

    /// A wider pattern of another client that includes this one. Complete once all patterns are inserted.
    pub(crate) fn wider(&self, pattern: &ClientPattern, owner: usize) -> Option<(ClientPattern, usize)> {
        let wider = pattern.and_wider(self.longest_path).into_iter().filter(|wider| wider.includes(pattern));
        wider
            .filter_map(|wider| self.owners.get(&wider).map(|other| (wider, *other)))
            .find(|(_, other)| *other != owner)
    }

    /// The owner of a certificate with these names.
    ///
    /// # Errors
    /// If two names of the certificate have different owners, so that it is unknown which one is meant.
    pub(crate) fn of<'a>(&self, names: impl IntoIterator<Item = SubjectName<'a>>) -> Result<Option<usize>, TwoOwners> {
        let mut found = None;
        for owner in names.into_iter().flat_map(|name| self.of_name(name)) {
            match found {
                Some(other) if other != owner => return Err(TwoOwners([other, owner])),
                _ => found = Some(owner),
            }
        }
        Ok(found)
    }

    fn of_name(&self, name: SubjectName<'_>) -> Vec<usize> {
        let patterns = ClientPattern::of_name(name).map(|pattern| pattern.and_wider(self.longest_path));
        let matching = patterns.into_iter().flatten().filter(|pattern| pattern.matches(name));
        matching.filter_map(|pattern| self.owners.get(&pattern).copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owners(patterns: &[(&str, usize)]) -> CertificateOwners {
        let mut owners = CertificateOwners::default();
        for (pattern, owner) in patterns {
            assert_eq!(owners.insert(&pattern.parse().unwrap(), *owner), None, "{pattern}");
        }
        owners
    }

    #[test]
    fn certificate_belongs_to_the_client_of_its_names() {
        use SubjectName::{Common, Dns, Email, Uri};
        let owners = owners(&[
            ("cn:app", 0),
            ("dns:app.internal", 0),
            ("dns:*.web.internal", 1),
            ("uri:spiffe://prod/a/*", 2),
            ("uri:spiffe://prod/b", 2),
            ("email:x@example.com", 3),
        ]);
        for (names, owner) in [
            (&[Common("app"), Dns("APP.internal")][..], Some(0)),
            (&[Common("other"), Dns("1.web.internal")], Some(1)),
            (&[Uri("spiffe://prod/a/b/c"), Uri("spiffe://prod/b")], Some(2)),
            (&[Email("x@EXAMPLE.com")], Some(3)),
            (
                &[Common("app.internal"), Dns("web.internal"), Uri("spiffe://prod/a/"), Uri("spiffe://prod/a/../b")],
                None,
            ),
            (&[], None),
        ] {
            assert_eq!(owners.of(names.iter().copied()), Ok(owner), "{names:?}");
        }
        assert_eq!(owners.of([Common("app"), Dns("1.web.internal")]), Err(TwoOwners([0, 1])));
    }

    #[test]
    fn pattern_that_another_client_has_is_found() {
        let mut owners = owners(&[("dns:a.b", 0), ("dns:*.b", 0), ("uri:s://x/a/b", 1), ("uri:s://x/*", 2)]);
        let parsed = |text: &str| text.parse::<ClientPattern>().unwrap();
        assert_eq!(owners.insert(&parsed("dns:A.b"), 3), Some(0));
        assert_eq!(owners.insert(&parsed("dns:a.b"), 0), None);
        assert_eq!(owners.wider(&parsed("dns:a.b"), 0), None, "one client may have both");
        assert_eq!(owners.wider(&parsed("dns:c.b"), 3), Some((parsed("dns:*.b"), 0)));
        assert_eq!(owners.wider(&parsed("uri:s://x/a/b"), 1), Some((parsed("uri:s://x/*"), 2)));
        assert_eq!(owners.wider(&parsed("uri:s://x/a/*"), 1), Some((parsed("uri:s://x/*"), 2)));
        assert_eq!(owners.wider(&parsed("uri:s://x/*"), 2), None);
    }

    fn pattern() -> impl Strategy<Value = ClientPattern> {
        "(cn:[ab]|dns:([*]\\.)?[ab](\\.[ab]){0,2}|uri:s://[ab](/[ab]){0,3}(/[*])?|email:[ab]@[abAB])"
            .prop_filter_map("no pattern", |text| text.parse().ok())
    }

    proptest! {
        #[test]
        fn owner_is_that_of_the_patterns_that_match(
            patterns in prop::collection::vec((pattern(), 0_usize..3), 0..8),
            names in prop::collection::vec("(cn:[ab]|dns:[abAB*](\\.[ab]){0,3}|uri:s://[ab](/[ab.]{0,2}){0,4}|email:[ab]@[abA])", 0..4),
        ) {
            let mut owners = CertificateOwners::default();
            let mut kept: Vec<(ClientPattern, usize)> = Vec::new();
            for (pattern, owner) in patterns {
                let other = owners.insert(&pattern, owner);
                let known = kept.iter().find(|(other, _)| *other == pattern).map(|(_, owner)| *owner);
                prop_assert_eq!(other, known.filter(|known| *known != owner));
                if known.is_none() {
                    kept.push((pattern, owner));
                }
            }
            let names = names.iter().filter_map(|name| match name.split_once(':')? {
                ("cn", name) => Some(SubjectName::Common(name)),
                ("dns", name) => Some(SubjectName::Dns(name)),
                ("uri", name) => Some(SubjectName::Uri(name)),
                (_, name) => Some(SubjectName::Email(name)),
            });
            let names: Vec<_> = names.collect();
            let mut expected: Vec<usize> =
                kept.iter().filter(|(pattern, _)| names.iter().any(|name| pattern.matches(*name))).map(|(_, owner)| *owner).collect();
            expected.sort_unstable();
            expected.dedup();
            match owners.of(names) {
                Ok(owner) => prop_assert_eq!(expected, Vec::from_iter(owner)),
                Err(TwoOwners(two)) => prop_assert!(two[0] != two[1] && two.iter().all(|owner| expected.contains(owner))),
            }
            for (pattern, owner) in &kept {
                let wider = kept.iter().any(|(other, of)| of != owner && other.includes(pattern));
                prop_assert_eq!(owners.wider(pattern, *owner).is_some(), wider);
            }
        }
    }
}
