//! SCRAM-SHA-256 verifiers (RFC 5802 §3, RFC 7677): what is stored in the place of a password.
//!
//! The text is that of PostgreSQL's `pg_authid.rolpassword`, so a verifier can be copied from there:
//!
//! ```text
//! SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>
//! ```

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{hmac, pbkdf2, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::digest::sha256;

/// A key of 32 bytes.
pub(crate) type Key = [u8; 32];

/// A stored verifier. With it alone nobody can authenticate as the client.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Verifier {
    pub(crate) parameters: Parameters,
    pub(crate) stored_key: Key,
    pub(crate) server_key: Key,
}

/// What a client needs to know to prove that it has the password. Equal for all passwords of one user.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Parameters {
    pub(crate) salt: Vec<u8>,
    pub(crate) iterations: NonZeroU32,
}

/// Why a text is not a verifier. The texts contain nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VerifierError {
    #[error(
        "is not of the form SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY; make one with portcullis password add"
    )]
    Form,
    #[error("has {0} iterations; use {MIN_ITERATIONS} to {MAX_ITERATIONS}")]
    Iterations(u32),
    #[error("has a salt of {0} bytes; use {MIN_SALT} to {MAX_SALT}")]
    Salt(usize),
}

impl Parameters {
    /// New ones with a random salt. `None` if the system has no random numbers.
    pub(crate) fn random() -> Option<Self> {
        let mut salt = vec![0; NEW_SALT];
        rand::fill(&mut salt).ok()?;
        Some(Self { salt, iterations: NEW_ITERATIONS })
    }

    /// Those that a user without a verifier seems to have. They depend on the name and a secret only, so they are the same each
    /// time, as those of a real user are.
    pub(crate) fn mock(user: &str, secret: &Key) -> Self {
        let digest = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), user.as_bytes());
        let salt = digest.as_ref().get(..NEW_SALT).unwrap_or_default().to_vec();
        Self { salt, iterations: NEW_ITERATIONS }
    }

    /// SaltedPassword (RFC 5802 §3).
    pub(crate) fn salted(&self, password: &str) -> Zeroizing<Key> {
        self.salted_prepared(&prepared(password))
    }

    /// The same for a password after [`prepared`].
    pub(crate) fn salted_prepared(&self, prepared: &str) -> Zeroizing<Key> {
        let mut salted = Zeroizing::new(Key::default());
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, self.iterations, &self.salt, prepared.as_bytes(), &mut *salted);
        salted
    }

    /// Spends the time of as many iterations, and forgets the result.
    pub(crate) fn spend(iterations: u32, prepared: &str) {
        if let Some(iterations) = NonZeroU32::new(iterations) {
            Self { salt: vec![0; NEW_SALT], iterations }.salted_prepared(prepared);
        }
    }
}

impl Verifier {
    /// The verifier of a password.
    pub(crate) fn of(password: &str, parameters: Parameters) -> Self {
        let salted = parameters.salted(password);
        Self { stored_key: sha256(&*client_key(&salted)), server_key: server_key(&salted), parameters }
    }

    /// Whether this is the verifier of a password. Takes as long for any password.
    pub(crate) fn verifies(&self, password: &str) -> bool {
        self.verifies_salted(&self.parameters.salted(password))
    }

    /// The same with SaltedPassword.
    pub(crate) fn verifies_salted(&self, salted: &Key) -> bool {
        verify_slices_are_equal(&sha256(&*client_key(salted)), &self.stored_key).is_ok()
    }
}

/// ClientKey (RFC 5802 §3).
pub(crate) fn client_key(salted: &Key) -> Zeroizing<Key> {
    Zeroizing::new(mac(salted, b"Client Key"))
}

/// ServerKey (RFC 5802 §3).
pub(crate) fn server_key(salted: &Key) -> Key {
    mac(salted, b"Server Key")
}

/// HMAC-SHA-256.
pub(crate) fn mac(key: &Key, text: &[u8]) -> Key {
    let mut digest = Key::default();
    digest.copy_from_slice(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref());
    digest
}

/// The password after SASLprep (RFC 4013). One that SASLprep rejects is used as it is, as PostgreSQL does.
pub(crate) fn prepared(password: &str) -> Zeroizing<String> {
    Zeroizing::new(match stringprep::saslprep(password) {
        Ok(prepared) => prepared.into_owned(),
        Err(_) => password.to_owned(),
    })
}

impl FromStr for Verifier {
    type Err = VerifierError;

