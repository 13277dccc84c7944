//! What a Redis client is told: one error line (RESP simple error), which every client library understands. And what a Redis
//! server is asked before it has a client: which role it has.

use std::mem;

/// For a client that does not begin with TLS.
pub(crate) const SPEAKS_TLS_ONLY: &[u8] =
    b"-ERR this port speaks TLS only; connect with TLS (redis-cli --tls, or a rediss:// URL)\r\n";

/// One line that refuses, as Redis' own ACL and protected mode do.
pub(crate) fn denied(why: &str) -> Vec<u8> {
    format!("-DENIED {why}\r\n").into_bytes()
}

/// What Redis answers when it has `maxclients` connections, byte for byte: redis-py and others compare the whole text, and
/// take it for a lost connection.
pub(crate) const TOO_MANY_CLIENTS: &[u8] = b"-ERR max number of clients reached\r\n";

/// One line that reports a database that may be there again soon. Clients take it for one that is still loading its data,
/// and try again as after a lost connection; they do not after any other error line.
pub(crate) fn loading(why: &str) -> Vec<u8> {
    format!("-LOADING {why}\r\n").into_bytes()
}

/// One line that reports a failure which is not the client's.
pub(crate) fn error(why: &str) -> Vec<u8> {
    format!("-ERR {why}\r\n").into_bytes()
}

/// What a server is asked that may be a replica: ROLE, which every version since 2.8.12 knows.
pub(crate) const QUESTION: &[u8] = b"*1\r\n$4\r\nROLE\r\n";

/// What a server says of its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It can be written to.
    Master,
    /// It follows another one.
    Replica,
    /// It is no database at all, but knows where one is.
    Sentinel,
    /// It does not say: for this reason.
    Untold(NoRole),
}

/// Why a server does not say its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRole {
    /// `-NOAUTH`: it wants a password first, which only the client has.
    NoAuth,
    /// `-NOPERM`: its default user may not ask.
    NoPerm,
    /// `-LOADING`: it has only been started.
    Loading,
    /// Another error, such as an unknown command, or an answer to something else.
    Other,
}

/// How far the answer to [`QUESTION`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoleReply {
    /// More is to come.
    More,
    /// It is whole.
    Done {
        /// What it says.
        role: Role,
        /// How many of the bytes given last belong to it. What follows is not ours.
        used: usize,
    },
    /// This is not Redis, or longer than any answer; the connection is of no use any more.
    Invalid,
}

/// Follows the answer to [`QUESTION`] to its last byte, so that nothing of it is left for the client.
///
/// On a new connection it is RESP2: an array that begins with the role's name, with other arrays in it, or an error line.
#[derive(Debug)]
pub(crate) struct RoleParser {
    /// The beginning of an element that has not come whole.
    pending: Vec<u8>,
    /// All that has come of it.
    seen: usize,
    /// So many elements are still to come, as far as is known; those of an array count when it has begun.
    missing: usize,
    /// Whether its first element has come: the array that is the answer.
    begun: bool,
    role: Option<Role>,
}

impl Default for RoleParser {
    fn default() -> Self {
        Self { pending: Vec::new(), seen: 0, missing: 1, begun: false, role: None }
    }
}

impl RoleParser {
    /// Goes on over the next bytes from the server, wherever they were cut.
    pub(crate) fn follow(&mut self, bytes: &[u8]) -> RoleReply {
        let before = self.pending.len();
        let mut pending = mem::take(&mut self.pending);
        // No more than may belong to it.
        pending.extend(bytes.iter().take((LONGEST_ANSWER + 1).saturating_sub(self.seen)));
        let mut rest = pending.as_slice();
        while self.missing > 0 {
            match Element::first(rest) {
                Ok(Some((element, behind))) => {
                    rest = behind;
                    self.hear(&element);
                }
                Ok(None) => break,
                Err(NotRedis) => return RoleReply::Invalid,
            }
        }
        let used = (pending.len() - rest.len()).saturating_sub(before);
        if self.missing == 0 && self.seen + used <= LONGEST_ANSWER {
            return RoleReply::Done { role: self.role.unwrap_or(Role::Untold(NoRole::Other)), used };
        }
        self.seen += pending.len() - before;
        if self.seen > LONGEST_ANSWER || self.missing > LONGEST_ANSWER {
            return RoleReply::Invalid;
        }
        let heard = pending.len() - rest.len();
        pending.drain(..heard);
        self.pending = pending;
        RoleReply::More
    }

