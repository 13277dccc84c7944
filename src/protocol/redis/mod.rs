//! Error lines for Redis clients (RESP simple errors), and the ROLE command that asks a Redis server for its role.

pub(crate) mod commands;

use std::mem;

/// Answers a client that does not start with TLS.
pub(crate) const SPEAKS_TLS_ONLY: &[u8] =
    b"-ERR this port speaks TLS only; connect with TLS (redis-cli --tls, or a rediss:// URL)\r\n";

/// An error line that rejects a client, as Redis itself does with ACLs and in protected mode.
pub(crate) fn denied(why: &str) -> Vec<u8> {
    format!("-DENIED {why}\r\n").into_bytes()
}

/// The error line of Redis at `maxclients` connections, byte for byte. redis-py and other clients compare the whole text and
/// treat it as a lost connection.
pub(crate) const TOO_MANY_CLIENTS: &[u8] = b"-ERR max number of clients reached\r\n";

/// An error line for a database that may be available again soon. Clients treat `-LOADING` as a lost connection and retry;
/// they do not retry after other error lines.
pub(crate) fn loading(why: &str) -> Vec<u8> {
    format!("-LOADING {why}\r\n").into_bytes()
}

/// An error line for a failure that the client did not cause.
pub(crate) fn error(why: &str) -> Vec<u8> {
    format!("-ERR {why}\r\n").into_bytes()
}

/// The ROLE command. Redis supports it since 2.8.12.
pub(crate) const ROLE_COMMAND: &[u8] = b"*1\r\n$4\r\nROLE\r\n";

/// The role of a server, from its reply to ROLE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Accepts writes.
    Master,
    /// Replicates another server.
    Replica,
    /// A Redis Sentinel, which is not a database.
    Sentinel,
    /// The server does not report its role.
    Unknown(NoRole),
}

/// Why a server does not report its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRole {
    /// `-NOAUTH`: the server requires a password, which only the client has.
    NoAuth,
    /// `-NOPERM`: the default user may not run ROLE.
    NoPerm,
    /// `-LOADING`: the server is still loading its data.
    Loading,
    /// Another error, such as an unknown command, or a reply of another shape.
    Other,
}

/// The state of the reply to [`ROLE_COMMAND`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoleReply {
    /// The reply is incomplete.
    More,
    /// The reply is complete.
    Done {
        role: Role,
        /// Number of bytes of the last chunk that belong to the reply. The rest follows the reply.
        used: usize,
    },
    /// The bytes are not Redis, or exceed the maximum length. The connection cannot be used.
    Invalid,
}

/// Parses the reply to [`ROLE_COMMAND`] to its last byte, so that the client receives none of it.
///
/// On a new connection the reply is RESP2: an array whose first element is the role, with nested arrays, or an error line.
#[derive(Debug)]
pub(crate) struct RoleParser {
    /// An incomplete element.
    pending: Vec<u8>,
    /// Bytes of the reply received so far.
    seen: usize,
    /// Elements still expected. The elements of an array are added when its header arrives.
    missing: usize,
    /// Whether the first element, the outer array, has arrived.
    begun: bool,
    role: Option<Role>,
}

impl Default for RoleParser {
    fn default() -> Self {
        Self { pending: Vec::new(), seen: 0, missing: 1, begun: false, role: None }
    }
}

impl RoleParser {
    /// Parses the next chunk from the server. Chunks may end anywhere.
    pub(crate) fn follow(&mut self, bytes: &[u8]) -> RoleReply {
        let before = self.pending.len();
        let mut pending = mem::take(&mut self.pending);
        // At most the bytes that can belong to the reply.
        pending.extend(bytes.iter().take((MAX_REPLY + 1).saturating_sub(self.seen)));
        let mut rest = pending.as_slice();
        while self.missing > 0 {
            match Element::first(rest) {
                Ok(Some((element, behind))) => {
                    rest = behind;
                    self.take(&element);
                }
                Ok(None) => break,
                Err(NotRedis) => return RoleReply::Invalid,
            }
        }
        let used = (pending.len() - rest.len()).saturating_sub(before);
        if self.missing == 0 && self.seen + used <= MAX_REPLY {
            return RoleReply::Done { role: self.role.unwrap_or(Role::Unknown(NoRole::Other)), used };
        }
        self.seen += pending.len() - before;
        if self.seen > MAX_REPLY || self.missing > MAX_REPLY {
            return RoleReply::Invalid;
        }
        let taken = pending.len() - rest.len();
        pending.drain(..taken);
        self.pending = pending;
        RoleReply::More
    }

