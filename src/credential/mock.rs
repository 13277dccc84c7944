//! The salt of users without a password, so that a client cannot find out which users exist.
//!
//! It depends on the user and on a secret. The secret comes from the passwords of the listener: all replicas with the same
//! `clients_file` have the same, and a restart does not change it. It is taken from one verifier, the lowest of all, so most
//! changes of other passwords do not change it either. The owner of that one password can compute the secret.

use std::fmt;

use crate::credential::verifier::{Key, Parameters, Verifier, mac};

/// The secret of one listener.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MockSecret(Key);

impl MockSecret {
    /// `verifiers` are those of all clients in any order. Without any, every user has a mock, and the secret hides nothing.
    pub(crate) fn of<'v>(verifiers: impl Iterator<Item = &'v Verifier>) -> Self {
        let lowest = verifiers.map(|verifier| &verifier.stored_key).min();
        lowest.map(|key| Self(mac(key, b"portcullis mock salt"))).unwrap_or_default()
    }

    /// What a user without a password seems to have.
    pub(crate) fn parameters(&self, user: &str) -> Parameters {
        Parameters::mock(user, &self.0)
    }
}

/// Without the secret.
impl fmt::Debug for MockSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MockSecret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verifier(password: &str) -> Verifier {
        Verifier::of(password, Parameters::mock("fixture", &[7; 32]))
    }

    #[test]
    fn secret_depends_on_the_lowest_verifier_in_any_order() {
        let verifiers = ["one", "two", "three"].map(verifier);
        let secret = MockSecret::of(verifiers.iter());
        assert_eq!(MockSecret::of(verifiers.iter().rev()), secret);
        let kept = verifiers.iter().map(|verifier| MockSecret::of([verifier].into_iter()));
        assert_eq!(kept.filter(|alone| *alone == secret).count(), 1);
        assert_ne!(secret.parameters("app"), secret.parameters("web"));
        assert_ne!(secret.parameters("app"), MockSecret::default().parameters("app"));
    }

    #[test]
    fn debug_output_has_no_secret() {
        assert_eq!(format!("{:?}", MockSecret([7; 32])), "MockSecret");
    }
}
