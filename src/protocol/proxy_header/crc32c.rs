/// CRC32C (Castagnoli, reflected) of the concatenated parts; RFC 4960, Appendix B.
///
/// It works bit by bit: a header is short, a connection has one, and few senders use the checksum.
pub(crate) fn crc32c(parts: [&[u8]; 3]) -> u32 {
    let bytes = parts.into_iter().flatten();
    !bytes.fold(u32::MAX, |sum, &byte| (0..8).fold(sum ^ u32::from(byte), |sum, _| shifted(sum)))
}

fn shifted(sum: u32) -> u32 {
    let rest = sum >> 1;
    if sum & 1 == 0 { rest } else { rest ^ 0x82f6_3b78 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_has_the_published_values() {
        assert_eq!(crc32c([b"123", b"", b"456789"]), 0xe306_9283);
        assert_eq!(crc32c([&[0; 32], b"", b""]), 0x8a91_36aa);
        assert_eq!(crc32c([&[0xff; 32], b"", b""]), 0x62a8_ab43);
    }
}
