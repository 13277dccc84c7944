//! Encrypted private keys: PKCS#8 EncryptedPrivateKeyInfo (RFC 5958) with PBES2 (RFC 8018), the format of openssl since 1.1.
//! Other encryption schemes are rejected with their name.

use std::fmt;
use std::num::NonZeroU32;

use aws_lc_rs::cipher::{
    AES_128, AES_128_KEY_LEN, AES_192, AES_192_KEY_LEN, AES_256, AES_256_KEY_LEN, AES_CBC_IV_LEN, Algorithm,
    DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::pbkdf2::{self, PBKDF2_HMAC_SHA1, PBKDF2_HMAC_SHA256, PBKDF2_HMAC_SHA384, PBKDF2_HMAC_SHA512, derive};
use rustls::pki_types::PrivateKeyDer;
use x509_parser::asn1_rs::{Any, FromDer as _, Tag};
use zeroize::Zeroizing;

/// An EncryptedPrivateKeyInfo in DER.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct EncryptedKey(Vec<u8>);

/// Never shown; wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Passphrase(Zeroizing<Vec<u8>>);

/// Why an encrypted key cannot be decrypted. The texts reveal nothing about the passphrase.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EncryptedKeyError {
    #[error("holds an encrypted private key that is damaged: {0}; copy the complete file")]
    Malformed(&'static str),
    /// Decryption would delay the start by minutes.
    #[error(
        "holds an encrypted private key with more than {MAX_ITERATIONS} iterations of PBKDF2; convert it with \
         openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW (2048 iterations)"
    )]
    TooManyIterations,
    #[error(
        "holds a private key that is encrypted with {0}, which is not supported; convert it with \
         openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW"
    )]
    Unsupported(String),
    #[error("cannot be decrypted: the passphrase is wrong")]
    WrongPassphrase,
}

/// A passphrase file whose first line is empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("holds no passphrase; put it on the first line")]
pub(crate) struct NoPassphrase;

impl Passphrase {
    /// The first line of a file, without its line end.
    ///
    /// # Errors
    /// If that line is empty.
    pub(crate) fn from_file(bytes: &[u8]) -> Result<Self, NoPassphrase> {
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() { Err(NoPassphrase) } else { Ok(Self(Zeroizing::new(line.to_vec()))) }
    }
}

impl EncryptedKey {
    /// The DER is not checked before [`decrypt`](Self::decrypt).
    pub(crate) fn new(der: Vec<u8>) -> Self {
        Self(der)
    }

    /// # Errors
    /// If the passphrase is wrong, or the key is damaged or uses an unsupported encryption.
    pub(crate) fn decrypt(&self, passphrase: &Passphrase) -> Result<PrivateKeyDer<'static>, EncryptedKeyError> {
        let Pbes2 { kdf, cipher, iv, ciphertext } = Pbes2::parse(&self.0)?;
        let mut key = Zeroizing::new(vec![0; cipher.key_len]);
        derive(kdf.prf, kdf.iterations, kdf.salt, &passphrase.0, &mut key);
        let key = UnboundCipherKey::new(cipher.algorithm, &key).and_then(PaddedBlockDecryptingKey::cbc_pkcs7);
        let key = key.map_err(|_| EncryptedKeyError::Malformed("its cipher cannot be initialised"))?;
        let mut plaintext = Zeroizing::new(ciphertext.to_vec());
        let plaintext = key.decrypt(&mut plaintext, DecryptionContext::Iv128(FixedLength::from(iv)));
        // One wrong passphrase in 256 yields a valid padding, so the plaintext is checked too.
        match plaintext {
            Ok(plaintext) if is_private_key_info(plaintext) => Ok(PrivateKeyDer::Pkcs8(plaintext.to_vec().into())),
            Ok(_) | Err(_) => Err(EncryptedKeyError::WrongPassphrase),
        }
    }
}

impl fmt::Debug for EncryptedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptedKey").finish_non_exhaustive()
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passphrase").finish_non_exhaustive()
    }
}

