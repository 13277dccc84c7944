//! Seals ticket keys, so that whoever can read the store cannot read them.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::digest::sha256;

/// The keys of `[fleet] key_file`. The first seals, all unseal.
pub(crate) struct SealingKeys(Vec<SealingKey>);

struct SealingKey {
    /// Names the key in what it has sealed.
    name: [u8; NAME_LENGTH],
    key: RandomizedNonceKey,
}

/// Why a file of sealing keys cannot be used. The texts contain nothing of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealingKeysError {
    #[error("holds no key, or is not completely written; create a key with openssl rand -base64 32")]
    NoKey,
    #[error("line {line}: not a key of {KEY_LENGTH} bytes in base64; create one with openssl rand -base64 32")]
    NotAKey {
        /// Its number, from 1.
        line: usize,
    },
    #[error("line {line}: too many keys (at most {MAX_KEYS}); remove those that sealed nothing any more")]
    TooMany {
        /// The number of the first line above the limit, from 1.
        line: usize,
    },
}

/// Why something sealed cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnsealError {
    #[error("it was sealed with a key that is not in key_file")]
    OtherKey,
    #[error("it is damaged, or belongs to another fleet")]
    Damaged,
}

impl SealingKeys {
    /// Parses a file with one key per line: 32 random bytes in base64. `#` starts a comment.
    ///
    /// # Errors
    /// If a line is not a key, or the file holds none.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, SealingKeysError> {
        let mut keys = Vec::new();
        for (line, text) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
            let text = text.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
            if text.is_empty() {
                continue;
            }
            if keys.len() == MAX_KEYS {
                return Err(SealingKeysError::TooMany { line });
            }
            // The error of the decoder contains a part of the key.
            let key = STANDARD.decode(text).map(Zeroizing::new).map_err(|_| SealingKeysError::NotAKey { line })?;
            keys.push(SealingKey::new(&key).ok_or(SealingKeysError::NotAKey { line })?);
        }
        if keys.is_empty() { Err(SealingKeysError::NoKey) } else { Ok(Self(keys)) }
    }

    /// Seals a secret for one purpose, which must be the same to unseal it. `None` if the system has no random numbers.
    pub(crate) fn seal(&self, secret: &[u8], purpose: &str) -> Option<String> {
        let SealingKey { name, key } = self.0.first()?;
        let mut sealed = Zeroizing::new(Vec::with_capacity(secret.len() + AES_256_GCM_SIV.tag_len()));
        sealed.extend_from_slice(secret);
        let nonce = key.seal_in_place_append_tag(Aad::from(purpose.as_bytes()), &mut *sealed).ok()?;
        Some(STANDARD.encode([name.as_slice(), nonce.as_ref(), &sealed].concat()))
    }

    /// Reads what [`Self::seal`] has made.
    ///
    /// # Errors
    /// [`UnsealError`].
    pub(crate) fn unseal(&self, sealed: &str, purpose: &str) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        let bytes = STANDARD.decode(sealed).map_err(|_| UnsealError::Damaged)?;
        let (name, rest) = bytes.split_first_chunk::<NAME_LENGTH>().ok_or(UnsealError::Damaged)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or(UnsealError::Damaged)?;
        let key = self.0.iter().find(|key| key.name == *name).ok_or(UnsealError::OtherKey)?;
        let mut secret = Zeroizing::new(rest.to_vec());
        let opened = key.key.open_in_place(Nonce::from(nonce), Aad::from(purpose.as_bytes()), &mut secret);
        let length = opened.map_err(|_| UnsealError::Damaged)?.len();
        secret.truncate(length);
        Ok(secret)
    }
}

impl SealingKey {
    fn new(key: &[u8]) -> Option<Self> {
        let digest = sha256(&[NAME_LABEL, key].concat());
        let name = *digest.first_chunk()?;
        (key.len() == KEY_LENGTH)
            .then(|| RandomizedNonceKey::new(&AES_256_GCM_SIV, key).ok())?
            .map(|key| Self { name, key })
    }
}

impl fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealingKeys").field("count", &self.0.len()).finish_non_exhaustive()
    }
}

/// Bytes of a key in the file, before base64.
const KEY_LENGTH: usize = 32;

/// Enough to tell the keys of a fleet apart.
const NAME_LENGTH: usize = 8;

/// A rotation needs two.
const MAX_KEYS: usize = 16;

const NAME_LABEL: &[u8] = b"portcullis name of sealing key ";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(bytes: &[u8]) -> SealingKeys {
        let lines: Vec<_> = bytes.iter().map(|byte| STANDARD.encode([*byte; KEY_LENGTH])).collect();
        SealingKeys::parse(lines.join("\n").as_bytes()).unwrap()
    }

    #[test]
    fn any_key_of_the_file_unseals_and_the_first_seals() {
        let old = keys(&[1]).seal(b"secret", "prod").unwrap();
        let rotated = keys(&[2, 1]);
        assert_eq!(rotated.unseal(&old, "prod").unwrap().as_slice(), b"secret");
        let new = rotated.seal(b"secret", "prod").unwrap();
        assert_eq!(keys(&[1]).unseal(&new, "prod"), Err(UnsealError::OtherKey));
        assert!(!old.contains("secret") && old != keys(&[1]).seal(b"secret", "prod").unwrap());
    }

    #[test]
    fn sealed_for_another_purpose_or_damaged_is_rejected() {
        let keys = keys(&[1]);
        let sealed = keys.seal(b"secret", "prod").unwrap();
        assert_eq!(keys.unseal(&sealed, "test"), Err(UnsealError::Damaged));
        let mut bytes = STANDARD.decode(&sealed).unwrap();
        for index in NAME_LENGTH..bytes.len() {
            bytes[index] ^= 1;
            assert_eq!(keys.unseal(&STANDARD.encode(&bytes), "prod"), Err(UnsealError::Damaged), "{index}");
            bytes[index] ^= 1;
        }
        for length in 0..bytes.len() {
            assert!(keys.unseal(&STANDARD.encode(&bytes[..length]), "prod").is_err(), "{length}");
        }
    }

    #[test]
    fn file_without_a_valid_key_is_rejected() {
        let good = STANDARD.encode([1; KEY_LENGTH]);
        assert!(SealingKeys::parse(format!("# comment\n\n {good} # of 2026\n").as_bytes()).is_ok());
        assert_eq!(SealingKeys::parse(b"# none\n").unwrap_err(), SealingKeysError::NoKey);
        for bad in ["x", "AAAA", &STANDARD.encode([1; 31]), &STANDARD.encode([1; 48])] {
            let error = SealingKeys::parse(format!("{good}\n{bad}\n").as_bytes()).unwrap_err();
            assert_eq!(error, SealingKeysError::NotAKey { line: 2 });
        }
        let many = format!("{good}\n").repeat(MAX_KEYS + 1);
        assert_eq!(SealingKeys::parse(many.as_bytes()).unwrap_err(), SealingKeysError::TooMany { line: MAX_KEYS + 1 });
        assert!(!format!("{:?}", keys(&[1])).contains(&good));
    }

    proptest! {
        #[test]
        fn any_text_is_unsealed_without_a_panic(text: String, bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let keys = keys(&[1]);
            prop_assert!(keys.unseal(&text, "prod").is_err());
            prop_assert!(keys.unseal(&STANDARD.encode(bytes), "prod").is_err());
        }
    }
}