    fn hear(&mut self, element: &Element<'_>) {
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

/// One element of a RESP2 reply; of an array, its beginning.
#[derive(Debug)]
enum Element<'a> {
    Text(&'a [u8]),
    Error(&'a [u8]),
    Array(usize),
    /// An integer, or a nil.
    Other,
}

struct NotRedis;

impl<'a> Element<'a> {
    /// The first element, if it has come whole, and what follows it.
    fn first(bytes: &'a [u8]) -> Result<Option<(Self, &'a [u8])>, NotRedis> {
        let Some(end) = bytes.iter().take(LONGEST_LINE).position(|byte| *byte == b'\n') else {
            return if bytes.len() < LONGEST_LINE { Ok(None) } else { Err(NotRedis) };
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

    /// What it says of the role, if it says anything, as the first element of all or behind that.
    fn role(&self, begun: bool) -> Option<Role> {
        match self {
            Self::Array(1..) => None,
            Self::Text(b"master") if begun => Some(Role::Master),
            Self::Text(b"slave" | b"replica") if begun => Some(Role::Replica),
            Self::Text(b"sentinel") if begun => Some(Role::Sentinel),
            Self::Error(line) => Some(Role::Untold(NoRole::of(line))),
            Self::Text(_) | Self::Array(_) | Self::Other => Some(Role::Untold(NoRole::Other)),
        }
    }

    /// How many elements follow that are part of this one.
    fn elements(&self) -> usize {
        if let Self::Array(elements) = self { *elements } else { 0 }
    }
}

/// A size that is believed.
fn size(digits: &[u8]) -> Result<usize, NotRedis> {
    let plain = digits.first().is_some_and(u8::is_ascii_digit);
    let text = str::from_utf8(digits).ok().filter(|_| plain);
    text.and_then(|text| text.parse().ok()).filter(|size| *size <= LONGEST_ANSWER).ok_or(NotRedis)
}

/// A master names each of its replicas in some fifty bytes.
const LONGEST_ANSWER: usize = 64 * 1024;

/// No line of it has more: a size, a number or an error.
const LONGEST_LINE: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // As Redis 7.0 said them.
    const MASTER: &[u8] = b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n";
    const REPLICA: &[u8] = b"*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:1\r\n$7\r\nconnect\r\n:-1\r\n";
    const NO_PERM: &[u8] = b"-NOPERM this user has no permissions to run the 'role' command\r\n";
    const NO_AUTH: &[u8] = b"-NOAUTH Authentication required.\r\n";
    // As its documentation has them.
    const WITH_REPLICAS: &[u8] = b"*3\r\n$6\r\nmaster\r\n:3129659\r\n*2\r\n*3\r\n$9\r\n127.0.0.1\r\n$4\r\n9001\r\n\
        $7\r\n3129242\r\n*3\r\n$9\r\n127.0.0.1\r\n$4\r\n9002\r\n$7\r\n3129543\r\n";
    const SENTINEL: &[u8] = b"*2\r\n$8\r\nsentinel\r\n*2\r\n$14\r\nresque\r\nmaster\r\n$-1\r\n";

    /// The role, and how many bytes of all chunks together belonged to the answer.
    fn told<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Option<(Role, usize)> {
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
            assert!(answer.pending.len() <= LONGEST_ANSWER);
        }
        None
    }

    #[test]
    fn every_answer_is_told_to_its_last_byte_wherever_it_is_cut() {
        let untold = |why| Role::Untold(why);
        for (answer, role) in [
            (MASTER, Role::Master),
            (WITH_REPLICAS, Role::Master),
            (REPLICA, Role::Replica),
            (SENTINEL, Role::Sentinel),
            (NO_PERM, untold(NoRole::NoPerm)),
            (NO_AUTH, untold(NoRole::NoAuth)),
            (b"-LOADING Redis is loading the dataset in memory\r\n", untold(NoRole::Loading)),
            (b"-ERR unknown command 'ROLE'\r\n", untold(NoRole::Other)),
            (b"-NOAUTHX\r\n", untold(NoRole::Other)),
            (b"*0\r\n", untold(NoRole::Other)),
            (b"*-1\r\n", untold(NoRole::Other)),
            (b"*2\r\n:1\r\n+master\r\n", untold(NoRole::Other)),
            (b"*2\r\n$3\r\nnew\r\n$6\r\nmaster\r\n", untold(NoRole::Other)),
            (b"$0\r\n\r\n", untold(NoRole::Other)),
            (b"+master\r\n", untold(NoRole::Other)),
        ] {
            let stream = [answer, b"*1\r\nnot ours"].concat();
            for cut in 0..stream.len() {
                assert_eq!(told([&stream[..cut], &stream[cut..]]), Some((role, answer.len())), "{role:?}, {cut}");
            }
            assert_eq!(told(stream.chunks(1)), Some((role, answer.len())));
            assert_eq!(told([&answer[..answer.len() - 1]]), None);
        }
    }

    #[test]
    fn what_is_not_redis_or_has_no_end_is_no_answer() {
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
            &[b'+'; LONGEST_LINE],
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
    fn the_longest_answer_is_taken_and_a_longer_one_is_not() {
        let text = |length| [format!("${length}\r\n").into_bytes(), vec![b'x'; length], b"\r\n".to_vec()].concat();
        let longest = text(LONGEST_ANSWER - 10);
        assert_eq!(longest.len(), LONGEST_ANSWER);
        let behind = [&longest[..], b"x"].concat();
        for chunk in [1, 1000, LONGEST_ANSWER + 1] {
            assert!(told(behind.chunks(chunk)).is_some_and(|(_, used)| used == LONGEST_ANSWER));
            assert_eq!(told(text(LONGEST_ANSWER - 9).chunks(chunk)), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_told_the_same_however_they_are_cut(
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
            prop_assert_eq!(told(stream.chunks(cut)), told([&stream[..]]));
        }
    }
}
