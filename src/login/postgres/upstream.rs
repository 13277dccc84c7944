//! The client's side of the authentication to a database: SCRAM-SHA-256, SCRAM-SHA-256-PLUS, MD5, cleartext and trust.

use std::fmt;
use std::mem;

use md5::{Digest as _, Md5};
use zeroize::Zeroizing;

use crate::credential::scram::Mechanism;
use crate::credential::scram::client::{Answered, Binding, ClientError, Exchange};
use crate::credential::verifier::{Key, Parameters};
use crate::digest::hex;
use crate::login::postgres::{
    CLEARTEXT_PASSWORD, MD5_PASSWORD, OK, PASSWORD_MESSAGE, SASL, SASL_CONTINUE, SASL_FINAL, refusal::Refusal,
};
use crate::protocol::postgres::startup::message::{
    AUTHENTICATION, ERROR_RESPONSE, First, NEGOTIATE_PROTOCOL_VERSION, NOTICE_RESPONSE, message,
};

/// One attempt to authenticate to a database.
pub(crate) struct UpstreamLogin<'c> {
    credentials: Credentials<'c>,
    nonce: String,
    position: Position,
    /// Bytes not parsed yet: an incomplete message.
    pending: Vec<u8>,
    password_was_sent: bool,
}

/// What Portcullis authenticates with, and over which connection.
#[derive(Clone, Copy)]
pub(crate) struct Credentials<'c> {
    pub(crate) user: &'c str,
    pub(crate) password: Option<&'c str>,
    /// The data of tls-server-end-point: of the certificate that the database presented.
    pub(crate) binding: Option<&'c [u8]>,
    /// Whether the connection has TLS or is a Unix socket, so that the database may ask for the password itself.
    pub(crate) is_confidential: bool,
}

enum Position {
    /// Before the first authentication request.
    Start,
    /// A password or its MD5 digest was sent.
    Sent,
    /// The first message of SCRAM was sent.
    First(Exchange),
    /// The last message of SCRAM was sent.
    Last(Answered),
    /// The database has proven that it knows the password.
    Proven,
    Over,
}

/// The answer to an authentication request.
enum Answer {
    Message(Zeroizing<Vec<u8>>),
    /// The request can be answered when SaltedPassword for these parameters is known.
    Salt(Parameters),
}

/// The state of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UpstreamStep {
    /// More bytes of the database are needed.
    Ongoing,
    /// SaltedPassword for these parameters is needed. Call [`UpstreamLogin::follow`] again without bytes when it is known.
    Salt(Parameters),
    /// The database accepts the session.
    Done {
        /// AuthenticationOk and all bytes after it, for the client.
        rest: Vec<u8>,
    },
    Refused(Refusal),
}

/// Why Portcullis ends an attempt. The texts contain no password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpstreamFailure {
    #[error(
        "the database asks for a password, and none is configured; set upstream_password_file in [listener.credentials]"
    )]
    NoPassword,
    #[error(
        "the database asks for the password in cleartext over a connection without TLS; set upstream.tls, or the method \
         scram-sha-256 in pg_hba.conf"
    )]
    Cleartext,
    #[error("the database asks for {0}, which is not supported; set the method scram-sha-256 in pg_hba.conf")]
    Unsupported(&'static str),
    #[error("the database offers no SASL mechanism that is supported; set the method scram-sha-256 in pg_hba.conf")]
    Mechanism,
    #[error(
        "the database offers SCRAM-SHA-256-PLUS only, and this connection has no channel binding; use a server certificate \
         signed with ECDSA or RSA"
    )]
    ChannelBinding,
    #[error("{0}")]
    Scram(#[from] ClientError),
    #[error("the database accepts the session without proof that it knows the password")]
    Unproven,
    #[error("the database does not support protocol 3.0")]
    Version,
    #[error("the database sent an authentication request of type {0} out of order")]
    Order(u32),
    #[error("the database sent a message of type {0} before AuthenticationOk")]
    Type(u8),
    #[error("the database sent bytes that are not a PostgreSQL message")]
    Malformed,
}

