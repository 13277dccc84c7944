//! The TLS engine of one connection, without socket and buffers. It is a TLS server towards clients and a TLS client towards
//! upstreams.
//!
//! Records are decrypted in place, and encrypted into a buffer of the caller. Between two calls, the engine keeps only an
//! incomplete record or handshake message. So an idle session owns no buffer, and the caller decides how much data is moved at a
//! time. Another user-space record layer could replace the engine. A kernel record layer owns the socket, so it would replace
//! `TlsStream` instead.

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

/// The TLS role of an engine.
pub trait Side: fmt::Debug + Send + Sync + 'static {
    /// The data type of rustls for this role.
    type Data: SideData;
    /// The connection type of rustls for this role.
    type Connection: DerefMut<Target = UnbufferedConnectionCommon<Self::Data>> + Send + Sync + Unpin;

    /// Calls `process_tls_records`, which rustls defines separately for each connection type.
    fn process<'c, 'i>(
        connection: &'c mut Self::Connection,
        sealed: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

/// The role towards clients.
#[derive(Debug)]
pub enum Server {}

/// The role towards upstreams.
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
    /// Bytes that rustls has not consumed. rustls requires them in every call, even to encrypt.
    unopened: Vec<u8>,
    state: EngineState,
    /// close_notify is sent.
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EngineState {
    Open,
    /// The peer has sent close_notify.
    Ended,
    /// The peer sent invalid TLS. The alert is returned to the caller, and no more records can be processed.
    Broken,
}

/// Bytes of the largest record, header included (RFC 5246 §6.2.3: 2^14 + 2048; TLS 1.3 allows less).
const MAX_RECORD: usize = 5 + (1 << 14) + 2048;

/// Bytes kept between calls: a handshake message of the largest size that rustls accepts, and an incomplete record.
pub(crate) const MAX_UNOPENED: usize = 0xffff + 4 + MAX_RECORD;

/// Bytes by which the output of [`seal`](TlsEngine::seal) can exceed `plain` bytes: record overhead, and pending TLS messages such
/// as the response to a key update.
pub(crate) const fn max_overhead(plain: usize) -> usize {
    let records = plain.div_ceil(1 << 14);
    records * RECORD_OVERHEAD + MAX_CONTROL_BYTES
}

/// Bytes of header, explicit nonce, tag and content type, rounded up for all suites of rustls.
const RECORD_OVERHEAD: usize = 64;
const MAX_CONTROL_BYTES: usize = 512;

impl TlsEngine {
    /// # Errors
    /// If rustls rejects the configuration.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        UnbufferedServerConnection::new(config).map(Self::of)
    }

    /// The certificates the client presented, in this handshake or the one it resumes, leaf first.
    pub fn client_chain(&self) -> &[CertificateDer<'static>] {
        self.presented()
    }
}

impl TlsEngine<Client> {
    /// Call [`take_pending`](Self::take_pending) to get the ClientHello.
    ///
    /// # Errors
    /// If rustls rejects the configuration.
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

    /// The number of bytes that wait for more input, at most [`MAX_UNOPENED`].
    pub fn unopened(&self) -> usize {
        self.unopened.len()
    }

    /// Decrypts, in place, all complete records, and passes their content to `plain`, record by record. `sealed` contains the
    /// received bytes after a gap of [`unopened`](Self::unopened) bytes.
    ///
    /// Appends to `answer` what must be sent, such as handshake messages or an alert.
    ///
    /// # Errors
    /// The fault of a record. Earlier records were passed to `plain`, later ones cannot be decrypted, and `answer` ends with the
    /// alert.
    pub fn open(&mut self, sealed: &mut [u8], plain: impl FnMut(&[u8]), answer: &mut Vec<u8>) -> Result<(), Error> {
        if self.state == EngineState::Broken {
            return Err(broken_before());
        }
        let front = sealed.get_mut(..self.unopened.len());
        front.ok_or_else(|| Error::General("no room for unopened bytes".to_owned()))?.copy_from_slice(&self.unopened);
        let opened = self.process(sealed, plain, answer).inspect_err(|_| self.state = EngineState::Broken)?;
        self.keep(sealed.get(opened..).unwrap_or_default())
    }

