//! Answers to clients that have not authenticated.

use proptest::prelude::*;

use super::*;

/// In one chunk, in every two chunks and byte by byte.
fn assert_played(stream: &[u8], to_client: &[u8], to_upstream: &[u8], state: State) {
    let expected = Played { to_client: to_client.to_vec(), to_upstream: to_upstream.to_vec(), state };
    let shown = String::from_utf8_lossy(stream).into_owned();
    for cut in 0..=stream.len() {
        let played = play([&stream[..cut], &stream[cut..]], &credentials());
        assert_eq!(played, expected, "{shown:?} cut at {cut}: {}", String::from_utf8_lossy(&played.to_client));
    }
    assert_eq!(play(stream.chunks(1), &credentials()), expected, "{shown:?} byte by byte");
}

fn assert_reply(stream: &[u8], reply: &str) {
    assert_played(stream, reply.as_bytes(), b"", State::Unauthenticated);
}

fn assert_closed(stream: &[u8], reply: &str) {
    let stream = [stream, b"PING\r\n"].concat();
    assert_played(&stream, reply.as_bytes(), b"", State::Closed);
}

const NO_AUTH: &str = "-NOAUTH Authentication required.\r\n";
const WRONG: &str = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
const HELLO: &str = "-NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> <pass> \
                     option can be used to authenticate the client and select the RESP protocol version at the same time\r\n";

#[test]
fn commands_before_authentication_are_answered_as_redis_does() {
    assert_reply(b"PING\r\n", NO_AUTH);
    assert_reply(&array(&[b"GET", b"key"]), NO_AUTH);
    assert_reply(b"CLIENT LIST\r\ncommand\n", &NO_AUTH.repeat(2));
}

#[test]
fn commands_that_do_not_exist_or_lack_arguments_are_answered_as_redis_does() {
    assert_reply(b"FOO\r\n", "-ERR unknown command 'FOO', with args beginning with: \r\n");
    assert_reply(
        b"foo a \"b\\r\\nc\" 'd'\n",
        "-ERR unknown command 'foo', with args beginning with: 'a' 'b  c' 'd' \r\n",
    );
    assert_reply(b"CLIENT foo\r\n", "-ERR unknown subcommand 'foo'. Try CLIENT HELP.\r\n");
    assert_reply(b"client kill\r\n", "-ERR wrong number of arguments for 'client|kill' command\r\n");
    assert_reply(b"get\r\n", "-ERR wrong number of arguments for 'get' command\r\n");
    assert_reply(b"EXEC\r\n", "-EXECABORT Transaction discarded because of: NOAUTH Authentication required.\r\n");
    assert_reply(b"JSON.GET a\r\n", NO_AUTH);
    assert_reply(b"HEXPIRE\r\n", NO_AUTH);
}

#[test]
fn wrong_and_malformed_passwords_are_answered_as_redis_does() {
    assert_reply(b"AUTH x\r\n", WRONG);
    assert_reply(&array(&[b"auth", b"app", b"app-pw\0"]), WRONG);
    assert_reply(b"AUTH\r\n", "-ERR wrong number of arguments for 'auth' command\r\n");
    assert_reply(b"AUTH a b c\r\n", "-ERR syntax error\r\n");
    assert_reply(b"HELLO\r\nHELLO 3\r\nHELLO 2 SETNAME x\r\n", &HELLO.repeat(3));
    assert_reply(b"HELLO 4\r\n", "-NOPROTO unsupported protocol version\r\n");
    assert_reply(b"HELLO x\r\n", "-ERR Protocol version is not an integer or out of range\r\n");
    assert_reply(b"HELLO 3 AUTH a\r\n", "-ERR Syntax error in HELLO option 'AUTH'\r\n");
    assert_reply(b"HELLO 3 SETNAME 'a b' AUTH app app-pw\r\n", std::str::from_utf8(INVALID).unwrap());
    assert_reply(b"HELLO 3 AUTH app x SETNAME 'a b'\r\n", WRONG);
}

const INVALID: &[u8] = b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n";

#[test]
fn reset_and_empty_commands_leave_the_client_unauthenticated() {
    assert_reply(b"reset\r\nRESET x\r\n", "+RESET\r\n-ERR wrong number of arguments for 'reset' command\r\n");
    assert_reply(b"\r\n\n*0\r\n*-1\r\n  \r\nPING\r\n", NO_AUTH);
}

#[test]
fn connection_is_closed_where_redis_closes_it() {
    assert_closed(b"QUIT\r\n", "+OK\r\n");
    assert_closed(b"PING\r\nPOST / HTTP/1.1\r\n", NO_AUTH);
    assert_closed(b"host: x\r\n", "");
    for (stream, error) in [
        (&b"*11\r\n"[..], "unauthenticated multibulk length"),
        (b"*x\r\n", "invalid multibulk length"),
        (b"*2147483648\r\n", "invalid multibulk length"),
        (b"*2\r\n$4\r\nAUTH\r\n$16385\r\n", "unauthenticated bulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$536870913\r\n", "invalid bulk length"),
        (b"*1\r\n:1\r\n", "expected '$', got ':'"),
        (b"*1\r\n\r\n", "expected '$', got ' '"),
        (b"GET 'a\r\n", "unbalanced quotes in request"),
    ] {
        assert_closed(stream, &format!("-ERR Protocol error: {error}\r\n"));
    }
}

