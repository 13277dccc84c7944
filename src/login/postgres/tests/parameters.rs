use proptest::prelude::*;

use crate::login::postgres::parameters::{ParameterError, StartupParameters};
use crate::login::postgres::tests::{error, recorded};
use crate::protocol::postgres::MAX_PACKET_LENGTH;

fn packet(version: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 8).unwrap();
    [&length.to_be_bytes(), &version.to_be_bytes(), body].concat()
}

fn parse(body: &[u8]) -> Result<StartupParameters, ParameterError> {
    StartupParameters::parse(&packet(0x3_0000, body))
}

#[test]
fn message_of_psql_is_rewritten_with_the_user_of_the_database() {
    let parsed = parse(b"user\0app\0database\0shop\0application_name\0psql\0client_encoding\0UTF8\0\0").unwrap();
    assert_eq!((parsed.user(), parsed.database()), (Some("app"), &b"shop"[..]));
    assert_eq!(
        parsed.rewritten("owner").unwrap(),
        b"\0\0\0\x4d\0\x03\0\0user\0owner\0database\0shop\0application_name\0psql\0client_encoding\0UTF8\0\0"
    );
    assert_eq!(parsed.negotiation(), None);
}

#[test]
fn database_is_the_name_of_the_client_if_it_names_none() {
    for body in [&b"user\0app\0\0"[..], b"user\0app\0database\0\0\0"] {
        let rewritten = parse(body).unwrap().rewritten("owner").unwrap();
        assert_eq!(rewritten, packet(0x3_0000, b"user\0owner\0database\0app\0\0"));
    }
}

#[test]
fn other_parameters_are_kept_in_their_order_and_protocol_options_are_left_out() {
    let parsed = parse(
        b"replication\0database\0user\0a\0_pq_.x\0y\0options\0-c a=b\0search_path\0p\0search_path\0q\0empty\0\0\0",
    );
    let expected: &[u8] =
        b"user\0b\0database\0a\0replication\0database\0options\0-c a=b\0search_path\0p\0search_path\0q\0empty\0\0\0";
    assert_eq!(parsed.unwrap().rewritten("b").unwrap(), packet(0x3_0000, expected));
}

/// PostgreSQL uses the last one too.
#[test]
fn last_of_several_users_and_databases_counts() {
    let parsed = parse(b"user\0admin\0database\0x\0user\0app\0database\0y\0\0").unwrap();
    assert_eq!((parsed.user(), parsed.database()), (Some("app"), &b"y"[..]));
    assert_eq!(parsed.rewritten("b").unwrap(), packet(0x3_0000, b"user\0b\0database\0y\0\0"));
}

#[test]
fn malformed_message_is_rejected_as_postgresql_does() {
    let text = "invalid startup packet layout: expected terminator as last byte";
    for body in
        [&b""[..], b"\0x", b"x", b"user", b"user\0", b"user\0a", b"user\0a\0", b"user\0a\0\0x", b"user\0a\0\0\0"]
    {
        assert_eq!(parse(body), Err(ParameterError::Layout), "{body:?}");
    }
    assert_eq!(ParameterError::Layout.message(), error("08P01", text));
    for body in [&b"\0"[..], b"database\0x\0\0", b"user\0\0\0", b"user\0a\0user\0\0\0", b"User\0a\0\0"] {
        assert_eq!(parse(body), Err(ParameterError::NoUser), "{body:?}");
    }
    assert_eq!(ParameterError::NoUser.message(), error("28000", "no PostgreSQL user name specified in startup packet"));
}

#[test]
fn packet_that_is_not_a_startup_message_is_rejected() {
    let whole = packet(0x3_0000, b"user\0a\0\0");
    for wrong in [&b""[..], &whole[..7], &whole[..whole.len() - 1], &[&whole[..], b"\0"].concat()] {
        assert_eq!(StartupParameters::parse(wrong), Err(ParameterError::Layout), "{wrong:?}");
    }
    assert_eq!(StartupParameters::parse(&packet(0x2_0000, b"user\0a\0\0")), Err(ParameterError::Layout));
    assert_eq!(StartupParameters::parse(&packet(80_877_103, b"")), Err(ParameterError::Layout));
}

#[test]
fn newer_protocol_and_its_options_are_negotiated_down_to_3_0() {
    let asked = |version, body: &[u8]| StartupParameters::parse(&packet(version, body)).unwrap().negotiation();
    let options = b"user\0a\0_pq_.x\0y\0_pq_.z\0\0_pq_.x\0y\0\0";
    assert_eq!(asked(0x3_270f, options).as_deref(), Some(recorded::NEGOTIATION));
    assert_eq!(asked(0x3_0000, options).as_deref(), Some(recorded::NEGOTIATION));
    // Recorded from PostgreSQL 15.
    assert_eq!(asked(0x3_0002, b"user\0a\0\0").as_deref(), Some(&b"v\0\0\0\x0c\0\x03\0\0\0\0\0\0"[..]));
    assert_eq!(asked(0x3_0000, b"user\0a\0\0"), None);
}

#[test]
fn name_that_is_not_utf8_is_no_name_of_a_client() {
    let parsed = parse(b"user\0n\x01o\xffb\0\0").unwrap();
    assert_eq!((parsed.user(), parsed.user_bytes()), (None, &b"n\x01o\xffb"[..]));
    assert_eq!(parsed.shown_user(), "n?o\u{fffd}b");
    let long = parse(&[b"user\0", "ö".repeat(100).as_bytes(), b"\0\0"].concat()).unwrap();
    assert_eq!(long.shown_user(), "ö".repeat(31));
}

#[test]
fn rewritten_message_is_never_longer_than_a_database_accepts() {
    let fill = |length: usize| [b"user\0a\0x\0", &*vec![b'y'; length], b"\0\0"].concat();
    let fixed = packet(0x3_0000, b"user\0bb\0database\0a\0x\0\0\0").len();
    let longest = parse(&fill(MAX_PACKET_LENGTH - fixed)).unwrap();
    assert_eq!(longest.rewritten("bb").unwrap().len(), MAX_PACKET_LENGTH);
    assert_eq!(longest.rewritten("bbb"), Err(ParameterError::Long));
    for user in ["", "a\0superuser"] {
        assert_eq!(longest.rewritten(user), Err(ParameterError::UpstreamUser), "{user:?}");
    }
}

proptest! {
    #[test]
    fn no_packet_causes_a_panic(
        body in prop::collection::vec(prop_oneof![Just(b"user\0".to_vec()), Just(b"_pq_.".to_vec()), Just(vec![0]), any::<Vec<u8>>()], 0..12),
        minor in 0_u32..4,
    ) {
        let packet = packet(0x3_0000 + minor, &body.concat());
        if let Ok(parsed) = StartupParameters::parse(&packet) {
            let rewritten = parsed.rewritten("owner").unwrap();
            prop_assert!(rewritten.len() <= packet.len() + 20 + parsed.user_bytes().len());
            let again = StartupParameters::parse(&rewritten).unwrap();
            prop_assert_eq!(again.user(), Some("owner"));
            prop_assert_eq!(again.database(), parsed.database());
            prop_assert_eq!(again.negotiation(), None);
            prop_assert_eq!(again.rewritten("owner").unwrap(), rewritten);
        }
    }
}