    fn from_str(text: &str) -> Result<Self, VerifierError> {
        let rest = text.strip_prefix(PREFIX).ok_or(VerifierError::Form)?;
        let (parameters, keys) = rest.split_once('$').ok_or(VerifierError::Form)?;
        let (iterations, salt) = parameters.split_once(':').ok_or(VerifierError::Form)?;
        let (stored_key, server_key) = keys.split_once(':').ok_or(VerifierError::Form)?;
        let is_number = iterations.bytes().all(|byte| byte.is_ascii_digit());
        let iterations: u32 = iterations.parse().ok().filter(|_| is_number).ok_or(VerifierError::Form)?;
        if !(MIN_ITERATIONS..=MAX_ITERATIONS).contains(&iterations) {
            return Err(VerifierError::Iterations(iterations));
        }
        let decode = |text: &str| STANDARD.decode(text).map_err(|_| VerifierError::Form);
        let salt = decode(salt)?;
        if !(MIN_SALT..=MAX_SALT).contains(&salt.len()) {
            return Err(VerifierError::Salt(salt.len()));
        }
        let key = |text: &str| Key::try_from(decode(text)?.as_slice()).map_err(|_| VerifierError::Form);
        Ok(Self {
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
            parameters: Parameters { salt, iterations: NonZeroU32::new(iterations).ok_or(VerifierError::Form)? },
        })
    }
}

/// The text for a file. It is no password, but whoever has it can pretend to be the server.
impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { parameters: Parameters { salt, iterations }, stored_key, server_key } = self;
        let [salt, stored_key, server_key] = [&salt[..], stored_key, server_key].map(|bytes| STANDARD.encode(bytes));
        write!(f, "{PREFIX}{iterations}:{salt}${stored_key}:{server_key}")
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("iterations", &self.parameters.iterations).finish_non_exhaustive()
    }
}

const PREFIX: &str = "SCRAM-SHA-256$";

/// RFC 7677 §4.
const MIN_ITERATIONS: u32 = 4096;

/// A client needs half a second for as many. More would let whoever writes the file stop it.
const MAX_ITERATIONS: u32 = 1_000_000;

/// As PostgreSQL: more would make each connection slower and no good password safer.
pub(crate) const NEW_ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("4096 is not 0");

const MIN_SALT: usize = 8;
const MAX_SALT: usize = 64;

/// As PostgreSQL.
const NEW_SALT: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // SELECT rolpassword FROM pg_authid, after CREATE ROLE … PASSWORD 'pencil' with the salt of RFC 7677.
    const PENCIL: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                          wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    fn parameters() -> Parameters {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        Parameters { salt, iterations: NEW_ITERATIONS }
    }

    #[test]
    fn verifier_of_the_password_in_rfc_7677_is_that_of_postgresql() {
        assert_eq!(Verifier::of("pencil", parameters()).to_string(), PENCIL);
        let verifier: Verifier = PENCIL.parse().unwrap();
        assert!(verifier.verifies("pencil"));
        assert!(!verifier.verifies("Pencil"));
        assert!(!verifier.verifies(""));
    }

    #[test]
    fn password_is_prepared_as_rfc_4013_says() {
        let verifier = Verifier::of("I\u{ad}X \u{aa}", parameters());
        assert!(verifier.verifies("IX a"), "a soft hyphen is removed, and a feminine ordinal is an a");
        // A control character is prohibited, so the password is used as it is.
        assert!(Verifier::of("a\u{7}", parameters()).verifies("a\u{7}"));
    }

    #[test]
    fn text_that_is_not_a_verifier_is_rejected_with_its_reason() {
        let with = |from: &str, to: &str| PENCIL.replace(from, to).parse::<Verifier>().unwrap_err();
        assert_eq!(with("SCRAM-SHA-256", "SCRAM-SHA-1"), VerifierError::Form);
        assert_eq!(with("4096", "4095"), VerifierError::Iterations(4095));
        assert_eq!(with("4096", "+4096"), VerifierError::Form);
        assert_eq!(with("4096", "4294967296"), VerifierError::Form);
        assert_eq!(with("4096", "1000001"), VerifierError::Iterations(1_000_001));
        assert_eq!(with("W22ZaJ0SNY7soEsUEjb6gQ==", "AAAA"), VerifierError::Salt(3));
        assert_eq!(with("WG5d8oPm", ""), VerifierError::Form);
        assert_eq!(with("WG5d8oPm", "WG5d8oP!"), VerifierError::Form);
        assert_eq!(with(":wfPL", "wfPL"), VerifierError::Form);
        for text in ["", "md5d41d8cd98f00b204e9800998ecf8427e", "pencil"] {
            assert_eq!(text.parse::<Verifier>(), Err(VerifierError::Form));
        }
    }

    #[test]
    fn mock_parameters_are_stable_and_depend_on_user_and_secret() {
        let of = |user: &str, secret: u8| Parameters::mock(user, &[secret; 32]);
        assert_eq!(of("app", 1), of("app", 1));
        assert_ne!(of("app", 1), of("app", 2));
        assert_ne!(of("app", 1), of("apq", 1));
        assert_eq!(of("app", 1).salt.len(), NEW_SALT);
    }

    #[test]
    fn debug_output_has_no_key() {
        let shown = format!("{:?}", PENCIL.parse::<Verifier>().unwrap());
        assert_eq!(shown, "Verifier { iterations: 4096, .. }");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn every_password_is_verified_by_its_own_verifier_only(one in ".{0,20}", other in ".{0,20}") {
            let verifier = Verifier::of(&one, parameters());
            prop_assert!(verifier.verifies(&one));
            prop_assert_eq!(verifier.verifies(&other), prepared(&one) == prepared(&other));
            prop_assert_eq!(verifier.to_string().parse(), Ok(verifier));
        }
    }
}
