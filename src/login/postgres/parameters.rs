//! The StartupMessage of a client: who it is, which database it wants, and the message for the database in its place.

use crate::login::shown_name;
use crate::protocol::postgres::startup::message::{NEGOTIATE_PROTOCOL_VERSION, message};
use crate::protocol::postgres::{
    HEADER_LENGTH, INVALID_AUTHORIZATION, MAX_PACKET_LENGTH, PROTOCOL_3_0, PROTOCOL_VIOLATION, Packet, fatal,
};

/// A parsed StartupMessage. Values are bytes, because PostgreSQL requires no encoding. They contain no NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartupParameters {
    minor_version: u16,
    user: Vec<u8>,
    database: Option<Vec<u8>>,
    /// Names and values in their order, repeated ones too: `replication`, `options` and settings of the session.
    others: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names that start with `_pq_.`.
    protocol_options: Vec<Vec<u8>>,
}

/// Why a StartupMessage cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParameterError {
    #[error("the StartupMessage is not a list of names and values with a NUL at its end")]
    Layout,
    #[error("the StartupMessage has no user name")]
    NoUser,
    #[error(
        "the StartupMessage with upstream_user is longer than {MAX_PACKET_LENGTH} bytes; use a shorter upstream_user"
    )]
    Long,
    #[error("upstream_user is empty or contains NUL; use a role of the database")]
    UpstreamUser,
}

impl ParameterError {
    /// The ErrorResponse for the client.
    pub(crate) fn message(self) -> Vec<u8> {
        let (state, text) = match self {
            Self::Layout => (PROTOCOL_VIOLATION, "invalid startup packet layout: expected terminator as last byte"),
            Self::NoUser => (INVALID_AUTHORIZATION, "no PostgreSQL user name specified in startup packet"),
            Self::Long | Self::UpstreamUser => (PROTOCOL_VIOLATION, "invalid length of startup packet"),
        };
        fatal(state, text, "")
    }
}

impl StartupParameters {
    /// Parses a packet with its header. As in PostgreSQL, the last `user` and the last `database` count, and the name of a user
    /// or a database is compared byte by byte.
    ///
    /// # Errors
    /// [`ParameterError::Layout`] and [`ParameterError::NoUser`].
    pub(crate) fn parse(packet: &[u8]) -> Result<Self, ParameterError> {
        let (header, mut rest) = packet.split_first_chunk::<HEADER_LENGTH>().ok_or(ParameterError::Layout)?;
        if Packet::parse(*header) != Ok(Packet::Startup { body: rest.len() }) {
            return Err(ParameterError::Layout);
        }
        let [.., high, low] = *header;
        let mut parsed = Self {
            minor_version: u16::from_be_bytes([high, low]),
            user: Vec::new(),
            database: None,
            others: Vec::new(),
            protocol_options: Vec::new(),
        };
        while rest != [0] {
            let (name, behind) = text(rest).filter(|(name, _)| !name.is_empty()).ok_or(ParameterError::Layout)?;
            let (value, behind) = text(behind).ok_or(ParameterError::Layout)?;
            rest = behind;
            match name {
                b"user" => parsed.user = value.to_vec(),
                b"database" => parsed.database = Some(value.to_vec()).filter(|value| !value.is_empty()),
                _ if name.starts_with(PROTOCOL_OPTION) => parsed.protocol_options.push(name.to_vec()),
                _ => parsed.others.push((name.to_vec(), value.to_vec())),
            }
        }
        if parsed.user.is_empty() { Err(ParameterError::NoUser) } else { Ok(parsed) }
    }

    /// The user name for the lookup. `None` if it is not UTF-8, which is no name of a known client.
    pub(crate) fn user(&self) -> Option<&str> {
        str::from_utf8(&self.user).ok()
    }

    /// The user name as it was sent.
    pub(crate) fn user_bytes(&self) -> &[u8] {
        &self.user
    }

    /// The user name for the log and the audit: at most 63 bytes, on one line.
    pub(crate) fn shown_user(&self) -> String {
        shown_name(&self.user)
    }

    /// The database, which is that of the client's user name if the client names none.
    pub(crate) fn database(&self) -> &[u8] {
        self.database.as_deref().unwrap_or(&self.user)
    }

    /// The StartupMessage of protocol 3.0 for the database: another user, the database always named, no protocol options.
    ///
    /// # Errors
    /// [`ParameterError::UpstreamUser`] and [`ParameterError::Long`].
    pub(crate) fn rewritten(&self, upstream_user: &str) -> Result<Vec<u8>, ParameterError> {
        if upstream_user.is_empty() || upstream_user.contains('\0') {
            return Err(ParameterError::UpstreamUser);
        }
        let own = [(&b"user"[..], upstream_user.as_bytes()), (b"database", self.database())];
        let others = self.others.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
        let mut body = Vec::new();
        for text in own.into_iter().chain(others).flat_map(|(name, value)| [name, value]) {
            body.extend_from_slice(text);
            body.push(0);
        }
        body.push(0);
        let length = Some(HEADER_LENGTH + body.len()).filter(|length| *length <= MAX_PACKET_LENGTH);
        let length = length.and_then(|length| u32::try_from(length).ok()).ok_or(ParameterError::Long)?;
        Ok([&length.to_be_bytes()[..], &PROTOCOL_3_0.to_be_bytes(), &body].concat())
    }

    /// The NegotiateProtocolVersion for the client, which comes before the first authentication request. `None` if the client
    /// asked for protocol 3.0 without options.
    pub(crate) fn negotiation(&self) -> Option<Vec<u8>> {
        if self.minor_version == 0 && self.protocol_options.is_empty() {
            return None;
        }
        let count = u32::try_from(self.protocol_options.len()).unwrap_or(u32::MAX);
        let mut body = [PROTOCOL_3_0.to_be_bytes(), count.to_be_bytes()].concat();
        for name in &self.protocol_options {
            body.extend_from_slice(name);
            body.push(0);
        }
        Some(message(NEGOTIATE_PROTOCOL_VERSION, &body))
    }
}

/// The bytes before the first NUL, and those after it.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let (text, rest) = bytes.split_at_checked(end)?;
    Some((text, rest.get(1..)?))
}

/// The prefix of names that are reserved for options of the protocol.
const PROTOCOL_OPTION: &[u8] = b"_pq_.";
