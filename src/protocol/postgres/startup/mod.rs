//! Parses the startup of a PostgreSQL session in the stream from the server: from the StartupMessage to the first
//! ReadyForQuery.
//!
//! During startup the server sends the cancel key, its SASL mechanisms, its role and, if it rejects the client, the reason.
//! Source: PostgreSQL documentation, "Message Flow", "Message Formats" and "SASL Authentication".
//!
//! The role is determined as libpq does for `target_session_attrs=primary`. A server since version 14 reports
//! `in_hot_standby`; an older one is asked for `pg_is_in_recovery()`. Unlike `read-write`, `primary` ignores
//! `default_transaction_read_only`, which is a setting of a user or a database and not a role of the server.

pub(crate) mod message;

use std::mem;

use crate::protocol::postgres::startup::message::{
    BACKEND_KEY_DATA, DATA_ROW, ERROR_RESPONSE, First, Message, NEGOTIATE_PROTOCOL_VERSION, NOTICE_RESPONSE,
    NOTIFICATION_RESPONSE, PARAMETER_STATUS, READY_FOR_QUERY,
};

use crate::protocol::postgres::CANCEL_BODY;

/// How the startup of one session is handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StartupOptions {
    /// Remove SCRAM with channel binding from the server's mechanisms. This is for a client without TLS at an upstream with
    /// TLS: the server offers a mechanism that the client cannot use.
    pub hide_channel_binding: bool,
    /// Portcullis has authenticated the client, and the server must not ask it for a password.
    pub is_authenticated: bool,
    /// Withhold messages from the client, so that another server can still be tried.
    pub withhold: Withhold,
}

/// How long messages are withheld from the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Withhold {
    /// Not at all.
    #[default]
    Nothing,
    /// Until the server sends a message other than an error.
    Refusal,
    /// Until the role of the server is known.
    Role,
}

/// The state of a startup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartupStep {
    /// Startup continues.
    Ongoing,
    /// The role of the server is known. Messages stay withheld until [`StartupParser::release`].
    Role(ServerRole),
    /// The session is ready, and the server has not reported its role. Returned once. All messages are withheld. The caller
    /// either sends [`RECOVERY_QUERY`] and passes the reply to the parser, or calls [`StartupParser::release`].
    Ask,
    /// The server rejects the client ([`StartupParser::refusal`]). The error is withheld. Returned only while messages are
    /// withheld; otherwise the error passes to the client.
    Refused,
    /// Startup is complete. From here on, bytes need not pass through the parser.
    Done,
    /// The stream is not PostgreSQL, or longer than any startup, so parsing stops. Withheld bytes can be released; all other
    /// bytes pass to the client.
    Lost,
    /// The caller has to close the session: the reply to [`RECOVERY_QUERY`] is invalid, so that a part of it would reach the
    /// client, or the server asks a client that Portcullis has authenticated for a password.
    Aborted,
}

/// The role of a PostgreSQL server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerRole {
    /// Accepts writes.
    Primary,
    /// Replicates another server.
    Standby,
    /// The server did not report its role when asked.
    Unknown,
}

/// An ErrorResponse that ends a session during startup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StartupError {
    state: [u8; 5],
    channel_binding: bool,
}

impl StartupError {
    /// The SQLSTATE: five digits and capital letters.
    #[cfg(test)]
    pub(crate) fn state(&self) -> &str {
        str::from_utf8(&self.state).unwrap_or_default()
    }

    /// Whether the server is starting, stopping or recovering, and may accept the same client later.
    pub(crate) fn is_not_ready(&self) -> bool {
        &self.state == b"57P03"
    }

    /// Whether channel binding failed because client and server see different certificates.
    pub(crate) fn is_channel_binding(&self) -> bool {
        self.channel_binding
    }

    fn of(message: &Message<'_>) -> Option<Self> {
        let state = <[u8; 5]>::try_from(message.field(b'C')?).ok()?;
        // The text may be translated. The routine has only this one error with SQLSTATE 28000.
        let text = message.field(b'M').is_some_and(|text| text == b"SCRAM channel binding check failed");
        let routine = message.field(b'R').is_some_and(|routine| routine == b"read_client_final_message");
        let plain = state.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
        plain.then_some(Self { state, channel_binding: text || (routine && &state == b"28000") })
    }
}

