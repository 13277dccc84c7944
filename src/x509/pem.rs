//! PEM files. Every block must be valid: a truncated file is an error, not a shorter list.

use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _, SectionKind};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use crate::x509::encrypted_key::EncryptedKey;

/// Why a PEM file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    #[error("is DER; PEM is required; convert it with openssl x509 -inform DER or openssl pkey -inform DER")]
    Der,
    #[error("is PKCS#12; PEM is required; convert it with openssl pkcs12 -in FILE -clcerts -nokeys")]
    Pkcs12,
    #[error("is empty or not completely written; copy the complete file")]
    Empty,
    #[error("holds a private key that is protected by a passphrase; decrypt it with openssl pkey -in OLD -out NEW")]
    EncryptedKey,
    #[error("PEM block {block} is malformed: {cause}")]
    Malformed {
        /// From 1.
        block: usize,
        cause: String,
    },
    /// The parser found fewer blocks of a type than there are BEGIN lines.
    #[error("has {written} BEGIN {label} lines, but only {read} of these blocks could be read; repair the file")]
    Lost { label: &'static str, written: usize, read: usize },
    /// The encryption derives its key from the passphrase with one round of MD5, which is insecure.
    #[error(
        "holds a private key in OpenSSL's old encryption (Proc-Type: 4,ENCRYPTED), which is not supported; convert it with \
         openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW"
    )]
    LegacyEncryption,
    #[error("holds no certificate (no BEGIN CERTIFICATE line); use a PEM file with a certificate")]
    NoCertificate,
    #[error("holds a private key, which clients must not receive; remove it from the file")]
    PrivateKeyInBundle,
    #[error("holds no private key; use a PEM file with a key in PKCS#8, PKCS#1 or SEC1")]
    NoPrivateKey,
    /// A key of an unsupported type or format.
    #[error("holds {0}")]
    ForeignKey(&'static str),
    #[error("holds no certificate revocation list (no BEGIN X509 CRL line); use a CRL in PEM or DER")]
    NoRevocationList,
}

/// All certificates of a PEM file, in order. Text between blocks and blocks of other types are ignored.
///
/// # Errors
/// If a block is malformed or truncated, or there is no certificate.
pub(crate) fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    if is_pkcs12(bytes) {
        return Err(PemError::Pkcs12);
    }
    let certificates: Vec<_> = blocks(bytes, SectionKind::Certificate)?.map(CertificateDer::from).collect();
    if certificates.is_empty() { Err(PemError::NoCertificate) } else { Ok(certificates) }
}

/// The text of a PEM file that is given to clients.
///
/// # Errors
/// The same as of [`certificates`], and if the file holds a private key.
pub(crate) fn public_certificates(bytes: &[u8]) -> Result<Arc<[u8]>, PemError> {
    certificates(bytes)?;
    if count_private_keys(bytes) > 0 { Err(PemError::PrivateKeyInBundle) } else { Ok(bytes.into()) }
}

