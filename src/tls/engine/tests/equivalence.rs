//! For any data in any pieces, the engine behaves like a buffered rustls server.

use proptest::prelude::*;
use rustls::ServerConnection;

use crate::tls::engine::TlsEngine;
use crate::tls::engine::tests::conversation::{Conversation, Engine, Received, Step};
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
        5 => lengths().prop_map(Step::ClientSends),
        5 => lengths().prop_map(Step::ServerSends),
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
        // One byte per record, a large certificate exceeds the limit of kept bytes.
        let shreds = shreds.map(|size| if options.client_auth { size + 8 } else { size });
        Script { options, shreds, steps, pieces }
    })
}

/// Runs a script until both sides have closed and all data is delivered.
fn play<E: Engine>(script: &Script) -> Conversation<E> {
    let mut conversation = Conversation::new(script.options, script.shreds);
    for step in &script.steps {
        conversation.take(*step);
    }
    for last in [Step::ToServer(0), Step::ClientCloses, Step::ServerCloses] {
        conversation.deliver(&script.pieces);
        conversation.take(last);
    }
    conversation.deliver(&script.pieces);
    conversation
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn server_engine_has_the_results_of_a_buffered_rustls_server(script in scripts()) {
        let ours = play::<TlsEngine>(&script);
        let reference = play::<ServerConnection>(&script);
        prop_assert_eq!(&ours.at_server.error, &reference.at_server.error);
        prop_assert_eq!(&ours.at_client.error, &reference.at_client.error);
        prop_assert!(ours.at_server == reference.at_server, "the server received other data");
        prop_assert!(ours.at_client == reference.at_client, "the client received other data");
        if ours.at_server.error.is_none() {
            prop_assert_eq!(ours.server.unopened(), 0);
        }
    }
}

/// Sends data in both directions, updates keys, and sends more, in pieces of one size.
fn run(options: TlsOptions, shreds: Option<usize>, piece: usize) -> (Received, Received) {
    let mut conversation = Conversation::<TlsEngine>::new(options, shreds);
    let data = [Step::ClientSends(20_000), Step::ServerSends(20_000)];
    for step in data.into_iter().chain([Step::NewKeys; 3]).chain(data) {
        conversation.take(step);
        conversation.deliver(&[piece]);
    }
    conversation.take(Step::ClientCloses);
    conversation.deliver(&[piece]);
    conversation.take(Step::ServerSends(20_000));
    conversation.take(Step::ServerCloses);
    conversation.deliver(&[piece]);
    (conversation.at_server, conversation.at_client)
}

#[test]
fn every_suite_delivers_all_data_in_pieces_of_any_size() {
    for suite in 0..6 {
        for (record, shreds, piece, client_auth) in
            [(None, Some(1), 1, false), (Some(32), None, 100, true), (None, None, usize::MAX, true)]
        {
            let options = TlsOptions { suite, record, client_auth };
            let (at_server, at_client) = run(options, shreds, piece);
            assert_eq!((&at_server.error, &at_client.error), (&None, &None), "{options:?}");
            assert!(at_server.bytes == test_bytes(0, 40_000), "{options:?}");
            assert!(at_client.bytes == test_bytes(0, 60_000), "{options:?}");
            assert!(at_server.ended && at_client.ended, "{options:?}");
        }
    }
}

#[test]
fn data_after_the_handshake_in_the_same_read_is_received_before_an_incomplete_record() {
    for suite in 0..3 {
        let options = TlsOptions { suite, record: None, client_auth: false };
        let mut conversation = Conversation::<TlsEngine>::new(options, None);
        conversation.take(Step::ToServer(usize::MAX));
        conversation.take(Step::ClientSends(100));
        conversation.take(Step::ToClient(usize::MAX));
        conversation.take(Step::ClientSends(100));
        let all = conversation.to_server.len();
        conversation.take(Step::ToServer(all - 50));
        assert!(!conversation.server.is_handshaking());
        assert_eq!(conversation.at_server.bytes, test_bytes(0, 100));
        // The server sends while the incomplete record is kept.
        conversation.take(Step::ServerSends(100));
        conversation.deliver(&[usize::MAX]);
        assert_eq!(conversation.at_server.bytes, test_bytes(0, 200));
        assert_eq!(conversation.at_client.bytes, test_bytes(0, 100));
    }
}

#[test]
fn seal_after_close_notify_is_rejected() {
    for suite in [0, 3] {
        let mut conversation =
            Conversation::<TlsEngine>::new(TlsOptions { suite, record: None, client_auth: false }, None);
        conversation.deliver(&[usize::MAX]);
        conversation.take(Step::ServerCloses);
        let mut output = Vec::new();
        assert!(conversation.server.seal(b"more", &mut [0; 1000]).is_err());
        conversation.server.close(&mut output);
        assert!(output.is_empty(), "a second close_notify");
        conversation.take(Step::ClientSends(100));
        conversation.deliver(&[usize::MAX]);
        assert_eq!(conversation.at_server.bytes, test_bytes(0, 100));
        assert!(conversation.at_client.ended);
    }
}