impl<'c> UpstreamLogin<'c> {
    /// Starts after the StartupMessage of protocol 3.0 was sent. `nonce` is a new one.
    pub(crate) fn new(credentials: Credentials<'c>, nonce: String) -> Self {
        Self { credentials, nonce, position: Position::Start, pending: Vec::new(), password_was_sent: false }
    }

    /// Parses the next chunk of the database, and appends the bytes for the database to `out`. Chunks may end anywhere. After
    /// [`UpstreamStep::Done`], [`UpstreamStep::Refused`] and an error, the attempt is over.
    ///
    /// `salted` returns SaltedPassword of the same password for these parameters if the caller knows it. Otherwise the step is
    /// [`UpstreamStep::Salt`]: the computation takes milliseconds, and belongs on another thread.
    ///
    /// It holds at most one chunk and one message of 64 KiB.
    ///
    /// # Errors
    /// If the database requires something that is not supported or not configured, breaks the protocol, or does not prove
    /// that it knows the password.
    pub(crate) fn follow(
        &mut self,
        chunk: &[u8],
        out: &mut Zeroizing<Vec<u8>>,
        mut salted: impl FnMut(&Parameters) -> Option<Zeroizing<Key>>,
    ) -> Result<UpstreamStep, UpstreamFailure> {
        let mut pending = mem::take(&mut self.pending);
        pending.extend_from_slice(chunk);
        let mut rest = pending.as_slice();
        loop {
            let (message, behind) = match First::of(rest) {
                First::Whole(message, behind) => (message, behind),
                First::Cut => {
                    self.pending = rest.to_vec();
                    return Ok(UpstreamStep::Ongoing);
                }
                First::Impossible => return Err(UpstreamFailure::Malformed),
            };
            match message.kind {
                NOTICE_RESPONSE => {}
                ERROR_RESPONSE => {
                    let refusal = Refusal::new(&message, self.credentials.password, self.password_was_sent);
                    return Ok(UpstreamStep::Refused(refusal));
                }
                NEGOTIATE_PROTOCOL_VERSION => return Err(UpstreamFailure::Version),
                AUTHENTICATION => match message.authentication().ok_or(UpstreamFailure::Malformed)? {
                    (OK, []) => return self.accept(rest),
                    // A client would not know where the next message begins.
                    (OK, _) => return Err(UpstreamFailure::Malformed),
                    (code, data) => match self.answer(code, data, &mut salted)? {
                        Answer::Message(message) => out.extend_from_slice(&message),
                        Answer::Salt(parameters) => {
                            self.pending = rest.to_vec();
                            return Ok(UpstreamStep::Salt(parameters));
                        }
                    },
                },
                kind => return Err(UpstreamFailure::Type(kind)),
            }
            rest = behind;
        }
    }

    /// Whether the database has received a proof of the password. One that trusts the connection asks for none.
    pub(crate) fn has_sent_password(&self) -> bool {
        self.password_was_sent
    }

    fn accept(&mut self, rest: &[u8]) -> Result<UpstreamStep, UpstreamFailure> {
        match mem::replace(&mut self.position, Position::Over) {
            Position::Start | Position::Sent | Position::Proven => Ok(UpstreamStep::Done { rest: rest.to_vec() }),
            Position::First(_) | Position::Last(_) => Err(UpstreamFailure::Unproven),
            Position::Over => Err(UpstreamFailure::Order(OK)),
        }
    }

