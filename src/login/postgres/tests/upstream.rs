use proptest::prelude::*;
use zeroize::Zeroizing;

use crate::credential::scram::client::ClientError;
use crate::login::contains;
use crate::login::postgres::refusal::Refusal;
use crate::login::postgres::tests::{chunks, error, parameters, recorded, request};
use crate::login::postgres::upstream::{Credentials, UpstreamFailure, UpstreamLogin, UpstreamStep};
use crate::protocol::postgres::startup::message::message;

const CREDENTIALS: Credentials<'static> =
    Credentials { user: "app", password: Some("pencil"), binding: None, is_confidential: true };

const BOUND: Credentials<'static> = Credentials { binding: Some(&recorded::BINDING), ..CREDENTIALS };

const NOTICE: &[u8] = b"N\0\0\0\x0fSNOTICE\0\0\0\0";

fn attempt(credentials: Credentials<'_>) -> UpstreamLogin<'_> {
    UpstreamLogin::new(credentials, recorded::CLIENT_NONCE.to_owned())
}

/// Passes messages one by one. Returns the answers and the last step.
fn answers(login: &mut UpstreamLogin<'_>, messages: &[&[u8]]) -> (Vec<Vec<u8>>, Result<UpstreamStep, UpstreamFailure>) {
    let mut answers = Vec::new();
    for message in messages {
        let mut out = Zeroizing::default();
        let step = login.follow(message, &mut out, |parameters| Some(parameters.salted("pencil")));
        answers.push(out.to_vec());
        if step != Ok(UpstreamStep::Ongoing) {
            return (answers, step);
        }
    }
    (answers, Ok(UpstreamStep::Ongoing))
}

fn failure(credentials: Credentials<'_>, messages: &[&[u8]]) -> UpstreamFailure {
    answers(&mut attempt(credentials), messages).1.unwrap_err()
}

fn done(rest: &[u8]) -> Result<UpstreamStep, UpstreamFailure> {
    Ok(UpstreamStep::Done { rest: rest.to_vec() })
}

#[test]
fn exchange_has_the_bytes_that_postgresql_accepted() {
    for (credentials, offer, exchange) in [
        (CREDENTIALS, recorded::SASL, recorded::PLAIN),
        (CREDENTIALS, recorded::SASL_OVER_TLS, recorded::PLAIN),
        (BOUND, recorded::SASL_OVER_TLS, recorded::BOUND),
    ] {
        let mut login = attempt(credentials);
        let proof_and_ok = [exchange.proof, recorded::OK].concat();
        let (answers, step) = answers(&mut login, &[offer, exchange.challenge, &proof_and_ok]);
        assert_eq!(answers, [exchange.first.to_vec(), exchange.last.to_vec(), Vec::new()]);
        assert_eq!(step, done(recorded::OK));
    }
}

#[test]
fn md5_and_cleartext_have_the_bytes_that_postgresql_accepted() {
    let md5 = Credentials { user: "md", is_confidential: false, ..CREDENTIALS };
    for (credentials, asked, answer) in
        [(md5, recorded::MD5, recorded::MD5_ANSWER), (CREDENTIALS, recorded::CLEARTEXT, recorded::CLEARTEXT_ANSWER)]
    {
        let (answers, step) = answers(&mut attempt(credentials), &[asked, recorded::OK]);
        assert_eq!(answers, [answer, b""]);
        assert_eq!(step, done(recorded::OK));
    }
}

#[test]
fn database_that_asks_for_nothing_is_accepted() {
    for credentials in [CREDENTIALS, Credentials { password: None, ..CREDENTIALS }] {
        assert_eq!(answers(&mut attempt(credentials), &[NOTICE, recorded::OK]).1, done(recorded::OK));
    }
}

#[test]
fn client_that_can_bind_says_so_if_the_database_does_not_offer_it() {
    let (answers, _) = answers(&mut attempt(BOUND), &[recorded::SASL]);
    assert_eq!(answers[0], b"p\0\0\x002SCRAM-SHA-256\0\0\0\0\x1cy,,n=,r=rOprNGfwEbeRWgbNEkqO");
}

#[test]
fn password_is_required_only_if_the_database_asks_for_one() {
    let none = Credentials { password: None, ..CREDENTIALS };
    for asked in [recorded::SASL, recorded::SASL_OVER_TLS, recorded::MD5, recorded::CLEARTEXT] {
        let failure = failure(none, &[asked]);
        assert_eq!(failure, UpstreamFailure::NoPassword);
        assert!(failure.to_string().contains("upstream_password_file"));
    }
}

#[test]
fn cleartext_needs_tls_or_a_unix_socket() {
    let open = Credentials { is_confidential: false, ..CREDENTIALS };
    let mut login = attempt(open);
    let (answers, step) = answers(&mut login, &[recorded::CLEARTEXT]);
    assert_eq!((answers, step), (vec![Vec::new()], Err(UpstreamFailure::Cleartext)));
}

#[test]
fn unsupported_method_is_named() {
    for (code, name) in [(2, "Kerberos V5"), (6, "SCM"), (7, "GSSAPI"), (9, "SSPI"), (99, "unknown")] {
        let failure = failure(CREDENTIALS, &[&request(code, b"")]);
        assert!(failure.to_string().contains(name), "{failure}");
    }
    let mechanisms = request(10, b"OAUTHBEARER\0\0");
    assert_eq!(failure(CREDENTIALS, &[&mechanisms]), UpstreamFailure::Mechanism);
    assert_eq!(failure(BOUND, &[&request(10, b"\0SCRAM-SHA-256\0\0")]), UpstreamFailure::Mechanism);
    let plus = request(10, b"SCRAM-SHA-256-PLUS\0\0");
    assert_eq!(failure(CREDENTIALS, &[&plus]), UpstreamFailure::ChannelBinding);
}

#[test]
fn database_that_does_not_know_the_password_is_not_believed() {
    let exchange = recorded::PLAIN;
    let other = request(12, b"v=40CUBfRop5ycJCQjQM+XYNRrzY90dntOrZ5RCZAvQ40=");
    let signature = UpstreamFailure::Scram(ClientError::ServerSignature);
    for (messages, expected) in [
        (&[recorded::SASL, recorded::OK][..], UpstreamFailure::Unproven),
        (&[recorded::SASL, exchange.challenge, recorded::OK], UpstreamFailure::Unproven),
        (&[recorded::SASL, exchange.challenge, &other, recorded::OK], signature),
        (&[recorded::SASL, exchange.proof, recorded::OK], UpstreamFailure::Order(12)),
        (&[recorded::SASL, recorded::CLEARTEXT], UpstreamFailure::Order(3)),
        (&[recorded::SASL, exchange.challenge, exchange.challenge], UpstreamFailure::Order(11)),
        (&[recorded::SASL, exchange.challenge, exchange.proof, recorded::CLEARTEXT], UpstreamFailure::Order(3)),
        (&[recorded::MD5, recorded::CLEARTEXT], UpstreamFailure::Order(3)),
        (&[recorded::MD5, recorded::SASL], UpstreamFailure::Order(10)),
    ] {
        assert_eq!(failure(CREDENTIALS, messages), expected, "{messages:?}");
    }
}

#[test]
fn bytes_that_no_database_sends_here_end_the_attempt() {
    for (message, expected) in [
        (recorded::NEGOTIATION, UpstreamFailure::Version),
        (b"S\0\0\0\x16application_name\0\0", UpstreamFailure::Type(b'S')),
        (b"Z\0\0\0\x05I", UpstreamFailure::Type(b'Z')),
        (b"R\0\0\0\x06\0\0", UpstreamFailure::Malformed),
        (b"R\0\0\0\x0b\0\0\0\0abc", UpstreamFailure::Malformed),
        (b"R\0\0\0\x0b\0\0\0\x05abc", UpstreamFailure::Malformed),
        (b"HTTP/1.1 400 Bad Request\r\n", UpstreamFailure::Malformed),
        (b"N\x7f\xff\xff\xff", UpstreamFailure::Malformed),
    ] {
        assert_eq!(failure(CREDENTIALS, &[message]), expected, "{message:?}");
    }
}

#[test]
fn refusal_has_its_kind_and_the_message() {
    let refused = |messages: &[&[u8]]| match answers(&mut attempt(CREDENTIALS), messages).1 {
        Ok(UpstreamStep::Refused(refusal)) => refusal,
        step => panic!("{step:?}"),
    };
    let wrong = refused(&[recorded::SASL, recorded::PLAIN.challenge, recorded::WRONG_PASSWORD]);
    let message = recorded::WRONG_PASSWORD.to_vec();
    assert_eq!(wrong.text(), "password authentication failed for user \"app\"");
    assert_eq!(wrong, Refusal { wrong_password: true, not_ready: false, password_was_sent: true, message });
    for (state, wrong_password, not_ready) in [
        ("28000", true, false),
        ("57P01", false, true),
        ("57P02", false, true),
        ("57P03", false, true),
        ("53300", false, false),
        ("3D000", false, false),
    ] {
        let message = error(state, "no\nentry");
        let refusal = refused(&[&message]);
        assert_eq!(refusal.text(), "no\\nentry");
        assert_eq!(refusal, Refusal { wrong_password, not_ready, password_was_sent: false, message });
    }
    assert_eq!(refused(&[b"E\0\0\0\x04"]).text(), "");
    let revealing = refused(&[&error("28P01", "\"pencil\" is wrong")]);
    let shown = "the database refused the session with an error that contains its password";
    assert!(revealing.wrong_password && revealing.text() == shown && !contains(&revealing.message, b"pencil"));
}

#[test]
fn salted_password_may_be_kept_between_attempts() {
    let mut kept = None;
    let mut computed = 0;
    for _ in 0..3 {
        let mut login = attempt(CREDENTIALS);
        let mut out = Zeroizing::default();
        for message in [recorded::SASL, recorded::PLAIN.challenge, recorded::PLAIN.proof] {
            let step = login.follow(message, &mut out, |asked| {
                assert_eq!(*asked, parameters(recorded::SALT));
                kept.clone()
            });
            if step == Ok(UpstreamStep::Salt(parameters(recorded::SALT))) {
                computed += 1;
                kept = Some(parameters(recorded::SALT).salted("pencil"));
                let step = login.follow(b"", &mut out, |_| kept.clone());
                assert_eq!(step, Ok(UpstreamStep::Ongoing));
            } else {
                assert_eq!(step, Ok(UpstreamStep::Ongoing));
            }
        }
        assert!(out.ends_with(recorded::PLAIN.last));
    }
    assert_eq!(computed, 1);
}

#[test]
fn debug_output_has_no_password() {
    let mut login = attempt(CREDENTIALS);
    login.follow(recorded::SASL, &mut Zeroizing::default(), |_| None).unwrap();
    assert_eq!(format!("{login:?}"), "UpstreamLogin { credentials: Credentials { user: \"app\", .. }, .. }");
}

/// Runs a stream in chunks. Bytes behind the end count as bytes for the client.
fn run(credentials: Credentials<'_>, chunks: &[&[u8]]) -> (Vec<u8>, Result<UpstreamStep, UpstreamFailure>) {
    let mut login = attempt(credentials);
    let mut out = Zeroizing::default();
    for (index, chunk) in chunks.iter().enumerate() {
        let mut step = login.follow(chunk, &mut out, |parameters| {
            // An arbitrary number of iterations would take minutes.
            Some(if parameters.iterations.get() > 4096 { Zeroizing::default() } else { parameters.salted("pencil") })
        });
        if let Ok(UpstreamStep::Done { rest }) = &mut step {
            rest.extend(chunks[index + 1..].concat());
        }
        if step != Ok(UpstreamStep::Ongoing) {
            return (out.to_vec(), step);
        }
    }
    (out.to_vec(), Ok(UpstreamStep::Ongoing))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn chunks_may_end_anywhere(
        cuts in prop::collection::vec(1_usize..80, 1..20),
        change in (0_usize..300, any::<u8>(), any::<bool>()),
        is_bound in any::<bool>(),
    ) {
        let (credentials, exchange) =
            if is_bound { (BOUND, recorded::BOUND) } else { (CREDENTIALS, recorded::PLAIN) };
        let mut stream =
            [NOTICE, recorded::SASL_OVER_TLS, NOTICE, exchange.challenge, exchange.proof, NOTICE, recorded::OK].concat();
        if let (place, byte, true) = change && place < stream.len() {
            stream[place] = byte;
        }
        let at_once = run(credentials, &[&stream]);
        if !change.2 {
            prop_assert_eq!(&at_once.1, &done(recorded::OK));
        }
        prop_assert_eq!(run(credentials, &chunks(&stream, &cuts)), at_once);
    }

    #[test]
    fn no_bytes_cause_a_panic(
        bodies in prop::collection::vec((0_u32..13, any::<Vec<u8>>()), 0..4),
        kind in any::<u8>(),
        noise in any::<Vec<u8>>(),
    ) {
        let requests: Vec<u8> = bodies.iter().flat_map(|(code, body)| request(*code, body)).collect();
        let stream = [requests, message(kind, &noise), noise].concat();
        let (out, _) = run(BOUND, &[&stream]);
        prop_assert!(out.len() < 4096);
    }
}
