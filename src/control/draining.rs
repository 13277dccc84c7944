//! Detects whether the program behind an admin socket is draining.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// Asks the program at this socket. A program that does not reply in time counts as not draining.
pub(crate) fn is_draining(socket: &Path) -> bool {
    get_status(socket).is_ok_and(|status| status.get("draining").is_some_and(Value::is_object))
}

fn get_status(socket: &Path) -> io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: portcullis\r\nConnection: close\r\n\r\n")?;
    let mut reply = Vec::new();
    stream.take(MAX_REPLY).read_to_end(&mut reply)?;
    let body = reply.windows(HEAD_END.len()).position(|window| window == HEAD_END);
    let body = body.and_then(|end| reply.get(end + HEAD_END.len()..)).unwrap_or_default();
    serde_json::from_slice(body).map_err(io::Error::from)
}

/// Separates the head of a response from its body (RFC 9112 §2.1). A body of known length is not chunked.
const HEAD_END: &[u8] = b"\r\n\r\n";

const IO_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes.
const MAX_REPLY: u64 = 64 << 20;
