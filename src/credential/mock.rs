//! The salt of users without a password, so that a client cannot find out which users exist.
//!
//! It depends on the user and on a secret. The secret must have nothing to do with a password: a client that knows the salt of a
//! user could otherwise find out that user's password by computing salts, without any further connection.
//!
//! The secret is in the file of the clients, so that all replicas with the same file answer alike, also after a restart.

use std::fmt;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::credential::verifier::{Key, Parameters, mac};

/// The secret of one file of clients.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct MockSecret(Zeroizing<Key>);

impl MockSecret {
    /// `None` if the system has no random numbers.
    pub(crate) fn random() -> Option<Self> {
        let mut key = Zeroizing::new(Key::default());
        rand::fill(&mut *key).ok()?;
        Some(Self(key))
    }

    /// One that others cannot compute if they do not know `id`.
    pub(crate) fn derived(id: &[u8; 16]) -> Self {
        let mut key = Key::default();
        if let Some(start) = key.first_chunk_mut() {
            *start = *id;
        }
        Self(Zeroizing::new(mac(&key, b"portcullis mock salt")))
    }

    /// Reads [`Self::to_text`].
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
        Some(Self(Zeroizing::new(Key::try_from(bytes.as_slice()).ok()?)))
    }

    /// For the file.
    pub(crate) fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(*self.0))
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

    #[test]
    fn salts_depend_on_user_and_secret() {
        let [one, other] = [(); 2].map(|()| MockSecret::random().unwrap());
        assert_eq!(one.parameters("app"), one.parameters("app"));
        assert_ne!(one.parameters("app"), one.parameters("web"));
        assert_ne!(one.parameters("app"), other.parameters("app"));
        assert_ne!(MockSecret::derived(&[1; 16]), MockSecret::derived(&[2; 16]));
        assert_eq!(MockSecret::derived(&[1; 16]), MockSecret::derived(&[1; 16]));
    }

    #[test]
    fn text_of_a_secret_is_read_again_and_others_are_not() {
        let secret = MockSecret::random().unwrap();
        assert_eq!(MockSecret::from_text(&secret.to_text()), Some(secret));
        for text in ["", "AAAA", "#", &"A".repeat(64)] {
            assert_eq!(MockSecret::from_text(text), None);
        }
    }

    #[test]
    fn debug_output_has_no_secret() {
        assert_eq!(format!("{:?}", MockSecret::default()), "MockSecret");
    }
}
