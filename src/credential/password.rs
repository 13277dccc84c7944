//! What a new password must have, and random ones.

use std::fmt;

use aws_lc_rs::rand;
use zeroize::Zeroizing;

/// The text of a new password. Wiped from memory when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordText(Zeroizing<String>);

impl PasswordText {
    /// # Errors
    /// If [`check`] rejects the text.
    pub(crate) fn new(text: Zeroizing<String>) -> Result<Self, WeakPassword> {
        check(&text).map(|()| Self(text))
    }

    /// A random one, see [`generate`].
    pub(crate) fn random() -> Option<Self> {
        generate().map(Self)
    }

    /// The text, to be shown to its user once.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

/// Without the text.
impl fmt::Debug for PasswordText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordText")
    }
}

/// Why a text cannot become a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WeakPassword {
    #[error("has {found} characters; use at least {MIN_LENGTH}")]
    Short { found: usize },
    #[error("is longer than {MAX_LENGTH} bytes; use a shorter one")]
    Long,
    #[error("has no {0}; use upper-case and lower-case letters, digits and special characters")]
    Lacks(Class),
    #[error("contains a control character; use characters that can be typed")]
    Control,
}

/// A class of characters of which a password needs one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Upper,
    Lower,
    Digit,
    Special,
}

impl Class {
    const ALL: [Self; 4] = [Self::Upper, Self::Lower, Self::Digit, Self::Special];

    fn contains(self, sign: char) -> bool {
        match self {
            Self::Upper => sign.is_uppercase(),
            Self::Lower => sign.is_lowercase(),
            Self::Digit => sign.is_numeric(),
            Self::Special => !sign.is_alphanumeric(),
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Upper => "upper-case letter",
            Self::Lower => "lower-case letter",
            Self::Digit => "digit",
            Self::Special => "special character",
        })
    }
}

/// Checks a new password.
///
/// # Errors
/// [`WeakPassword`], without any of the password.
pub(crate) fn check(password: &str) -> Result<(), WeakPassword> {
    if password.len() > MAX_LENGTH {
        return Err(WeakPassword::Long);
    }
    if password.chars().any(char::is_control) {
        return Err(WeakPassword::Control);
    }
    let found = password.chars().count();
    if found < MIN_LENGTH {
        return Err(WeakPassword::Short { found });
    }
    match Class::ALL.into_iter().find(|class| !password.chars().any(|sign| class.contains(sign))) {
        Some(class) => Err(WeakPassword::Lacks(class)),
        None => Ok(()),
    }
}

/// A random password of 192 bits that [`check`] accepts. It needs no quotes in a shell, a URL or a configuration file. `None` if the system
/// has no random numbers.
pub(crate) fn generate() -> Option<Zeroizing<String>> {
    loop {
        let mut random = Zeroizing::new([0; GENERATED_LENGTH]);
        rand::fill(&mut *random).ok()?;
        let sign = |byte: &u8| ALPHABET.get(usize::from(byte % 64)).map(|sign| char::from(*sign));
        let password: Zeroizing<String> = Zeroizing::new(random.iter().filter_map(sign).collect());
        // A few in a hundred lack a class.
        if check(&password).is_ok() {
            return Some(password);
        }
    }
}

/// The alphabet of base64url (RFC 4648 §5): 64 signs, so that each byte chooses evenly.
const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

const GENERATED_LENGTH: usize = 32;

/// In characters.
const MIN_LENGTH: usize = 8;

/// In bytes. Longer than any that a person or a generator makes.
pub(crate) const MAX_LENGTH: usize = 1024;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn password_needs_four_classes_of_characters() {
        for accepted in ["Passw0rd!", "Grüße-2026", "aB3 aB3 ", "密Aa1-密密密"] {
            assert_eq!(check(accepted), Ok(()), "{accepted}");
        }
        for (rejected, why) in [
            ("Aa1-567", WeakPassword::Short { found: 7 }),
            ("passw0rd!", WeakPassword::Lacks(Class::Upper)),
            ("PASSW0RD!", WeakPassword::Lacks(Class::Lower)),
            ("Password!", WeakPassword::Lacks(Class::Digit)),
            ("Passw0rds", WeakPassword::Lacks(Class::Special)),
            ("Passw0rd!\n", WeakPassword::Control),
            (&"Aa1-".repeat(257), WeakPassword::Long),
        ] {
            assert_eq!(check(rejected), Err(why.clone()), "{rejected}");
            assert!(!why.to_string().contains(rejected));
        }
    }

    #[test]
    fn debug_output_has_no_password() {
        let text = PasswordText::new(Zeroizing::new("Passw0rd!".to_owned())).unwrap();
        assert_eq!((text.reveal(), format!("{text:?}").as_str()), ("Passw0rd!", "PasswordText"));
        assert_eq!(PasswordText::new(Zeroizing::new("password".to_owned())), Err(WeakPassword::Lacks(Class::Upper)));
    }

    #[test]
    fn generated_passwords_are_accepted_and_differ() {
        let made: HashSet<_> = (0..200).map(|_| generate().unwrap().to_string()).collect();
        assert_eq!(made.len(), 200);
        assert!(made.iter().all(|password| check(password).is_ok() && password.len() == GENERATED_LENGTH));
    }
}
