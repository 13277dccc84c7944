//! Whatever is said and however it is cut: the engine does what rustls does with buffers of its own.

use proptest::prelude::*;
use rustls::ServerConnection;

use crate::tls::engine::TlsEngine;
use crate::tls::engine::tests::conversation::{Conversation, Engine, Heard, Step};
use crate::tls::fixtures::{TlsOptions, test_bytes};

#[derive(Clone, Debug)]
struct Script {
    options: TlsOptions,
    shreds: Option<usize>,
    steps: Vec<Step>,
    pieces: Vec<usize>,
}

pub(crate) fn tls_options() -> impl Strategy<Value = TlsOptions> {
    let record = prop_oneof![Just(None), Just(Some(32)), (33_usize..2000).prop_map(Some)];
    (0_usize..6, record, prop::bool::weighted(0.25)).prop_map(|(suite, record, client_auth)| TlsOptions {
        suite,
        record,
        client_auth,
    })
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0_usize..3,
        4 => 3_usize..200,
        2 => prop_oneof![Just(16_383_usize), Just(16_384), Just(16_385)],
        1 => Just(200 << 10),
    ]
}

pub(crate) fn pieces() -> impl Strategy<Value = usize> {
    prop_oneof![1_usize..8, 1_usize..200, 1_usize..20_000, Just(usize::MAX)]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => pieces().prop_map(Step::ToServer),
        8 => pieces().prop_map(Step::ToClient),
        5 => lengths().prop_map(Step::ClientSays),
        5 => lengths().prop_map(Step::ServerSays),
        3 => Just(Step::NewKeys),
        1 => Just(Step::ClientCloses),
        1 => Just(Step::ServerCloses),
    ]
}

fn scripts() -> impl Strategy<Value = Script> {
    let all = (
        tls_options(),
        prop_oneof![2 => Just(None), 1 => (1_usize..40).prop_map(Some)],
        prop::collection::vec(steps(), 0..40),
        prop::collection::vec(pieces(), 1..4),
    );
    all.prop_map(|(options, shreds, steps, pieces)| {
        // A large certificate, byte by byte, is more than anybody keeps.
        let shreds = shreds.map(|size| if options.client_auth { size + 8 } else { size });
        Script { options, shreds, steps, pieces }
    })
}

/// Plays to the end: both sides close, and all they said has been carried.
fn play<E: Engine>(script: &Script) -> Conversation<E> {
    let mut conversation = Conversation::new(script.options, script.shreds);
    for step in &script.steps {
        conversation.take(*step);
    }
    for last in [Step::ToServer(0), Step::ClientCloses, Step::ServerCloses] {
        conversation.select(&script.pieces);
        conversation.take(last);
    }
    conversation.select(&script.pieces);
    conversation
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn a_conversation_goes_as_with_rustls_own_buffers(script in scripts()) {
        let ours = play::<TlsEngine>(&script);
        let reference = play::<ServerConnection>(&script);
        prop_assert_eq!(&ours.at_server.error, &reference.at_server.error);
        prop_assert_eq!(&ours.at_client.error, &reference.at_client.error);
        prop_assert!(ours.at_server == reference.at_server, "the server heard something else");
        prop_assert!(ours.at_client == reference.at_client, "the client heard something else");
        if ours.at_server.error.is_none() {
            prop_assert_eq!(ours.server.unopened(), 0);
        }
    }
}

/// Says something both ways, takes new keys, says more; all by pieces of one size.
fn chat(options: TlsOptions, shreds: Option<usize>, piece: usize) -> (Heard, Heard) {
    let mut conversation = Conversation::<TlsEngine>::new(options, shreds);
    let words = [Step::ClientSays(20_000), Step::ServerSays(20_000)];
    for step in words.into_iter().chain([Step::NewKeys; 3]).chain(words) {
        conversation.take(step);
        conversation.select(&[piece]);
    }
    conversation.take(Step::ClientCloses);
    conversation.select(&[piece]);
    conversation.take(Step::ServerSays(20_000));
    conversation.take(Step::ServerCloses);
    conversation.select(&[piece]);
    (conversation.at_server, conversation.at_client)
}

#[test]
fn every_suite_carries_everything_in_whatever_pieces() {
    for suite in 0..6 {
        for (record, shreds, piece, client_auth) in
            [(None, Some(1), 1, false), (Some(32), None, 100, true), (None, None, usize::MAX, true)]
        {
            let options = TlsOptions { suite, record, client_auth };
            let (at_server, at_client) = chat(options, shreds, piece);
            assert_eq!((&at_server.error, &at_client.error), (&None, &None), "{options:?}");
            assert!(at_server.bytes == test_bytes(0, 40_000), "{options:?}");
            assert!(at_client.bytes == test_bytes(0, 60_000), "{options:?}");
            assert!(at_server.ended && at_client.ended, "{options:?}");
        }
    }
}

#[test]
fn what_comes_with_the_end_of_the_handshake_is_heard_with_a_part_of_the_next_record_behind_it() {
    for suite in 0..3 {
        let options = TlsOptions { suite, record: None, client_auth: false };
        let mut conversation = Conversation::<TlsEngine>::new(options, None);
        conversation.take(Step::ToServer(usize::MAX));
        conversation.take(Step::ClientSays(100));
        conversation.take(Step::ToClient(usize::MAX));
        conversation.take(Step::ClientSays(100));
        let all = conversation.to_server.len();
        conversation.take(Step::ToServer(all - 50));
        assert!(!conversation.server.is_handshaking());
        assert_eq!(conversation.at_server.bytes, test_bytes(0, 100));
        // While the part is kept, the server speaks.
        conversation.take(Step::ServerSays(100));
        conversation.select(&[usize::MAX]);
        assert_eq!(conversation.at_server.bytes, test_bytes(0, 200));
        assert_eq!(conversation.at_client.bytes, test_bytes(0, 100));
    }
}

#[test]
fn nothing_is_sealed_behind_close_notify() {
    for suite in [0, 3] {
        let mut conversation =
            Conversation::<TlsEngine>::new(TlsOptions { suite, record: None, client_auth: false }, None);
        conversation.select(&[usize::MAX]);
        conversation.take(Step::ServerCloses);
        let mut words = Vec::new();
        assert!(conversation.server.seal(b"one word more", &mut [0; 1000]).is_err());
        conversation.server.close(&mut words);
        assert!(words.is_empty(), "it says close_notify again");
        conversation.take(Step::ClientSays(100));
        conversation.select(&[usize::MAX]);
        assert_eq!(conversation.at_server.bytes, test_bytes(0, 100));
        assert!(conversation.at_client.ended);
    }
}
