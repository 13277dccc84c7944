//! The server's side of the authentication of a client: SCRAM-SHA-256, and SCRAM-SHA-256-PLUS where a certificate can be bound.
//!
//! A client cannot distinguish an unknown user from a wrong password: it receives the same messages in both cases, after the
//! same computation. AuthenticationOk is not sent here, because it comes from the database.

pub(crate) mod failure;

use std::fmt;
use std::mem;

use crate::credential::scram::server::{Exchange, ServerError};
use crate::credential::scram::{MAX_MESSAGE, Mechanism};
use crate::credential::verifier::{Key, Parameters, Verifier};
use crate::login::postgres::client::failure::LoginFailure;
use crate::login::postgres::{PASSWORD_MESSAGE, SASL, SASL_CONTINUE, SASL_FINAL};
use crate::protocol::postgres::startup::message::{AUTHENTICATION, message};

/// One attempt of a client to authenticate.
pub(crate) struct ClientLogin<'v> {
    user: Vec<u8>,
    /// Those of the user. They have the same parameters.
    verifiers: &'v [Verifier],
    /// What the exchange uses if there are no verifiers. No password fits it.
    mock: Verifier,
    /// The data of tls-server-end-point.
    binding: Option<Vec<u8>>,
    /// Part of the first message of the server.
    nonce: String,
    position: Position,
    /// Bytes not parsed yet: an incomplete message.
    pending: Vec<u8>,
}

/// What is known of a client before it authenticates.
#[derive(Debug)]
pub(crate) struct Claim<'v> {
    /// The user name in the StartupMessage.
    pub(crate) user: &'v [u8],
    /// The verifiers of the user's valid passwords. Empty for an unknown or disabled user.
    pub(crate) verifiers: &'v [Verifier],
    /// The parameters that the user seems to have if there are no verifiers.
    pub(crate) mock: Parameters,
}

#[derive(Debug)]
enum Position {
    /// Before SASLInitialResponse.
    Mechanism,
    /// Before the first message of SCRAM, which SASLInitialResponse did not contain.
    First(Mechanism),
    /// Before the last message of SCRAM.
    Last(Mechanism, Exchange),
    Over,
}

/// The state of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ClientStep {
    /// More bytes of the client are needed.
    Ongoing,
    Proven(ProvenClient),
    Failed(FailedClient),
}

/// A client that knows a password.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProvenClient {
    /// The position of the verifier that its password fits.
    pub(crate) index: usize,
    /// AuthenticationSASLFinal for the client. AuthenticationOk has to follow.
    pub(crate) message: Vec<u8>,
    /// Bytes of the client behind its last message, for the database.
    pub(crate) rest: Vec<u8>,
}

/// A client that is rejected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FailedClient {
    pub(crate) why: LoginFailure,
    /// ErrorResponse for the client.
    pub(crate) message: Vec<u8>,
}

impl<'v> ClientLogin<'v> {
    /// `binding` is the data of tls-server-end-point, if SCRAM-SHA-256-PLUS is to be offered. `nonce` is a new one.
    pub(crate) fn new(claim: Claim<'v>, binding: Option<Vec<u8>>, nonce: String) -> Self {
        // An attempt that uses it fails, whatever the proof.
        let mock = Verifier { parameters: claim.mock, stored_key: Key::default(), server_key: Key::default() };
        Self {
            user: claim.user.to_vec(),
            verifiers: claim.verifiers,
            mock,
            binding,
            nonce,
            position: Position::Mechanism,
            pending: Vec::new(),
        }
    }

    /// The first message for the client: AuthenticationSASL with the mechanisms.
    pub(crate) fn first(&self) -> Vec<u8> {
        let offered: &[Mechanism] = match self.binding {
            Some(_) => &[Mechanism::ScramPlus, Mechanism::Scram],
            None => &[Mechanism::Scram],
        };
        let mut names = Vec::new();
        for mechanism in offered {
            names.extend_from_slice(mechanism.name().as_bytes());
            names.push(0);
        }
        names.push(0);
        request(SASL, &names)
    }

    /// Whether the client has sent anything. psql closes without an answer to ask its user for the password.
    pub(crate) fn has_answered(&self) -> bool {
        !matches!(self.position, Position::Mechanism) || !self.pending.is_empty()
    }

