//! A client, its bytes in any chunks, and real servers.

mod before;
mod differential;
mod server;
mod translate;
mod upstream;

use super::attempt::{Attempt, Verdict};
use super::before::{Conversation, Event, WRONG_PASSWORD};
use super::credentials::UpstreamCredentials;
use super::translate::{Step, Translator};
use super::upstream::{DefaultUser, ServerTraits};

/// The passwords of clients.
const DEFAULT_PASSWORD: &str = "client-pw";
const APP_PASSWORD: &str = "app-pw";

fn array(words: &[&[u8]]) -> Vec<u8> {
    super::encode::command(words).to_vec()
}

fn is_right(attempt: &Attempt) -> bool {
    let password = attempt.password();
    match attempt.user() {
        b"default" => password == Some(DEFAULT_PASSWORD.as_bytes()),
        b"app" => password == Some(APP_PASSWORD.as_bytes()),
        _ => false,
    }
}

fn credentials() -> UpstreamCredentials {
    UpstreamCredentials::new("upstream", "db pw\r\n")
}

fn server(default_user: DefaultUser) -> ServerTraits {
    ServerTraits { default_user, has_hello: true }
}

/// What a client and the database receive.
#[derive(Debug, Default, PartialEq, Eq)]
struct Played {
    to_client: Vec<u8>,
    to_upstream: Vec<u8>,
    state: State,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Unauthenticated,
    Open,
    Closed,
}

/// Plays a client that sends these chunks. The random parts of failing commands are removed.
fn play<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, credentials: &UpstreamCredentials) -> Played {
    let (mut conversation, mut translator) = (Conversation::default(), Translator::new(server(DefaultUser::Protected)));
    let mut played = Played::default();
    for mut chunk in chunks {
        while played.state == State::Unauthenticated
            && let Some(event) = conversation.next(&mut chunk)
        {
            match event {
                Event::Reply(reply) => played.to_client.extend(reply),
                Event::Close(reply) => {
                    played.to_client.extend(reply);
                    played.state = State::Closed;
                }
                Event::Attempt(attempt) if is_right(&attempt) => {
                    let opening = attempt.into_opening();
                    played.to_client.extend(opening.reply);
                    played.to_upstream.extend_from_slice(&opening.command);
                    played.state = State::Open;
                }
                Event::Attempt(_) => played.to_client.extend(WRONG_PASSWORD),
            }
        }
        while played.state == State::Open
            && let Some(step) = translator.next(&mut chunk)
        {
            match step {
                Step::Pass(bytes) => played.to_upstream.extend_from_slice(bytes),
                Step::Send(bytes) => played.to_upstream.extend_from_slice(&bytes),
                Step::End(bytes) => {
                    played.to_upstream.extend_from_slice(&bytes);
                    played.state = State::Closed;
                }
                Step::Attempt(attempt) => {
                    let verdict = if is_right(&attempt) { Verdict::Right(credentials) } else { Verdict::Wrong };
                    played.to_upstream.extend_from_slice(&attempt.into_command(verdict));
                }
            }
        }
    }
    played.to_upstream = without_random(&played.to_upstream);
    played
}

/// Replaces the password after the name of nobody, which is random.
fn without_random(bytes: &[u8]) -> Vec<u8> {
    let mark = b"rejected by portcullis\r\n$32\r\n";
    let mut out = bytes.to_vec();
    for start in 0..bytes.len() {
        if let Some(password) = bytes[start..].strip_prefix(mark) {
            out[start + mark.len()..][..32].fill(b'#');
            assert!(password.len() >= 32);
        }
    }
    out
}

/// The command in the place of a wrong AUTH.
fn wrong_auth() -> Vec<u8> {
    array(&[b"AUTH", b"rejected by portcullis", &[b'#'; 32]])
}
