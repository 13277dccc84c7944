//! A client's attempt to authenticate, and the command that is sent to the database in its place.

use std::fmt;

use zeroize::Zeroizing;

use super::before::hello_problem;
use super::credentials::{UpstreamCredentials, with_wrong_pair};
use super::encode;
use crate::login::shown_name;
use crate::protocol::redis::commands::Words;
use crate::protocol::redis::commands::syntax::text;

/// An AUTH, or a HELLO with AUTH.
pub(crate) struct Attempt {
    words: Words,
    /// Where the pairs of user and password are. None: the command is too long.
    pairs: Vec<Pair>,
}

/// Whether a client's password is right.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verdict<'a> {
    /// The client continues as this user of the database.
    Right(&'a UpstreamCredentials),
    Wrong,
}

/// What the first right password of a connection leads to, once the database has accepted Portcullis.
#[derive(Debug)]
pub(crate) struct Opening {
    /// The reply, if Portcullis gives it.
    pub(crate) reply: &'static [u8],
    /// What the database receives. Its replies go to the client.
    pub(crate) command: Zeroizing<Vec<u8>>,
}

#[derive(Clone, Copy)]
struct Pair {
    /// `None` for the user `default`, in an AUTH with one argument.
    user: Option<usize>,
    password: usize,
}

impl Attempt {
    /// # Errors
    /// What the database receives in the place of a command that has no password where Redis looks for one. It gets the same
    /// error.
    pub(super) fn parse(mut words: Words) -> Result<Self, Words> {
        let constant = |words: &[&[u8]]| words.iter().map(|word| word.to_vec().into()).collect();
        let Some(name) = words.first() else { return Err(words) };
        if name.contains(&0) {
            // Redis compares the name up to the NUL if it finds it in its table, and otherwise does not know it.
            return Err(constant(&[b"a command with a NUL"]));
        }
        let is = |name: &[u8], other: &[u8]| name.eq_ignore_ascii_case(other);
        match (is(name, b"AUTH"), words.len()) {
            (true, 1) => Err(constant(&[b"AUTH"])),
            (true, 2) => Ok(Self::with(words, vec![Pair { user: None, password: 1 }])),
            (true, 3) => Ok(Self::with(words, vec![Pair { user: Some(1), password: 2 }])),
            (true, _) => Err(constant(&[b"AUTH", b"a", b"b", b"c"])),
            (false, count) if !is(name, b"HELLO") => {
                Err(if count == 1 { words } else { constant(&[name.as_slice(), b"x"]) })
            }
            (false, _) => {
                let (pairs, end) = hello_pairs(&words);
                // Redis stops there, and what follows may be a password.
                words.truncate(end);
                if pairs.is_empty() { Err(words) } else { Ok(Self::with(words, pairs)) }
            }
        }
    }

    fn with(words: Words, pairs: Vec<Pair>) -> Self {
        Self { words, pairs }
    }

    /// An attempt that cannot be right.
    pub(super) fn oversized() -> Self {
        Self { words: Vec::new(), pairs: Vec::new() }
    }

    /// The user. Empty if the command is too long.
    pub(crate) fn user(&self) -> &[u8] {
        match self.pairs.first() {
            Some(Pair { user: None, .. }) => DEFAULT_USER,
            Some(Pair { user: Some(user), .. }) => self.word(*user),
            None => &[],
        }
    }

    /// The user name for the log and the audit: at most 63 bytes, on one line.
    pub(crate) fn shown_user(&self) -> String {
        shown_name(self.user())
    }

    /// The password. `None` if no password can be right: the command is too long, or a HELLO has different users or
    /// passwords, or an error before them.
    pub(crate) fn password(&self) -> Option<&[u8]> {
        let (first, rest) = self.pairs.split_first()?;
        if !self.is_auth() && hello_problem(&self.words).is_some() {
            // Redis reports the error before it looks at the password, and shows the command in SLOWLOG and MONITOR.
            return None;
        }
        let is_same = |pair: &Pair| pair.user.map(|user| self.word(user)) == first.user.map(|user| self.word(user));
        let is_equal = |pair: &Pair| is_same(pair) && self.word(pair.password) == self.word(first.password);
        rest.iter().all(is_equal).then(|| self.word(first.password))
    }

    /// For the first right password of a connection. The database is not asked to authenticate twice: its password may have been
    /// changed since.
    pub(crate) fn into_opening(self) -> Opening {
        if self.is_auth() {
            return Opening { reply: b"+OK\r\n", command: Zeroizing::default() };
        }
        let is_pair = |index| {
            self.pairs.iter().any(|pair| {
                // AUTH, the user and the password.
                pair.user.is_some_and(|user| index + 1 == user || index == user) || index == pair.password
            })
        };
        let rest = self.words.iter().enumerate().filter(|(index, _)| !is_pair(*index));
        let rest: Vec<&[u8]> = rest.map(|(_, word)| word.as_slice()).collect();
        Opening { reply: b"", command: encode::command(&rest) }
    }

    pub(super) fn is_hello(&self) -> bool {
        !self.words.is_empty() && !self.is_auth()
    }

    fn is_auth(&self) -> bool {
        self.words.first().is_some_and(|name| name.eq_ignore_ascii_case(b"AUTH"))
    }

    /// The command for the database. It has no password of the client. One that is wrong always fails there, so that the reply of
    /// Redis arrives where the client expects it.
    pub(crate) fn into_command(self, verdict: Verdict<'_>) -> Zeroizing<Vec<u8>> {
        match verdict {
            Verdict::Right(credentials) if self.password().is_some() => {
                credentials.with_pair(|user, password| self.command(user, password))
            }
            Verdict::Right(_) | Verdict::Wrong => with_wrong_pair(|user, password| self.command(user, password)),
        }
    }

    /// The command with this user and password in each pair.
    fn command(&self, user: &[u8], password: &[u8]) -> Zeroizing<Vec<u8>> {
        if self.pairs.iter().all(|pair| pair.user.is_none()) {
            return encode::command(&[b"AUTH", user, password]);
        }
        let word = |(index, word)| {
            let is_user = self.pairs.iter().any(|pair| pair.user == Some(index));
            let is_password = self.pairs.iter().any(|pair| pair.password == index);
            if is_user {
                user
            } else if is_password {
                password
            } else {
                word
            }
        };
        let words: Vec<&[u8]> = self.words.iter().map(|word| word.as_slice()).enumerate().map(word).collect();
        encode::command(&words)
    }

    fn word(&self, index: usize) -> &[u8] {
        self.words.get(index).map(|word| word.as_slice()).unwrap_or_default()
    }
}

/// The pairs of a HELLO up to an option that Redis does not know, and the number of words with that option.
fn hello_pairs(words: &Words) -> (Vec<Pair>, usize) {
    let mut pairs = Vec::new();
    let mut index = FIRST_OPTION;
    while let Some(option) = words.get(index) {
        let is_followed_by = |count: usize| index + count < words.len();
        if text(option).eq_ignore_ascii_case(b"AUTH") && is_followed_by(2) {
            pairs.push(Pair { user: Some(index + 1), password: index + 2 });
            index += 3;
        } else if text(option).eq_ignore_ascii_case(b"SETNAME") && is_followed_by(1) {
            index += 2;
        } else {
            return (pairs, index + 1);
        }
    }
    (pairs, words.len())
}

/// Shows no bytes of the client.
impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").field("pairs", &self.pairs.len()).finish_non_exhaustive()
    }
}

/// The user of an AUTH with one argument.
const DEFAULT_USER: &[u8] = b"default";

/// Of a HELLO, after its name and the protocol version.
const FIRST_OPTION: usize = 2;