    /// Whether the next message of the client is the proof of its password.
    pub(crate) fn awaits_proof(&self) -> bool {
        matches!(self.position, Position::Last(..))
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Parses the next chunk of the client, and appends the bytes for the client to `out`. Chunks may end anywhere. After
    /// [`ClientStep::Proven`] and [`ClientStep::Failed`], the attempt is over.
    ///
    /// It holds at most one chunk and one message of [`MAX_LENGTH`].
    pub(crate) fn follow(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> ClientStep {
        self.pending.extend_from_slice(chunk);
        loop {
            let result = match self.next_body() {
                Ok(Some(body)) => self.take(&body, out),
                Ok(None) => return ClientStep::Ongoing,
                Err(why) => Err(why),
            };
            match result {
                Ok(None) => {}
                Ok(Some((index, message))) => {
                    let rest = mem::take(&mut self.pending);
                    return ClientStep::Proven(ProvenClient { index, message, rest });
                }
                Err(why) => {
                    self.position = Position::Over;
                    self.pending = Vec::new();
                    return ClientStep::Failed(FailedClient { why, message: why.message(&self.user) });
                }
            }
        }
    }

    /// The body of the next message, if it is complete.
    fn next_body(&mut self) -> Result<Option<Vec<u8>>, LoginFailure> {
        match self.pending.first() {
            None => return Ok(None),
            Some(&PASSWORD_MESSAGE) => {}
            Some(kind) => return Err(LoginFailure::Type(*kind)),
        }
        let Some((&[_, ref length @ ..], rest)) = self.pending.split_first_chunk::<5>() else { return Ok(None) };
        let declared = u32::from_be_bytes(*length);
        let length = usize::try_from(declared).ok().filter(|length| (4..=MAX_LENGTH).contains(length));
        let body = length.ok_or(LoginFailure::Length(declared))? - 4;
        let Some((body, behind)) = rest.split_at_checked(body) else { return Ok(None) };
        let (body, behind) = (body.to_vec(), behind.to_vec());
        self.pending = behind;
        Ok(Some(body))
    }

    /// Handles one message. Returns the index of the verifier and AuthenticationSASLFinal if it proves a password.
    fn take(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<Option<(usize, Vec<u8>)>, LoginFailure> {
        match mem::replace(&mut self.position, Position::Over) {
            Position::Mechanism => {
                let (mechanism, response) = initial_response(body)?;
                if mechanism == Mechanism::ScramPlus && self.binding.is_none() {
                    return Err(LoginFailure::Mechanism);
                }
                match response {
                    Some(response) => self.begin(mechanism, response, out)?,
                    None => {
                        self.position = Position::First(mechanism);
                        out.extend(request(SASL_CONTINUE, b""));
                    }
                }
            }
            Position::First(mechanism) => self.begin(mechanism, body, out)?,
            Position::Last(mechanism, exchange) => return self.finish(mechanism, exchange, body).map(Some),
            Position::Over => return Err(LoginFailure::Malformed),
        }
        Ok(None)
    }

    fn begin(&mut self, mechanism: Mechanism, first: &[u8], out: &mut Vec<u8>) -> Result<(), LoginFailure> {
        let parameters = &self.verifiers.first().unwrap_or(&self.mock).parameters;
        let begun = Exchange::begin(mechanism, first, self.binding.as_deref(), parameters, &self.nonce);
        let (exchange, challenge) = begun.map_err(LoginFailure::Scram)?;
        self.position = Position::Last(mechanism, exchange);
        out.extend(request(SASL_CONTINUE, challenge.as_bytes()));
        Ok(())
    }

    fn finish(&self, mechanism: Mechanism, exchange: Exchange, last: &[u8]) -> Result<(usize, Vec<u8>), LoginFailure> {
        let is_known = !self.verifiers.is_empty();
        let verifiers = if is_known { self.verifiers } else { std::slice::from_ref(&self.mock) };
        match exchange.finish(last, verifiers) {
            Ok(proven) if is_known => Ok((proven.index, request(SASL_FINAL, proven.message.as_bytes()))),
            Ok(_) => Err(LoginFailure::UnknownUser),
            Err(ServerError::WrongProof) if is_known => Err(LoginFailure::WrongPassword),
            Err(ServerError::WrongProof) => Err(LoginFailure::UnknownUser),
            // Without channel binding the attribute repeats the header of the first message.
            Err(ServerError::Binding) if mechanism == Mechanism::Scram => {
                Err(LoginFailure::Scram(ServerError::Malformed("another channel binding")))
            }
            Err(error) => Err(LoginFailure::Scram(error)),
        }
    }
}

impl fmt::Debug for ClientLogin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientLogin").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

/// The mechanism of a SASLInitialResponse and the message in it, if any.
fn initial_response(body: &[u8]) -> Result<(Mechanism, Option<&[u8]>), LoginFailure> {
    let end = body.iter().position(|byte| *byte == 0).ok_or(LoginFailure::Malformed)?;
    let (name, rest) = body.split_at_checked(end).ok_or(LoginFailure::Malformed)?;
    let mechanism = Mechanism::by_name(name).ok_or(LoginFailure::Mechanism)?;
    let (length, response) = rest.get(1..).and_then(<[u8]>::split_first_chunk::<4>).ok_or(LoginFailure::Malformed)?;
    match u32::from_be_bytes(*length) {
        u32::MAX if response.is_empty() => Ok((mechanism, None)),
        length if usize::try_from(length) == Ok(response.len()) => Ok((mechanism, Some(response))),
        _ => Err(LoginFailure::Malformed),
    }
}

fn request(code: u32, data: &[u8]) -> Vec<u8> {
    message(AUTHENTICATION, &[&code.to_be_bytes()[..], data].concat())
}

/// The maximum length of a message of the client in bytes, as its length field counts: a SCRAM message, the name of a
/// mechanism, and two lengths.
pub(crate) const MAX_LENGTH: usize = MAX_MESSAGE + 32;
