//! Sends the same bytes to one Redis directly and to another one through the code, and compares what the client receives.

use std::io::{Read as _, Write as _};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::server::{RedisServer, finish};
use super::*;

/// A Redis that knows the clients, and one that knows only the user of Portcullis.
struct Servers {
    reference: RedisServer,
    upstream: RedisServer,
}

impl Servers {
    fn start() -> Self {
        let app = format!("user app on >{APP_PASSWORD} ~* &* +@all");
        Self {
            reference: RedisServer::start(&[&format!("requirepass {DEFAULT_PASSWORD}"), &app]),
            upstream: RedisServer::start(&["requirepass db-pw"]),
        }
    }

    /// What a client receives that Portcullis stands before.
    fn through<'a>(&self, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let credentials = UpstreamCredentials::new("default", "db-pw");
        let played = play(chunks, &credentials);
        let mut received = played.to_client;
        if !played.to_upstream.is_empty() {
            let mut stream = self.upstream.connect();
            stream.write_all(&credentials.auth_command()).unwrap();
            let mut accepted = [0; 5];
            stream.read_exact(&mut accepted).unwrap();
            assert_eq!(&accepted, b"+OK\r\n");
            received.extend(finish(stream, &played.to_upstream));
        }
        received
    }

    fn assert_same(&self, stream: &[u8], cut: usize) {
        let (expected, received) = (self.reference.replies(stream), self.through(stream.chunks(cut)));
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
        assert_eq!(text(&received), text(&expected), "after {}", text(stream));
    }
}

/// Commands before and after authentication, right and wrong.
const LINES: &[&[u8]] = &[
    b"AUTH client-pw\r\n",
    b"AUTH app app-pw\r\n",
    b"AUTH app client-pw\r\n",
    b"AUTH default client-pw\n",
    b"  auth 'client-pw'  \r\n",
    b"AUTH wrong\r\n",
    b"AUTH\r\n",
    b"AUTH a b c\r\n",
    b"AUTH \"\" \"\"\r\n",
    b"HELLO\r\n",
    b"HELLO 2\r\n",
    b"HELLO 3\r\n",
    b"HELLO 4\r\n",
    b"HELLO 03\r\n",
    b"HELLO x\r\n",
    b"HELLO AUTH app app-pw\r\n",
    b"HELLO 3 AUTH app app-pw\r\n",
    b"HELLO 2 SETNAME me AUTH app app-pw\r\nCLIENT GETNAME\r\n",
    b"HELLO 3 AUTH app wrong SETNAME me\r\n",
    b"HELLO 3 AUTH app app-pw foo\r\n",
    b"HELLO 3 AUTH app wrong foo\r\n",
    b"HELLO 3 AUTH app app-pw SETNAME 'a b'\r\n",
    b"HELLO 3 SETNAME 'a b' AUTH app app-pw\r\n",
    b"HELLO 3 SETNAME\r\n",
    b"HELLO 3 \"a\\r\\n\\x00b\"\r\n",
    b"HELLO 9 AUTH app app-pw\r\n",
    b"PING\r\n",
    b"PING a b\r\n",
    b"GET key\r\n",
    b"get\r\n",
    b"FOO\r\n",
    b"FOO a \"b\\r\\nc\\x00d\" e\r\n",
    b"\"\"\r\n",
    b"\"client|list\"\r\n",
    b"CLIENT\r\n",
    b"CLIENT FOO\r\n",
    b"CLIENT GETNAME\r\n",
    b"client kill\r\n",
    b"CLIENT REPLY OFF\r\n",
    b"CLIENT REPLY SKIP\r\n",
    b"CLIENT REPLY ON\r\n",
    b"COMMAND COUNT\r\n",
    b"CONFIG GET\r\n",
    b"DEBUG x\r\n",
    b"MODULE LOAD x\r\n",
    b"MULTI\r\n",
    b"EXEC\r\n",
    b"EXEC x\r\n",
    b"DISCARD\r\n",
    b"SUBSCRIBE channel\r\n",
    b"UNSUBSCRIBE channel\r\n",
    b"RESET\r\n",
    b"reset x\r\n",
    b"\r\n",
    b"*0\r\n",
    b"*-1\r\n",
    b"*1\r\n$4\r\nPINGXX",
    b"*1\rx$4\rxPINGyy",
    b"*2\r\n$4\r\nAUTH\r\n$9\r\nclient-pw\r\n",
    b"*3\r\n$4\r\nauth\r\n$3\r\napp\r\n$6\r\napp-pw\r\n",
    b"*2\r\n$4\r\nAUTH\r\n$3\r\nx\0y\r\n",
    b"*5\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$3\r\napp\r\n$6\r\napp-pw\r\n",
    b"*2\r\n$4\r\nECHO\r\n$18\r\n*1\r\n$4\r\nAUTH\r\nx\r\n\r\n",
    b"*2\r\n$6\r\nclient\r\n$3\r\na\0b\r\n",
];