/// A parsed EncryptedPrivateKeyInfo.
struct Pbes2<'a> {
    kdf: Pbkdf2<'a>,
    cipher: &'static Cipher,
    iv: [u8; AES_CBC_IV_LEN],
    ciphertext: &'a [u8],
}

/// The key derivation function and its parameters.
struct Pbkdf2<'a> {
    prf: pbkdf2::Algorithm,
    salt: &'a [u8],
    iterations: NonZeroU32,
}

/// A PBES2 cipher in CBC mode.
struct Cipher {
    oid: &'static str,
    algorithm: &'static Algorithm,
    key_len: usize,
}

impl<'a> Pbes2<'a> {
    fn parse(der: &'a [u8]) -> Result<Self, EncryptedKeyError> {
        let [scheme, ciphertext] = fields(&whole(der)?)?;
        let parameters = parameters(&scheme, "1.2.840.113549.1.5.13")?;
        let [kdf, cipher] = fields(&parameters)?;
        let (cipher, iv) = encryption(&cipher)?;
        let kdf = Pbkdf2::parse(&kdf, cipher)?;
        let ciphertext = octets(&ciphertext)?;
        if ciphertext.is_empty() || !ciphertext.len().is_multiple_of(cipher.algorithm.block_len()) {
            return Err(EncryptedKeyError::Malformed("its length is not a multiple of the cipher's block size"));
        }
        Ok(Self { kdf, cipher, iv, ciphertext })
    }
}

impl<'a> Pbkdf2<'a> {
    fn parse(algorithm: &Any<'a>, cipher: &Cipher) -> Result<Self, EncryptedKeyError> {
        let mut fields = elements(&parameters(algorithm, "1.2.840.113549.1.5.12")?)?.into_iter();
        let (Some(salt), Some(iterations)) = (fields.next(), fields.next()) else { return Err(NOT_ASN1) };
        if iterations.tag() != Tag::Integer {
            return Err(NOT_ASN1);
        }
        let iterations = iterations.as_u32().ok().filter(|iterations| *iterations <= MAX_ITERATIONS);
        let iterations = iterations.ok_or(EncryptedKeyError::TooManyIterations)?;
        // keyLength and prf are optional; the default prf is HMAC-SHA-1.
        let mut prf = PBKDF2_HMAC_SHA1;
        for field in fields {
            match field.tag() {
                Tag::Integer
                    if field.as_u32().ok().and_then(|len| usize::try_from(len).ok()) == Some(cipher.key_len) => {}
                Tag::Sequence => prf = pseudo_random_function(&field)?,
                _ => return Err(NOT_ASN1),
            }
        }
        Ok(Self { prf, salt: octets(&salt)?, iterations: NonZeroU32::new(iterations).ok_or(NOT_ASN1)? })
    }
}

fn pseudo_random_function(algorithm: &Any<'_>) -> Result<pbkdf2::Algorithm, EncryptedKeyError> {
    let (oid, _) = algorithm_identifier(algorithm)?;
    match oid.as_str() {
        "1.2.840.113549.2.7" => Ok(PBKDF2_HMAC_SHA1),
        "1.2.840.113549.2.9" => Ok(PBKDF2_HMAC_SHA256),
        "1.2.840.113549.2.10" => Ok(PBKDF2_HMAC_SHA384),
        "1.2.840.113549.2.11" => Ok(PBKDF2_HMAC_SHA512),
        _ => Err(unsupported(&oid)),
    }
}

fn encryption(algorithm: &Any<'_>) -> Result<(&'static Cipher, [u8; AES_CBC_IV_LEN]), EncryptedKeyError> {
    let (oid, parameters) = algorithm_identifier(algorithm)?;
    let cipher = CIPHERS.iter().find(|cipher| cipher.oid == oid).ok_or_else(|| unsupported(&oid))?;
    let iv = octets(&parameters.ok_or(NOT_ASN1)?)?;
    Ok((cipher, iv.try_into().map_err(|_| NOT_ASN1)?))
}

