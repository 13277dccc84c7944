//! The ZIP file for one client, with the file names that managed databases use.

use std::io::Write as _;

use rawzip::time::UtcDateTime;
use rawzip::{CompressionMethod, DataDescriptorOutput, ZipArchiveWriter, crc32};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::issuing::IssuingError;
use crate::issuing::authority::Signed;

/// Builds the ZIP file of a client: its certificate followed by `intermediates`, its key, and the server CA. The file names
/// start with `protocol`. The archive and all copies of the key here are wiped when they are dropped.
///
/// # Errors
/// If the archive cannot be written.
pub(crate) fn build_bundle(
    client: &Signed,
    intermediates: &str,
    protocol: &str,
    server_ca: &[u8],
) -> Result<Zeroizing<Vec<u8>>, IssuingError> {
    let certificates = client.pem() + intermediates;
    let key = client.key_pem();
    let entries = [
        Entry { name: format!("{protocol}_user.crt"), mode: 0o644, content: certificates.as_bytes() },
        Entry { name: format!("{protocol}_user_private.key"), mode: 0o600, content: key.as_bytes() },
        Entry { name: format!("{protocol}_ca.pem"), mode: 0o644, content: server_ca },
    ];
    write_zip(&entries).map_err(IssuingError::archive)
}

/// A file in the archive.
struct Entry<'a> {
    name: String,
    mode: u32,
    content: &'a [u8],
}

impl Entry<'_> {
    /// An upper bound of the bytes that the entry has in the archive.
    fn max_size(&self) -> usize {
        self.content.len() + deflate_overhead(self.content) + 2 * self.name.len() + MAX_HEADERS
    }
}

fn write_zip(entries: &[Entry<'_>]) -> Result<Zeroizing<Vec<u8>>, rawzip::Error> {
    // Reserved in full: a vector that grows leaves copies behind.
    let size = entries.iter().map(Entry::max_size).sum::<usize>() + MAX_HEADERS;
    let mut archive = ZipArchiveWriter::new(Vec::with_capacity(size));
    let now = UtcDateTime::from_unix(OffsetDateTime::now_utc().unix_timestamp());
    for Entry { name, mode, content } in entries {
        let entry = archive.new_file(name).unix_permissions(*mode).last_modified(now);
        let (mut entry, _) = entry.compression_method(CompressionMethod::DEFLATE).start()?;
        entry.write_all(&uncompressed(content))?;
        entry.finish(DataDescriptorOutput::new(crc32(content), content.len() as u64))?;
    }
    archive.finish().map(Zeroizing::new)
}

/// A deflate stream of uncompressed blocks (RFC 1951 §3.2.4).
///
/// The length of a stored entry follows its data, so a program that reads a ZIP file as a stream cannot find its end.
/// The end of a deflate stream is marked.
fn uncompressed(content: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut stream = Zeroizing::new(Vec::with_capacity(content.len() + deflate_overhead(content)));
    let mut blocks = content.chunks(usize::from(u16::MAX)).peekable();
    while let Some(block) = blocks.next() {
        let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
        stream.push(u8::from(blocks.peek().is_none()));
        stream.extend(length.to_le_bytes());
        stream.extend((!length).to_le_bytes());
        stream.extend(block);
    }
    stream
}

/// The bytes that [`uncompressed`] adds.
const fn deflate_overhead(content: &[u8]) -> usize {
    BLOCK_HEADER * content.len().div_ceil(u16::MAX as usize)
}

/// The header of a response with the archive: when its certificate expires (RFC 3339).
pub(crate) const NOT_AFTER_HEADER: &str = "x-not-after";

const BLOCK_HEADER: usize = 5;

/// More bytes than the headers and extra fields of one entry have, or the end of the archive.
const MAX_HEADERS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_never_grows_while_it_is_written() {
        for length in [1, 65_535, 65_536, 200_000] {
            let content = vec![b'x'; length];
            let entry = |name: &str| Entry { name: name.to_owned(), mode: 0o600, content: &content };
            let entries = [entry("postgres_user_private.key"), entry("a"), entry("b")];
            let reserved = entries.iter().map(Entry::max_size).sum::<usize>() + MAX_HEADERS;
            let archive = write_zip(&entries).unwrap();
            assert!(archive.capacity() == reserved && archive.len() <= reserved, "{length}: {}", archive.len());
            let stream = uncompressed(&content);
            assert_eq!((stream.len(), stream.capacity()), (length + deflate_overhead(&content), stream.len()));
        }
    }
}
