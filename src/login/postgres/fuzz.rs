//! Properties of the parsers for any bytes of a client and of a database.

#![allow(clippy::panic, reason = "a property that does not hold ends the run")]

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::credential::verifier::{Key, Parameters, Verifier};
use crate::fuzz::Input;
use crate::login::contains;
use crate::login::postgres::client::{Claim, ClientLogin, ClientStep, FailedClient, MAX_LENGTH};
use crate::login::postgres::parameters::StartupParameters;
use crate::login::postgres::upstream::{Credentials, UpstreamFailure, UpstreamLogin, UpstreamStep};
use crate::protocol::postgres::startup::message::First;
use crate::protocol::postgres::{HEADER_LENGTH, MAX_PACKET_LENGTH};

/// The conversation with a client that authenticates.
pub fn postgres_client(data: &[u8]) {
    let Some(input) = Input::parse(data) else { return };
    let known = [verifier().clone()];
    let binding = input.has(0).then_some(BINDING);
    let at_once = client(&known, binding, &[input.stream]);
    assert_eq!(client(&known, binding, &input.chunks()), at_once, "chunks may end anywhere");
    let unknown = client(&[], binding, &input.chunks());
    match &at_once.step {
        ClientStep::Proven(proven) => {
            assert_eq!(proven.index, 0);
            // Nobody can compute another proof for the nonce of the server.
            assert!([PROOF, BOUND_PROOF].iter().any(|proof| contains(input.stream, proof.as_bytes())));
            assert!(input.stream.ends_with(&proven.rest), "the rest is passed as it is");
            assert!(matches!(unknown.step, ClientStep::Failed(_)));
        }
        ClientStep::Failed(FailedClient { message, .. }) => {
            assert!(is_one_message(b'E', message));
            let ClientStep::Failed(FailedClient { message: of_unknown, .. }) = &unknown.step else {
                panic!("an unknown user is admitted");
            };
            assert_eq!((message, &at_once.out), (of_unknown, &unknown.out), "both users get the same answers");
        }
        ClientStep::Ongoing => assert_eq!(at_once, unknown),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Client {
    out: Vec<u8>,
    step: ClientStep,
}

fn client(verifiers: &[Verifier], binding: Option<&[u8]>, chunks: &[&[u8]]) -> Client {
    let claim = Claim { user: b"app", verifiers, mock: verifier().parameters.clone() };
    let nonce = if binding.is_some() { BOUND_NONCE } else { NONCE };
    let mut login = ClientLogin::new(claim, binding.map(<[u8]>::to_vec), nonce.to_owned());
    let mut out = Vec::new();
    let mut left = chunks.iter();
    while let Some(chunk) = left.next() {
        match login.follow(chunk, &mut out) {
            ClientStep::Ongoing => assert!(login.pending_bytes() <= MAX_LENGTH, "it holds one message at most"),
            mut step => {
                if let ClientStep::Proven(proven) = &mut step {
                    left.for_each(|chunk| proven.rest.extend_from_slice(chunk));
                }
                let after = login.follow(b"p\0\0\0\x04", &mut Vec::new());
                assert!(matches!(after, ClientStep::Failed(_)), "the attempt is over");
                return Client { out, step };
            }
        }
    }
    Client { out, step: ClientStep::Ongoing }
}

/// The conversation with a database that authenticates Portcullis.
pub fn postgres_upstream(data: &[u8]) {
    let Some(input) = Input::parse(data) else { return };
    let credentials = Credentials {
        user: "app",
        password: input.has(0).then_some(PASSWORD),
        binding: input.has(1).then_some(BINDING),
        is_confidential: input.has(2),
    };
    let at_once = upstream(credentials, true, &[input.stream]);
    assert_eq!(upstream(credentials, true, &input.chunks()), at_once, "chunks may end anywhere");
    assert_eq!(upstream(credentials, false, &input.chunks()), at_once, "the caller may compute the key in between");
    let Upstream { out, step } = at_once;
    assert!(out.len() <= MAX_OUT);
    if !credentials.is_confidential || credentials.password.is_none() {
        assert!(!contains(&out, PASSWORD.as_bytes()), "the password is sent over connections with TLS only");
    }
    match step {
        Ok(UpstreamStep::Done { rest }) => {
            assert!(rest.starts_with(b"R\0\0\0\x08\0\0\0\0") && input.stream.ends_with(&rest));
            // Only a database that knows the password can compute it.
            let is_proven = [SIGNATURE, BOUND_SIGNATURE].iter().any(|proof| contains(input.stream, proof.as_bytes()));
            assert!(is_proven || !contains(&out, b"SCRAM-SHA-256"));
        }
        Ok(UpstreamStep::Refused(refusal)) => {
            assert!(is_one_message(b'E', &refusal.message) && contains(input.stream, &refusal.message));
            assert!(!refusal.text().contains(['\n', '\r', '\u{1b}']));
        }
        Ok(UpstreamStep::Ongoing | UpstreamStep::Salt(_)) | Err(_) => {}
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Upstream {
    out: Vec<u8>,
    step: Result<UpstreamStep, UpstreamFailure>,
}

fn upstream(credentials: Credentials<'_>, is_salt_known: bool, chunks: &[&[u8]]) -> Upstream {
    let mut login = UpstreamLogin::new(credentials, CLIENT_NONCE.to_owned());
    let (mut out, mut step) = (Zeroizing::default(), Ok(UpstreamStep::Ongoing));
    let mut left = chunks.iter();
    while let Some(chunk) = left.next() {
        step = login.follow(chunk, &mut out, |parameters| is_salt_known.then(|| salted(parameters)));
        if matches!(step, Ok(UpstreamStep::Salt(_))) {
            step = login.follow(b"", &mut out, |parameters| Some(salted(parameters)));
            assert!(!matches!(step, Ok(UpstreamStep::Salt(_))), "it is known now");
        }
        if let Ok(UpstreamStep::Done { rest }) = &mut step {
            left.by_ref().for_each(|chunk| rest.extend_from_slice(chunk));
        }
        if step != Ok(UpstreamStep::Ongoing) {
            break;
        }
    }
    Upstream { out: out.to_vec(), step }
}

/// SaltedPassword, which takes milliseconds, once.
fn salted(parameters: &Parameters) -> Zeroizing<Key> {
    static SALTED: OnceLock<Key> = OnceLock::new();
    if *parameters != verifier().parameters {
        return Zeroizing::default();
    }
    Zeroizing::new(*SALTED.get_or_init(|| *parameters.salted(PASSWORD)))
}

/// StartupMessages, and those that the database receives in their place.
pub fn postgres_parameters(data: &[u8]) {
    let Some(input) = Input::parse(data) else { return };
    let Ok(parameters) = StartupParameters::parse(input.stream) else { return };
    let shown = parameters.shown_user();
    assert!(shown.len() <= 63 && !shown.contains(['\n', '\r', '\u{1b}']));
    if let Some(negotiation) = parameters.negotiation() {
        assert!(is_one_message(b'v', &negotiation));
    }
    let user = if input.has(0) { "a-much-longer-name-of-a-role" } else { "keyed" };
    let Ok(packet) = parameters.rewritten(user) else {
        // Only the longer name does not fit.
        assert!(
            input.stream.len() + user.len() + parameters.database().len() + b"database\0\0".len() > MAX_PACKET_LENGTH
        );
        return;
    };
    assert!((HEADER_LENGTH..=MAX_PACKET_LENGTH).contains(&packet.len()));
    let again = StartupParameters::parse(&packet);
    let Ok(again) = again else { panic!("the database rejects {packet:?}: {again:?}") };
    assert_eq!((again.user_bytes(), again.database()), (user.as_bytes(), parameters.database()));
    assert_eq!(again.negotiation(), None, "it is protocol 3.0 without options");
    assert_eq!(again.rewritten(user), Ok(packet), "the other parameters are the same");
}

fn is_one_message(kind: u8, bytes: &[u8]) -> bool {
    matches!(First::of(bytes), First::Whole(message, rest) if message.kind == kind && rest.is_empty())
}

fn verifier() -> &'static Verifier {
    static VERIFIER: OnceLock<Verifier> = OnceLock::new();
    VERIFIER.get_or_init(|| {
        let salt = STANDARD.decode(SALT).unwrap_or_default();
        Verifier::of(PASSWORD, Parameters { salt, iterations: std::num::NonZeroU32::MIN.saturating_add(4095) })
    })
}

/// The exchanges with PostgreSQL 15 that the tests of this folder record, with the proofs of both sides.
const PASSWORD: &str = "pencil";
const SALT: &str = "g/h1j6LfVUs5Yec93KKlgg==";
const CLIENT_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
const NONCE: &str = "ktsubLYCBlNsrb8JbXzi2oqz";
const BOUND_NONCE: &str = "+svZRUKMrXsAHNMAqbXkbqnE";
const PROOF: &str = "p=raPek/FX4fdBBllkcJKkmGStGOunQoYkaOyJIJPJf/k=";
const BOUND_PROOF: &str = "p=zaNbwIrbyvmx5viiN62inp4S1r1qodrtZgqL/yitb2A=";
const SIGNATURE: &str = "v=j5arZXVS0FJTMlywP1z3Z/0nHVfW/tP7NPOPbik0DWY=";
const BOUND_SIGNATURE: &str = "v=40CUBfRop5ycJCQjQM+XYNRrzY90dntOrZ5RCZAvQ40=";

/// The SHA-384 of the certificate of that server.
const BINDING: &[u8] =
    b"\xb8\x0d\x77\x7d\x22\x85\x18\xb9\xe5\xcc\x44\x8f\xe2\x40\x08\x7a\x3f\x99\x91\xdc\x91\x68\x54\xd8\
    \x6c\x7b\x64\x2b\xde\xab\x7b\xcd\x22\x04\x04\x0d\x19\xa3\xab\x59\xb4\x3a\x46\xf4\x47\xd8\xd0\xde";

/// Two messages of SCRAM, or one of another method.
const MAX_OUT: usize = 4096;
