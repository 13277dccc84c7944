//! The channel binding `tls-server-end-point` (RFC 5929 §4): a hash of the certificate that a server presents.

use aws_lc_rs::digest::{Algorithm, SHA224, SHA256, SHA384, SHA512, SHA512_256, digest};

use crate::x509::der::{OBJECT_IDENTIFIER, SEQUENCE, TAGGED_0, element_of};
use crate::x509::signed::Signed;

/// The data of the channel binding, 28 to 64 bytes. The hash function is that of the certificate's signature algorithm; SHA-256
/// replaces MD5 and SHA-1. `None` if the algorithm has no hash function (Ed25519, Ed448) or is unknown.
pub(crate) fn end_point(der: &[u8]) -> Option<Vec<u8>> {
    Some(digest(hash_function(der)?, der).as_ref().to_vec())
}

/// Whether [`end_point`] is defined for a certificate.
pub(crate) fn has_end_point(der: &[u8]) -> bool {
    hash_function(der).is_some()
}

fn hash_function(der: &[u8]) -> Option<&'static Algorithm> {
    let (signature, parameters) = element_of(OBJECT_IDENTIFIER, Signed::read(der)?.algorithm)?;
    match signature {
        RSA_PSS => pss_hash_function(parameters),
        _ => found(signature, &SIGNATURES),
    }
}

/// The hash function of RSASSA-PSS-params (RFC 4055 §3.1). SHA-1 is the default.
fn pss_hash_function(parameters: &[u8]) -> Option<&'static Algorithm> {
    let (fields, _) = element_of(SEQUENCE, parameters)?;
    let Some((hash, _)) = element_of(TAGGED_0, fields) else { return Some(&SHA256) };
    let (identifier, _) = element_of(SEQUENCE, hash)?;
    let (hash, _) = element_of(OBJECT_IDENTIFIER, identifier)?;
    found(hash, &HASHES)
}

fn found(identifier: &[u8], rows: &[(&[u8], &'static Algorithm)]) -> Option<&'static Algorithm> {
    rows.iter().find(|(known, _)| *known == identifier).map(|(_, algorithm)| *algorithm)
}

const RSA_PSS: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a";

/// Signature algorithms by the contents of their object identifiers.
static SIGNATURES: [(&[u8], &Algorithm); 12] = [
    // RSA with MD5 and SHA-1.
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04", &SHA256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05", &SHA256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", &SHA256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c", &SHA384),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d", &SHA512),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0e", &SHA224),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x10", &SHA512_256),
    // ECDSA with SHA-1.
    (b"\x2a\x86\x48\xce\x3d\x04\x01", &SHA256),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x01", &SHA224),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x02", &SHA256),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x03", &SHA384),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x04", &SHA512),
];

/// Hash functions by the contents of their object identifiers.
static HASHES: [(&[u8], &Algorithm); 6] = [
    // SHA-1.
    (b"\x2b\x0e\x03\x02\x1a", &SHA256),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x01", &SHA256),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x02", &SHA384),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x03", &SHA512),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x04", &SHA224),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x06", &SHA512_256),
];

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    /// The certificates that openssl makes with a key of this kind and these options.
    fn certificates(key: &[&str], options: &[&str]) -> Vec<Vec<u8>> {
        let files = TempDir::new().unwrap();
        let openssl = |arguments: &[&str]| {
            let output = Command::new("openssl").args(arguments).current_dir(&files).output().unwrap();
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        };
        openssl(&[&["genpkey", "-out", "key.pem"], key].concat());
        let certificate = |options: &&str| {
            let options: Vec<_> = options.split_whitespace().collect();
            openssl(
                &[&["req", "-x509", "-key", "key.pem", "-subj", "/CN=db", "-outform", "DER"], &options[..]].concat(),
            )
        };
        options.iter().map(certificate).collect()
    }

    fn assert_hashes(key: &[&str], expected: &[(&str, &'static Algorithm)]) {
        let options: Vec<_> = expected.iter().map(|(options, _)| *options).collect();
        for (der, (options, algorithm)) in certificates(key, &options).iter().zip(expected) {
            assert_eq!(end_point(der).as_deref(), Some(digest(algorithm, der).as_ref()), "{options}");
            assert!(has_end_point(der));
        }
    }

    #[test]
    fn hash_function_is_that_of_the_signature() {
        assert_hashes(
            &["-algorithm", "RSA"],
            &[
                ("-md5", &SHA256),
                ("-sha1", &SHA256),
                ("-sha224", &SHA224),
                ("-sha256", &SHA256),
                ("-sha384", &SHA384),
                ("-sha512", &SHA512),
                ("-sha512-256", &SHA512_256),
                ("-sha1 -sigopt rsa_padding_mode:pss", &SHA256),
                ("-sha256 -sigopt rsa_padding_mode:pss", &SHA256),
                ("-sha384 -sigopt rsa_padding_mode:pss", &SHA384),
                ("-sha512 -sigopt rsa_padding_mode:pss", &SHA512),
            ],
        );
        assert_hashes(
            &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            &[
                ("-sha1", &SHA256),
                ("-sha224", &SHA224),
                ("-sha256", &SHA256),
                ("-sha384", &SHA384),
                ("-sha512", &SHA512),
            ],
        );
    }

    #[test]
    fn signature_without_hash_function_has_no_channel_binding() {
        for algorithm in ["Ed25519", "Ed448"] {
            let made = certificates(&["-algorithm", algorithm], &[""]);
            assert_eq!(end_point(&made[0]), None, "{algorithm}");
            assert!(!has_end_point(&made[0]));
        }
        assert_eq!(end_point(b""), None);
    }

    #[test]
    fn parameters_of_rsa_pss_are_parsed() {
        // openssl always writes the parameters of SHA-1 as absent.
        assert_eq!(pss_hash_function(b"\x30\x00"), Some(&SHA256));
        assert_eq!(pss_hash_function(b"\x30\x03\xa1\x01\x00"), Some(&SHA256));
        assert_eq!(pss_hash_function(b"\x30\x0b\xa0\x09\x30\x07\x06\x05\x2b\x0e\x03\x02\x1a"), Some(&SHA256));
        for malformed in [&b""[..], b"\x05\x00", b"\x30\x02\xa0\x00", b"\x30\x06\xa0\x04\x30\x02\x06\x00"] {
            assert_eq!(pss_hash_function(malformed), None, "{malformed:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_cause_a_panic(bytes in any::<Vec<u8>>()) {
            prop_assert_eq!(end_point(&bytes).is_some(), has_end_point(&bytes));
            let _ = pss_hash_function(&bytes);
        }
    }
}