/// The parameters of an algorithm, which must have the expected object identifier.
fn parameters<'a>(algorithm: &Any<'a>, expected: &str) -> Result<Any<'a>, EncryptedKeyError> {
    match algorithm_identifier(algorithm)? {
        (oid, Some(parameters)) if oid == expected => Ok(parameters),
        (oid, None) if oid == expected => Err(NOT_ASN1),
        (other, _) => Err(unsupported(&other)),
    }
}

/// The object identifier and the parameters of an algorithm.
fn algorithm_identifier<'a>(algorithm: &Any<'a>) -> Result<(String, Option<Any<'a>>), EncryptedKeyError> {
    let mut elements = elements(algorithm)?.into_iter();
    let oid = elements.next().and_then(|oid| oid.oid().ok()).ok_or(NOT_ASN1)?;
    Ok((oid.to_id_string(), elements.next()))
}

/// Uses the common name of an algorithm if it is known.
fn unsupported(oid: &str) -> EncryptedKeyError {
    let known = FOREIGN.iter().find(|(foreign, _)| *foreign == oid).map(|(_, name)| (*name).to_owned());
    EncryptedKeyError::Unsupported(known.unwrap_or_else(|| format!("the algorithm {oid}")))
}

fn is_private_key_info(der: &[u8]) -> bool {
    let elements = whole(der).and_then(|info| elements(&info)).unwrap_or_default();
    let tags: Vec<_> = elements.iter().map(Any::tag).take(3).collect();
    tags == [Tag::Integer, Tag::Sequence, Tag::OctetString]
}

/// The only element of the bytes.
fn whole(der: &[u8]) -> Result<Any<'_>, EncryptedKeyError> {
    match Any::from_der(der) {
        Ok(([], element)) => Ok(element),
        Ok(_) | Err(_) => Err(NOT_ASN1),
    }
}

/// The elements of a SEQUENCE that has exactly `N`.
fn fields<'a, const N: usize>(sequence: &Any<'a>) -> Result<[Any<'a>; N], EncryptedKeyError> {
    elements(sequence)?.try_into().map_err(|_| NOT_ASN1)
}

fn elements<'a>(sequence: &Any<'a>) -> Result<Vec<Any<'a>>, EncryptedKeyError> {
    if sequence.tag() != Tag::Sequence {
        return Err(NOT_ASN1);
    }
    let (mut elements, mut rest) = (Vec::new(), sequence.data);
    while !rest.is_empty() {
        let (after, element) = Any::from_der(rest).map_err(|_| NOT_ASN1)?;
        elements.push(element);
        rest = after;
    }
    Ok(elements)
}

fn octets<'a>(element: &Any<'a>) -> Result<&'a [u8], EncryptedKeyError> {
    if element.tag() == Tag::OctetString { Ok(element.data) } else { Err(NOT_ASN1) }
}

const NOT_ASN1: EncryptedKeyError = EncryptedKeyError::Malformed("it is not an EncryptedPrivateKeyInfo");

/// Takes some seconds of one core, at each reload that reads the key. The default of openssl is 2048.
const MAX_ITERATIONS: u32 = 10_000_000;

const CIPHERS: [Cipher; 3] = [
    Cipher { oid: "2.16.840.1.101.3.4.1.2", algorithm: &AES_128, key_len: AES_128_KEY_LEN },
    Cipher { oid: "2.16.840.1.101.3.4.1.22", algorithm: &AES_192, key_len: AES_192_KEY_LEN },
    Cipher { oid: "2.16.840.1.101.3.4.1.42", algorithm: &AES_256, key_len: AES_256_KEY_LEN },
];

/// Names of unsupported algorithms that other or older programs use.
const FOREIGN: [(&str, &str); 7] = [
    ("1.3.6.1.4.1.11591.4.11", "scrypt"),
    ("1.2.840.113549.3.7", "3DES (des-ede3-cbc)"),
    ("1.2.840.113549.1.12.1.3", "3DES (pbeWithSHA1And3-KeyTripleDES-CBC)"),
    ("1.2.840.113549.1.5.3", "DES (pbeWithMD5AndDES-CBC)"),
    ("1.2.840.113549.1.5.10", "DES (pbeWithSHA1AndDES-CBC)"),
    ("1.2.840.113549.2.8", "hmacWithSHA224"),
    ("2.16.840.1.101.3.4.1.46", "AES-256-GCM"),
];

