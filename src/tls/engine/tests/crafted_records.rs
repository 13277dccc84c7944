//! Valid TLS 1.3 records that a rustls client never sends: padded, empty, and with fragmented messages.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use proptest::prelude::*;
use rustls::ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};

use crate::tls::engine::tests::conversation::{Conversation, Engine as _};
use crate::tls::engine::{TlsEngine, max_overhead};
use crate::tls::fixtures::{TlsOptions, test_bytes};

const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

/// Encrypts records with the keys of a client.
struct RecordSealer {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl RecordSealer {
    /// Takes over the keys of a client after the handshake.
    fn after_handshake(suite: usize) -> (Self, TlsEngine) {
        let mut conversation =
            Conversation::<TlsEngine>::new(TlsOptions { suite, record: None, client_auth: false }, None);
        conversation.deliver(&[usize::MAX]);
        let (sequence, secrets) = conversation.client.dangerous_extract_secrets().unwrap().tx;
        let (algorithm, key, iv) = match secrets {
            Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => unreachable!("TLS 1.3 has no other"),
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).unwrap());
        let iv = iv.as_ref().try_into().unwrap();
        (Self { key, iv, sequence }, conversation.server)
    }

    /// One record (RFC 8446 §5.2).
    fn record(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let mut inner = [content, &[kind], &vec![0; padding]].concat();
        let length = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let header = [&[DATA, 3, 3], &length[..]].concat();
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        self.sequence += 1;
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(&header), &mut inner).unwrap();
        [header, inner].concat()
    }
}

fn send(server: &mut TlsEngine, plain: &[u8]) -> usize {
    server.seal(plain, &mut vec![0; plain.len() + max_overhead(plain.len())]).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn padded_and_empty_records_are_decrypted(
        suite in 0_usize..3,
        records in prop::collection::vec((0_usize..100, prop_oneof![Just(0_usize), 0_usize..500], any::<bool>()), 1..30),
        piece in 1_usize..300,
    ) {
        let (mut sealer, mut server) = RecordSealer::after_handshake(suite);
        let (mut sealed, mut sent) = (Vec::new(), 0);
        for (length, padding, empty) in records {
            sealed.extend(sealer.record(DATA, &test_bytes(sent, length), padding));
            sent += length;
            if empty {
                sealed.extend(sealer.record(DATA, b"", padding));
            }
        }
        let (mut plain, mut answer) = (Vec::new(), Vec::new());
        for piece in sealed.chunks(piece) {
            server.receive(piece, &mut plain, &mut answer).unwrap();
            send(&mut server, b"bytes");
        }
        prop_assert_eq!(plain, test_bytes(0, sent));
        prop_assert_eq!((server.unopened(), answer.len()), (0, 0));
    }
}

#[test]
fn server_can_send_while_a_key_update_is_incomplete() {
    // KeyUpdate with update_requested.
    const MESSAGE: &[u8] = b"\x18\x00\x00\x01\x01";
    for suite in 0..3 {
        for size in 1..=MESSAGE.len() {
            let (mut sealer, mut server) = RecordSealer::after_handshake(suite);
            let before = send(&mut server, b"bytes");
            let mut records: Vec<u8> =
                MESSAGE.chunks(size).flat_map(|part| sealer.record(HANDSHAKE, part, 7)).collect();
            let last = records.pop().unwrap();
            for byte in records {
                server.receive(&[byte], &mut Vec::new(), &mut Vec::new()).unwrap();
                assert_eq!(send(&mut server, b"bytes"), before);
            }
            server.receive(&[last], &mut Vec::new(), &mut Vec::new()).unwrap();
            assert_eq!(server.unopened(), 0);
            assert!(send(&mut server, b"bytes") > before, "no KeyUpdate in response");
            assert_eq!(send(&mut server, b"bytes"), before, "more than one response");
        }
    }
}

#[test]
fn largest_record_is_decrypted_wherever_it_is_split() {
    for suite in 0..3 {
        let (mut sealer, mut server) = RecordSealer::after_handshake(suite);
        let mut plain = Vec::new();
        for cut in [1, 5, 6, 16_384, 16_405] {
            // Content, type and padding can have up to 2^14 + 1 bytes.
            for padding in [0, 16_383] {
                let record = sealer.record(DATA, &test_bytes(plain.len(), 16_384 - padding), padding);
                let (front, back) = record.split_at(cut);
                let before = plain.len();
                server.receive(front, &mut plain, &mut Vec::new()).unwrap();
                assert_eq!((server.unopened(), plain.len()), (cut, before));
                server.receive(back, &mut plain, &mut Vec::new()).unwrap();
                assert_eq!((server.unopened(), plain.len()), (0, before + 16_384 - padding));
            }
        }
        assert!(plain == test_bytes(0, plain.len()));
    }
}

#[test]
fn data_after_an_empty_handshake_record_is_received() {
    let (mut sealer, mut server) = RecordSealer::after_handshake(0);
    let mut plain = Vec::new();
    for number in 0..10 {
        let records = [sealer.record(HANDSHAKE, b"", 0), sealer.record(DATA, &test_bytes(number * 10, 10), 0)];
        if server.receive(&records.concat(), &mut plain, &mut Vec::new()).is_err() {
            // RFC 8446 §5.1 forbids such records, so an error is correct too.
            return;
        }
        send(&mut server, b"bytes");
    }
    assert_eq!(plain, test_bytes(0, 100));
}