    fn take(&mut self, element: &Element<'_>) {
        self.missing = (self.missing - 1).saturating_add(element.elements());
        self.role = self.role.or_else(|| element.role(self.begun));
        self.begun = true;
    }
}

impl NoRole {
    fn of(line: &[u8]) -> Self {
        match line.split(|byte| *byte == b' ').next() {
            Some(b"NOAUTH") => Self::NoAuth,
            Some(b"NOPERM") => Self::NoPerm,
            Some(b"LOADING") => Self::Loading,
            _ => Self::Other,
        }
    }
}

/// One element of a RESP2 reply. An array is its header only.
#[derive(Debug)]
enum Element<'a> {
    Text(&'a [u8]),
    Error(&'a [u8]),
    Array(usize),
    /// An integer or a nil.
    Other,
}

struct NotRedis;

impl<'a> Element<'a> {
    /// The first element, if it is complete, and the bytes after it.
    fn first(bytes: &'a [u8]) -> Result<Option<(Self, &'a [u8])>, NotRedis> {
        let Some(end) = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n') else {
            return if bytes.len() < MAX_LINE { Ok(None) } else { Err(NotRedis) };
        };
        let (line, rest) = bytes.split_at_checked(end + 1).ok_or(NotRedis)?;
        let (kind, line) = line.strip_suffix(b"\r\n").and_then(<[u8]>::split_first).ok_or(NotRedis)?;
        let element = match kind {
            b'+' => Self::Text(line),
            b'-' => Self::Error(line),
            b':' => Self::Other,
            b'$' | b'*' if line == b"-1" => Self::Other,
            b'*' => Self::Array(size(line)?),
            b'$' => {
                let Some((text, rest)) = rest.split_at_checked(size(line)? + 2) else { return Ok(None) };
                return Ok(Some((Self::Text(text.strip_suffix(b"\r\n").ok_or(NotRedis)?), rest)));
            }
            _ => return Err(NotRedis),
        };
        Ok(Some((element, rest)))
    }

    /// The role that this element states. `begun` is false for the first element of the reply.
    fn role(&self, begun: bool) -> Option<Role> {
        match self {
            Self::Array(1..) => None,
            Self::Text(b"master") if begun => Some(Role::Master),
            Self::Text(b"slave" | b"replica") if begun => Some(Role::Replica),
            Self::Text(b"sentinel") if begun => Some(Role::Sentinel),
            Self::Error(line) => Some(Role::Unknown(NoRole::of(line))),
            Self::Text(_) | Self::Array(_) | Self::Other => Some(Role::Unknown(NoRole::Other)),
        }
    }

    /// Number of elements that follow as parts of this one.
    fn elements(&self) -> usize {
        if let Self::Array(elements) = self { *elements } else { 0 }
    }
}

/// Parses a size of at most [`MAX_REPLY`].
fn size(digits: &[u8]) -> Result<usize, NotRedis> {
    let plain = digits.first().is_some_and(u8::is_ascii_digit);
    let text = str::from_utf8(digits).ok().filter(|_| plain);
    text.and_then(|text| text.parse().ok()).filter(|size| *size <= MAX_REPLY).ok_or(NotRedis)
}

/// Maximum size of a reply in bytes. A master lists each of its replicas in about fifty.
const MAX_REPLY: usize = 64 * 1024;

