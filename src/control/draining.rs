//! Whether the program that answers at a socket is stopping.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// Asks the program at this socket. One that does not answer soon is not stopping.
pub(crate) fn is_draining(socket: &Path) -> bool {
    ask(socket).is_ok_and(|status| status.get("draining").is_some_and(Value::is_object))
}

fn ask(socket: &Path) -> io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: portcullis\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    let body = answer.windows(HEAD_END.len()).position(|window| window == HEAD_END);
    let body = body.and_then(|end| answer.get(end + HEAD_END.len()..)).unwrap_or_default();
    serde_json::from_slice(body).map_err(io::Error::from)
}

/// Between the head and the body of an answer (RFC 9112 §2.1). A body of known length comes without chunks.
const HEAD_END: &[u8] = b"\r\n\r\n";

const PATIENCE: Duration = Duration::from_secs(2);

const MAX_ANSWER: u64 = 64 << 20;
