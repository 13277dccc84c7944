//! What one client needs, in one ZIP file, under the names that managed databases have made usual.

use std::io::Write as _;

use rawzip::time::UtcDateTime;
use rawzip::{CompressionMethod, DataDescriptorOutput, ZipArchiveWriter, crc32};
use time::OffsetDateTime;

use crate::cli::Failure;
use crate::cli::certs::authority::Signed;

/// The ZIP file of a client: its certificate, its key, and what it verifies the server with. The names begin with
/// `protocol`.
pub(crate) fn bundle(client: &Signed, protocol: &str, server_ca: String) -> Result<Vec<u8>, Failure> {
    let entries = [
        (format!("{protocol}_user.crt"), 0o644, client.pem()),
        (format!("{protocol}_user_private.key"), 0o600, client.key_pem()),
        (format!("{protocol}_ca.pem"), 0o644, server_ca),
    ];
    zip(&entries).map_err(|error| Failure::Failed(format!("the ZIP file cannot be made: {error}")))
}

fn zip(entries: &[(String, u32, String)]) -> Result<Vec<u8>, rawzip::Error> {
    let mut archive = ZipArchiveWriter::new(Vec::new());
    let now = UtcDateTime::from_unix(OffsetDateTime::now_utc().unix_timestamp());
    for (name, mode, content) in entries {
        let entry = archive.new_file(name).unix_permissions(*mode).last_modified(now);
        let (mut entry, _) = entry.compression_method(CompressionMethod::DEFLATE).start()?;
        entry.write_all(&uncompressed(content.as_bytes()))?;
        entry.finish(DataDescriptorOutput::new(crc32(content.as_bytes()), content.len() as u64))?;
    }
    archive.finish()
}

/// A deflate stream that compresses nothing (RFC 1951 §3.2.4). Its end can be seen, and that of a stored entry cannot: the
/// length stands behind it, and programs that read a ZIP file from its beginning give up there.
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
