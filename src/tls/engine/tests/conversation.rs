//! A rustls client and a server, where the test controls the delivery of bytes.

use std::io::{Read as _, Write as _};

use rustls::{ClientConnection, Error, ServerConnection};

use crate::tls::engine::{MAX_UNOPENED, TlsEngine, max_overhead};
use crate::tls::fixtures::{TlsOptions, test_bytes};

/// A server: the engine, or the buffered rustls server as reference.
pub(crate) trait Engine {
    fn new(options: TlsOptions) -> Self;
    /// Returns whether the client has sent close_notify.
    fn receive(&mut self, sealed: &[u8], plain: &mut Vec<u8>, answer: &mut Vec<u8>) -> Result<bool, Error>;
    fn send(&mut self, plain: &[u8], sealed: &mut Vec<u8>);
    fn close(&mut self, sealed: &mut Vec<u8>);
    fn is_handshaking(&self) -> bool;
}

impl Engine for TlsEngine {
    fn new(options: TlsOptions) -> Self {
        Self::new(options.server_config()).unwrap()
    }

    fn receive(&mut self, sealed: &[u8], plain: &mut Vec<u8>, answer: &mut Vec<u8>) -> Result<bool, Error> {
        // The gap for unopened bytes contains other data.
        let mut room = [&vec![0xee; self.unopened()], sealed].concat();
        let opened = self.open(&mut room, |record| plain.extend(record), answer);
        assert!(self.unopened() <= MAX_UNOPENED);
        if opened.is_err() || self.is_handshaking() {
            // Sending after an error or during the handshake fails without side effects.
            assert!(self.seal(b"bytes", &mut [0; max_overhead(5) + 5]).is_err());
            let mut output = Vec::new();
            Self::close(self, &mut output);
            assert!(output.is_empty());
        }
        if opened.is_err() {
            let mut room = [&vec![0xee; self.unopened()], sealed].concat();
            assert!(self.open(&mut room, |_| panic!("data after an error"), answer).is_err());
        }
        opened.map(|()| self.has_ended())
    }

    fn send(&mut self, plain: &[u8], sealed: &mut Vec<u8>) {
        // A multiple of the largest record, so that the reference creates the same records.
        for piece in plain.chunks(64 << 10) {
            let mut room = vec![0; piece.len() + max_overhead(piece.len())];
            let taken = self.seal(piece, &mut room).unwrap();
            sealed.extend(&room[..taken]);
        }
    }

    fn close(&mut self, sealed: &mut Vec<u8>) {
        Self::close(self, sealed);
    }

    fn is_handshaking(&self) -> bool {
        Self::is_handshaking(self)
    }
}

impl Engine for ServerConnection {
    fn new(options: TlsOptions) -> Self {
        let mut connection = Self::new(options.server_config()).unwrap();
        connection.set_buffer_limit(None);
        connection
    }

    fn receive(&mut self, mut sealed: &[u8], plain: &mut Vec<u8>, answer: &mut Vec<u8>) -> Result<bool, Error> {
        loop {
            let taken = self.read_tls(&mut sealed).map_err(|error| Error::General(error.to_string()))?;
            let state = self.process_new_packets();
            // Data before an error is still readable. An end of stream is visible in the state too, so the result is ignored.
            let _ = self.reader().read_to_end(plain);
            flush(self, answer);
            let ended = state?.peer_has_closed();
            if taken == 0 || sealed.is_empty() {
                return Ok(ended);
            }
        }
    }

    fn send(&mut self, plain: &[u8], sealed: &mut Vec<u8>) {
        self.writer().write_all(plain).unwrap();
        flush(self, sealed);
    }

    fn close(&mut self, sealed: &mut Vec<u8>) {
        self.send_close_notify();
        flush(self, sealed);
    }

    fn is_handshaking(&self) -> bool {
        (**self).is_handshaking()
    }
}

fn flush(connection: &mut ServerConnection, sealed: &mut Vec<u8>) {
    while connection.wants_write() {
        connection.write_tls(sealed).unwrap();
    }
}

/// An action of one side, or the number of bytes to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    ClientSends(usize),
    ServerSends(usize),
    /// The client updates its keys, and requests an update from the server.
    NewKeys,
    ClientCloses,
    ServerCloses,
    ToServer(usize),
    ToClient(usize),
}

/// The data that one side has received.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Received {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ended: bool,
    pub(crate) error: Option<Error>,
    /// TLS bytes received.
    pub(crate) carried: usize,
}

/// Both sides, and the bytes in transit.
pub(crate) struct Conversation<E> {
    pub(crate) client: ClientConnection,
    pub(crate) server: E,
    pub(crate) to_server: Vec<u8>,
    pub(crate) to_client: Vec<u8>,
    pub(crate) at_server: Received,
    pub(crate) at_client: Received,
    /// Actions of the server after the handshake.
    postponed: Vec<Step>,
    client_sent: usize,
    server_sent: usize,
    client_closed: bool,
    server_closed: bool,
    /// Bytes per record into which the client's plaintext messages are split.
    shreds: Option<usize>,
}

