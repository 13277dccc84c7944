//! Properties of the conversations with a client and with a server of Redis, for any bytes of them.

#![allow(clippy::panic, reason = "a property that does not hold ends the run")]

use crate::fuzz::Input;
use crate::login::contains;
use crate::login::redis::attempt::{Attempt, Verdict};
use crate::login::redis::before::{Conversation, Event};
use crate::login::redis::credentials::UpstreamCredentials;
use crate::login::redis::translate::{Step, Translator};
use crate::login::redis::upstream::{DefaultUser, LoginOutcome, LoginReply, ServerTraits, UpstreamLogin};
use crate::protocol::redis::commands::{CommandFollower, Piece};

/// The conversation with a client that has not authenticated.
pub fn redis_before(data: &[u8]) {
    let Some(input) = Input::parse(data) else { return };
    let at_once = before(&[input.stream]);
    assert_eq!(before(&input.chunks()), at_once, "chunks may end anywhere");
    for (reaction, is_last) in at_once.iter().rev().zip([true].into_iter().chain(std::iter::repeat(false))) {
        match reaction {
            Reaction::Reply(reply) => assert!(is_one_line(reply), "{}", reply.escape_ascii()),
            Reaction::Close(reply) => assert!(is_last && (reply.is_empty() || is_one_line(reply))),
            Reaction::Attempt(..) => {}
        }
    }
}

/// An event in a form that can be compared.
#[derive(Debug, PartialEq, Eq)]
enum Reaction {
    Reply(Vec<u8>),
    Close(Vec<u8>),
    /// User and password.
    Attempt(Vec<u8>, Option<Vec<u8>>),
}

fn before(chunks: &[&[u8]]) -> Vec<Reaction> {
    let (mut conversation, mut reactions) = (Conversation::default(), Vec::new());
    for chunk in chunks {
        let mut chunk = *chunk;
        while let Some(event) = conversation.next(&mut chunk) {
            reactions.push(match event {
                Event::Reply(reply) => Reaction::Reply(reply),
                Event::Close(reply) => Reaction::Close(reply),
                Event::Attempt(attempt) => {
                    let (user, password) = (attempt.user().to_vec(), attempt.password().map(<[u8]>::to_vec));
                    assert_replaced(attempt, password.is_some());
                    Reaction::Attempt(user, password)
                }
            });
        }
        assert!(chunk.is_empty(), "a chunk is used up");
    }
    reactions
}

