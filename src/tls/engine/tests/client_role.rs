//! The engine in the client role behaves like a buffered rustls client.

use std::io::{Read as _, Write as _};

use proptest::prelude::*;
use rustls::{ClientConnection, ServerConnection};

use crate::tls::engine::tests::equivalence;
use crate::tls::engine::tests::equivalence::pieces;
use crate::tls::engine::{Client, MAX_UNOPENED, TlsEngine, max_overhead};
use crate::tls::fixtures::{TlsOptions, test_bytes};

/// A client: the engine, or the buffered rustls client.
trait Caller {
    fn new(options: TlsOptions) -> Self;
    fn take_pending(&mut self, sealed: &mut Vec<u8>);
    /// Returns `false` after a TLS error.
    fn receive(&mut self, sealed: &[u8], plain: &mut Vec<u8>, answer: &mut Vec<u8>) -> bool;
    fn send(&mut self, plain: &[u8], sealed: &mut Vec<u8>);
    fn close(&mut self, sealed: &mut Vec<u8>);
    fn is_handshaking(&self) -> bool;
    fn has_ended(&self) -> bool;
}

impl Caller for TlsEngine<Client> {
    fn new(options: TlsOptions) -> Self {
        Self::connect(options.client_config(), "db.test".try_into().unwrap()).unwrap()
    }

    fn take_pending(&mut self, sealed: &mut Vec<u8>) {
        Self::take_pending(self, sealed);
    }

    fn receive(&mut self, sealed: &[u8], plain: &mut Vec<u8>, answer: &mut Vec<u8>) -> bool {
        let mut room = [&vec![0xee; self.unopened()], sealed].concat();
        let opened = self.open(&mut room, |record| plain.extend(record), answer);
        assert!(self.unopened() <= MAX_UNOPENED);
        if opened.is_err() || self.is_handshaking() {
            assert!(self.seal(b"bytes", &mut [0; max_overhead(5) + 5]).is_err());
        }
        opened.is_ok()
    }

    fn send(&mut self, plain: &[u8], sealed: &mut Vec<u8>) {
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

    fn has_ended(&self) -> bool {
        Self::has_ended(self)
    }
}

/// The reference. The second field tracks whether the server has closed.
struct Reference(ClientConnection, bool);

impl Caller for Reference {
    fn new(options: TlsOptions) -> Self {
        let mut client = options.client();
        client.set_buffer_limit(None);
        Self(client, false)
    }

    fn take_pending(&mut self, sealed: &mut Vec<u8>) {
        while self.0.wants_write() {
            self.0.write_tls(sealed).unwrap();
        }
    }

    fn receive(&mut self, mut sealed: &[u8], plain: &mut Vec<u8>, answer: &mut Vec<u8>) -> bool {
        while !sealed.is_empty() && !self.1 {
            self.0.read_tls(&mut sealed).unwrap();
            let state = self.0.process_new_packets();
            let _ = self.0.reader().read_to_end(plain);
            self.take_pending(answer);
            match state {
                Ok(state) => self.1 = state.peer_has_closed(),
                Err(_) => return false,
            }
        }
        true
    }

    fn send(&mut self, plain: &[u8], sealed: &mut Vec<u8>) {
        self.0.writer().write_all(plain).unwrap();
        self.take_pending(sealed);
    }

    fn close(&mut self, sealed: &mut Vec<u8>) {
        self.0.send_close_notify();
        self.take_pending(sealed);
    }

    fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    fn has_ended(&self) -> bool {
        self.1
    }
}

/// The result on both sides.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    at_client: Vec<u8>,
    at_server: Vec<u8>,
    ended: bool,
    broken: bool,
    /// TLS bytes sent to the client.
    carried: usize,
}