/// Maximum size of a line in bytes: a size, a number or an error.
const MAX_LINE: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Recorded from Redis 7.0.
    const MASTER: &[u8] = b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n";
    const REPLICA: &[u8] = b"*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:1\r\n$7\r\nconnect\r\n:-1\r\n";
    const NO_PERM: &[u8] = b"-NOPERM this user has no permissions to run the 'role' command\r\n";
    const NO_AUTH: &[u8] = b"-NOAUTH Authentication required.\r\n";
    // From the Redis documentation.
    const WITH_REPLICAS: &[u8] = b"*3\r\n$6\r\nmaster\r\n:3129659\r\n*2\r\n*3\r\n$9\r\n127.0.0.1\r\n$4\r\n9001\r\n\
        $7\r\n3129242\r\n*3\r\n$9\r\n127.0.0.1\r\n$4\r\n9002\r\n$7\r\n3129543\r\n";
    const SENTINEL: &[u8] = b"*2\r\n$8\r\nsentinel\r\n*2\r\n$14\r\nresque\r\nmaster\r\n$-1\r\n";

    /// The role, and how many bytes of all chunks belong to the reply.
    fn parsed<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Option<(Role, usize)> {
        let mut answer = RoleParser::default();
        let mut place = 0;
        for chunk in chunks {
            match answer.follow(chunk) {
                RoleReply::More => place += chunk.len(),
                RoleReply::Done { role, used } => {
                    assert!(used <= chunk.len());
                    return Some((role, place + used));
                }
                RoleReply::Invalid => return None,
            }
            assert!(answer.pending.len() <= MAX_REPLY);
        }
        None
    }

    #[test]
    fn role_reply_in_any_chunks_is_parsed_to_its_last_byte() {
        let unknown = |why| Role::Unknown(why);
        for (answer, role) in [
            (MASTER, Role::Master),
            (WITH_REPLICAS, Role::Master),
            (REPLICA, Role::Replica),
            (SENTINEL, Role::Sentinel),
            (NO_PERM, unknown(NoRole::NoPerm)),
            (NO_AUTH, unknown(NoRole::NoAuth)),
            (b"-LOADING Redis is loading the dataset in memory\r\n", unknown(NoRole::Loading)),
            (b"-ERR unknown command 'ROLE'\r\n", unknown(NoRole::Other)),
            (b"-NOAUTHX\r\n", unknown(NoRole::Other)),
            (b"*0\r\n", unknown(NoRole::Other)),
            (b"*-1\r\n", unknown(NoRole::Other)),
            (b"*2\r\n:1\r\n+master\r\n", unknown(NoRole::Other)),
            (b"*2\r\n$3\r\nnew\r\n$6\r\nmaster\r\n", unknown(NoRole::Other)),
            (b"$0\r\n\r\n", unknown(NoRole::Other)),
            (b"+master\r\n", unknown(NoRole::Other)),
        ] {
            let stream = [answer, b"*1\r\nnot ours"].concat();
            for cut in 0..stream.len() {
                assert_eq!(parsed([&stream[..cut], &stream[cut..]]), Some((role, answer.len())), "{role:?}, {cut}");
            }
            assert_eq!(parsed(stream.chunks(1)), Some((role, answer.len())));
            assert_eq!(parsed([&answer[..answer.len() - 1]]), None);
        }
    }

    #[test]
    fn reply_that_is_not_redis_or_endless_is_invalid() {
        for bytes in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"\x15\x03\x01\0\x02\x02\n",
            b"+OK\n",
            b"\r\n",
            b"*-2\r\n",
            b"*+1\r\n",
            b"*\r\n",
            b"$65537\r\n",
            b"$99999999999999999999\r\n",
            b"*99999999999999999999\r\n",
            b"$3\r\nmaster\r\n",
            &[b'+'; MAX_LINE],
        ] {
            let mut answer = RoleParser::default();
            assert_eq!(answer.follow(bytes), RoleReply::Invalid, "{bytes:?}");
        }
        let nested = b"*60000\r\n".repeat(10_000);
        let long = [b"*20000\r\n", &b":1\r\n".repeat(20_000)[..]].concat();
        for endless in [nested, long] {
            let mut answer = RoleParser::default();
            assert!(endless.chunks(1000).any(|chunk| answer.follow(chunk) == RoleReply::Invalid));
            assert_eq!(RoleParser::default().follow(&endless), RoleReply::Invalid);
        }
    }

    #[test]
    fn reply_above_the_maximum_size_is_invalid() {
        let text = |length| [format!("${length}\r\n").into_bytes(), vec![b'x'; length], b"\r\n".to_vec()].concat();
        let longest = text(MAX_REPLY - 10);
        assert_eq!(longest.len(), MAX_REPLY);
        let behind = [&longest[..], b"x"].concat();
        for chunk in [1, 1000, MAX_REPLY + 1] {
            assert!(parsed(behind.chunks(chunk)).is_some_and(|(_, used)| used == MAX_REPLY));
            assert_eq!(parsed(text(MAX_REPLY - 9).chunks(chunk)), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_chunks_have_the_same_result(
            parts in prop::collection::vec(prop_oneof![
                prop::sample::select(vec![
                    &b"*3\r\n"[..], b"*0\r\n", b"*1\r\n", b":1\r\n", b"$6\r\nmaster\r\n", b"$5\r\nslave\r\n", b"$-1\r\n",
                    b"-NOAUTH x\r\n", b"+OK\r\n", b"$", b"*", b"\r\n",
                ]).prop_map(<[u8]>::to_vec),
                prop::collection::vec(any::<u8>(), 0..10),
            ], 0..20),
            cut in 1_usize..20,
        ) {
            let stream = parts.concat();
            prop_assert_eq!(parsed(stream.chunks(cut)), parsed([&stream[..]]));
        }
    }
}