/// The session of a client that has authenticated.
pub fn redis_session(data: &[u8]) {
    let Some(input) = Input::parse(data) else { return };
    let default_user = if input.has(0) { DefaultUser::Open } else { DefaultUser::Protected };
    let at_once = session(default_user, &[input.stream]);
    let session = session(default_user, &input.chunks());
    assert_eq!(session, at_once, "chunks may end anywhere");
    // Without the commands in the place of its own, the database finds none that authenticates.
    let (mut follower, mut passed) = (CommandFollower::default(), &session.passed[..]);
    while let Some(piece) = follower.next(&mut passed) {
        if let Piece::Identity(words) = piece {
            let is_harmless = Attempt::parse(words).is_err();
            assert!(is_harmless, "a password of the client reaches the database");
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Session {
    /// What the database receives, without the commands in the place of attempts.
    passed: Vec<u8>,
    /// How much of it the database receives before each attempt, and its user and password.
    attempts: Vec<(usize, Vec<u8>, Option<Vec<u8>>)>,
    has_ended: bool,
    is_at_boundary: bool,
    is_closed: bool,
}

fn session(default_user: DefaultUser, chunks: &[&[u8]]) -> Session {
    let (mut translator, mut session) =
        (Translator::new(ServerTraits { default_user, has_hello: true }), Session::default());
    for chunk in chunks {
        let mut chunk = *chunk;
        while let Some(step) = translator.next(&mut chunk) {
            assert!(!session.has_ended, "nothing follows the end");
            match step {
                Step::Pass(bytes) => session.passed.extend_from_slice(bytes),
                Step::Send(bytes) => session.passed.extend_from_slice(&bytes),
                Step::End(bytes) => {
                    assert_eq!(default_user, DefaultUser::Open);
                    session.passed.extend_from_slice(&bytes);
                    session.has_ended = true;
                }
                Step::Attempt(attempt) => {
                    let (user, password) = (attempt.user().to_vec(), attempt.password().map(<[u8]>::to_vec));
                    assert_replaced(attempt, password.is_some());
                    session.attempts.push((session.passed.len(), user, password));
                }
            }
        }
        assert!(chunk.is_empty(), "a chunk is used up");
    }
    session.is_at_boundary = translator.is_at_boundary();
    session.is_closed = translator.is_closed();
    session
}

/// Checks the command for the database. `is_whole`: a password can be right.
fn assert_replaced(attempt: Attempt, is_whole: bool) {
    let (name, password) = (attempt.user().to_vec(), attempt.password().map(<[u8]>::to_vec));
    let credentials = UpstreamCredentials::new(UPSTREAM_USER, UPSTREAM_PASSWORD);
    // Only one of both can be made of an attempt. Each input has the same one in any chunks.
    let is_right = is_whole && name.len().is_multiple_of(2);
    let verdict = if is_right { Verdict::Right(&credentials) } else { Verdict::Wrong };
    let command = attempt.into_command(verdict);
    let mut rest = command.as_slice();
    let mut follower = CommandFollower::default();
    let Some(Piece::Identity(words)) = follower.next(&mut rest) else { panic!("it is no AUTH and no HELLO") };
    assert!(rest.is_empty() && follower.is_at_boundary(), "it is one command");
    let Ok(sent) = Attempt::parse(words) else { panic!("it has no password") };
    if is_right {
        assert_eq!((sent.user(), sent.password()), (UPSTREAM_USER.as_bytes(), Some(UPSTREAM_PASSWORD.as_bytes())));
    } else {
        assert_eq!(sent.user(), b"rejected by portcullis");
        assert!(sent.password().is_some_and(|sent| sent.len() == 32 && Some(sent) != password.as_deref()));
        assert!(!contains(&command, UPSTREAM_PASSWORD.as_bytes()) || contains_own(&name, password.as_deref()));
    }
}

/// Whether the client has sent the database's password itself.
fn contains_own(name: &[u8], password: Option<&[u8]>) -> bool {
    contains(name, UPSTREAM_PASSWORD.as_bytes())
        || password.is_none_or(|own| contains(own, UPSTREAM_PASSWORD.as_bytes()))
}

/// The reply of a server to the login of Portcullis.
pub fn redis_upstream(data: &[u8]) {
    let Some(input) = Input::parse(data) else { return };
    let credentials = UpstreamCredentials::new(UPSTREAM_USER, UPSTREAM_PASSWORD);
    let mut login = UpstreamLogin::default();
    let first_end = input.stream.iter().position(|byte| {
        let reply = login.follow(&[*byte], &credentials);
        if let LoginReply::Done(LoginOutcome::NotSupported(text) | LoginOutcome::NotReady(text)) = &reply {
            assert!(!text.contains(UPSTREAM_PASSWORD) && !text.contains(['\n', '\r', '\u{1b}']), "{text}");
        }
        reply != LoginReply::More
    });
    let (reply, rest) =
        input.stream.split_at_checked(first_end.map_or(input.stream.len(), |end| end + 1)).unwrap_or_default();
    let byte_by_byte = replied(reply.chunks(1), &credentials);
    assert_eq!(replied(std::iter::once(reply), &credentials), byte_by_byte, "chunks may end anywhere");
    let whole = replied(std::iter::once(input.stream), &credentials);
    if let LoginReply::Done(LoginOutcome::Accepted(_)) = &whole {
        assert!(rest.is_empty(), "bytes that nobody asked for do not reach a client");
        assert!(input.stream.ends_with(b"\r\n+OK\r\n"));
    }
    if rest.is_empty() {
        assert_eq!(whole, byte_by_byte);
    }
    let lines = input.stream.split(|byte| *byte == b'\n');
    if whole == LoginReply::More {
        assert!(
            lines.clone().count() <= 3 && lines.into_iter().all(|line| line.len() <= MAX_HELD),
            "it has read two lines and holds one"
        );
    }
}

fn replied<'a>(chunks: impl Iterator<Item = &'a [u8]>, credentials: &UpstreamCredentials) -> LoginReply {
    let mut login = UpstreamLogin::default();
    let mut replies = chunks.map(|chunk| login.follow(chunk, credentials));
    replies.find(|reply| *reply != LoginReply::More).unwrap_or(LoginReply::More)
}

/// An error or a status: one line, so that a client cannot be made to see another reply.
fn is_one_line(reply: &[u8]) -> bool {
    let line = reply.strip_suffix(b"\r\n").unwrap_or_default();
    matches!(line.first(), Some(b'-' | b'+')) && !line.iter().any(|byte| matches!(byte, b'\r' | b'\n'))
}

const UPSTREAM_USER: &str = "upstream";
const UPSTREAM_PASSWORD: &str = "password of the database";

/// Bytes of a line that are held.
const MAX_HELD: usize = 1024;