/// Client and server send in turns, and the server updates its keys in each turn. Data for the client is split into `pieces`;
/// `harm` can alter it.
fn play<C: Caller>(
    options: TlsOptions,
    turns: &[usize],
    pieces: &[usize],
    mut harm: impl FnMut(usize, &mut [u8]),
) -> Outcome {
    let (mut client, mut outcome) = (C::new(options), Outcome::default());
    let mut server = ServerConnection::new(options.server_config()).unwrap();
    server.set_buffer_limit(None);
    let (mut client_sent, mut server_sent) = (0, 0);
    let (mut turns, mut pieces) = (turns.iter(), pieces.iter().cycle());
    let (mut to_server, mut is_altered) = (Vec::new(), false);
    client.take_pending(&mut to_server);
    loop {
        let mut rest = to_server.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            let _ = server.process_new_packets();
            let _ = server.reader().read_to_end(&mut outcome.at_server);
        }
        to_server.clear();
        let mut to_client = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut to_client).unwrap();
        }
        let unaltered = to_client.clone();
        harm(outcome.carried, &mut to_client);
        is_altered |= to_client != unaltered;
        outcome.carried += to_client.len();
        let mut rest = to_client.as_slice();
        while !rest.is_empty() && !outcome.broken {
            // Limits the number of pieces.
            let length = (*pieces.next().unwrap()).max(rest.len() / 200).min(rest.len());
            let (piece, behind) = rest.split_at(length);
            outcome.broken = !client.receive(piece, &mut outcome.at_client, &mut to_server);
            rest = behind;
        }
        if outcome.broken || client.is_handshaking() && to_server.is_empty() && to_client.is_empty() {
            return outcome;
        }
        if client.is_handshaking() {
            continue;
        }
        let Some(length) = turns.next() else { break };
        client.send(&test_bytes(client_sent, *length), &mut to_server);
        client_sent += length;
        let _ = server.refresh_traffic_keys();
        server.writer().write_all(&test_bytes(server_sent, *length)).unwrap();
        server_sent += length;
    }
    if is_altered {
        // A record with an altered length may still be incomplete, and no record may be invalid after close_notify: rustls would
        // send an alert, which it asserts not to do.
        return outcome;
    }
    client.close(&mut to_server);
    server.send_close_notify();
    let mut last = Vec::new();
    while server.wants_write() {
        server.write_tls(&mut last).unwrap();
    }
    client.receive(&last, &mut outcome.at_client, &mut Vec::new());
    outcome.ended = client.has_ended();
    outcome
}

/// With the largest records, as the engine sends them to upstreams.
fn tls_options() -> impl Strategy<Value = TlsOptions> {
    equivalence::tls_options().prop_map(|options| TlsOptions { record: None, ..options })
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![0_usize..3, 3_usize..200, Just(16_384_usize), Just(100 << 10)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn client_engine_has_the_results_of_a_buffered_rustls_client(
        options in tls_options(),
        turns in prop::collection::vec(lengths(), 0..6),
        pieces in prop::collection::vec(pieces(), 1..4),
    ) {
        let ours = play::<TlsEngine<Client>>(options, &turns, &pieces, |_, _| {});
        prop_assert!(ours == play::<Reference>(options, &turns, &pieces, |_, _| {}), "other data was received");
        let all = test_bytes(0, turns.iter().sum());
        prop_assert!(ours.at_client == all && ours.at_server == all && ours.ended && !ours.broken);
    }

    #[test]
    fn client_engine_returns_no_altered_data(
        options in tls_options(),
        pieces in prop::collection::vec(pieces(), 1..4),
        place in 0_usize..4000,
        bit in 0_u32..8,
    ) {
        let flip = |carried: usize, bytes: &mut [u8]| {
            if let Some(byte) = place.checked_sub(carried).and_then(|place| bytes.get_mut(place)) {
                *byte ^= 1 << bit;
            }
        };
        let ours = play::<TlsEngine<Client>>(options, &[1000, 1000], &pieces, flip);
        // All received data was sent, in this order.
        prop_assert!(ours.at_client == test_bytes(0, ours.at_client.len()));
        prop_assert!(ours.at_server == test_bytes(0, ours.at_server.len()));
    }

    #[test]
    fn client_engine_returns_no_data_from_random_bytes(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        header in prop::bool::ANY,
        piece in 1_usize..300,
    ) {
        let mut client = <TlsEngine<Client> as Caller>::new(TlsOptions { suite: 0, record: None, client_auth: false });
        let bytes = if header { [&b"\x16\x03\x03\x04\x00\x02"[..], &bytes].concat() } else { bytes };
        let (mut plain, mut answer) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            if !client.receive(piece, &mut plain, &mut answer) {
                break;
            }
        }
        prop_assert!(plain.is_empty() && client.is_handshaking());
    }
}

#[test]
fn client_hello_is_returned_once() {
    for suite in 0..6 {
        let mut client = <TlsEngine<Client> as Caller>::new(TlsOptions { suite, record: None, client_auth: false });
        let (mut hello, mut again) = (Vec::new(), Vec::new());
        client.take_pending(&mut hello);
        assert_eq!(hello.first(), Some(&22));
        client.take_pending(&mut again);
        client.open(&mut [], |_| {}, &mut again).unwrap();
        assert!(again.is_empty());
        assert!(client.seal(b"bytes", &mut [0; 1000]).is_err());
        client.close(&mut again);
        assert!(again.is_empty(), "close_notify needs a key");
    }
}