/// Parses the stream from the server during startup.
#[derive(Debug)]
pub(crate) struct StartupParser {
    hide_channel_binding: bool,
    is_authenticated: bool,
    position: ParserPosition,
    /// Bytes not parsed yet: an incomplete message, or what arrived after a stop.
    pending: Vec<u8>,
    /// Complete messages that are withheld from the client.
    held: Vec<u8>,
    asks_client: bool,
    offers_channel_binding: bool,
    cancel_key: Option<Vec<u8>>,
    refusal: Option<StartupError>,
}

#[derive(Clone, Copy, Debug)]
enum ParserPosition {
    /// Before ReadyForQuery.
    Beginning { withhold: Withhold },
    /// After a withheld ReadyForQuery, in the reply to [`RECOVERY_QUERY`].
    Answer { role: ServerRole },
    /// At a step that the caller has to decide about.
    Stopped { at: StartupStep, next: Next },
    /// All further bytes pass to the client.
    Over(StartupStep),
}

/// The position after a stop is released.
#[derive(Clone, Copy, Debug)]
enum Next {
    Beginning,
    Over(StartupStep),
    Nowhere,
}

impl StartupParser {
    /// Starts after the StartupMessage was sent.
    pub(crate) fn new(options: StartupOptions) -> Self {
        Self {
            hide_channel_binding: options.hide_channel_binding,
            is_authenticated: options.is_authenticated,
            position: ParserPosition::Beginning { withhold: options.withhold },
            pending: Vec::new(),
            held: Vec::new(),
            asks_client: false,
            offers_channel_binding: false,
            cancel_key: None,
            refusal: None,
        }
    }

