//! What a Redis client is told: one error line (RESP simple error), which every client library understands.

/// For a client that does not begin with TLS.
pub const SPEAKS_TLS_ONLY: &[u8] =
    b"-ERR this port speaks TLS only; connect with TLS (redis-cli --tls, or a rediss:// URL)\r\n";

/// One line that refuses, as Redis' own ACL and protected mode do.
pub fn denied(why: &str) -> Vec<u8> {
    format!("-DENIED {why}\r\n").into_bytes()
}

/// One line that reports a failure which is not the client's.
pub fn error(why: &str) -> Vec<u8> {
    format!("-ERR {why}\r\n").into_bytes()
}