impl<E: Engine> Conversation<E> {
    pub(crate) fn new(options: TlsOptions, shreds: Option<usize>) -> Self {
        let mut client = options.client();
        client.set_buffer_limit(None);
        let mut conversation = Self {
            client,
            server: E::new(options),
            to_server: Vec::new(),
            to_client: Vec::new(),
            at_server: Received::default(),
            at_client: Received::default(),
            postponed: Vec::new(),
            client_sent: 0,
            server_sent: 0,
            client_closed: false,
            server_closed: false,
            shreds,
        };
        conversation.flush_client();
        conversation
    }

    pub(crate) fn take(&mut self, step: Step) {
        match step {
            Step::ClientSends(length) if !self.client_closed && self.at_client.error.is_none() => {
                self.client.writer().write_all(&test_bytes(self.client_sent, length)).unwrap();
                self.client_sent += length;
            }
            Step::NewKeys => {
                // Fails in TLS 1.2 and during the handshake.
                let _ = self.client.refresh_traffic_keys();
            }
            Step::ClientCloses if !self.client_closed => {
                self.client_closed = true;
                self.client.send_close_notify();
            }
            Step::ServerSends(_) | Step::ServerCloses => {
                self.postponed.push(step);
                self.catch_up();
            }
            Step::ToServer(count) => self.carry_to_server(count),
            Step::ToClient(count) => self.carry_to_client(count),
            Step::ClientSends(_) | Step::ClientCloses => {}
        }
        self.flush_client();
    }

    /// Delivers all data in pieces of these sizes.
    pub(crate) fn deliver(&mut self, pieces: &[usize]) {
        for piece in pieces.iter().cycle() {
            if self.to_server.is_empty() && self.to_client.is_empty() {
                return;
            }
            // Limits the number of pieces.
            let piece = (*piece).max((self.to_server.len() + self.to_client.len()) / 500);
            self.take(Step::ToServer(piece));
            self.take(Step::ToClient(piece));
        }
    }

    fn carry_to_server(&mut self, count: usize) {
        let bytes: Vec<u8> = self.to_server.drain(..count.min(self.to_server.len())).collect();
        if bytes.is_empty() || self.at_server.error.is_some() {
            return;
        }
        self.at_server.carried += bytes.len();
        match self.server.receive(&bytes, &mut self.at_server.bytes, &mut self.to_client) {
            Ok(ended) => self.at_server.ended |= ended,
            Err(error) => self.at_server.error = Some(error),
        }
        self.catch_up();
    }

    fn catch_up(&mut self) {
        if self.server.is_handshaking() || self.at_server.error.is_some() {
            return;
        }
        for step in std::mem::take(&mut self.postponed) {
            match step {
                Step::ServerSends(length) if !self.server_closed => {
                    self.server.send(&test_bytes(self.server_sent, length), &mut self.to_client);
                    self.server_sent += length;
                }
                Step::ServerCloses if !self.server_closed => {
                    self.server_closed = true;
                    self.server.close(&mut self.to_client);
                }
                _ => {}
            }
        }
    }

    fn carry_to_client(&mut self, count: usize) {
        let bytes: Vec<u8> = self.to_client.drain(..count.min(self.to_client.len())).collect();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() && self.at_client.error.is_none() && !self.at_client.ended {
            self.at_client.carried += self.client.read_tls(&mut rest).unwrap();
            match self.client.process_new_packets() {
                Ok(state) => self.at_client.ended = state.peer_has_closed(),
                Err(error) => self.at_client.error = Some(error),
            }
            let _ = self.client.reader().read_to_end(&mut self.at_client.bytes);
        }
    }

    fn flush_client(&mut self) {
        let mut flight = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut flight).unwrap();
        }
        match self.shreds {
            Some(size) => self.shred(&flight, size),
            None => self.to_server.extend(flight),
        }
    }

    /// Splits the plaintext handshake messages into smaller records, up to the client's change_cipher_spec.
    fn shred(&mut self, mut flight: &[u8], size: usize) {
        while let [kind, major, minor, high, low, rest @ ..] = flight {
            let (record, behind) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
            if *kind != HANDSHAKE {
                self.shreds = None;
                return self.to_server.extend(flight);
            }
            for piece in record.chunks(size) {
                let length = u16::try_from(piece.len()).unwrap().to_be_bytes();
                self.to_server.extend([&[*kind, *major, *minor], &length[..], piece].concat());
            }
            flight = behind;
        }
    }
}

const HANDSHAKE: u8 = 22;