    /// Returns the message that answers an authentication request. It is empty for AuthenticationSASLFinal.
    fn answer(
        &mut self,
        code: u32,
        data: &[u8],
        mut salted: impl FnMut(&Parameters) -> Option<Zeroizing<Key>>,
    ) -> Result<Answer, UpstreamFailure> {
        let position = mem::replace(&mut self.position, Position::Over);
        let (position, body) = match (position, code) {
            (Position::Start, CLEARTEXT_PASSWORD) => (Position::Sent, self.cleartext()?),
            (Position::Start, MD5_PASSWORD) => (Position::Sent, self.md5(data)?),
            (Position::Start, SASL) => {
                let (exchange, body) = self.begin(data)?;
                (Position::First(exchange), body)
            }
            (Position::Start, _) => return Err(UpstreamFailure::Unsupported(method(code))),
            (Position::First(exchange), SASL_CONTINUE) => {
                let mut unknown = None;
                let answered = exchange.answer(data, |parameters| {
                    salted(parameters).unwrap_or_else(|| {
                        unknown = Some(parameters.clone());
                        Zeroizing::default()
                    })
                })?;
                if let Some(parameters) = unknown {
                    self.position = Position::First(exchange);
                    return Ok(Answer::Salt(parameters));
                }
                let body = Zeroizing::new(answered.message.clone().into_bytes());
                self.password_was_sent = true;
                (Position::Last(answered), body)
            }
            (Position::Last(answered), SASL_FINAL) => {
                answered.verify(data)?;
                self.position = Position::Proven;
                return Ok(Answer::Message(Zeroizing::default()));
            }
            _ => return Err(UpstreamFailure::Order(code)),
        };
        self.password_was_sent |= matches!(position, Position::Sent);
        self.position = position;
        Ok(Answer::Message(Zeroizing::new(message(PASSWORD_MESSAGE, &body))))
    }

    fn password(&self) -> Result<&'c str, UpstreamFailure> {
        self.credentials.password.ok_or(UpstreamFailure::NoPassword)
    }

    fn cleartext(&self) -> Result<Zeroizing<Vec<u8>>, UpstreamFailure> {
        let password = self.password()?;
        if !self.credentials.is_confidential {
            return Err(UpstreamFailure::Cleartext);
        }
        Ok(Zeroizing::new([password.as_bytes(), b"\0"].concat()))
    }

    /// Two digests: that of the password and the user is what the database stores.
    fn md5(&self, salt: &[u8]) -> Result<Zeroizing<Vec<u8>>, UpstreamFailure> {
        let password = self.password()?;
        let salt = <[u8; 4]>::try_from(salt).map_err(|_| UpstreamFailure::Malformed)?;
        let stored = md5_hex(password.as_bytes(), self.credentials.user.as_bytes());
        let answer = md5_hex(stored.as_bytes(), &salt);
        Ok(Zeroizing::new([b"md5", answer.as_bytes(), b"\0"].concat()))
    }

    /// Chooses a mechanism and returns the body of SASLInitialResponse.
    fn begin(&self, names: &[u8]) -> Result<(Exchange, Zeroizing<Vec<u8>>), UpstreamFailure> {
        self.password()?;
        let offers = |mechanism| {
            let mut names = names.split(|byte| *byte == 0).take_while(|name| !name.is_empty());
            names.any(|name| Mechanism::by_name(name) == Some(mechanism))
        };
        let binding = match (self.credentials.binding, offers(Mechanism::ScramPlus), offers(Mechanism::Scram)) {
            (Some(data), true, _) => Binding::EndPoint(data),
            (Some(_), false, true) => Binding::NotOffered,
            (None, _, true) => Binding::Unsupported,
            (None, true, false) => return Err(UpstreamFailure::ChannelBinding),
            (_, false, false) => return Err(UpstreamFailure::Mechanism),
        };
        let exchange = Exchange::new(binding, self.nonce.clone());
        let first = exchange.first();
        let length = u32::try_from(first.len()).unwrap_or(u32::MAX).to_be_bytes();
        let name = binding.mechanism().name().as_bytes();
        Ok((exchange, Zeroizing::new([name, b"\0", &length, first.as_bytes()].concat())))
    }
}

impl fmt::Debug for UpstreamLogin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamLogin").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

fn md5_hex(first: &[u8], second: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(hex(&Md5::new().chain_update(first).chain_update(second).finalize()))
}

/// The name of an authentication method that is not supported.
const fn method(code: u32) -> &'static str {
    match code {
        2 => "Kerberos V5",
        6 => "SCM credentials",
        7 | 8 => "GSSAPI",
        9 => "SSPI",
        _ => "an unknown authentication method",
    }
}