/// All certificate revocation lists of a PEM file; see [`certificates`].
///
/// # Errors
/// If a block is malformed or truncated, or there is no list.
pub(crate) fn revocation_lists(bytes: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, PemError> {
    let lists: Vec<_> = blocks(bytes, SectionKind::Crl)?.map(CertificateRevocationListDer::from).collect();
    if lists.is_empty() { Err(PemError::NoRevocationList) } else { Ok(lists) }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StoredKey {
    Plain(PrivateKeyDer<'static>),
    /// Needs a passphrase.
    Encrypted(EncryptedKey),
}

/// The first private key of a PEM file.
///
/// # Errors
/// If a block is malformed or truncated, the key uses an insecure encryption, or there is none.
pub(crate) fn stored_key(bytes: &[u8]) -> Result<StoredKey, PemError> {
    let sections = sections(bytes)?;
    let first = labels(bytes)?.into_iter().enumerate().find(|(_, label)| label.ends_with(PRIVATE_KEY));
    if let Some((index, ENCRYPTED_PRIVATE_KEY)) = first {
        return encrypted_key(bytes, index + 1).map(StoredKey::Encrypted);
    }
    let key = sections.into_iter().find_map(|(kind, der)| PrivateKeyDer::from_pem(kind, der));
    key.map(StoredKey::Plain).ok_or_else(|| {
        let labels = labels(bytes).unwrap_or_default();
        let foreign = FOREIGN_KEYS.iter().find(|(label, _)| labels.contains(label));
        foreign.map_or(PemError::NoPrivateKey, |(_, description)| PemError::ForeignKey(description))
    })
}

/// The first private key of a PEM file, which must not be encrypted.
///
/// # Errors
/// If a block is malformed or truncated, the key is encrypted, or there is none.
pub(crate) fn private_key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    match stored_key(bytes)? {
        StoredKey::Plain(key) => Ok(key),
        StoredKey::Encrypted(_) => Err(PemError::EncryptedKey),
    }
}

/// Whether a text mentions a private key, even if it is not valid PEM.
pub(crate) fn mentions_private_key(bytes: &[u8]) -> bool {
    find(bytes, PRIVATE_KEY).is_some()
}

/// Removes certificates from a PEM file. All other bytes stay as they are.
///
/// # Errors
/// The same as of [`certificates`].
pub(crate) fn remove_certificates(
    bytes: &[u8],
    is_removed: impl Fn(&CertificateDer<'_>) -> bool,
) -> Result<Vec<u8>, PemError> {
    let mut all = certificates(bytes)?.into_iter();
    let (mut kept, mut is_inside, mut is_after_end) = (Vec::with_capacity(bytes.len()), false, false);
    // Each block was read before, so every BEGIN line has its END line.
    for line in bytes.split_inclusive(|byte| b"\r\n".contains(byte)) {
        let text = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        if text.starts_with(BEGIN_CERTIFICATE) {
            is_inside = all.next().is_some_and(|der| is_removed(&der));
            if is_inside && text.len() < line.len() {
                kept.extend_from_slice(BYTE_ORDER_MARK);
            }
        }
        // The second byte of the line break after a removed block.
        let is_break = is_after_end && line == b"\n";
        if !is_inside && !is_break {
            kept.extend_from_slice(line);
        }
        is_after_end = is_inside && text.starts_with(END_CERTIFICATE);
        is_inside &= !is_after_end;
    }
    Ok(kept)
}

/// The number of private keys in a PEM file, including unusable ones.
pub(crate) fn count_private_keys(bytes: &[u8]) -> usize {
    labels(bytes).unwrap_or_default().iter().filter(|label| label.ends_with(PRIVATE_KEY)).count()
}

/// The contents of all blocks of one type.
fn blocks(bytes: &[u8], wanted: SectionKind) -> Result<impl Iterator<Item = Vec<u8>>, PemError> {
    let sections = sections(bytes)?.into_iter();
    Ok(sections.filter(move |(kind, _)| *kind == wanted).map(|(_, der)| der))
}

fn sections(bytes: &[u8]) -> Result<Vec<(SectionKind, Vec<u8>)>, PemError> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    if bytes.trim_ascii().is_empty() {
        return Err(PemError::Empty);
    }
    if bytes.starts_with(DER_SEQUENCE) {
        return Err(PemError::Der);
    }
    let labels = labels(bytes)?;
    let mut sections = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes) {
        let block = sections.len() + 1;
        sections.push(section.map_err(|error| match error {
            // The parser treats its headers as content.
            pem::Error::Base64Decode(_) if find(bytes, LEGACY_ENCRYPTION).is_some() => PemError::LegacyEncryption,
            error => PemError::Malformed { block, cause: cause(&error) },
        })?);
    }
    for (kind, label) in COUNTED {
        let written = labels.iter().filter(|written| **written == label.as_bytes()).count();
        let read = sections.iter().filter(|(read, _)| *read == kind).count();
        if written != read {
            return Err(PemError::Lost { label, written, read });
        }
    }
    Ok(sections)
}

/// The labels of all blocks. Stricter than the parser, which skips malformed blocks: no certificate and no revocation list may
/// be skipped.
fn labels(bytes: &[u8]) -> Result<Vec<&[u8]>, PemError> {
    let mut labels = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n' || *byte == b'\r') {
        let block = labels.len() + 1;
        let malformed = |cause: &str| PemError::Malformed { block, cause: cause.to_owned() };
        let begins = line.windows(BEGIN.len()).position(|window| window == BEGIN);
        match begins {
            Some(0) => {
                let label = line.strip_prefix(BEGIN).and_then(|rest| rest.trim_ascii_end().strip_suffix(b"-----"));
                let label = label
                    .ok_or_else(|| malformed("its BEGIN line is malformed or truncated; copy the complete file"))?;
                if let Some((_, cause)) = FOREIGN.iter().find(|(foreign, _)| *foreign == label) {
                    return Err(malformed(cause));
                }
                labels.push(label);
            }
            Some(_) => {
                return Err(malformed(
                    "its BEGIN is not at the start of a line; insert a line break between joined files",
                ));
            }
            None if !line.is_empty() && BEGIN.starts_with(line) => {
                return Err(malformed("its BEGIN line is truncated; copy the complete file"));
            }
            None => {}
        }
    }
    Ok(labels)
}

