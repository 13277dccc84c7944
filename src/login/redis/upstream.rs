//! Authentication of Portcullis at a Redis server, on a new connection.
//!
//! The first request asks with PING whether the default user needs a password, with HELLO whether the server knows that command,
//! and authenticates. If the password is wrong, the next one can be tried on the same connection.

use zeroize::Zeroizing;

use super::credentials::UpstreamCredentials;
use super::encode;
use crate::printable;

/// What a server demands of a client that has not authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DefaultUser {
    /// A password, as with `requirepass`.
    Protected,
    /// Nothing. After RESET, a client can act as the default user.
    Open,
}

/// What a login finds out about a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServerTraits {
    pub(crate) default_user: DefaultUser,
    /// Whether it has the command HELLO. A server that does not know a command repeats its words in the error.
    pub(crate) has_hello: bool,
}

/// The result of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LoginOutcome {
    Accepted(ServerTraits),
    /// The server does not accept this user with this password.
    WrongPassword,
    /// The server is busy, and may accept the password later. Its words.
    NotReady(String),
    /// The server has no such users, or refuses for another reason. Its words, without those of the request.
    NotSupported(String),
}

/// The state of the reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LoginReply {
    /// The reply is incomplete.
    More,
    Done(LoginOutcome),
    /// The bytes are not a reply to the request. The connection cannot be used.
    Invalid,
}

/// Parses the replies to the requests, one request after the other.
#[derive(Debug, Default)]
pub(crate) struct UpstreamLogin {
    /// An incomplete line.
    line: Vec<u8>,
    /// From the reply to PING.
    default_user: Option<DefaultUser>,
    /// From the reply to HELLO with a version that no server has.
    has_hello: Option<bool>,
}

impl UpstreamLogin {
    /// The request with the next password.
    pub(crate) fn request(&self, credentials: &UpstreamCredentials) -> Zeroizing<Vec<u8>> {
        let auth = credentials.auth_command();
        if self.default_user.is_some() {
            return auth;
        }
        let commands = [encode::command(&[b"PING"]), encode::command(&[b"HELLO", b"9"]), auth];
        // Its final size from the start, so that no copy of the password is left behind.
        let mut request = Zeroizing::new(Vec::with_capacity(commands.iter().map(|command| command.len()).sum()));
        commands.iter().for_each(|command| request.extend_from_slice(command));
        request
    }

    /// Parses the next chunk from the server. `credentials` are those of the request.
    pub(crate) fn follow(&mut self, bytes: &[u8], credentials: &UpstreamCredentials) -> LoginReply {
        let mut rest = bytes;
        while let Some((byte, behind)) = rest.split_first() {
            rest = behind;
            self.line.push(*byte);
            if *byte != b'\n' {
                if self.line.len() >= MAX_LINE {
                    return LoginReply::Invalid;
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let Some(line) = line.strip_suffix(b"\r\n") else { return LoginReply::Invalid };
            let Some(default_user) = self.default_user else {
                match default_user(line, credentials) {
                    Ok(found) => self.default_user = Some(found),
                    Err(reply) => return reply,
                }
                continue;
            };
            let Some(has_hello) = self.has_hello else {
                if line.first() != Some(&b'-') {
                    return LoginReply::Invalid;
                }
                self.has_hello = Some(code(line) == b"-NOPROTO");
                continue;
            };
            let traits = ServerTraits { default_user, has_hello };
            // Nothing was asked, so these bytes must not reach a client.
            return if rest.is_empty() { outcome(line, traits, credentials) } else { LoginReply::Invalid };
        }
        LoginReply::More
    }
}

/// What the reply to PING tells.
///
/// # Errors
/// The result, if the server closes the connection after this reply.
fn default_user(line: &[u8], credentials: &UpstreamCredentials) -> Result<DefaultUser, LoginReply> {
    match code(line) {
        b"+PONG" => Ok(DefaultUser::Open),
        b"-NOAUTH" => Ok(DefaultUser::Protected),
        b"-DENIED" => Err(LoginReply::Done(LoginOutcome::NotSupported(shown(line, credentials)))),
        b"-ERR" if line.starts_with(b"-ERR max number of clients") => {
            Err(LoginReply::Done(LoginOutcome::NotReady(shown(line, credentials))))
        }
        // Redis asks for the password first. So the default user may not call PING, or the server is busy.
        [b'-', ..] => Ok(DefaultUser::Open),
        _ => Err(LoginReply::Invalid),
    }
}

fn outcome(line: &[u8], traits: ServerTraits, credentials: &UpstreamCredentials) -> LoginReply {
    LoginReply::Done(match code(line) {
        b"+OK" if line == b"+OK" => LoginOutcome::Accepted(traits),
        b"-WRONGPASS" => LoginOutcome::WrongPassword,
        // The words of Redis 5 and older.
        b"-ERR" if line == b"-ERR invalid password" => LoginOutcome::WrongPassword,
        b"-LOADING" | b"-MASTERDOWN" | b"-BUSY" | b"-TRYAGAIN" | b"-CLUSTERDOWN" => {
            LoginOutcome::NotReady(shown(line, credentials))
        }
        [b'-', ..] => LoginOutcome::NotSupported(shown(line, credentials)),
        _ => return LoginReply::Invalid,
    })
}

/// The first word of a reply.
fn code(line: &[u8]) -> &[u8] {
    line.split(|byte| *byte == b' ').next().unwrap_or_default()
}

/// The words of an error. They end before the first quote, because a server may quote the request with its password.
fn shown(line: &[u8], credentials: &UpstreamCredentials) -> String {
    if credentials.is_revealed_by(line) {
        return REVEALING.to_owned();
    }
    let line = line.strip_prefix(b"-").unwrap_or(line);
    let words = line.split(|byte| matches!(byte, b'\'' | b'"' | b'`')).next().unwrap_or_default();
    printable::quoted(String::from_utf8_lossy(words).trim_end())
}

/// In the place of an error that must not be shown.
const REVEALING: &str = "an error that contains the password";

/// Maximum size of a reply in bytes.
const MAX_LINE: usize = 1024;
