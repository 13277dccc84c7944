//! Clients that send altered or random bytes.

use proptest::prelude::*;
use proptest::sample::Index;
use rustls::{AlertDescription, Error};

use crate::tls::engine::tests::conversation::{Conversation, Engine, Step};
use crate::tls::engine::tests::equivalence::{pieces, tls_options};
use crate::tls::engine::{MAX_UNOPENED, TlsEngine};
use crate::tls::fixtures::{TlsOptions, test_bytes};

/// An alteration of the bytes in transit.
#[derive(Clone, Debug)]
enum Harm {
    Flip(u8),
    Cut(usize),
    Insert(Vec<u8>),
    Double(usize),
}

impl Harm {
    fn hurt(&self, bytes: &mut Vec<u8>, place: Index) {
        if bytes.is_empty() {
            return;
        }
        let place = place.index(bytes.len());
        match self {
            Self::Flip(bits) => bytes[place] ^= bits,
            Self::Cut(count) => drop(bytes.drain(place..bytes.len().min(place + count))),
            Self::Insert(more) => drop(bytes.splice(place..place, more.iter().copied())),
            Self::Double(count) => {
                let again = bytes[place..bytes.len().min(place + count)].to_vec();
                bytes.splice(place..place, again);
            }
        }
    }
}

fn harms() -> impl Strategy<Value = Harm> {
    prop_oneof![
        (1_u8..).prop_map(Harm::Flip),
        (1_usize..2000).prop_map(Harm::Cut),
        prop::collection::vec(any::<u8>(), 1..50).prop_map(Harm::Insert),
        (1_usize..2000).prop_map(Harm::Double),
    ]
}

fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let beginnings =
        [&b""[..], b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03", b"\x14\x03\x03\x00\x01\x01", b"\x15\x03\x03"];
    let noise = prop::collection::vec(any::<u8>(), 0..600);
    (prop::sample::select(beginnings.to_vec()), noise).prop_map(|(beginning, noise)| [beginning, &noise].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// `receive` also checks for panics, the number of kept bytes, and repeated errors.
    #[test]
    fn altered_bytes_are_rejected_with_an_alert(
        options in tls_options(),
        harm in harms(),
        place in any::<Index>(),
        when in 0_usize..4,
        pieces in prop::collection::vec(pieces(), 1..4),
    ) {
        let mut conversation = Conversation::<TlsEngine>::new(options, None);
        for turn in 0..5 {
            if turn == when {
                harm.hurt(&mut conversation.to_server, place);
            }
            conversation.take(Step::ToServer(usize::MAX));
            conversation.take(Step::ToClient(usize::MAX));
            conversation.take(Step::ClientSends(3000));
            conversation.take(Step::NewKeys);
            conversation.take(Step::ServerSends(10));
        }
        conversation.deliver(&pieces);
        let Conversation { at_server, at_client, .. } = conversation;
        // All received data was sent, in this order.
        prop_assert!(at_server.bytes == test_bytes(0, at_server.bytes.len()));
        prop_assert!(at_client.bytes == test_bytes(0, at_client.bytes.len()));
        // From the third turn on, the handshake is complete and the client can decrypt the alert.
        if let (Some(error), true) = (at_server.error, when > 1) {
            let alert = match error {
                Error::DecryptError => Some(AlertDescription::BadRecordMac),
                Error::InvalidMessage(_) => Some(AlertDescription::DecodeError),
                Error::PeerSentOversizedRecord => Some(AlertDescription::RecordOverflow),
                _ => None,
            };
            if let Some(alert) = alert {
                prop_assert_eq!(at_client.error, Some(Error::AlertReceived(alert)));
            }
        }
    }

    #[test]
    fn random_bytes_yield_no_data_in_pieces_of_any_size(bytes in garbage(), piece in 1_usize..300) {
        let mut server = <TlsEngine as Engine>::new(TlsOptions { suite: 0, record: None, client_auth: false });
        let (mut plain, mut answer) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            if server.receive(piece, &mut plain, &mut answer).is_err() {
                break;
            }
        }
        prop_assert!(plain.is_empty());
    }
}

#[test]
fn data_before_an_altered_record_is_received() {
    for suite in 0..6 {
        let mut conversation =
            Conversation::<TlsEngine>::new(TlsOptions { suite, record: None, client_auth: false }, None);
        conversation.deliver(&[usize::MAX]);
        conversation.take(Step::ClientSends(1000));
        conversation.take(Step::ServerSends(1000));
        let whole = conversation.to_server.len();
        conversation.take(Step::ClientSends(1000));
        conversation.to_server[whole + 100] ^= 1;
        conversation.deliver(&[usize::MAX]);
        assert_eq!(conversation.at_server.bytes, test_bytes(0, 1000));
        assert_eq!(conversation.at_server.error, Some(Error::DecryptError));
        assert_eq!(conversation.at_client.bytes, test_bytes(0, 1000));
        assert_eq!(conversation.at_client.error, Some(Error::AlertReceived(AlertDescription::BadRecordMac)));
    }
}

#[test]
fn incomplete_message_above_the_limit_is_rejected() {
    // A ClientHello of the largest size that rustls accepts, one byte per record, has six times as many bytes.
    let mut server = <TlsEngine as Engine>::new(TlsOptions { suite: 0, record: None, client_auth: false });
    let mut taken = 0;
    let mut hello = [&b"\x01\x00\xff\xff"[..], &[0; 0xffff]].concat().into_iter();
    let refused = loop {
        let records: Vec<u8> = hello.by_ref().take(100).flat_map(|byte| [0x16, 3, 1, 0, 1, byte]).collect();
        assert!(!records.is_empty(), "everything was kept");
        match server.receive(&records, &mut Vec::new(), &mut Vec::new()) {
            Ok(_) => taken += records.len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::General(_)), "{refused:?}");
    assert!(taken <= MAX_UNOPENED && taken + 600 > MAX_UNOPENED, "{taken}");
}