    /// Parses the next chunk from the server, and appends the bytes for the client to `out`. Chunks may end anywhere.
    ///
    /// The parser holds at most one chunk, one message of 64 KiB and 256 KiB of withheld messages, provided that no chunk is
    /// passed between a stop and its release.
    pub(crate) fn follow(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> StartupStep {
        if let ParserPosition::Over(step) = self.position {
            out.extend_from_slice(chunk);
            return step;
        }
        self.pending.extend_from_slice(chunk);
        self.proceed(out)
    }

    /// Appends the withheld messages to `out` and withholds none from now on.
    pub(crate) fn release(&mut self, out: &mut Vec<u8>) -> StartupStep {
        let next = match self.position {
            ParserPosition::Beginning { .. } => Next::Beginning,
            ParserPosition::Answer { .. } => Next::Over(StartupStep::Done),
            ParserPosition::Stopped { next, .. } => next,
            ParserPosition::Over(step) => Next::Over(step),
        };
        match next {
            Next::Beginning => self.position = ParserPosition::Beginning { withhold: Withhold::Nothing },
            Next::Over(step) => self.position = ParserPosition::Over(step),
            Next::Nowhere => return StartupStep::Aborted,
        }
        out.append(&mut self.held);
        self.proceed(out)
    }

    /// Appends all remaining bytes for the client to `out`, because the server has closed.
    pub(crate) fn end(mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        // After RECOVERY_QUERY the remaining bytes are a part of its reply.
        if !matches!(self.position, ParserPosition::Answer { .. } | ParserPosition::Stopped { next: Next::Nowhere, .. })
        {
            out.append(&mut self.pending);
        }
    }

    /// Whether the server has asked the client for something, such as a password. From then on the client is authenticating
    /// to this server, and another one can no longer be tried.
    pub(crate) fn asks_client(&self) -> bool {
        self.asks_client
    }

    /// Whether the server offers SCRAM with channel binding, hidden or not.
    #[cfg(test)]
    pub(crate) fn offers_channel_binding(&self) -> bool {
        self.offers_channel_binding
    }

    /// Process id and secret key, in the format of a CancelRequest body.
    pub(crate) fn cancel_key(&self) -> Option<&[u8]> {
        self.cancel_key.as_deref()
    }

    /// The error, if the server rejects the client.
    pub(crate) fn refusal(&self) -> Option<StartupError> {
        self.refusal
    }

    fn proceed(&mut self, out: &mut Vec<u8>) -> StartupStep {
        let mut pending = mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        let mut step = StartupStep::Ongoing;
        while step == StartupStep::Ongoing {
            let withhold = match self.position {
                ParserPosition::Beginning { withhold } => Some(withhold),
                ParserPosition::Answer { .. } => None,
                ParserPosition::Stopped { at, .. } => {
                    step = at;
                    break;
                }
                ParserPosition::Over(over) => {
                    out.extend_from_slice(rest);
                    rest = &[];
                    step = over;
                    break;
                }
            };
            let (message, behind) = match First::of(rest) {
                First::Whole(message, behind) if self.held.len() + message.whole.len() <= MAX_HELD => (message, behind),
                First::Cut => break,
                First::Whole(..) | First::Impossible => {
                    self.lose();
                    continue;
                }
            };
            rest = behind;
            match withhold {
                Some(withhold) => step = self.take(message, withhold, out),
                None => self.take_answer(message),
            }
        }
        let seen = pending.len() - rest.len();
        pending.drain(..seen);
        self.pending = pending;
        step
    }

    /// Handles one message before ReadyForQuery. Returns [`StartupStep::Ask`] at the message that makes the caller ask for the
    /// role, else [`StartupStep::Ongoing`].
    fn take(&mut self, message: Message<'_>, mut withhold: Withhold, out: &mut Vec<u8>) -> StartupStep {
        if withhold == Withhold::Refusal
            && ![ERROR_RESPONSE, NEGOTIATE_PROTOCOL_VERSION, NOTICE_RESPONSE].contains(&message.kind)
        {
            withhold = Withhold::Nothing;
            self.position = ParserPosition::Beginning { withhold };
            out.append(&mut self.held);
        }
        let is_request = message.authentication().is_some_and(|(code, _)| wants_an_answer(code));
        if is_request && self.is_authenticated {
            // The client would answer with its own password.
            self.abort();
            return StartupStep::Ongoing;
        }
        let shown = self.offer_without_channel_binding(&message);
        let shown = shown.as_deref().unwrap_or(message.whole);
        if withhold == Withhold::Nothing {
            out.extend_from_slice(shown)
        } else {
            self.held.extend_from_slice(shown)
        }
        match message.kind {
            BACKEND_KEY_DATA if CANCEL_BODY.contains(&message.body.len()) => {
                self.cancel_key = Some(message.body.to_vec());
            }
            ERROR_RESPONSE => {
                self.refusal = StartupError::of(&message);
                self.stop_unless_shown(withhold, StartupStep::Refused);
            }
            PARAMETER_STATUS => match message.parameter(b"in_hot_standby") {
                Some(b"on") => self.stop_unless_shown(withhold, StartupStep::Role(ServerRole::Standby)),
                Some(b"off") => self.stop_unless_shown(withhold, StartupStep::Role(ServerRole::Primary)),
                _ => {}
            },
            READY_FOR_QUERY if withhold == Withhold::Role => {
                self.position = ParserPosition::Answer { role: ServerRole::Unknown };
                return StartupStep::Ask;
            }
            READY_FOR_QUERY => self.position = ParserPosition::Over(StartupStep::Done),
            _ if is_request => {
                self.asks_client = true;
                out.append(&mut self.held);
            }
            _ => {}
        }
        StartupStep::Ongoing
    }

    fn stop_unless_shown(&mut self, withhold: Withhold, at: StartupStep) {
        if withhold != Withhold::Nothing {
            self.position = ParserPosition::Stopped { at, next: Next::Beginning };
        }
    }

    /// An AuthenticationSASL without channel binding, where the client gets a changed one. An offer with no other mechanism
    /// stays as it is: the client reports the error itself.
    fn offer_without_channel_binding(&mut self, message: &Message<'_>) -> Option<Vec<u8>> {
        let (AUTHENTICATION_SASL, names) = message.authentication()? else { return None };
        let names = names.strip_suffix(b"\0\0")?;
        let (bound, rest): (Vec<_>, Vec<_>) = names.split(|byte| *byte == 0).partition(|name| name.ends_with(b"-PLUS"));
        self.offers_channel_binding |= !bound.is_empty();
        if bound.is_empty() || rest.is_empty() || !self.hide_channel_binding {
            return None;
        }
        let body = [&AUTHENTICATION_SASL.to_be_bytes()[..], &rest.join(&0), b"\0\0"].concat();
        Some(message::message(message.kind, &body))
    }

    /// Handles one message of the reply to [`RECOVERY_QUERY`], or an asynchronous message for the client.
    fn take_answer(&mut self, message: Message<'_>) {
        let ParserPosition::Answer { role } = &mut self.position else { return };
        match message.kind {
            DATA_ROW => *role = role_in(message.body),
            NOTICE_RESPONSE | NOTIFICATION_RESPONSE | PARAMETER_STATUS => self.held.extend_from_slice(message.whole),
            READY_FOR_QUERY => {
                self.position =
                    ParserPosition::Stopped { at: StartupStep::Role(*role), next: Next::Over(StartupStep::Done) };
            }
            // RowDescription and CommandComplete around the row, or an ErrorResponse instead of it.
            _ => {}
        }
    }

    fn abort(&mut self) {
        self.position = ParserPosition::Stopped { at: StartupStep::Aborted, next: Next::Nowhere };
    }

    fn lose(&mut self) {
        if self.is_authenticated {
            // What is not parsed may ask the client for its password.
            return self.abort();
        }
        self.position = match self.position {
            ParserPosition::Beginning { withhold: Withhold::Nothing } => ParserPosition::Over(StartupStep::Lost),
            ParserPosition::Answer { .. } => ParserPosition::Stopped { at: StartupStep::Aborted, next: Next::Nowhere },
            _ => ParserPosition::Stopped { at: StartupStep::Lost, next: Next::Over(StartupStep::Lost) },
        };
    }
}

/// Whether the client answers this authentication request. AuthenticationOk and AuthenticationSASLFinal have no answer.
fn wants_an_answer(code: u32) -> bool {
    ![0, 12].contains(&code)
}

/// The role in a DataRow with one column of one letter.
fn role_in(row: &[u8]) -> ServerRole {
    match row {
        [0, 1, 0, 0, 0, 1, b'f'] => ServerRole::Primary,
        [0, 1, 0, 0, 0, 1, b't'] => ServerRole::Standby,
        _ => ServerRole::Unknown,
    }
}

/// The Query that asks a server for its role.
pub(crate) const RECOVERY_QUERY: &[u8] = b"Q\0\0\0\x2aSELECT pg_catalog.pg_is_in_recovery()\0";

const AUTHENTICATION_SASL: u32 = 10;

/// Maximum size of the withheld messages of one session in bytes. Only a server that raises notices at every login could
/// reach it.
const MAX_HELD: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use message::{AUTHENTICATION, MAX_LENGTH, message};
    use proptest::prelude::*;

