//! Sessions of clients that have authenticated.

use proptest::prelude::*;

use super::*;

/// What the database receives after the login of the client.
fn translated<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let played = play([&b"AUTH client-pw\r\n"[..]].into_iter().chain(chunks), &credentials());
    assert_eq!(played.to_client, b"+OK\r\n", "Redis answers everything else");
    played.to_upstream
}

fn assert_translated(stream: &[u8], expected: &[u8]) {
    let shown = String::from_utf8_lossy(stream).into_owned();
    for cut in 0..=stream.len() {
        assert_eq!(translated([&stream[..cut], &stream[cut..]]), expected, "{shown:?} cut at {cut}");
    }
    assert_eq!(translated(stream.chunks(1)), expected, "{shown:?} byte by byte");
}

#[test]
fn passwords_within_a_session_are_replaced() {
    let (get, right) = (array(&[b"GET", b"key"]), array(&[b"AUTH", b"upstream", b"db pw\r\n"]));
    let stream = [&get[..], &array(&[b"AUTH", b"client-pw"]), &get, b"AUTH app x\r\n", &get].concat();
    assert_translated(&stream, &[&get[..], &right, &get, &wrong_auth(), &get].concat());
    let hello =
        |user: &[u8], password: &[u8]| array(&[b"HELLO", b"3", b"SETNAME", b"a", b"AUTH", user, password, b"x"]);
    assert_translated(&hello(b"app", b"app-pw"), &hello(b"upstream", b"db pw\r\n"));
    assert_translated(&hello(b"app", b"x"), &hello(b"rejected by portcullis", &[b'#'; 32]));
}

#[test]
fn commands_without_a_password_have_the_same_words() {
    for words in [
        &[&b"AUTH"[..]][..],
        &[b"AUTH", b"a", b"b", b"c"],
        &[b"HELLO", b"3", b"AUTH"],
        &[b"HELLO"],
        &[b"HELLO", b"3"],
        &[b"HELLO", b"3", b"SETNAME", b"AUTH", b"x"],
        &[b"RESET"],
        &[b"reset", b"x"],
    ] {
        assert_translated(&array(words), &array(words));
    }
    assert_translated(b"HELLO 3\r\n", &array(&[b"HELLO", b"3"]));
}

#[test]
fn words_that_redis_does_not_look_at_are_not_sent() {
    for (sent, expected) in [
        (&[&b"AUTH"[..], b"user", b"pw", b"more", b"words"][..], &[&b"AUTH"[..], b"a", b"b", b"c"][..]),
        (&[b"RESET", b"app-pw", b"y"], &[b"RESET", b"x"]),
        (&[b"HELLO", b"3", b"AUTH", b"app-pw"], &[b"HELLO", b"3", b"AUTH"]),
        (&[b"HELLO", b"AUTH", b"app", b"app-pw"], &[b"HELLO", b"AUTH", b"app"]),
        (&[b"HELLO", b"3", b"foo", b"AUTH", b"app", b"app-pw"], &[b"HELLO", b"3", b"foo"]),
        (&[b"AUTH\0", b"app", b"app-pw"], &[b"a command with a NUL"]),
        (&[b"reset\0suffix"], &[b"a command with a NUL"]),
    ] {
        assert_translated(&array(sent), &array(expected));
    }
    assert_translated(b"\"auth\\x00\" app app-pw\r\n", &array(&[b"a command with a NUL"]));
    let wrong = |version: &[u8]| array(&[b"HELLO", version, b"AUTH", b"rejected by portcullis", &[b'#'; 32]]);
    for version in [&b"9"[..], b"x"] {
        assert_translated(&array(&[b"HELLO", version, b"AUTH", b"app", b"app-pw"]), &wrong(version));
    }
}

#[test]
fn server_without_hello_gets_no_password_with_it() {
    let traits = ServerTraits { has_hello: false, ..server(DefaultUser::Protected) };
    let (mut translator, hello) = (Translator::new(traits), array(&[b"HELLO", b"3", b"AUTH", b"app", b"app-pw"]));
    let Some(Step::Send(sent)) = translator.next(&mut &hello[..]) else { panic!("it is not checked") };
    assert_eq!(*sent, array(&[b"HELLO"]));
}

#[test]
fn oversized_password_becomes_a_wrong_one() {
    let stream = [&array(&[b"AUTH", &[b'x'; 16_384]])[..], b"PING\r\n"].concat();
    for size in [1, 1000, stream.len()] {
        assert_eq!(translated(stream.chunks(size)), [&wrong_auth()[..], b"PING\r\n"].concat());
    }
}