/// The text contains nothing of the file, which may hold a key.
fn cause(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => {
            "its END line is missing (truncated file); copy the complete file".to_owned()
        }
        pem::Error::IllegalSectionStart { .. } => "its BEGIN line is malformed".to_owned(),
        pem::Error::Base64Decode(_) => "its content is not base64".to_owned(),
        _ => "it cannot be read".to_owned(),
    }
}

/// The first encrypted key. `rustls::pki_types` skips its block.
fn encrypted_key(bytes: &[u8], block: usize) -> Result<EncryptedKey, PemError> {
    let begin = [BEGIN, ENCRYPTED_PRIVATE_KEY].concat();
    let text = find(bytes, &begin).and_then(|start| bytes.get(start..)).unwrap_or_default();
    let key = ::pem::parse(text).map_err(|_| PemError::Malformed { block, cause: "it cannot be read".to_owned() })?;
    Ok(EncryptedKey::new(key.into_contents()))
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

/// Whether the bytes begin like a PFX (RFC 7292 §4): a sequence that starts with the version 3.
fn is_pkcs12(bytes: &[u8]) -> bool {
    let [0x30, length, rest @ ..] = bytes else { return false };
    // The long form has the number of its bytes; 0x80 is the indefinite form.
    let further = if length & 0x80 == 0 { 0 } else { usize::from(length & 0x7f) };
    rest.get(further..).is_some_and(|content| content.starts_with(b"\x02\x01\x03"))
}

/// An ASN.1 sequence with a two-byte length: the first bytes of certificates and keys in DER.
const DER_SEQUENCE: &[u8] = b"\x30\x82";

const BEGIN: &[u8] = b"-----BEGIN ";
const BEGIN_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";
const END_CERTIFICATE: &[u8] = b"-----END CERTIFICATE-----";

/// The end of the label of every private key.
const PRIVATE_KEY: &[u8] = b"PRIVATE KEY";
const ENCRYPTED_PRIVATE_KEY: &[u8] = b"ENCRYPTED PRIVATE KEY";
const LEGACY_ENCRYPTION: &[u8] = b"Proc-Type: 4,ENCRYPTED";

/// Some editors write it at the start of text files.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Block types that must not be skipped: without a certificate, a valid client would be rejected; without a revocation list,
/// a revoked one would be admitted.
const COUNTED: [(SectionKind, &str); 2] = [(SectionKind::Certificate, "CERTIFICATE"), (SectionKind::Crl, "X509 CRL")];

/// Labels that the parser would skip, with the error. Only OpenSSL uses the first two; the last is a rare spelling.
const FOREIGN: [(&[u8], &str); 3] = [
    (b"X509 CERTIFICATE", FOREIGN_CERTIFICATE),
    (b"TRUSTED CERTIFICATE", FOREIGN_CERTIFICATE),
    (b"CRL", "its BEGIN and END lines read CRL; change them to X509 CRL"),
];

/// Labels of keys that are not supported.
const FOREIGN_KEYS: [(&[u8], &str); 2] = [
    (
        b"DSA PRIVATE KEY",
        "a DSA key, which is not supported; use RSA of 2048 to 8192 bits, EC on P-256, P-384 or P-521, or Ed25519",
    ),
    (
        b"OPENSSH PRIVATE KEY",
        "a key in OpenSSH format, which is not supported; convert a copy with ssh-keygen -p -m PKCS8 -f COPY",
    ),
];

const FOREIGN_CERTIFICATE: &str =
    "it is a certificate in another format than BEGIN CERTIFICATE; convert it with openssl x509";

#[cfg(test)]
mod tests {
    use super::*;

    /// Not a real certificate; this module does not parse the content.
    const BLOCK: &str = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n";

    fn count(text: &str) -> Result<usize, PemError> {
        certificates(text.as_bytes()).map(|list| list.len())
    }

    /// The same for a revocation list.
    const LIST: &str = "-----BEGIN X509 CRL-----\nAAEC\n-----END X509 CRL-----\n";

    fn count_lists(text: &str) -> Result<usize, PemError> {
        revocation_lists(text.as_bytes()).map(|list| list.len())
    }

    #[test]
    fn every_certificate_of_a_bundle_is_read() {
        assert_eq!(count(&BLOCK.repeat(4)), Ok(4));
        let decorated = format!(
            "# root\r\nBag Attributes\r\n    friendlyName: x\r\n{}\r\n\r\n{BLOCK}trailing words",
            BLOCK.replace('\n', "\r\n")
        );
        assert_eq!(count(&decorated), Ok(2));
    }

    #[test]
    fn removed_certificate_leaves_all_other_bytes() {
        let other = BLOCK.replace("AAEC", "AwQF");
        let is_first = |der: &CertificateDer<'_>| **der == [0, 1, 2];
        let without = |text: &str| String::from_utf8(remove_certificates(text.as_bytes(), is_first).unwrap()).unwrap();
        assert_eq!(without(&format!("# a\n{BLOCK}# b\r\n{other}tail")), format!("# a\n# b\r\n{other}tail"));
        assert_eq!(without(&format!("{other}{BLOCK}{LIST}{BLOCK}")), format!("{other}{LIST}"));
        assert_eq!(without(&format!("{BLOCK}{other}").replace('\n', "\r\n")), other.replace('\n', "\r\n"));
        assert_eq!(without(&format!("\u{feff}{BLOCK}{other}")), format!("\u{feff}{other}"));
        assert_eq!(without(&format!("{other}{}", BLOCK.trim_end())), other);
        assert_eq!(without(&other), other);
    }

    #[test]
    fn truncated_file_is_rejected_except_between_two_blocks() {
        let whole = BLOCK.repeat(2);
        for cut in 1..whole.len() {
            let between =
                [0, 1].map(|blocks| BLOCK.len() * (1 + blocks) - 1).iter().any(|end| (*end..=end + 1).contains(&cut));
            assert_eq!(count(&whole[..cut]).is_ok(), between, "cut at {cut}: {:?}", &whole[..cut]);
        }
    }

    #[test]
    fn malformed_certificate_block_is_rejected_instead_of_skipped() {
        assert_eq!(count(&format!("\u{feff}{BLOCK}{BLOCK}")), Ok(2));
        let joined = format!("{}{BLOCK}", BLOCK.trim_end());
        assert!(matches!(count(&joined), Err(PemError::Malformed { block: 2, .. })), "{:?}", count(&joined));
        for kind in ["X509 CERTIFICATE", "TRUSTED CERTIFICATE"] {
            let foreign = format!("{BLOCK}{}", BLOCK.replace("CERTIFICATE", kind));
            assert!(matches!(count(&foreign), Err(PemError::Malformed { block: 2, .. })), "{kind}");
        }
        let parameters = "-----BEGIN EC PARAMETERS-----\nAAEC\n-----END EC PARAMETERS-----\n";
        assert_eq!(count(&format!("{parameters}{BLOCK}")), Ok(1));
    }

    #[test]
    fn malformed_revocation_list_block_is_rejected_instead_of_skipped() {
        assert_eq!(count_lists(&format!("{LIST}{BLOCK}some words\n{LIST}")), Ok(2));
        assert_eq!(count(&format!("{LIST}{BLOCK}")), Ok(1));
        assert_eq!(count_lists(""), Err(PemError::Empty));
        assert_eq!(count_lists(BLOCK), Err(PemError::NoRevocationList));
        let joined = format!("{}{LIST}", LIST.trim_end());
        let foreign = format!("{LIST}{}", LIST.replace("X509 CRL", "CRL"));
        for text in [joined, foreign] {
            assert!(matches!(count_lists(&text), Err(PemError::Malformed { block: 2, .. })), "{text}");
        }
        let begun_twice = format!("-----BEGIN X509 CRL-----\n{LIST}");
        assert_eq!(count_lists(&begun_twice), Err(PemError::Lost { label: "X509 CRL", written: 2, read: 1 }));
    }

    #[test]
    fn empty_files_and_files_without_blocks_have_different_errors() {
        assert_eq!(count(""), Err(PemError::Empty));
        assert_eq!(count("\n \n"), Err(PemError::Empty));
        assert_eq!(count("hello"), Err(PemError::NoCertificate));
        assert_eq!(private_key(BLOCK.as_bytes()), Err(PemError::NoPrivateKey));
    }

    #[test]
    fn pkcs12_is_named() {
        for bytes in [&b"\x30\x03\x02\x01\x03"[..], b"\x30\x82\x01\x00\x02\x01\x03", b"\x30\x80\x02\x01\x03"] {
            assert_eq!(certificates(bytes), Err(PemError::Pkcs12));
        }
        assert_eq!(certificates(b"\x30\x82\x01\x00\x30\x82\x01\x00"), Err(PemError::Der));
    }

    #[test]
    fn first_key_of_a_file_is_used() {
        let block = |label: &str| format!("-----BEGIN {label}-----\nAAEC\n-----END {label}-----\n");
        let (plain, encrypted) = (block("EC PRIVATE KEY"), block("ENCRYPTED PRIVATE KEY"));
        let is_encrypted = |text: &str| match stored_key(text.as_bytes()) {
            Ok(StoredKey::Encrypted(key)) => key == EncryptedKey::new(vec![0, 1, 2]),
            Ok(StoredKey::Plain(_)) => false,
            Err(error) => panic!("{error}"),
        };
        assert!(is_encrypted(&format!("{BLOCK}{encrypted}{plain}")));
        assert!(!is_encrypted(&format!("{BLOCK}{plain}{encrypted}")));
        assert_eq!(private_key(encrypted.as_bytes()), Err(PemError::EncryptedKey));
        assert_eq!(count_private_keys(format!("{plain}{BLOCK}{encrypted}").as_bytes()), 2);
        for cut in 40..encrypted.len() - 5 {
            assert!(
                matches!(stored_key(&encrypted.as_bytes()[..cut]), Err(PemError::Malformed { .. })),
                "cut at {cut}"
            );
        }
        let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAEC\n\
                      -----END RSA PRIVATE KEY-----\n";
        assert_eq!(stored_key(legacy.as_bytes()), Err(PemError::LegacyEncryption));
    }
}