    use super::*;

    // Recorded from PostgreSQL 15.
    const NEGOTIATE: &[u8] = b"v\0\0\0\x0c\0\x03\0\0\0\0\0\0";
    const MD5: &[u8] = b"R\0\0\0\x0c\0\0\0\x05\xf7c\x96I";
    const CLEARTEXT: &[u8] = b"R\0\0\0\x08\0\0\0\x03";
    const SASL: &[u8] = b"R\0\0\0\x17\0\0\0\nSCRAM-SHA-256\0\0";
    const SASL_OVER_TLS: &[u8] = b"R\0\0\0*\0\0\0\nSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
    const SASL_CONTINUE: &[u8] =
        b"R\0\0\0\\\0\0\0\x0br=abcdefghijklmnopqrstuvwxZYU7EQh/jGBPfK0W7LvKMdyq,s=J2iTVVA8KmBUsechGmvI8Q==,i=4096";
    const SASL_FINAL: &[u8] = b"R\0\0\0\x36\0\0\0\x0cv=+nbP4wlQRnR6ZoS+IgIQSZMISDf/IzV71gbSLxJCPqo=";
    const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";
    const BEFORE_ROLE: &[u8] = b"S\0\0\0\x16application_name\0\0S\0\0\0\x19client_encoding\0UTF8\0\
        S\0\0\0\x17DateStyle\0ISO, MDY\0S\0\0\0&default_transaction_read_only\0off\0";
    const PRIMARY: &[u8] = b"S\0\0\0\x17in_hot_standby\0off\0";
    const STANDBY: &[u8] = b"S\0\0\0\x16in_hot_standby\0on\0";
    const BEHIND_ROLE: &[u8] = b"S\0\0\0\x19integer_datetimes\0on\0S\0\0\0\x15is_superuser\0off\0\
        S\0\0\0\x32server_version\x0015.18 (Debian 15.18-0+deb12u1)\0S\0\0\0\x15TimeZone\0Etc/UTC\0";
    const KEY: &[u8] = b"K\0\0\0\x0c\0\0A~*\xa8\xe00";
    const READY: &[u8] = b"Z\0\0\0\x05I";
    const WRONG_PASSWORD: &[u8] = b"E\0\0\0bSFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user \"sc\"\0\
        Fauth.c\0L334\0Rauth_failed\0\0";
    const WRONG_BINDING: &[u8] = b"E\0\0\0mSFATAL\0VFATAL\0C28000\0MSCRAM channel binding check failed\0\
        Fauth-scram.c\0L1317\0Rread_client_final_message\0\0";
    const ANSWER: &[u8] = b"T\0\0\0*\0\x01pg_is_in_recovery\0\0\0\0\0\0\0\0\0\0\x10\0\x01\xff\xff\xff\xff\0\0\
        D\0\0\0\x0b\0\x01\0\0\0\x01fC\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";