#[test]
fn endless_lines_are_rejected_at_the_limit_of_redis() {
    for (start, error) in [
        (&b"a"[..], "too big inline request"),
        (b"\0\n", "too big inline request"),
        (b"*", "too big mbulk count string"),
        (b"*1\r\n$", "too big bulk count string"),
    ] {
        let stream = [start, &[b'1'; 70_000]].concat();
        for size in [1, 1000, stream.len()] {
            let played = play(stream.chunks(size), &credentials());
            assert_eq!(String::from_utf8(played.to_client).unwrap(), format!("-ERR Protocol error: {error}\r\n"));
            assert_eq!(played.state, State::Closed);
        }
    }
}

#[test]
fn right_password_opens_the_session_and_no_password_reaches_the_database() {
    let get = array(&[b"GET", b"key"]);
    assert_played(b"AUTH client-pw\r\n", OK, b"", State::Open);
    assert_played(
        b"PING\r\nAUTH x\r\nAUTH app app-pw\r\nPING\r\n",
        &[NO_AUTH.as_bytes(), WRONG.as_bytes(), OK].concat(),
        b"PING\r\n",
        State::Open,
    );
    let stream = [&array(&[b"AUTH", b"app", b"app-pw"]), &get[..], &get].concat();
    assert_played(&stream, OK, &[&get[..], &get].concat(), State::Open);
    let hello = |options: &[&[u8]]| array(&[&[&b"hello"[..], b"3"][..], options].concat());
    for (options, rest) in [
        (&[&b"auth"[..], b"app", b"app-pw", b"SETNAME", b"me"][..], &[&b"SETNAME"[..], b"me"][..]),
        (&[b"SETNAME", b"auth", b"AUTH", b"app", b"app-pw"], &[b"SETNAME", b"auth"]),
        (&[b"AUTH", b"app", b"app-pw"], &[]),
        (&[b"AUTH", b"app", b"app-pw", b"foo"], &[b"foo"]),
    ] {
        let stream = [hello(options), get.clone()].concat();
        assert_played(&stream, b"", &[hello(rest), get.clone()].concat(), State::Open);
    }
}

const OK: &[u8] = b"+OK\r\n";

#[test]
fn hello_with_several_passwords_is_right_only_if_they_are_equal() {
    let hello = |pairs: &[[&[u8]; 2]]| {
        let options = pairs.iter().flat_map(|[user, password]| [&b"AUTH"[..], user, password]);
        array(&[&b"HELLO"[..], b"2"].into_iter().chain(options).collect::<Vec<_>>())
    };
    let app: [&[u8]; 2] = [b"app", b"app-pw"];
    assert_played(&hello(&[app, app]), b"", &hello(&[]), State::Open);
    assert_reply(&hello(&[app, [b"default", b"client-pw"]]), WRONG);
    assert_reply(&hello(&[app, [b"app", b"x"]]), WRONG);
}

#[test]
fn oversized_password_is_wrong_and_takes_bounded_memory() {
    let long = vec![b'x'; 16_384];
    for stream in [
        array(&[b"AUTH", b"app", &long]),
        array(&[b"HELLO", b"3", b"AUTH", &long, &long, b"AUTH", &long, &long]),
        [b"AUTH ", &[b'x'; 20_000][..], b"\r\n"].concat(),
    ] {
        let stream = [&stream[..], b"PING\r\n"].concat();
        for size in [1, 1000, stream.len()] {
            let played = play(stream.chunks(size), &credentials());
            assert_eq!(String::from_utf8(played.to_client).unwrap(), [WRONG, NO_AUTH].concat());
        }
    }
    // Within the limits, it is judged.
    let stream = array(&[b"AUTH", &long]);
    let mut chunk = &stream[..];
    let Some(Event::Attempt(attempt)) = Conversation::default().next(&mut chunk) else { panic!() };
    assert_eq!((attempt.user(), attempt.password()), (&b"default"[..], Some(&long[..])));
}

#[test]
fn debug_output_has_no_password() {
    let mut chunk = &b"AUTH app Secret-1\r\nAUTH Secret-1"[..];
    let mut conversation = Conversation::default();
    let event = conversation.next(&mut chunk);
    assert!(conversation.next(&mut chunk).is_none());
    for shown in [format!("{event:?}"), format!("{conversation:?}"), format!("{:?}", credentials())] {
        assert!(!shown.contains("Secret") && !shown.contains("db pw"), "{shown}");
    }
}

/// Parts of which streams are made: nearly right, and anything.
fn part() -> impl Strategy<Value = Vec<u8>> {
    let sample: Vec<&[u8]> = vec![
        b"*2\r\n",
        b"*1\r\n",
        b"$4\r\nAUTH\r\n",
        b"$5\r\nHELLO\r\n",
        b"$1\r\nx\r\n",
        b"AUTH x\r\n",
        b"AUTH client-pw\r\n",
        b"\r\n",
        b"*0\r\n",
        b"$",
        b"'",
        b"RESET\r\n",
        b"QUIT\r\n",
        b"PING\r\n",
        b"HELLO 3 AUTH app app-pw\r\n",
        b"HELLO 3 AUTH app",
    ];
    prop_oneof![prop::sample::select(sample).prop_map(<[u8]>::to_vec), prop::collection::vec(any::<u8>(), 0..6),]
}

proptest! {
    #[test]
    fn any_bytes_in_any_chunks_have_the_same_result(
        parts in prop::collection::vec(part(), 0..16),
        cut in 1_usize..10,
    ) {
        let stream = parts.concat();
        prop_assert_eq!(play(stream.chunks(cut), &credentials()), play([&stream[..]], &credentials()));
    }
}
