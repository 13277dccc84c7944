use proptest::prelude::*;

use crate::credential::scram::server::ServerError;
use crate::credential::verifier::{Parameters, Verifier};
use crate::login::postgres::client::failure::LoginFailure;
use crate::login::postgres::client::{Claim, ClientLogin, ClientStep, FailedClient, MAX_LENGTH, ProvenClient};
use crate::login::postgres::password_rejected;
use crate::login::postgres::tests::{chunks, error, initial_response, parameters, recorded, response, verifier};
use crate::protocol::postgres::startup::message::message;

/// An attempt of the user `app`.
fn attempt<'v>(verifiers: &'v [Verifier], binding: Option<&[u8]>, nonce: &str) -> ClientLogin<'v> {
    let claim = Claim { user: b"app", verifiers, mock: mock() };
    ClientLogin::new(claim, binding.map(<[u8]>::to_vec), nonce.to_owned())
}

fn mock() -> Parameters {
    Parameters::mock("app", &[7; 32])
}

/// Passes messages one by one. Returns the answers and the last step.
fn answers(login: &mut ClientLogin<'_>, messages: &[&[u8]]) -> (Vec<Vec<u8>>, ClientStep) {
    let mut answers = Vec::new();
    for message in messages {
        let mut out = Vec::new();
        let step = login.follow(message, &mut out);
        answers.push(out);
        if step != ClientStep::Ongoing {
            return (answers, step);
        }
    }
    (answers, ClientStep::Ongoing)
}

/// The failure of an attempt without channel binding.
fn failure(messages: &[&[u8]]) -> FailedClient {
    bound_failure(None, messages)
}

fn bound_failure(binding: Option<&[u8]>, messages: &[&[u8]]) -> FailedClient {
    let verifiers = [verifier("pencil")];
    match answers(&mut attempt(&verifiers, binding, "server"), messages).1 {
        ClientStep::Failed(failed) => failed,
        step => panic!("{step:?}"),
    }
}

#[test]
fn exchange_has_the_bytes_of_postgresql() {
    for (exchange, binding, first) in [
        (recorded::PLAIN, None, recorded::SASL),
        (recorded::BOUND, Some(&recorded::BINDING[..]), recorded::SASL_OVER_TLS),
    ] {
        let verifiers = [verifier("other"), verifier("pencil")];
        let mut login = attempt(&verifiers, binding, exchange.server_nonce);
        assert_eq!(login.first(), first);
        let (answers, step) = answers(&mut login, &[exchange.first, exchange.last]);
        assert_eq!(answers, [exchange.challenge.to_vec(), Vec::new()]);
        let proven = ProvenClient { index: 1, message: exchange.proof.to_vec(), rest: Vec::new() };
        assert_eq!(step, ClientStep::Proven(proven));
    }
}

