//! SHA-256, and bytes as hexadecimal digits.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

pub(crate) type Sha256 = [u8; SHA256_OUTPUT_LEN];

pub(crate) fn sha256(bytes: &[u8]) -> Sha256 {
    let mut sha256 = Sha256::default();
    sha256.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sha256
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_written_in_lower_case() {
        // printf %s abc | sha256sum
        assert_eq!(hex(&sha256(b"abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hex(&[0, 0xaf]), "00af");
    }
}