/// What ends a connection, or is never answered.
const LAST: &[&[u8]] = &[
    b"",
    b"QUIT\r\n",
    b"quit a b\r\n",
    b"*x\r\n",
    b"*01\r\n",
    b"*2147483648\r\n",
    b"*1\r\n:1\r\n",
    b"*1\r\n\r\n",
    b"*1\r\n\xff\r\n",
    b"*1\r\n$-1\r\n",
    b"*1\r\n$x\r\n",
    b"*1\r\n$536870913\r\n",
    b"GET 'a\r\n",
    b"GET \"a\"b\r\n",
    b"a\0b\r\nPING\r\n",
    b"*1\r\n$4\r\nPI",
    b"*2\r\n$4\r\nAUTH\r\n$9\r\nclient",
    b"*2\r\n$3\r\nGET\r\n$x\r\n",
];

#[test]
fn every_command_is_answered_as_by_redis_before_and_after_authentication() {
    let servers = Servers::start();
    for line in LINES.iter().chain(LAST) {
        let login = &b"AUTH client-pw\r\n"[..];
        for stream in [
            [line, &b"PING\r\n"[..]].concat(),
            [login, line, b"PING\r\n"].concat(),
            [line, login, b"PING\r\n"].concat(),
        ] {
            servers.assert_same(&stream, 1 << 14);
            servers.assert_same(&stream, 3);
        }
    }
    // Redis then drops replies that it has not written yet, so none precede these.
    for http in [&b"POST / HTTP/1.1\r\n"[..], b"Host: x\r\nPING\r\n", b"\"host:\\x00\"\r\n"] {
        servers.assert_same(http, 1);
    }
    for unauthenticated in [&b"*11\r\n"[..], b"*12\r\n", b"*1\r\n$16385\r\n", b"*1\r\n$536870912\r\n"] {
        servers.assert_same(unauthenticated, 1);
    }
    let name = [b'x'; 200];
    for words in
        [&[&name[..], &[b'y'; 100], &[b'z'; 100], b"w"][..], &[b"client", &name], &[b"\r\nGET\r\n", b"\n", b"\t"]]
    {
        servers.assert_same(&array(words), 7);
    }
    let eleven = array(&[&b"ECHO"[..]; 11]);
    servers.assert_same(&[b"AUTH client-pw\r\n", &eleven[..]].concat(), 5);
    servers.assert_same(&[b"AUTH client-pw\r\nRESET\r\n", &eleven[..]].concat(), 5);
}

#[test]
fn every_known_command_is_refused_as_by_redis() {
    let servers = Servers::start();
    let list = String::from_utf8(servers.reference.replies(b"AUTH client-pw\r\nCOMMAND LIST\r\n")).unwrap();
    let names: Vec<_> =
        list.split("\r\n").filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase())).collect();
    assert!(names.len() > 200, "{list}");
    for name in names.iter().filter(|name| !["auth", "hello", "quit", "reset"].contains(name)) {
        let words = name.replace('|', " ");
        let stream: String = (0..8).map(|count| format!("{words}{}\r\n", " x".repeat(count))).collect();
        servers.assert_same(stream.as_bytes(), 1 << 14);
    }
}

#[test]
fn sessions_of_any_commands_are_answered_as_by_redis() {
    let servers = Servers::start();
    let lines = prop::collection::vec(prop::sample::select(LINES), 0..12);
    let session = (lines, prop::sample::select(LAST), 1_usize..50);
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&session, |(lines, last, cut)| {
            servers.assert_same(&[&lines.concat()[..], last].concat(), cut);
            Ok(())
        })
        .unwrap();
}