    const PLAIN: StartupOptions = options(false, Withhold::Nothing);
    const HIDE: StartupOptions = options(true, Withhold::Nothing);
    const HOLD: StartupOptions = options(false, Withhold::Role);

    const fn options(hide_channel_binding: bool, withhold: Withhold) -> StartupOptions {
        StartupOptions { hide_channel_binding, is_authenticated: false, withhold }
    }

    /// The result of one run of the parser.
    #[derive(Debug, PartialEq)]
    struct Parsed {
        out: Vec<u8>,
        steps: Vec<StartupStep>,
        asks_client: bool,
        offers_channel_binding: bool,
        cancel_key: Option<Vec<u8>>,
        refusal: Option<StartupError>,
    }

    /// Parses chunk by chunk. Releases at every stop, but continues after [`StartupStep::Ask`] as if the query was sent.
    fn parsed<'a>(options: StartupOptions, chunks: impl IntoIterator<Item = &'a [u8]>) -> Parsed {
        let mut parser = StartupParser::new(options);
        let (mut out, mut steps) = (Vec::new(), Vec::new());
        for chunk in chunks {
            let mut step = parser.follow(chunk, &mut out);
            loop {
                assert!(parser.held.len() <= MAX_HELD && parser.pending.len() <= chunk.len() + MAX_LENGTH + 5);
                let last = steps.last() == Some(&step);
                if step != StartupStep::Ongoing && !last {
                    steps.push(step);
                }
                step = match step {
                    StartupStep::Ongoing | StartupStep::Done | StartupStep::Aborted => break,
                    StartupStep::Lost if last => break,
                    StartupStep::Ask => parser.follow(b"", &mut out),
                    StartupStep::Role(_) | StartupStep::Refused | StartupStep::Lost => parser.release(&mut out),
                };
            }
        }
        let (asks_client, offers_channel_binding) = (parser.asks_client(), parser.offers_channel_binding());
        let (cancel_key, refusal) = (parser.cancel_key().map(<[u8]>::to_vec), parser.refusal());
        parser.end(&mut out);
        Parsed { out, steps, asks_client, offers_channel_binding, cancel_key, refusal }
    }

    fn session(role: &[u8]) -> Vec<u8> {
        [OK, BEFORE_ROLE, role, BEHIND_ROLE, KEY, READY].concat()
    }

    #[test]
    fn startup_passes_unchanged_and_its_cancel_key_is_known() {
        let before: [&[&[u8]]; 6] = [
            &[],
            &[NEGOTIATE],
            &[MD5],
            &[CLEARTEXT],
            &[SASL, SASL_CONTINUE, SASL_FINAL],
            &[SASL_OVER_TLS, SASL_CONTINUE, SASL_FINAL],
        ];
        for (case, before) in before.iter().enumerate() {
            let stream = [&before.concat()[..], &session(PRIMARY), b"what is not looked at"].concat();
            let parsed = parsed(PLAIN, [&stream[..]]);
            assert_eq!(parsed.out, stream);
            assert_eq!(parsed.steps, [StartupStep::Done]);
            assert_eq!(parsed.cancel_key.as_deref(), Some(&b"\0\0A~*\xa8\xe00"[..]));
            assert_eq!(
                (parsed.asks_client, parsed.offers_channel_binding, parsed.refusal),
                (case > 1, case == 5, None)
            );
        }
    }

    #[test]
    fn errors_are_withheld_until_the_server_sends_another_message() {
        const FIRST: StartupOptions = options(false, Withhold::Refusal);
        let fatal = message(ERROR_RESPONSE, b"SFATAL\0C57P03\0Mthe database system is starting up\0\0");
        for before in [&b""[..], NEGOTIATE] {
            let mut parser = StartupParser::new(FIRST);
            let mut out = Vec::new();
            assert_eq!(parser.follow(&[before, &fatal].concat(), &mut out), StartupStep::Refused);
            assert!(out.is_empty() && parser.refusal().is_some_and(|refusal| refusal.is_not_ready()));
            for begun in [OK, MD5, SASL] {
                let mut parser = StartupParser::new(FIRST);
                assert_eq!(parser.follow(before, &mut out), StartupStep::Ongoing);
                assert!(out.is_empty());
                assert_eq!(parser.follow(begun, &mut out), StartupStep::Ongoing);
                assert_eq!(out, [before, begun].concat());
                out.clear();
                // From here on errors pass to the client.
                assert_eq!(parser.follow(&fatal, &mut out), StartupStep::Ongoing);
                assert_eq!(mem::take(&mut out), fatal);
            }
        }
        assert_eq!(parsed(FIRST, [&session(STANDBY)[..]]).steps, [StartupStep::Done]);
    }

    #[test]
    fn cancel_key_of_invalid_length_is_ignored() {
        for (length, taken) in [(7, false), (8, true), (260, true), (261, false)] {
            let key = vec![7; length];
            let stream = [OK, &message(BACKEND_KEY_DATA, &key), READY].concat();
            let parsed = parsed(PLAIN, [&stream[..]]);
            assert_eq!((parsed.cancel_key, parsed.out), (taken.then_some(key), stream));
        }
    }

    #[test]
    fn only_channel_binding_is_removed_from_the_mechanisms() {
        let rest = [SASL_CONTINUE, SASL_FINAL, &session(PRIMARY)].concat();
        let hidden = parsed(HIDE, [&[SASL_OVER_TLS, &rest].concat()[..]]);
        assert_eq!(hidden.out, [SASL, &rest].concat());
        assert!(hidden.offers_channel_binding);

        let offer = |names: &[u8]| message(AUTHENTICATION, &[b"\0\0\0\x0a", names].concat());
        for (names, shown) in [
            (&b"A\0SCRAM-SHA-256-PLUS\0B\0SCRAM-SHA-512-PLUS\0\0"[..], &b"A\0B\0\0"[..]),
            (b"SCRAM-SHA-256-PLUS\0\0", b"SCRAM-SHA-256-PLUS\0\0"),
            (b"SCRAM-SHA-256\0OAUTHBEARER\0\0", b"SCRAM-SHA-256\0OAUTHBEARER\0\0"),
            (b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0", b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0"),
            (b"\0", b"\0"),
            (b"", b""),
        ] {
            assert_eq!(parsed(HIDE, [&offer(names)[..]]).out, offer(shown), "{names:?}");
        }
    }

    #[test]
    fn client_that_is_authenticated_is_never_asked_for_a_password() {
        for withhold in [Withhold::Nothing, Withhold::Refusal, Withhold::Role] {
            let options = StartupOptions { is_authenticated: true, ..options(false, withhold) };
            for request in [CLEARTEXT, MD5, SASL] {
                let mut parser = StartupParser::new(options);
                let mut out = Vec::new();
                let step = parser.follow(&[OK, BEFORE_ROLE, request].concat(), &mut out);
                assert_eq!((step, parser.asks_client()), (StartupStep::Aborted, false), "{withhold:?}");
                assert_eq!(parser.follow(PRIMARY, &mut out), StartupStep::Aborted);
                parser.end(&mut out);
                assert!(!out.windows(request.len()).any(|part| part == request), "{withhold:?}");
            }
            let mut parser = StartupParser::new(options);
            assert_eq!(parser.follow(b"not PostgreSQL at all", &mut Vec::new()), StartupStep::Aborted);
        }
    }

    #[test]
    fn messages_are_withheld_until_the_role_is_known() {
        for (role, expected) in [(PRIMARY, ServerRole::Primary), (STANDBY, ServerRole::Standby)] {
            let stream = [NEGOTIATE, &session(role)].concat();
            let mut parser = StartupParser::new(HOLD);
            let mut out = Vec::new();
            assert_eq!(parser.follow(&stream, &mut out), StartupStep::Role(expected));
            assert_eq!(parser.follow(b"", &mut out), StartupStep::Role(expected));
            assert!(out.is_empty() && !parser.asks_client());
            assert_eq!(parser.release(&mut out), StartupStep::Done);
            assert_eq!(parser.follow(b"more", &mut out), StartupStep::Done);
            assert_eq!(out, [&stream[..], b"more"].concat());
        }
    }

    #[test]
    fn authentication_passes_while_other_messages_are_withheld() {
        let mut parser = StartupParser::new(HOLD);
        let mut out = Vec::new();
        assert_eq!(parser.follow(&[NEGOTIATE, SASL].concat(), &mut out), StartupStep::Ongoing);
        assert_eq!(out, [NEGOTIATE, SASL].concat());
        assert!(parser.asks_client());
        assert_eq!(parser.follow(SASL_CONTINUE, &mut out), StartupStep::Ongoing);
        assert_eq!(
            parser.follow(&[SASL_FINAL, &session(STANDBY)].concat(), &mut out),
            StartupStep::Role(ServerRole::Standby)
        );
        assert_eq!(out, [NEGOTIATE, SASL, SASL_CONTINUE].concat());
    }

    #[test]
    fn older_server_is_queried_for_its_role_and_the_client_sees_no_reply() {
        let late = [message(PARAMETER_STATUS, b"TimeZone\0GMT\0"), message(NOTICE_RESPONSE, b"SLOG\0\0")].concat();
        let standby =
            ANSWER.to_vec().into_iter().map(|byte| if byte == b'f' { b't' } else { byte }).collect::<Vec<_>>();
        let refused = [&message(ERROR_RESPONSE, b"SERROR\0C42501\0\0")[..], READY].concat();
        for (answer, role) in [
            (ANSWER, ServerRole::Primary),
            (&standby, ServerRole::Standby),
            (&refused, ServerRole::Unknown),
            (READY, ServerRole::Unknown),
        ] {
            let stream = [&session(b"")[..], &late, answer, b"more"].concat();
            for cut in 0..stream.len() {
                let parsed = parsed(HOLD, [&stream[..cut], &stream[cut..]]);
                assert_eq!(parsed.out, [&session(b"")[..], &late, b"more"].concat(), "cut behind {cut} bytes");
                assert_eq!(
                    parsed.steps,
                    [StartupStep::Ask, StartupStep::Role(role), StartupStep::Done],
                    "cut behind {cut} bytes"
                );
                assert_eq!(parsed.refusal, None);
            }
        }
        assert_eq!(RECOVERY_QUERY, message(b'Q', b"SELECT pg_catalog.pg_is_in_recovery()\0"));
    }

    #[test]
    fn session_is_unchanged_when_the_query_is_skipped_or_unanswered() {
        let mut out = Vec::new();
        let mut parser = StartupParser::new(HOLD);
        assert_eq!(parser.follow(&[&session(b"")[..], b"late"].concat(), &mut out), StartupStep::Ask);
        assert_eq!(parser.release(&mut out), StartupStep::Done);
        assert_eq!(out, [&session(b"")[..], b"late"].concat());

        let mut out = Vec::new();
        let mut parser = StartupParser::new(HOLD);
        assert_eq!(parser.follow(&session(b""), &mut out), StartupStep::Ask);
        assert_eq!(parser.follow(&ANSWER[..9], &mut out), StartupStep::Ongoing);
        parser.end(&mut out);
        assert_eq!(out, session(b""));
    }

    #[test]
    fn invalid_reply_to_the_query_never_reaches_the_client() {
        let mut out = Vec::new();
        let mut parser = StartupParser::new(HOLD);
        assert_eq!(parser.follow(&[&session(b"")[..], &ANSWER[..9]].concat(), &mut out), StartupStep::Ask);
        assert_eq!(parser.follow(&[0xff; 30], &mut out), StartupStep::Ongoing);
        assert_eq!(parser.follow(&[0xff; 30], &mut out), StartupStep::Aborted);
        assert_eq!(parser.release(&mut out), StartupStep::Aborted);
        assert!(out.is_empty());
    }

    #[test]
    fn rejection_by_the_server_is_classified_and_passed_on() {
        let starting = message(ERROR_RESPONSE, b"SFATAL\0C57P03\0Mthe database system is starting up\0\0");
        let binding_in_german = message(
            ERROR_RESPONSE,
            b"SFATAL\0C28000\0MSCRAM-Channel-Binding-\xc3\x9cberpr\xc3\xbcfung\0Rread_client_final_message\0\0",
        );
        let other = message(ERROR_RESPONSE, b"SFATAL\0C28000\0Mno pg_hba.conf entry\0Rauth_failed\0\0");
        for (packet, state, not_ready, binding) in [
            (WRONG_PASSWORD, "28P01", false, false),
            (WRONG_BINDING, "28000", false, true),
            (&binding_in_german, "28000", false, true),
            (&other, "28000", false, false),
            (&starting, "57P03", true, false),
        ] {
            let stream = [SASL, packet].concat();
            let open = parsed(PLAIN, [&stream[..]]);
            let refusal = open.refusal.unwrap();
            assert_eq!(
                (refusal.state(), refusal.is_not_ready(), refusal.is_channel_binding()),
                (state, not_ready, binding)
            );
            assert_eq!((open.out, open.steps), (stream.clone(), vec![]));
            let held = parsed(HOLD, [&stream[..]]);
            assert_eq!((held.out, held.steps, held.refusal), (stream, vec![StartupStep::Refused], Some(refusal)));
        }
        for fields in [&b"SFATAL\0\0"[..], b"C28\0\0", b"C28\n00\0\0", b""] {
            assert_eq!(parsed(PLAIN, [&message(ERROR_RESPONSE, fields)[..]]).refusal, None);
        }
    }

    #[test]
    fn stream_that_is_not_postgresql_or_endless_passes_unparsed() {
        let old_style = b"Ecould not fork new process for connection: out of memory\n\0".to_vec();
        let too_long = [b"S\0\x01\0\x01", &[b'x'; 70_000][..], READY].concat();
        for strange in [old_style, b"HTTP/1.1 400 Bad Request\r\n".to_vec(), b"Z\0\0\0\x03I".to_vec(), too_long] {
            let stream = [OK, &strange].concat();
            for options in [PLAIN, HOLD] {
                let parsed = parsed(options, stream.chunks(7));
                assert_eq!((parsed.out, parsed.steps), (stream.clone(), vec![StartupStep::Lost]));
            }
        }
        let many = [OK, &message(NOTICE_RESPONSE, &[b'x'; 60_000]).repeat(5), &session(PRIMARY)].concat();
        let parsed = parsed(HOLD, many.chunks(4096));
        assert_eq!((parsed.out, parsed.steps), (many, vec![StartupStep::Lost]));
    }

    fn any_message() -> impl Strategy<Value = Vec<u8>> {
        let known = [
            NEGOTIATE,
            MD5,
            CLEARTEXT,
            SASL,
            SASL_CONTINUE,
            SASL_FINAL,
            OK,
            BEFORE_ROLE,
            BEHIND_ROLE,
            KEY,
            WRONG_PASSWORD,
        ];
        let odd = [OK, PRIMARY, STANDBY, SASL_OVER_TLS, WRONG_BINDING, READY, ANSWER];
        let body = prop::collection::vec(any::<u8>(), 0..40);
        prop_oneof![
            6 => prop::sample::select(known.to_vec()).prop_map(<[u8]>::to_vec),
            2 => prop::sample::select(odd.to_vec()).prop_map(<[u8]>::to_vec),
            2 => (prop::sample::select(&b"vNRSKEADTC"[..]), body.clone()).prop_map(|(kind, body)| message(kind, &body)),
            // Anything at all.
            1 => body,
        ]
    }

    fn cut<'a>(mut stream: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut chunks = Vec::new();
        for cut in cuts.iter().cycle() {
            let (chunk, rest) = stream.split_at(stream.len().min(*cut));
            chunks.push(chunk);
            if rest.is_empty() {
                return chunks;
            }
            stream = rest;
        }
        chunks
    }

    proptest! {
        #[test]
        fn any_chunks_have_the_same_result_and_no_byte_is_lost_without_a_query(
            messages in prop::collection::vec(any_message(), 0..20),
            cuts in prop::collection::vec(prop_oneof![1_usize..8, 1_usize..400], 1..10),
            hide_channel_binding in any::<bool>(),
            withhold in prop::sample::select(vec![Withhold::Nothing, Withhold::Refusal, Withhold::Role]),
        ) {
            let stream = messages.concat();
            let options = options(hide_channel_binding, withhold);
            let whole = parsed(options, [&stream[..]]);
            prop_assert_eq!(&parsed(options, cut(&stream, &cuts)), &whole);
            if !whole.steps.contains(&StartupStep::Ask) && !hide_channel_binding {
                prop_assert_eq!(&whole.out, &stream);
            }
            prop_assert!(whole.out.len() <= stream.len());
        }
    }
}
