//! Checks a password that a client sends as it is, as the clients of Redis do.
//!
//! A check takes about a millisecond on purpose. So passwords that were found right are kept as keyed digests, and a client that
//! connects again pays nothing. Only right passwords are kept: nobody who guesses can fill the memory or displace them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::credential::clients::{Client, Clients, Password};
use crate::credential::password::MAX_LENGTH;
use crate::credential::verifier::{Key, Parameters, prepared};

/// The passwords of one listener that were found right. It knows no password, and no policy: whether one is valid now is asked
/// each time.
pub(crate) struct RightPasswords {
    /// Random, so that the digests mean nothing outside of this process. `None` if the system has no random numbers; then nothing
    /// is kept.
    key: Option<hmac::Key>,
    /// From the digest of user and password to the stored key of its verifier.
    stored_keys: Mutex<HashMap<Key, Key>>,
}

/// The check of one password, for a thread that may work for long.
pub(crate) struct PasswordCheck {
    password: Zeroizing<Vec<u8>>,
    /// Those with which it is compared. Empty for an unknown user.
    candidates: Vec<Arc<Password>>,
    /// The iterations that every wrong password costs, whoever the user is.
    iterations: u32,
}

impl Default for RightPasswords {
    fn default() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        Self { key: key.ok(), stored_keys: Mutex::default() }
    }
}

impl RightPasswords {
    /// The password of this client that the text is, if it was found right before and is valid now.
    pub(crate) fn find(&self, user: &[u8], text: &[u8], candidates: &[Arc<Password>]) -> Option<Arc<Password>> {
        // Computed for unknown users too.
        let digest = self.digest(user, text)?;
        let stored_key = self.stored_keys.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).copied()?;
        candidates.iter().find(|password| password.verifier.stored_key == stored_key).cloned()
    }

    /// Keeps a password that was found right.
    pub(crate) fn keep(&self, user: &[u8], text: &[u8], password: &Password) {
        let Some(digest) = self.digest(user, text) else { return };
        let mut stored_keys = self.stored_keys.lock().unwrap_or_else(PoisonError::into_inner);
        if stored_keys.len() >= MAX_KEPT {
            stored_keys.clear();
        }
        stored_keys.insert(digest, password.verifier.stored_key);
    }

    fn digest(&self, user: &[u8], text: &[u8]) -> Option<Key> {
        let mut context = hmac::Context::with_key(self.key.as_ref()?);
        // With its length, so that no other user and password have the same digest.
        context.update(&user.len().to_be_bytes());
        context.update(user);
        context.update(text);
        Key::try_from(context.sign().as_ref()).ok()
    }
}

impl PasswordCheck {
    pub(crate) fn new(clients: &Clients, candidates: Vec<Arc<Password>>, password: Zeroizing<Vec<u8>>) -> Self {
        Self { password, candidates, iterations: clients.iterations() }
    }

    /// The valid passwords of a user, who may not exist.
    pub(crate) fn candidates(client: Option<&Arc<Client>>, now: OffsetDateTime) -> Vec<Arc<Password>> {
        client.into_iter().flat_map(|client| client.valid_passwords(now)).cloned().collect()
    }

    /// Finds the password that the text is. Takes as long for each wrong one, also for an unknown user.
    pub(crate) fn run(&self) -> Option<Arc<Password>> {
        // No password that was ever added is longer or has other bytes. Those cost as much.
        let text = str::from_utf8(&self.password).ok().filter(|text| text.len() <= MAX_LENGTH);
        // Prepared once: how often would show how many salts the user has.
        let prepared = prepared(text.unwrap_or_default());
        let (mut found, mut done) = (None, 0_u32);
        let mut groups: Vec<&Parameters> = Vec::new();
        for Password { verifier, .. } in self.candidates.iter().map(|password| &**password) {
            let parameters = &verifier.parameters;
            if groups.contains(&parameters) {
                continue;
            }
            groups.push(parameters);
            let salted = parameters.salted_prepared(&prepared);
            done = done.saturating_add(parameters.iterations.get());
            let is_right = |password: &&Arc<Password>| {
                password.verifier.parameters == *parameters && password.verifier.verifies_salted(&salted)
            };
            found = found.or(self.candidates.iter().find(is_right));
        }
        if found.is_none() {
            Parameters::spend(self.iterations.saturating_sub(done), &prepared);
        }
        found.filter(|_| text.is_some()).cloned()
    }
}

/// Without a password.
impl fmt::Debug for RightPasswords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RightPasswords").finish_non_exhaustive()
    }
}

/// Without the password.
impl fmt::Debug for PasswordCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordCheck").field("candidates", &self.candidates.len()).finish_non_exhaustive()
    }
}

