//! The record engine: one connection's TLS, without a socket and without a buffer of its own. It is the server's towards
//! clients and the client's towards upstreams.
//!
//! What was received is opened where it lies, and what is to be sent is sealed into a buffer that is lent. All that is kept
//! between two calls is a record, or a handshake message, that has not come whole. So an idle session owns no buffer, and
//! whoever calls decides how much is moved at a time. Another record layer in user space would offer the same; one in the
//! kernel has the socket, and would take the place of what is inside `TlsStream`.

#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::DerefMut;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedConnectionCommon, UnbufferedStatus,
    WriteTraffic,
};
use rustls::{
    CipherSuite, ClientConfig, Error, HandshakeKind, ProtocolVersion, ServerConfig, SideData, SupportedCipherSuite,
};

/// Which side of TLS we are.
pub trait Side: fmt::Debug + Send + Sync + 'static {
    /// What rustls keeps for this side.
    type Data: SideData;
    /// rustls' connection.
    type Connection: DerefMut<Target = UnbufferedConnectionCommon<Self::Data>> + Send + Sync + Unpin;

    /// rustls has this method twice, once for each side.
    fn process<'c, 'i>(
        connection: &'c mut Self::Connection,
        sealed: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

/// The side that is called: ours towards clients.
#[derive(Debug)]
pub enum Server {}

/// The side that calls: ours towards upstreams.
#[derive(Debug)]
pub enum Client {}

impl Side for Server {
    type Data = ServerConnectionData;
    type Connection = UnbufferedServerConnection;

    fn process<'c, 'i>(
        connection: &'c mut Self::Connection,
        sealed: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        connection.process_tls_records(sealed)
    }
}

impl Side for Client {
    type Data = ClientConnectionData;
    type Connection = UnbufferedClientConnection;

    fn process<'c, 'i>(
        connection: &'c mut Self::Connection,
        sealed: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        connection.process_tls_records(sealed)
    }
}

/// One connection's TLS, from its first record to close_notify.
pub struct TlsEngine<S: Side = Server> {
    connection: S::Connection,
    /// What rustls has not done with. It counts on being shown these bytes at every call, even where it is only to seal.
    unopened: Vec<u8>,
    state: EngineState,
    /// We have said close_notify.
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EngineState {
    Open,
    /// The other side has said close_notify.
    Ended,
    /// The other side has sent what is no TLS; the alert has been handed out, and nothing can be opened or sealed any more.
    Broken,
}

/// The largest record there is, header included (RFC 5246 §6.2.3: 2^14 + 2048; TLS 1.3 allows less).
const MAX_RECORD: usize = 5 + (1 << 14) + 2048;

/// The most that is kept unopened: a handshake message of the largest size rustls accepts, spread over records, and a
/// record that has not come whole.
pub(crate) const MAX_UNOPENED: usize = 0xffff + 4 + MAX_RECORD;

/// How much larger than `plain` the room for sealing it has to be: the overhead of its records, and what TLS itself may
/// have to say first, such as the answer to a key update.
pub(crate) const fn max_overhead(plain: usize) -> usize {
    let engine = plain.div_ceil(1 << 14);
    engine * RECORD_OVERHEAD + MAX_CONTROL_BYTES
}

/// Header, explicit nonce, tag and content type, rounded up for every suite rustls has.
const RECORD_OVERHEAD: usize = 64;
const MAX_CONTROL_BYTES: usize = 512;

impl TlsEngine {
    /// A client of whom nothing has been read.
    ///
    /// # Errors
    /// When rustls cannot use the configuration.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        UnbufferedServerConnection::new(config).map(Self::of)
    }

    /// The certificates the client presented, in this handshake or the one it resumes, leaf first.
    pub fn client_chain(&self) -> &[CertificateDer<'static>] {
        self.presented()
    }
}

impl TlsEngine<Client> {
    /// A server to whom nothing has been said. The first word is ours: [`speak`](Self::speak) has it.
    ///
    /// # Errors
    /// When rustls cannot use the configuration.
    pub fn connect(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        UnbufferedClientConnection::new(config, name).map(Self::of)
    }

    /// The certificates the server presented, in this handshake or the one it resumes, leaf first.
    pub fn server_chain(&self) -> &[CertificateDer<'static>] {
        self.presented()
    }
}

impl<S: Side> TlsEngine<S> {
    fn of(connection: S::Connection) -> Self {
        Self { connection, unopened: Vec::new(), state: EngineState::Open, closed: false }
    }

    /// How many bytes wait for more to come, [`MAX_UNOPENED`] at most.
    pub fn unopened(&self) -> usize {
        self.unopened.len()
    }

    /// Opens, in place, every record that is whole by now, and hands what the other side said to `plain`, record by record.
    /// `sealed` is what was received, behind room for as many bytes as are [`unopened`](Self::unopened).
    ///
    /// What has to be answered, such as our part of the handshake or an alert, is put behind `answer`.
    ///
    /// # Errors
    /// What is wrong with the records. Those before have been handed out, no more can be opened, and `answer` ends with
    /// the alert that says why.
    pub fn open(&mut self, sealed: &mut [u8], plain: impl FnMut(&[u8]), answer: &mut Vec<u8>) -> Result<(), Error> {
        if self.state == EngineState::Broken {
            return Err(broken_before());
        }
        let front = sealed.get_mut(..self.unopened.len());
        front.ok_or_else(|| Error::General("no room for unopened bytes".to_owned()))?.copy_from_slice(&self.unopened);
        let opened = self.process(sealed, plain, answer).inspect_err(|_| self.state = EngineState::Broken)?;
        self.keep(sealed.get(opened..).unwrap_or_default())
    }

    /// Has rustls process what it can, and returns how much that was.
    fn process(
        &mut self,
        sealed: &mut [u8],
        mut plain: impl FnMut(&[u8]),
        answer: &mut Vec<u8>,
    ) -> Result<usize, Error> {
        let mut done = 0;
        loop {
            let rest = sealed.get_mut(done..).unwrap_or_default();
            let UnbufferedStatus { mut discard, state } = S::process(&mut self.connection, rest);
            let goes_on = match state {
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    append(answer, data)?;
                    true
                }
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        plain(record.payload);
                    }
                    true
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    // It is the caller's from here on.
                    data.done();
                    true
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.state = EngineState::Ended;
                    true
                }
                Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake | ConnectionState::Closed) => {
                    false
                }
                // Early data is not offered, and states that a later rustls may add are not for us.
                Ok(_) => return Err(Error::HandshakeNotComplete),
                Err(error) => {
                    // The alert that says what is wrong.
                    self.drain(sealed.get_mut(done + discard..).unwrap_or_default(), answer);
                    return Err(error);
                }
            };
            done += discard;
            if !goes_on {
                return Ok(done);
            }
        }
    }

    /// Takes what waits to be sent. rustls hands that out before it looks at the records again.
    fn drain(&mut self, rest: &mut [u8], answer: &mut Vec<u8>) {
        while self.connection.wants_write() {
            let Ok(ConnectionState::EncodeTlsData(data)) = S::process(&mut self.connection, rest).state else {
                return;
            };
            if append(answer, data).is_err() {
                return;
            }
        }
    }

    /// Keeps what is not whole yet.
    fn keep(&mut self, rest: &[u8]) -> Result<(), Error> {
        if self.state == EngineState::Ended || rest.is_empty() {
            // Given back, not kept for the next time: most sessions never need it again.
            self.unopened = Vec::new();
            return Ok(());
        }
        if rest.len() > MAX_UNOPENED {
            self.state = EngineState::Broken;
            return Err(Error::General("a TLS message has no end".to_owned()));
        }
        self.unopened.clear();
        // Before the client is known this is what it can have us keep, so no byte more than that.
        self.unopened.reserve_exact(rest.len());
        self.unopened.extend_from_slice(rest);
        Ok(())
    }

    /// Seals `plain` into the front of `sealed` and returns how many bytes it takes there. `sealed` has to be larger than
    /// `plain` by [`max_overhead`].
    ///
    /// # Errors
    /// When nothing can be sealed: before the end of the handshake, after close_notify, with keys worn out, or when
    /// `sealed` is too small.
    pub fn seal(&mut self, plain: &[u8], sealed: &mut [u8]) -> Result<usize, Error> {
        if self.closed {
            // rustls would seal it, and no client would look at it.
            return Err(Error::General("close_notify is already sent".to_owned()));
        }
        self.writing(|mut traffic| match traffic.encrypt(plain, sealed) {
            Ok(taken) => Ok(taken),
            Err(EncryptError::EncryptExhausted) => {
                let cause = "the keys of this TLS 1.2 session reached their usage limit; TLS 1.3 renews its keys";
                Err(Error::General(cause.to_owned()))
            }
            Err(error @ EncryptError::InsufficientSize(_)) => Err(Error::General(error.to_string())),
        })
    }

    /// Puts what TLS has to say unasked behind `answer`, such as a client's hello.
    pub fn speak(&mut self, answer: &mut Vec<u8>) {
        let mut unopened = std::mem::take(&mut self.unopened);
        self.drain(&mut unopened, answer);
        self.unopened = unopened;
    }

    /// Puts close_notify behind `answer`, once: nothing more will be sealed. What the other side still says can be opened.
    pub fn close(&mut self, answer: &mut Vec<u8>) {
        // rustls may have said it already, as when the keys are worn out.
        self.speak(answer);
        let mut room = [0; MAX_CONTROL_BYTES];
        // Where there is no key to say it by, or an alert has said it already, nothing is owed.
        if let Ok(taken) = self.writing(|mut traffic| Ok(traffic.queue_close_notify(&mut room).unwrap_or_default())) {
            self.closed = true;
            answer.extend_from_slice(room.get(..taken).unwrap_or_default());
        }
    }

    fn writing<T>(&mut self, work: impl FnOnce(WriteTraffic<'_, S::Data>) -> Result<T, Error>) -> Result<T, Error> {
        if self.state == EngineState::Broken {
            return Err(broken_before());
        }
        loop {
            match S::process(&mut self.connection, &mut self.unopened).state? {
                ConnectionState::WriteTraffic(traffic) => return work(traffic),
                ConnectionState::TransmitTlsData(data) => data.done(),
                _ => return Err(Error::HandshakeNotComplete),
            }
        }
    }

    /// Whether the other side has said that it will say no more.
    pub fn has_ended(&self) -> bool {
        self.state == EngineState::Ended
    }

    /// Whether the handshake still lasts.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    fn presented(&self) -> &[CertificateDer<'static>] {
        self.connection.peer_certificates().unwrap_or_default()
    }

    /// Whether the handshake took up an earlier session, in which nobody is asked to show a certificate.
    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The version that was negotiated, as audit events have it: `TLSv1.3`.
    pub fn version(&self) -> Option<&'static str> {
        self.connection.protocol_version().map(version_name)
    }

    /// The IANA name of the cipher suite that was negotiated.
    pub fn cipher(&self) -> Option<&'static str> {
        self.connection.negotiated_cipher_suite().map(cipher_name)
    }

    /// The protocol that was negotiated by ALPN (RFC 7301).
    pub fn alpn(&self) -> Option<&[u8]> {
        self.connection.alpn_protocol()
    }
}

impl<S: Side> fmt::Debug for TlsEngine<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whatever else is in there, keys are.
        formatter.debug_struct("TlsEngine").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Puts what rustls has to say behind `answer`.
fn append<Data>(answer: &mut Vec<u8>, mut data: EncodeTlsData<'_, Data>) -> Result<(), Error> {
    let end = answer.len();
    // It tells how much room it needs by refusing none.
    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
        answer.resize(end + size.required_size, 0);
        let room = answer.get_mut(end..).unwrap_or_default();
        data.encode(room).map_err(|error| Error::General(error.to_string()))?;
    }
    Ok(())
}

/// After an error nothing more can be opened or sealed.
fn broken_before() -> Error {
    Error::General("an earlier TLS error ended this connection".to_owned())
}

/// `TLSv1.3`, as audit events have it.
fn version_name(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_2 => "TLSv1.2",
        ProtocolVersion::TLSv1_3 => "TLSv1.3",
        _ => "unknown",
    }
}

/// The IANA name of a cipher suite; rustls writes those of TLS 1.3 as `TLS13_…`.
fn cipher_name(suite: SupportedCipherSuite) -> &'static str {
    match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or("unknown"),
    }
}
