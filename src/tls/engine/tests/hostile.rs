//! Clients that send what no client should.

use proptest::prelude::*;
use proptest::sample::Index;
use rustls::{AlertDescription, Error};

use crate::tls::engine::tests::conversation::{Conversation, Engine, Step};
use crate::tls::engine::tests::likeness::{pieces, tls_options};
use crate::tls::engine::{MAX_UNOPENED, TlsEngine};
use crate::tls::fixtures::{TlsOptions, test_bytes};

/// What becomes of the bytes on their way, at some place.
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

    /// Panics, what is kept, and that an error stays one are looked at wherever anything is received.
    #[test]
    fn harm_on_the_way_is_noticed_and_the_client_told(
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
            conversation.take(Step::ClientSays(3000));
            conversation.take(Step::NewKeys);
            conversation.take(Step::ServerSays(10));
        }
        conversation.select(&pieces);
        let Conversation { at_server, at_client, .. } = conversation;
        // Nothing is ever heard that was not said, and nothing out of its order.
        prop_assert!(at_server.bytes == test_bytes(0, at_server.bytes.len()));
        prop_assert!(at_client.bytes == test_bytes(0, at_client.bytes.len()));
        // From the third turn on the handshake is over, so that the client knows the keys of the alert.
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
    fn garbage_is_refused_or_waited_for_in_whatever_pieces(bytes in garbage(), piece in 1_usize..300) {
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
fn a_record_broken_after_the_handshake_costs_nothing_of_what_came_before_it() {
    for suite in 0..6 {
        let mut conversation =
            Conversation::<TlsEngine>::new(TlsOptions { suite, record: None, client_auth: false }, None);
        conversation.select(&[usize::MAX]);
        conversation.take(Step::ClientSays(1000));
        conversation.take(Step::ServerSays(1000));
        let whole = conversation.to_server.len();
        conversation.take(Step::ClientSays(1000));
        conversation.to_server[whole + 100] ^= 1;
        conversation.select(&[usize::MAX]);
        assert_eq!(conversation.at_server.bytes, test_bytes(0, 1000));
        assert_eq!(conversation.at_server.error, Some(Error::DecryptError));
        assert_eq!(conversation.at_client.bytes, test_bytes(0, 1000));
        assert_eq!(conversation.at_client.error, Some(Error::AlertReceived(AlertDescription::BadRecordMac)));
    }
}

#[test]
fn a_message_that_is_never_whole_is_given_up() {
    // A hello of the largest size that rustls accepts, a byte in each record: 64 KiB of it are six times as many bytes.
    let mut server = <TlsEngine as Engine>::new(TlsOptions { suite: 0, record: None, client_auth: false });
    let mut taken = 0;
    let mut hello = [&b"\x01\x00\xff\xff"[..], &[0; 0xffff]].concat().into_iter();
    let refused = loop {
        let engine: Vec<u8> = hello.by_ref().take(100).flat_map(|byte| [0x16, 3, 1, 0, 1, byte]).collect();
        assert!(!engine.is_empty(), "it kept everything");
        match server.receive(&engine, &mut Vec::new(), &mut Vec::new()) {
            Ok(_) => taken += engine.len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::General(_)), "{refused:?}");
    assert!(taken <= MAX_UNOPENED && taken + 600 > MAX_UNOPENED, "{taken}");
}