#[test]
fn exchange_of_rfc_7677_is_accepted() {
    let verifiers = [Verifier::of("pencil", parameters("W22ZaJ0SNY7soEsUEjb6gQ=="))];
    let mut login = attempt(&verifiers, None, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0");
    let first = initial_response("SCRAM-SHA-256", "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
    let last = response(
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
    );
    let (_, step) = answers(&mut login, &[&first, &last]);
    let message = b"R\0\0\x006\0\0\0\x0cv=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=".to_vec();
    assert_eq!(step, ClientStep::Proven(ProvenClient { index: 0, message, rest: Vec::new() }));
}

#[test]
fn unknown_user_is_answered_like_a_wrong_password() {
    let known = [verifier("other")];
    let mut seen = Vec::new();
    for (verifiers, salt, why) in [
        (&known[..], parameters(recorded::SALT), LoginFailure::WrongPassword),
        (&[], mock(), LoginFailure::UnknownUser),
    ] {
        let mut login = attempt(verifiers, None, recorded::PLAIN.server_nonce);
        let (answers, step) = answers(&mut login, &[recorded::PLAIN.first, recorded::PLAIN.last]);
        let ClientStep::Failed(FailedClient { why: found, message }) = step else { panic!("{step:?}") };
        assert_eq!(found, why);
        assert!(!why.is_violation());
        assert_eq!(message, error("28P01", "password authentication failed for user \"app\""));
        let challenge = String::from_utf8(answers[0].clone()).unwrap();
        let salt = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, salt.salt);
        assert!(challenge.contains(&salt), "{challenge}");
        seen.push(challenge.replace(&salt, "SALT"));
    }
    assert_eq!(seen[0], seen[1]);
}

/// The proof fits the keys of the verifier that stands for an unknown user only if SHA-256 is broken.
#[test]
fn proof_that_fits_no_verifier_never_proves_an_unknown_user() {
    let mut login = attempt(&[], None, "server");
    let first = initial_response("SCRAM-SHA-256", "n,,n=,r=abc");
    let last = response("c=biws,r=abcserver,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let (_, step) = answers(&mut login, &[&first, &last]);
    assert!(matches!(step, ClientStep::Failed(FailedClient { why: LoginFailure::UnknownUser, .. })), "{step:?}");
}

#[test]
fn name_in_the_error_is_cut_and_on_one_line() {
    // Recorded from PostgreSQL 15, with another sign for the control character and the invalid byte.
    let shown = |user: &[u8]| password_rejected(user);
    assert_eq!(
        shown("nobody".repeat(20).as_bytes()),
        error("28P01", &format!("password authentication failed for user \"{}nob\"", "nobody".repeat(10)))
    );
    assert_eq!(
        shown(b"n\x01o\xffb\n\"\0"),
        error("28P01", "password authentication failed for user \"n?o\u{fffd}b?\"?\"")
    );
}

#[test]
fn first_message_may_come_after_the_mechanism() {
    let verifiers = [verifier("pencil")];
    let mut login = attempt(&verifiers, None, recorded::PLAIN.server_nonce);
    let chosen = message(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xff");
    let first = response("n,,n=,r=rOprNGfwEbeRWgbNEkqO");
    let (answers, step) = answers(&mut login, &[&chosen, &first, recorded::PLAIN.last]);
    assert_eq!(answers[..2], [recorded::NO_MESSAGE.to_vec(), recorded::PLAIN.challenge.to_vec()]);
    assert!(matches!(step, ClientStep::Proven(_)), "{step:?}");
}

/// The errors are recorded from PostgreSQL 15.
#[test]
fn message_that_breaks_the_protocol_is_rejected_as_postgresql_does() {
    let password = |body: &[u8]| message(b'p', body);
    let invalid = error("08P01", "client selected an invalid SASL authentication mechanism");
    for (message, why, answer) in [
        (
            message(b'Q', b"select 1\0"),
            LoginFailure::Type(81),
            error("08P01", "expected SASL response, got message type 81"),
        ),
        (b"p\0\0\0\x03".to_vec(), LoginFailure::Length(3), password_rejected(b"app")),
        (b"p\0\x01\x86\xa0".to_vec(), LoginFailure::Length(100_000), password_rejected(b"app")),
        (b"p\xff\xff\xff\xff".to_vec(), LoginFailure::Length(u32::MAX), password_rejected(b"app")),
        (initial_response("FOO", "n,,n=,r=abc"), LoginFailure::Mechanism, invalid.clone()),
        (
            initial_response("SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,n=,r=abc"),
            LoginFailure::Mechanism,
            invalid.clone(),
        ),
        // A password, as for a request in cleartext.
        (password(b"pencil\0"), LoginFailure::Mechanism, invalid),
        (password(b"SCRAM-SHA-256\0\0\0\0\x01nabc"), LoginFailure::Malformed, error("08P01", "invalid message format")),
        (password(b"SCRAM-SHA-256"), LoginFailure::Malformed, error("08P01", "invalid message format")),
        (password(b"SCRAM-SHA-256\0\0\0\0"), LoginFailure::Malformed, error("08P01", "invalid message format")),
        (password(b"SCRAM-SHA-256\0\0\0\0\x10abc"), LoginFailure::Malformed, error("08P01", "invalid message format")),
        (password(b""), LoginFailure::Malformed, error("08P01", "invalid message format")),
    ] {
        assert_eq!(failure(&[&message]), FailedClient { why, message: answer }, "{message:?}");
        assert!(why.is_violation());
    }
}

#[test]
fn malformed_scram_message_is_rejected_as_postgresql_does() {
    let malformed = error("08P01", "malformed SCRAM message");
    for (first, answer) in [
        ("", malformed.clone()),
        ("q,,n=,r=abc", malformed.clone()),
        ("p=tls-server-end-point,,n=,r=abc", malformed.clone()),
        ("n,a=x,n=,r=abc", error("0A000", "client uses authorization identity, but it is not supported")),
        ("n,,m=x,n=,r=abc", error("0A000", "client requires an unsupported SCRAM extension")),
    ] {
        let failed = failure(&[&initial_response("SCRAM-SHA-256", first)]);
        assert!(failed.why.is_violation(), "{first}");
        assert_eq!(failed.message, answer, "{first}");
    }
    let first = initial_response("SCRAM-SHA-256", "n,,n=,r=abc");
    for last in ["c=biws,r=abcd,p=AAAA", "c=eSws,r=abcserver,p=AAAA", ""] {
        assert_eq!(failure(&[&first, &response(last)]).message, malformed, "{last}");
    }
}

#[test]
fn channel_binding_is_checked_as_postgresql_does() {
    let plus = |text: &str| initial_response("SCRAM-SHA-256-PLUS", text);
    let bound = |messages: &[&[u8]]| bound_failure(Some(b"hash"), messages);
    let downgrade = bound(&[&initial_response("SCRAM-SHA-256", "y,,n=,r=abc")]);
    assert_eq!(downgrade.why, LoginFailure::Scram(ServerError::Downgrade));
    assert_eq!(downgrade.message, error("28000", "SCRAM channel binding negotiation error"));
    assert_eq!(
        bound(&[&plus("p=tls-unique,,n=,r=abc")]).message,
        error("08P01", "unsupported SCRAM channel-binding type")
    );
    assert_eq!(bound(&[&plus("n,,n=,r=abc")]).message, error("08P01", "malformed SCRAM message"));
    let proof = "p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let other = response(&format!("c=cD10bHMtc2VydmVyLWVuZC1wb2ludCwseA==,r=abcserver,{proof}"));
    let wrong = bound(&[&plus("p=tls-server-end-point,,n=,r=abc"), &other]);
    assert_eq!(wrong.why, LoginFailure::Scram(ServerError::Binding));
    assert_eq!(wrong.message, error("28000", "SCRAM channel binding check failed"));
    // Without PLUS the attribute has only a header.
    let plain = initial_response("SCRAM-SHA-256", "n,,n=,r=abc");
    let other = response(&format!("c=eSws,r=abcserver,{proof}"));
    assert_eq!(bound(&[&plain, &other]).message, error("08P01", "malformed SCRAM message"));
}

#[test]
fn attempt_that_is_over_accepts_nothing() {
    let verifiers = [verifier("pencil")];
    let mut login = attempt(&verifiers, None, recorded::PLAIN.server_nonce);
    assert!(!login.has_answered());
    let messages: [&[u8]; 3] = [b"Q\0\0\0\x04", recorded::PLAIN.first, recorded::PLAIN.last];
    for message in messages {
        let step = login.follow(message, &mut Vec::new());
        assert!(matches!(step, ClientStep::Failed(_)), "{step:?}");
        assert!(login.has_answered());
    }
}

#[test]
fn debug_output_has_no_byte_of_the_client() {
    let verifiers = [verifier("pencil")];
    let mut login = attempt(&verifiers, Some(b"hash"), "server");
    login.follow(b"p\0\0\0\x20secret", &mut Vec::new());
    assert_eq!(format!("{login:?}"), "ClientLogin { pending: 11, .. }");
}

/// Runs a stream in chunks. Bytes behind the end count as bytes behind the last message.
fn run(binding: Option<&[u8]>, chunks: &[&[u8]]) -> (Vec<u8>, ClientStep) {
    let verifiers = [verifier("pencil")];
    let mut login = attempt(&verifiers, binding, recorded::PLAIN.server_nonce);
    let mut out = Vec::new();
    for (index, chunk) in chunks.iter().enumerate() {
        let mut step = login.follow(chunk, &mut out);
        assert!(login.pending_bytes() <= chunk.len() + MAX_LENGTH);
        if let ClientStep::Proven(proven) = &mut step {
            proven.rest.extend(chunks[index + 1..].concat());
        }
        if step != ClientStep::Ongoing {
            return (out, step);
        }
    }
    (out, ClientStep::Ongoing)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn chunks_may_end_anywhere(
        cuts in prop::collection::vec(1_usize..80, 1..20),
        behind in any::<Vec<u8>>(),
        change in (0_usize..200, any::<u8>(), any::<bool>()),
    ) {
        let mut stream = [recorded::PLAIN.first, recorded::PLAIN.last, &behind].concat();
        if let (place, byte, true) = change && place < stream.len() {
            stream[place] = byte;
        }
        let at_once = run(None, &[&stream]);
        if !change.2 {
            let ClientStep::Proven(proven) = &at_once.1 else { panic!("{at_once:?}") };
            prop_assert_eq!(&proven.rest, &behind);
        }
        prop_assert_eq!(run(None, &chunks(&stream, &cuts)), at_once);
    }

    #[test]
    fn no_bytes_cause_a_panic(
        bodies in prop::collection::vec((any::<Vec<u8>>(), 0_u8..4), 0..4),
        noise in any::<Vec<u8>>(),
        is_bound in any::<bool>(),
    ) {
        let messages = bodies.iter().map(|(body, kind)| match kind {
            0 => message(b'p', body),
            1 => initial_response("SCRAM-SHA-256", &String::from_utf8_lossy(body)),
            2 => initial_response("SCRAM-SHA-256-PLUS", &format!("p=tls-server-end-point,,n=,r={body:?}").replace(", ", "")),
            _ => response(&format!("c=biws,r={}", String::from_utf8_lossy(body))),
        });
        let stream = [messages.collect::<Vec<_>>().concat(), noise].concat();
        let (out, step) = run(is_bound.then_some(b"hash"), &[&stream]);
        prop_assert!(!matches!(step, ClientStep::Proven(_)));
        prop_assert!(out.len() < 2 * MAX_LENGTH);
    }
}