/// About 5 MB. A file of clients has fewer passwords.
const MAX_KEPT: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::clients::fixtures::{client, clients, password};
    use crate::credential::clients::{MAX_PASSWORDS, SaltRule};
    use crate::credential::verifier::Verifier;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn check(clients: &Clients, user: &str, text: &[u8]) -> Option<String> {
        let candidates = PasswordCheck::candidates(clients.by_user(user), NOW);
        let found = PasswordCheck::new(clients, candidates, Zeroizing::new(text.to_vec())).run();
        found.map(|password| password.id.clone())
    }

    #[test]
    fn right_password_of_the_user_is_found_and_nothing_else() {
        let other = Verifier::of("three", Parameters::mock("other", &[7; 32]));
        let passwords =
            [password("p1", "one"), password("p2", "two"), Password { verifier: other, ..password("p3", "") }];
        let expired = Password { expires_at: Some(NOW), ..password("p1", "old") };
        let disabled = Client { is_disabled: true, ..client("off", [password("p1", "one")]) };
        let list = vec![client("app", passwords), client("job", [expired]), disabled];
        let clients = Clients::new(list, SaltRule::Any).unwrap();
        for (text, id) in [("one", "p1"), ("two", "p2"), ("three", "p3")] {
            assert_eq!(check(&clients, "app", text.as_bytes()).as_deref(), Some(id));
        }
        for (user, text) in [("app", "four"), ("app", ""), ("job", "old"), ("off", "one"), ("nobody", "one")] {
            assert_eq!(check(&clients, user, text.as_bytes()), None, "{user} {text}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_not_taken_for_the_text_that_shows_them() {
        let clients = clients([client("app", [password("p1", "a\u{fffd}")])]);
        assert_eq!(check(&clients, "app", "a\u{fffd}".as_bytes()).as_deref(), Some("p1"));
        assert_eq!(check(&clients, "app", b"a\xff"), None);
        assert_eq!(check(&clients, "app", "a\u{fffd}".repeat(1000).as_bytes()), None);
    }

    #[test]
    fn wrong_password_costs_as_much_as_that_of_the_most_expensive_user() {
        let with_iterations = |user: &str, salts: &[&str]| {
            let passwords = salts.iter().enumerate().map(|(number, salt)| {
                let verifier = Verifier::of(salt, Parameters::mock(salt, &[7; 32]));
                Password { verifier, ..password(&format!("p{number}"), "") }
            });
            client(user, passwords)
        };
        let list = vec![with_iterations("app", &["a", "b", "c"]), with_iterations("job", &["a", "a"])];
        assert_eq!(Clients::new(list, SaltRule::Any).unwrap().iterations(), 3 * 4096);
        assert_eq!(clients([]).iterations(), 4096, "nobody has a password");
    }

    #[test]
    fn kept_password_is_found_while_it_is_a_candidate() {
        let right = RightPasswords::default();
        let [one, two] = [password("p1", "one"), password("p2", "two")].map(Arc::new);
        let both = [Arc::clone(&one), Arc::clone(&two)];
        assert_eq!(right.find(b"app", b"two", &both), None);
        right.keep(b"app", b"two", &two);
        assert_eq!(right.find(b"app", b"two", &both), Some(Arc::clone(&two)));
        assert_eq!(right.find(b"app", b"two", &[one]), None, "it was removed");
        assert_eq!(right.find(b"app", b"one", &both), None);
        assert_eq!(right.find(b"ap", b"ptwo", &both), None, "another user and password of the same bytes");
        assert_eq!(right.find(b"job", b"two", &both), None);
        let renamed = Arc::new(Password { id: "p9".to_owned(), ..(*two).clone() });
        assert_eq!(right.find(b"app", b"two", &[Arc::clone(&renamed)]), Some(renamed));
    }

    #[test]
    fn kept_passwords_are_bounded() {
        let right = RightPasswords::default();
        let one = password("p1", "one");
        (0..=MAX_KEPT + MAX_PASSWORDS).for_each(|number| right.keep(b"app", &number.to_be_bytes(), &one));
        assert!(right.stored_keys.lock().unwrap().len() <= MAX_KEPT);
    }

    #[test]
    fn debug_output_has_no_password() {
        let candidates = vec![Arc::new(password("p1", "one"))];
        let check = PasswordCheck::new(&clients([]), candidates, Zeroizing::new(b"hunter2".to_vec()));
        assert_eq!(format!("{check:?}"), "PasswordCheck { candidates: 1, .. }");
        assert_eq!(format!("{:?}", RightPasswords::default()), "RightPasswords { .. }");
    }
}
