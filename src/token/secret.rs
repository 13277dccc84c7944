//! The text of a token: `pcl_`, 32 random bytes, and a checksum.
//!
//! The form is that of GitHub's tokens. Secret scanners find it by its prefix, and the checksum tells a token from a text that
//! only looks like one. The server does not verify the checksum: any text whose SHA-256 is configured is a token.

use std::fmt;

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand;
use zeroize::Zeroizing;

use crate::token::TokenDigest;

/// The text of a token that has just been generated. Wiped from memory when it is dropped.
pub(crate) struct TokenSecret(Zeroizing<String>);

impl TokenSecret {
    /// # Errors
    /// When the system has no random bytes.
    pub(crate) fn generate() -> Result<Self, Unspecified> {
        let mut random = Zeroizing::new([0; RANDOM_BYTES]);
        rand::fill(random.as_mut())?;
        Ok(Self::from_random(&random))
    }

    fn from_random(random: &[u8; RANDOM_BYTES]) -> Self {
        // Reserved in full: a string that grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(LENGTH));
        text.push_str(PREFIX);
        push_base62::<RANDOM_DIGITS>(&mut text, random);
        let checksum = crc32(text.as_bytes());
        push_base62::<CHECKSUM_DIGITS>(&mut text, &checksum.to_be_bytes());
        Self(text)
    }

    /// The text, to be shown to its user once.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    pub(crate) fn digest(&self) -> TokenDigest {
        TokenDigest::of(self.0.as_bytes())
    }
}

/// Without the text.
impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret")
    }
}

/// The start of every generated token.
pub(crate) const PREFIX: &str = "pcl_";

const RANDOM_BYTES: usize = 32;

/// 62⁴³ > 2²⁵⁶ and 62⁶ > 2³², so the digits hold every value.
const RANDOM_DIGITS: usize = 43;
const CHECKSUM_DIGITS: usize = 6;

const LENGTH: usize = PREFIX.len() + RANDOM_DIGITS + CHECKSUM_DIGITS;

/// GitHub's alphabet.
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Appends a big-endian number as base62 with leading zeros.
fn push_base62<const LEN: usize>(text: &mut String, number: &[u8]) {
    let mut number = Zeroizing::new(number.to_vec());
    let mut digits = Zeroizing::new([b'0'; LEN]);
    for digit in digits.iter_mut().rev() {
        let remainder = divide(&mut number, 62);
        *digit = DIGITS.get(usize::from(remainder)).copied().unwrap_or(b'0');
    }
    text.extend(digits.iter().map(|digit| char::from(*digit)));
}

/// Divides a big-endian number in place and returns the remainder.
fn divide(number: &mut [u8], divisor: u8) -> u8 {
    let divisor = u16::from(divisor);
    number.iter_mut().fold(0, |remainder, byte| {
        let dividend = u16::from_be_bytes([remainder, *byte]);
        // The remainder is less than the divisor, so quotient and new remainder fit into a byte.
        let [_, quotient] = (dividend / divisor).to_be_bytes();
        let [_, remainder] = (dividend % divisor).to_be_bytes();
        *byte = quotient;
        remainder
    })
}

/// CRC-32 as in gzip and PNG (ISO 3309, reflected). Bit by bit: a token is short, and is generated once.
fn crc32(bytes: &[u8]) -> u32 {
    let shifted = |sum: u32| (sum >> 1) ^ if sum & 1 == 0 { 0 } else { 0xedb8_8320 };
    !bytes.iter().fold(u32::MAX, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| shifted(sum)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::token::authenticate::bearer;

    fn base62<const LEN: usize>(number: &[u8]) -> String {
        let mut text = String::new();
        push_base62::<LEN>(&mut text, number);
        text
    }

    /// Reads base62 back as a big-endian number of `LEN` bytes.
    fn decoded<const LEN: usize>(text: &str) -> [u8; LEN] {
        let mut number = [0; LEN];
        for digit in text.bytes() {
            let mut carry = DIGITS.iter().position(|known| *known == digit).expect("a digit");
            for byte in number.iter_mut().rev() {
                carry += usize::from(*byte) * 62;
                *byte = u8::try_from(carry % 256).unwrap();
                carry /= 256;
            }
            assert_eq!(carry, 0, "{text} is too large");
        }
        number
    }

    #[test]
    fn checksum_has_the_published_values() {
        assert_eq!(crc32(b""), 0);
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(&[0; 32]), 0x190a_55ad);
    }

    #[test]
    fn base62_holds_the_smallest_and_largest_values() {
        assert_eq!(base62::<6>(&0_u32.to_be_bytes()), "000000");
        assert_eq!(base62::<6>(&61_u32.to_be_bytes()), "00000z");
        assert_eq!(base62::<6>(&62_u32.to_be_bytes()), "000010");
        assert_eq!(base62::<6>(&u32::MAX.to_be_bytes()), "4gfFC3");
        assert_eq!(decoded::<32>(&base62::<RANDOM_DIGITS>(&[u8::MAX; 32])), [u8::MAX; 32]);
    }

    #[test]
    fn generated_tokens_differ_and_have_one_form() {
        let tokens = [(); 50].map(|()| TokenSecret::generate().unwrap());
        let texts: std::collections::BTreeSet<_> = tokens.iter().map(TokenSecret::reveal).collect();
        assert_eq!(texts.len(), 50);
        for text in texts {
            assert_eq!(text.len(), LENGTH);
            let (rest, checksum) = text.split_at(LENGTH - CHECKSUM_DIGITS);
            assert!(rest.starts_with("pcl_"), "{rest}");
            assert_eq!(decoded::<4>(checksum), crc32(rest.as_bytes()).to_be_bytes());
        }
    }

    #[test]
    fn debug_form_of_a_secret_has_no_part_of_it() {
        let secret = TokenSecret::generate().unwrap();
        assert_eq!(format!("{secret:?}"), "TokenSecret");
        assert_eq!(secret.digest(), TokenDigest::of(secret.reveal().as_bytes()));
    }

    proptest! {
        #[test]
        fn random_bytes_can_be_read_back_from_the_token(random: [u8; RANDOM_BYTES]) {
            let secret = TokenSecret::from_random(&random);
            let digits = &secret.reveal()[PREFIX.len()..LENGTH - CHECKSUM_DIGITS];
            prop_assert_eq!(decoded::<RANDOM_BYTES>(digits), random);
        }

        #[test]
        fn every_token_can_be_sent_as_a_bearer_token(random: [u8; RANDOM_BYTES]) {
            let secret = TokenSecret::from_random(&random);
            let header = format!("Bearer {}", secret.reveal());
            prop_assert_eq!(bearer(header.as_bytes()), Some(secret.reveal().as_bytes()));
        }

        #[test]
        fn checksum_detects_every_changed_character(
            random: [u8; RANDOM_BYTES],
            at in PREFIX.len()..LENGTH - CHECKSUM_DIGITS,
            digit in 0..62_usize,
        ) {
            let secret = TokenSecret::from_random(&random);
            let (rest, checksum) = secret.reveal().split_at(LENGTH - CHECKSUM_DIGITS);
            let mut changed = rest.as_bytes().to_vec();
            changed[at] = DIGITS[digit];
            prop_assume!(changed != rest.as_bytes());
            prop_assert_ne!(crc32(&changed).to_be_bytes(), decoded::<4>(checksum));
        }
    }
}