#[test]
fn reset_at_an_open_server_is_answered_and_ends_the_session() {
    let redis = RedisServer::start(&["user upstream on >db-pw ~* +@all"]);
    let credentials = UpstreamCredentials::new("upstream", "db-pw");
    let (mut translator, mut chunk) = (Translator::new(server(DefaultUser::Open)), &b"PING\r\nRESET\r\nPING\r\n"[..]);
    let mut sent = credentials.auth_command().to_vec();
    while let Some(step) = translator.next(&mut chunk) {
        match step {
            Step::Pass(bytes) => sent.extend_from_slice(bytes),
            Step::Send(bytes) | Step::End(bytes) => sent.extend_from_slice(&bytes),
            Step::Attempt(attempt) => panic!("{attempt:?}"),
        }
    }
    assert_eq!(redis.replies(&sent), b"+OK\r\n+PONG\r\n+RESET\r\n");
}

/// Redis finds a name with a NUL in its table if that falls into the bucket of the name without it, and options up to a NUL.
#[test]
fn nul_never_lets_a_client_become_another_user() {
    let redis = RedisServer::start(&["user upstream on >db-pw ~* &* +@all", "user boss on nopass ~* &* +@all"]);
    let credentials = UpstreamCredentials::new("upstream", "db-pw");
    let names = (0..3000).flat_map(|number: u32| {
        let with = |name: &str, rest: &[&[u8]]| array(&[&[format!("{name}\0{number}").as_bytes()], rest].concat());
        [
            with("AUTH", &[b"boss", b"x"]),
            with("RESET", &[]),
            with("HELLO", &[b"2", b"AUTH", b"boss", b"x"]),
            format!("\"AUTH\\x00{number}\" boss x\r\n").into_bytes(),
        ]
    });
    let boss: &[u8] = b"boss";
    let options = [
        array(&[b"HELLO", b"2", b"AUTH\0", boss, b"x"]),
        array(&[b"HELLO", b"2", b"SETNAME\0", b"n", b"AUTH", boss, b"x"]),
        array(&[b"HELLO", b"2", b"foo", b"AUTH", boss, b"x"]),
        array(&[b"HELLO", b"x", b"AUTH", boss, b"x"]),
        b"\"AUTH\"\x0b boss x\r\n".to_vec(),
    ];
    for sent in [names.collect::<Vec<_>>().concat(), options[..4].concat(), options[4].clone()] {
        let played = play([&b"AUTH client-pw\r\n"[..], &sent, b"ACL WHOAMI\r\n"], &credentials);
        let replies = redis.replies(&[&credentials.auth_command()[..], &played.to_upstream].concat());
        let text = String::from_utf8_lossy(&replies);
        assert!(!text.contains("\r\nboss\r\n") && !text.contains("\r\ndefault\r\n"), "{text}");
    }
    for first in [
        array(&[b"HELLO", b"2", b"AUTH", b"app", b"app-pw", b"AUTH\0", boss, b"x"]),
        array(&[b"HELLO", b"2", b"AUTH", b"app", b"app-pw", b"foo", b"AUTH", boss, b"x"]),
    ] {
        let played = play([&first[..], b"ACL WHOAMI\r\n"], &credentials);
        assert!(!played.to_upstream.windows(4).any(|word| word == b"boss"), "{played:?}");
    }
}

#[test]
fn line_at_the_limit_of_redis_is_understood_as_by_redis() {
    let servers = Servers::start();
    for spaces in 65_536 - "AUTH app x".len() - 2..65_536 - "AUTH app x".len() + 3 {
        let line = format!("AUTH{}app x\n", " ".repeat(spaces + 1));
        let played = play([&b"AUTH client-pw\r\n"[..], line.as_bytes()], &UpstreamCredentials::new("default", "db-pw"));
        assert!(!String::from_utf8_lossy(&played.to_upstream).contains("app"), "{spaces}");
    }
    servers.assert_same(&[b"AUTH client-pw\r\n", &b"\"GET\"\x0bkey\r\nPING\r\n"[..]].concat(), 1 << 14);
}

#[test]
fn random_password_is_accepted_for_a_nopass_user_only() {
    let server = RedisServer::start(&["user cache on nopass ~* +@all"]);
    let right = UpstreamCredentials::without_password("cache").auth_command();
    let wrong = Attempt::oversized().into_command(Verdict::Wrong);
    assert_eq!(server.replies(&[&wrong[..], &right].concat()), [WRONG_PASSWORD, b"+OK\r\n"].concat());
}
