//! The ZIP file for one client, with the file names that managed databases use.

use std::io::Write as _;

use rawzip::time::UtcDateTime;
use rawzip::{CompressionMethod, DataDescriptorOutput, ZipArchiveWriter, crc32};
use time::OffsetDateTime;

use crate::issuing::IssuingError;
use crate::issuing::authority::Signed;

/// Creates the ZIP file of a client: its certificate followed by `intermediates`, its key, and the server CA. The file names
/// start with `protocol`.
///
/// # Errors
/// If the archive cannot be written.
pub(crate) fn bundle(
    client: &Signed,
    intermediates: &str,
    protocol: &str,
    server_ca: Vec<u8>,
) -> Result<Vec<u8>, IssuingError> {
    let entries = [
        (format!("{protocol}_user.crt"), 0o644, (client.pem() + intermediates).into_bytes()),
        (format!("{protocol}_user_private.key"), 0o600, client.key_pem().into_bytes()),
        (format!("{protocol}_ca.pem"), 0o644, server_ca),
    ];
    zip(&entries).map_err(IssuingError::archive)
}

fn zip(entries: &[(String, u32, Vec<u8>)]) -> Result<Vec<u8>, rawzip::Error> {
    let mut archive = ZipArchiveWriter::new(Vec::new());
    let now = UtcDateTime::from_unix(OffsetDateTime::now_utc().unix_timestamp());
    for (name, mode, content) in entries {
        let entry = archive.new_file(name).unix_permissions(*mode).last_modified(now);
        let (mut entry, _) = entry.compression_method(CompressionMethod::DEFLATE).start()?;
        entry.write_all(&uncompressed(content))?;
        entry.finish(DataDescriptorOutput::new(crc32(content), content.len() as u64))?;
    }
    archive.finish()
}

/// A deflate stream of uncompressed blocks (RFC 1951 §3.2.4).
///
/// The length of a stored entry follows its data, so a program that reads a ZIP file as a stream cannot find its end.
/// The end of a deflate stream is marked.
fn uncompressed(content: &[u8]) -> Vec<u8> {
    let mut stream = Vec::with_capacity(content.len() + 16);
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