    /// Lets rustls process complete records. Returns the number of consumed bytes.
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
            let has_more = match state {
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
                    // The caller sends it.
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
                // Early data is not offered, and states of later rustls versions are not supported.
                Ok(_) => return Err(Error::HandshakeNotComplete),
                Err(error) => {
                    // Appends the alert.
                    self.drain(sealed.get_mut(done + discard..).unwrap_or_default(), answer);
                    return Err(error);
                }
            };
            done += discard;
            if !has_more {
                return Ok(done);
            }
        }
    }

    /// Takes pending output. rustls returns it before it processes records.
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

    /// Keeps an incomplete record or message for the next call.
    fn keep(&mut self, rest: &[u8]) -> Result<(), Error> {
        if self.state == EngineState::Ended || rest.is_empty() {
            // The memory is freed, because most sessions never need the buffer again.
            self.unopened = Vec::new();
            return Ok(());
        }
        if rest.len() > MAX_UNOPENED {
            self.state = EngineState::Broken;
            return Err(Error::General("the peer sent a TLS message above the maximum size".to_owned()));
        }
        self.unopened.clear();
        // Unauthenticated clients can cause this allocation, so it is exact.
        self.unopened.reserve_exact(rest.len());
        self.unopened.extend_from_slice(rest);
        Ok(())
    }

    /// Encrypts `plain` to the start of `sealed`, which must be larger by [`max_overhead`]. Returns the number of written bytes.
    ///
    /// # Errors
    /// During the handshake, after close_notify, when the keys reach their usage limit, or if `sealed` is too small.
    pub fn seal(&mut self, plain: &[u8], sealed: &mut [u8]) -> Result<usize, Error> {
        if self.closed {
            // rustls would encrypt it, but no client would read it.
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

    /// Appends pending TLS messages, such as the ClientHello, to `answer`.
    pub fn take_pending(&mut self, answer: &mut Vec<u8>) {
        let mut unopened = std::mem::take(&mut self.unopened);
        self.drain(&mut unopened, answer);
        self.unopened = unopened;
    }

    /// Appends close_notify to `answer`, once. Nothing can be encrypted afterwards; the peer's records can still be decrypted.
    pub fn close(&mut self, answer: &mut Vec<u8>) {
        // rustls may have queued it already, for example when the keys reach their usage limit.
        self.take_pending(answer);
        let mut room = [0; MAX_CONTROL_BYTES];
        // Without keys, or after an alert, close_notify is not sent.
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

    /// Whether the peer has sent close_notify.
    pub fn has_ended(&self) -> bool {
        self.state == EngineState::Ended
    }

    /// Whether the handshake is incomplete.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    fn presented(&self) -> &[CertificateDer<'static>] {
        self.connection.peer_certificates().unwrap_or_default()
    }

    /// Whether the handshake resumed an earlier session, without certificate exchange.
    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The negotiated version in the format of audit events: `TLSv1.3`.
    pub fn version(&self) -> Option<&'static str> {
        self.connection.protocol_version().map(version_name)
    }

    /// The IANA name of the negotiated cipher suite.
    pub fn cipher(&self) -> Option<&'static str> {
        self.connection.negotiated_cipher_suite().map(cipher_name)
    }

    /// The protocol negotiated by ALPN (RFC 7301).
    pub fn alpn(&self) -> Option<&[u8]> {
        self.connection.alpn_protocol()
    }
}

impl<S: Side> fmt::Debug for TlsEngine<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The other fields contain keys.
        formatter.debug_struct("TlsEngine").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Appends the output of rustls to `answer`.
fn append<Data>(answer: &mut Vec<u8>, mut data: EncodeTlsData<'_, Data>) -> Result<(), Error> {
    let end = answer.len();
    // With an empty buffer, rustls returns the required size.
    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
        answer.resize(end + size.required_size, 0);
        let room = answer.get_mut(end..).unwrap_or_default();
        data.encode(room).map_err(|error| Error::General(error.to_string()))?;
    }
    Ok(())
}

/// The error of every call after the first error.
fn broken_before() -> Error {
    Error::General("an earlier TLS error ended this connection".to_owned())
}

/// The format of audit events.
fn version_name(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_2 => "TLSv1.2",
        ProtocolVersion::TLSv1_3 => "TLSv1.3",
        _ => "unknown",
    }
}

/// The IANA name of a cipher suite. rustls names those of TLS 1.3 `TLS13_…`.
fn cipher_name(suite: SupportedCipherSuite) -> &'static str {
    match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or("unknown"),
    }
}