#[cfg(test)]
mod tests {
    use aws_lc_rs::cipher::PaddedBlockEncryptingKey;
    use proptest::prelude::*;
    use rcgen::KeyPair;

    use super::*;

    const PBES2: &str = "1.2.840.113549.1.5.13";
    const PBKDF2: &str = "1.2.840.113549.1.5.12";
    const SHA256: &str = "1.2.840.113549.2.9";
    const AES_256_CBC: &str = "2.16.840.1.101.3.4.1.42";

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        let head = match length {
            [0, short @ ..0x80] => vec![tag, short],
            [0, long] => vec![tag, 0x81, long],
            [high, low] => vec![tag, 0x82, high, low],
        };
        [head.as_slice(), content].concat()
    }

    fn sequence(elements: &[Vec<u8>]) -> Vec<u8> {
        element(0x30, &elements.concat())
    }

    fn oid(text: &str) -> Vec<u8> {
        let oid: x509_parser::asn1_rs::Oid<'_> = text.parse().unwrap();
        element(6, oid.as_bytes())
    }

    fn integer(number: u64) -> Vec<u8> {
        let bytes = number.to_be_bytes();
        let leading = bytes.iter().take_while(|byte| **byte == 0).count().min(7);
        let sign: &[u8] = if bytes[leading] >= 0x80 { &[0] } else { &[] };
        element(2, &[sign, &bytes[leading..]].concat())
    }

    fn prf(name: &str) -> Vec<u8> {
        sequence(&[oid(name), vec![5, 0]])
    }

    /// An encrypted key by these algorithms, with this behind the salt.
    fn encrypted([scheme, kdf, cipher]: [&str; 3], behind_the_salt: &[Vec<u8>], ciphertext: &[u8]) -> EncryptedKey {
        let salt = element(4, b"saltsalt");
        let kdf = sequence(&[oid(kdf), sequence(&[&[salt], behind_the_salt].concat())]);
        let cipher = sequence(&[oid(cipher), element(4, &[7; 16])]);
        let scheme = sequence(&[oid(scheme), sequence(&[kdf, cipher])]);
        EncryptedKey(sequence(&[scheme, element(4, ciphertext)]))
    }

    fn usual(iterations: u64, ciphertext: &[u8]) -> EncryptedKey {
        encrypted([PBES2, PBKDF2, AES_256_CBC], &[integer(iterations), prf(SHA256)], ciphertext)
    }

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::from_file(text.as_bytes()).unwrap()
    }

    /// What `usual(7, …)` holds when its passphrase is "right".
    fn seal(plaintext: &[u8]) -> Vec<u8> {
        let mut key = [0; 32];
        derive(PBKDF2_HMAC_SHA256, NonZeroU32::new(7).unwrap(), b"saltsalt", b"right", &mut key);
        let key = UnboundCipherKey::new(&AES_256, &key).unwrap();
        let mut bytes = plaintext.to_vec();
        let iv = aws_lc_rs::cipher::EncryptionContext::Iv128(FixedLength::from([7; 16]));
        PaddedBlockEncryptingKey::cbc_pkcs7(key).unwrap().less_safe_encrypt(&mut bytes, iv).unwrap();
        bytes
    }

    #[test]
    fn encrypted_key_with_wrong_passphrase_is_rejected() {
        let plain = KeyPair::generate().unwrap().serialize_der();
        let key = usual(7, &seal(&plain));
        assert_eq!(key.decrypt(&passphrase("right")).unwrap().secret_der(), plain);
        // Enough to get some valid paddings.
        for number in 0..1000 {
            let wrong = passphrase(&format!("wrong {number}"));
            assert_eq!(key.decrypt(&wrong), Err(EncryptedKeyError::WrongPassphrase));
        }
        // Decrypts correctly, but is not a key.
        assert_eq!(usual(7, &seal(b"hello")).decrypt(&passphrase("right")), Err(EncryptedKeyError::WrongPassphrase));
    }

    #[test]
    fn encrypted_key_with_too_many_iterations_is_rejected() {
        let decrypt = |iterations| usual(iterations, &[0; 16]).decrypt(&passphrase("x")).unwrap_err();
        assert_eq!(decrypt(1), EncryptedKeyError::WrongPassphrase);
        for many in [10_000_001, u64::from(u32::MAX), u64::from(u32::MAX) + 1, u64::MAX] {
            assert_eq!(decrypt(many), EncryptedKeyError::TooManyIterations, "{many}");
        }
        assert_eq!(decrypt(0), NOT_ASN1);
    }

    #[test]
    fn unsupported_encryption_is_reported_by_name() {
        let refusal = |algorithms, function| {
            let behind = [integer(1), prf(function)];
            encrypted(algorithms, &behind, &[0; 16]).decrypt(&passphrase("x")).unwrap_err().to_string()
        };
        for (algorithms, function, name) in [
            ([PBES2, "1.3.6.1.4.1.11591.4.11", AES_256_CBC], SHA256, "scrypt"),
            ([PBES2, PBKDF2, "1.2.840.113549.3.7"], SHA256, "3DES"),
            (["1.2.840.113549.1.5.3", PBKDF2, AES_256_CBC], SHA256, "pbeWithMD5AndDES-CBC"),
            ([PBES2, PBKDF2, AES_256_CBC], "1.2.840.113549.2.8", "hmacWithSHA224"),
            ([PBES2, PBKDF2, "1.2.3.4"], SHA256, "1.2.3.4"),
        ] {
            let error = refusal(algorithms, function);
            assert!(error.contains(name) && error.contains("openssl pkcs8"), "{error}");
        }
    }

    #[test]
    fn damaged_key_is_not_reported_as_wrong_passphrase() {
        let algorithms = [PBES2, PBKDF2, AES_256_CBC];
        let damaged = |key: &EncryptedKey| {
            let error = key.decrypt(&passphrase("x")).unwrap_err();
            assert!(matches!(error, EncryptedKeyError::Malformed(_)), "{error}");
        };
        damaged(&usual(1, &[0; 15]));
        damaged(&usual(1, &[]));
        damaged(&encrypted(algorithms, &[], &[0; 16]));
        damaged(&encrypted(algorithms, &[element(4, b"no number")], &[0; 16]));
        damaged(&encrypted(algorithms, &[integer(1), integer(16)], &[0; 16]));
        let whole = usual(1, &[0; 16]).0;
        for cut in 0..whole.len() {
            damaged(&EncryptedKey(whole[..cut].to_vec()));
        }
        damaged(&EncryptedKey([whole, vec![0]].concat()));
        // An explicit key length that fits the cipher is accepted.
        let explicit = encrypted(algorithms, &[integer(1), integer(32), prf(SHA256)], &[0; 16]);
        assert_eq!(explicit.decrypt(&passphrase("x")), Err(EncryptedKeyError::WrongPassphrase));
    }

    proptest! {
        #[test]
        fn altered_key_is_rejected_without_panic(place in 0_usize..200, byte: u8) {
            let mut der = usual(1, &[0; 32]).0;
            let place = place % der.len();
            der[place] = byte;
            // A large number of iterations would only be slow.
            prop_assume!(!matches!(Pbes2::parse(&der), Ok(Pbes2 { kdf, .. }) if kdf.iterations.get() > 1000));
            prop_assert!(EncryptedKey(der).decrypt(&passphrase("x")).is_err());
        }
    }

    #[test]
    fn passphrase_is_the_first_line_of_its_file() {
        for file in ["a b ", "a b \n", "a b \r\n", "a b \nsecond line\n"] {
            assert_eq!(*passphrase(file).0, b"a b ", "{file:?}");
        }
        for file in ["", "\n", "\r\n", "\nsecond line"] {
            assert_eq!(Passphrase::from_file(file.as_bytes()), Err(NoPassphrase), "{file:?}");
        }
        assert!(!format!("{:?}{:?}", passphrase("hunter2"), usual(1, b"x")).contains("hunter2"));
    }
}
