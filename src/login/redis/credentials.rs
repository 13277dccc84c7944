//! The user of the database that Portcullis authenticates as.

use std::fmt;

use zeroize::Zeroizing;

use super::encode;
use crate::credential::password;
use crate::login::contains;

/// A user of the database, and its password.
pub(crate) struct UpstreamCredentials {
    user: Vec<u8>,
    password: Option<Zeroizing<Vec<u8>>>,
}

impl UpstreamCredentials {
    pub(crate) fn new(user: &str, password: &str) -> Self {
        Self { user: user.into(), password: Some(Zeroizing::new(password.into())) }
    }

    /// A user who needs no password (`nopass`). Redis accepts any.
    pub(crate) fn without_password(user: &str) -> Self {
        Self { user: user.into(), password: None }
    }

    /// The AUTH command.
    pub(crate) fn auth_command(&self) -> Zeroizing<Vec<u8>> {
        self.with_pair(|user, password| encode::command(&[b"AUTH", user, password]))
    }

    /// Calls a function with user and password.
    pub(super) fn with_pair<T>(&self, call: impl FnOnce(&[u8], &[u8]) -> T) -> T {
        match &self.password {
            Some(password) => call(&self.user, password),
            None => call(&self.user, random().as_bytes()),
        }
    }

    /// Whether a text of the server contains the password.
    pub(super) fn is_revealed_by(&self, text: &[u8]) -> bool {
        self.password.as_ref().is_some_and(|password| contains(text, password))
    }
}

/// Calls a function with a user and a password that Redis always rejects.
pub(super) fn with_wrong_pair<T>(call: impl FnOnce(&[u8], &[u8]) -> T) -> T {
    call(NOBODY, random().as_bytes())
}

/// Empty if the system has no random numbers. Nothing depends on it.
fn random() -> Zeroizing<String> {
    password::generate().unwrap_or_default()
}

/// No user of Redis has this name, because names cannot contain spaces. Its ACL LOG shows the name, and counts entries of one
/// name together.
const NOBODY: &[u8] = b"rejected by portcullis";

impl fmt::Debug for UpstreamCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamCredentials")
            .field("user", &String::from_utf8_lossy(&self.user))
            .finish_non_exhaustive()
    }
}
