//! Logins at the database.

use proptest::prelude::*;

use super::server::RedisServer;
use super::*;
use crate::login::redis::upstream::{LoginOutcome, LoginReply, UpstreamLogin};

const PROTECTED: &str = "-NOAUTH Authentication required.\r\n";
const NO_PROTO: &str = "-NOPROTO unsupported protocol version\r\n";

fn followed<'a>(login: &mut UpstreamLogin, chunks: impl IntoIterator<Item = &'a [u8]>) -> LoginReply {
    let replies = chunks.into_iter().map(|chunk| login.follow(chunk, &credentials()));
    replies.fold(LoginReply::More, |before, reply| if before == LoginReply::More { reply } else { LoginReply::Invalid })
}

fn assert_outcome(replies: &str, expected: &LoginReply) {
    for cut in 1..replies.len() {
        let (first, second) = replies.as_bytes().split_at(cut);
        assert_eq!(&followed(&mut UpstreamLogin::default(), [first, second]), expected, "{replies:?} cut at {cut}");
    }
    assert_eq!(&followed(&mut UpstreamLogin::default(), replies.as_bytes().chunks(1)), expected, "{replies:?}");
}

#[test]
fn reply_in_any_chunks_has_its_outcome() {
    let done = LoginReply::Done;
    let not_supported = |text: &str| done(LoginOutcome::NotSupported(text.to_owned()));
    let not_ready = |text: &str| done(LoginOutcome::NotReady(text.to_owned()));
    for (auth, outcome) in [
        ("+OK\r\n", done(LoginOutcome::Accepted(server(DefaultUser::Protected)))),
        ("-WRONGPASS invalid username-password pair or user is disabled.\r\n", done(LoginOutcome::WrongPassword)),
        ("-ERR invalid password\r\n", done(LoginOutcome::WrongPassword)),
        (
            "-LOADING Redis is loading the dataset in memory\r\n",
            not_ready("LOADING Redis is loading the dataset in memory"),
        ),
        ("-MASTERDOWN Link with MASTER is down\r\n", not_ready("MASTERDOWN Link with MASTER is down")),
        ("-ERR wrong number of arguments for 'auth' command\r\n", not_supported("ERR wrong number of arguments for")),
        ("-ERR unknown command `AUTH`, with args beginning with: `x`\r\n", not_supported("ERR unknown command")),
        ("-NOPERM no\u{1b}[2J\r\n", not_supported("NOPERM no\\u{1b}[2J")),
    ] {
        assert_outcome(&[PROTECTED, NO_PROTO, auth].concat(), &outcome);
    }
    for ping in ["+PONG\r\n", "-NOPERM this user\r\n", "-LOADING Redis\r\n"] {
        assert_outcome(&[ping, NO_PROTO, "+OK\r\n"].concat(), &done(LoginOutcome::Accepted(server(DefaultUser::Open))));
    }
    let without_hello = ServerTraits { has_hello: false, ..server(DefaultUser::Protected) };
    let unknown = "-ERR unknown command 'HELLO', with args beginning with: '9' \r\n";
    assert_outcome(&[PROTECTED, unknown, "+OK\r\n"].concat(), &done(LoginOutcome::Accepted(without_hello)));
    let limit = "-ERR max number of clients reached\r\n";
    assert_outcome(limit, &not_ready("ERR max number of clients reached"));
    assert_outcome(
        "-DENIED Redis is running in protected mode\r\n",
        &not_supported("DENIED Redis is running in protected mode"),
    );
}

#[test]
fn error_that_contains_the_password_is_not_shown() {
    let credentials = UpstreamCredentials::new("upstream", "db-pw");
    let hidden = || "an error that contains the password".to_owned();
    for (replies, expected) in [
        (&b"+PONG\r\n-NOPROTO\r\n-ERR what is upstream db-pw?\r\n"[..], LoginOutcome::NotSupported(hidden())),
        (b"+PONG\r\n-NOPROTO\r\n-LOADING db-pw\r\n", LoginOutcome::NotReady(hidden())),
        (b"-DENIED db-pw\r\n", LoginOutcome::NotSupported(hidden())),
        (b"-ERR max number of clients db-pw\r\n", LoginOutcome::NotReady(hidden())),
    ] {
        assert_eq!(UpstreamLogin::default().follow(replies, &credentials), LoginReply::Done(expected));
    }
}

#[test]
fn bytes_after_the_reply_and_other_protocols_are_invalid() {
    for replies in [
        "+PONG\r\n+OK\r\n",
        "+PONG\r\n-NOPROTO\r\n+OK\r\n+OK\r\n",
        "+PONG\r\n-NOPROTO\r\n+OK\r\nx",
        "HTTP/1.1 400\r\n",
        "+PONG\r\n-NOPROTO\r\n$2\r\n",
        "+PONG\n",
        "+PONG\r\n-NOPROTO\r\n+OKAY\r\n",
    ] {
        assert_eq!(followed(&mut UpstreamLogin::default(), [replies.as_bytes()]), LoginReply::Invalid, "{replies:?}");
    }
    let mut login = UpstreamLogin::default();
    assert!([b'-'; 10_000].chunks(100).any(|chunk| login.follow(chunk, &credentials()) == LoginReply::Invalid));
}

#[test]
fn passwords_are_tried_one_after_the_other_on_one_connection() {
    use std::io::{Read as _, Write as _};
    for (arguments, expected) in [
        (&["requirepass x", "user upstream on >right ~* +@all"][..], DefaultUser::Protected),
        (&["user upstream on >right ~* +@all"], DefaultUser::Open),
    ] {
        let redis = RedisServer::start(arguments);
        let (mut stream, mut login) = (redis.connect(), UpstreamLogin::default());
        let mut outcomes = Vec::new();
        for password in ["old", "right"] {
            let credentials = UpstreamCredentials::new("upstream", password);
            stream.write_all(&login.request(&credentials)).unwrap();
            let outcome = loop {
                let mut buffer = [0; 64];
                let length = stream.read(&mut buffer).unwrap();
                assert_ne!(length, 0);
                match login.follow(&buffer[..length], &credentials) {
                    LoginReply::More => {}
                    LoginReply::Done(outcome) => break outcome,
                    LoginReply::Invalid => panic!("not Redis"),
                }
            };
            outcomes.push(outcome);
        }
        assert_eq!(outcomes, [LoginOutcome::WrongPassword, LoginOutcome::Accepted(server(expected))]);
    }
}

proptest! {
    #[test]
    fn any_bytes_in_any_chunks_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 1_usize..20) {
        let mut login = UpstreamLogin::default();
        for chunk in bytes.chunks(cut) {
            if login.follow(chunk, &credentials()) != LoginReply::More {
                break;
            }
        }
    }
}