#[test]
fn user_without_password_authenticates_with_a_random_one() {
    let chunks = [&b"AUTH client-pw\r\n"[..], b"AUTH client-pw\r\n"];
    let played = play(chunks, &UpstreamCredentials::without_password("cache"));
    let begin = b"*3\r\n$4\r\nAUTH\r\n$5\r\ncache\r\n$32\r\n";
    assert!(played.to_upstream.starts_with(begin) && played.to_upstream.len() == begin.len() + 34);
}

#[test]
fn reset_ends_the_session_where_the_default_user_needs_no_password() {
    let get = array(&[b"GET", b"key"]);
    let stream = [&get[..], b"reset x\r\n", b"Reset\r\n", &get].concat();
    for size in [1, 5, stream.len()] {
        let (mut translator, mut sent, mut has_ended) = (Translator::new(server(DefaultUser::Open)), Vec::new(), false);
        for mut chunk in stream.chunks(size) {
            while let Some(step) = translator.next(&mut chunk) {
                assert!(!has_ended);
                match step {
                    Step::Pass(bytes) => sent.extend_from_slice(bytes),
                    Step::Send(bytes) => sent.extend_from_slice(&bytes),
                    Step::End(bytes) => {
                        sent.extend_from_slice(&bytes);
                        has_ended = true;
                    }
                    Step::Attempt(attempt) => panic!("{attempt:?}"),
                }
            }
        }
        assert!(has_ended && translator.is_closed());
        assert_eq!(sent, [&get[..], &array(&[b"reset", b"x"]), &array(&[b"Reset"])].concat());
    }
}

#[test]
fn chunk_without_a_password_passes_without_a_copy() {
    let stream = array(&[b"SET", b"key", b"value"]).repeat(100);
    let (mut translator, mut chunk) = (Translator::new(server(DefaultUser::Protected)), &stream[..]);
    let Some(Step::Pass(bytes)) = translator.next(&mut chunk) else { panic!() };
    assert_eq!(bytes.as_ptr_range(), stream.as_ptr_range());
    assert!(translator.next(&mut chunk).is_none() && translator.is_at_boundary());
}

fn word() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::sample::select(vec![
            &b"AUTH"[..],
            b"HELLO",
            b"GET",
            b"hello",
            b"x",
            b"app",
            b"app-pw",
            b"3",
            b"client-pw"
        ])
        .prop_map(<[u8]>::to_vec),
        prop::collection::vec(any::<u8>(), 0..8),
    ]
}

proptest! {
    /// A command is changed only if it has a password, and then only the pair.
    #[test]
    fn translation_changes_nothing_but_passwords(
        commands in prop::collection::vec(prop::collection::vec(word(), 1..7), 0..8),
        cut in 1_usize..40,
    ) {
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        for command in &commands {
            let words: Vec<_> = command.iter().map(Vec::as_slice).collect();
            stream.extend(array(&words));
            expected.extend(match Attempt::parse(command.iter().map(|word| word.clone().into()).collect()) {
                Ok(attempt) => {
                    let (user, password): (&[u8], &[u8]) =
                        if is_right(&attempt) { (b"upstream", b"db pw\r\n") } else { (b"rejected by portcullis", &[b'#'; 32]) };
                    replaced(&words, user, password)
                }
                Err(_) if ![&b"AUTH"[..], b"HELLO", b"RESET"].iter().any(|name| {
                    words[0].split(|byte| *byte == 0).next().unwrap().eq_ignore_ascii_case(name)
                }) => array(&words),
                Err(constant) => array(&constant.iter().map(|word| word.as_slice()).collect::<Vec<_>>()),
            });
        }
        prop_assert_eq!(translated(stream.chunks(cut)), expected);
    }
}

/// The command with this user and password, made in another way.
fn replaced(words: &[&[u8]], user: &[u8], password: &[u8]) -> Vec<u8> {
    if words[0].eq_ignore_ascii_case(b"AUTH") {
        return array(&[if words.len() == 2 { b"AUTH" } else { words[0] }, user, password]);
    }
    let mut out = words[..2].to_vec();
    let mut options = words[2..].iter().copied();
    while let Some(option) = options.next() {
        out.push(option);
        let left = options.len();
        if option.eq_ignore_ascii_case(b"AUTH") && left >= 2 {
            options.nth(1);
            out.extend([user, password]);
        } else if option.eq_ignore_ascii_case(b"SETNAME") && left >= 1 {
            out.extend(options.next());
        } else {
            break;
        }
    }
    array(&out)
}
