use proptest::prelude::*;

use super::*;

/// What passes, with a mark in the place of each command that authenticates, and whether Redis has closed the connection.
fn followed<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, bool) {
    let (mut follower, mut all) = (CommandFollower::default(), Vec::new());
    for mut chunk in chunks {
        while let Some(piece) = follower.next(&mut chunk) {
            match piece {
                Piece::Pass(bytes) => all.extend_from_slice(bytes),
                Piece::PassHeld(bytes) => all.extend(bytes),
                Piece::Identity(words) => {
                    all.push(b'<');
                    let words: Vec<_> = words.iter().map(|word| word.to_vec()).collect();
                    all.extend(words.join(&b' '));
                    all.push(b'>');
                }
                Piece::Oversized => all.extend(b"<oversized>"),
            }
        }
    }
    (all, follower.is_closed())
}

fn array(words: &[&[u8]]) -> Vec<u8> {
    let bulk = |word: &&[u8]| [format!("${}\r\n", word.len()).as_bytes(), word, b"\r\n"].concat();
    [format!("*{}\r\n", words.len()).into_bytes(), words.iter().map(bulk).collect::<Vec<_>>().concat()].concat()
}

/// In one chunk, in every two chunks and byte by byte.
fn assert_followed(stream: &[u8], expected: &[u8], is_closed: bool) {
    let expected = (expected.to_vec(), is_closed);
    let shown = String::from_utf8_lossy(stream).into_owned();
    for cut in 0..=stream.len() {
        assert_eq!(followed([&stream[..cut], &stream[cut..]]), expected, "{shown:?} cut at {cut}");
    }
    assert_eq!(followed(stream.chunks(1)), expected, "{shown:?} byte by byte");
}

#[test]
fn other_commands_pass_unchanged() {
    let long = array(&[b"SET", b"key", &[b'x'; 300]]);
    for stream in [
        array(&[b"GET", b"key"]),
        array(&[b"AUTHX", b"a"]),
        array(&[b"SETEX", b"AUTH", b"HELLO"]),
        array(&[b"PING"]),
        array(&[b""]),
        array(&[b"ECHO", b"*2\r\n$4\r\nAUTH\r\n$1\r\nx\r\n"]),
        b"*0\r\n*-1\r\n\r\nPING\r\n  get key\nset 'a b' \"\\x41\"\r\n".to_vec(),
        [&array(&[b"GET", b"a"])[..], &long, b"PING\r\n"].concat(),
        // Redis does not look at the byte after a carriage return.
        b"*1\rX$4\rYPING??".to_vec(),
    ] {
        assert_followed(&stream, &stream, false);
    }
}

#[test]
fn commands_that_change_the_identity_are_found_between_others() {
    let get = array(&[b"GET", b"key"]);
    let stream = [&get[..], &array(&[b"auth", b"p\r\n"]), &get, &array(&[b"Hello", b"3", b"AUTH", b"u", b"p"]), &get];
    let expected = [&get[..], b"<auth p\r\n>", &get, b"<Hello 3 AUTH u p>", &get];
    assert_followed(&stream.concat(), &expected.concat(), false);
    assert_followed(
        b"AUTH 'a b'\r\n \"\\x41UTH\" \"p\\n\\\"\"\nHELLO\r\n*1\r\n$4\r\nAUTH\r\n",
        b"<AUTH a b><AUTH p\n\"><HELLO><AUTH>",
        false,
    );
    assert_followed(b"*2\rX$4\rXAUTHXX$1\rXpXXPING\r\n", b"<AUTH p>PING\r\n", false);
    let stream = [&get[..], &array(&[b"reset"]), b"reset\nPING\n", &array(&[b"RESETX"])];
    assert_followed(&stream.concat(), &[&get[..], b"<reset><reset>PING\n", &array(&[b"RESETX"])].concat(), false);
}

#[test]
fn nothing_passes_after_something_that_redis_rejects() {
    let auth = array(&[b"AUTH", b"p"]);
    for rejected in [
        &b"*x\r\n"[..],
        b"*01\r\n",
        b"*+1\r\n",
        b"*2147483648\r\n",
        b"*1\r\n:1\r\n",
        b"*1\r\n$-1\r\n",
        b"*2\r\n$3\r\nGET\r\n$x\r\n",
        b"*1\r\n$536870913\r\n",
    ] {
        let stream = [rejected, &auth].concat();
        assert_followed(&stream, rejected, true);
    }
    for unbalanced in [&b"GET 'a\r\n"[..], b"GET \"a\"b\r\n"] {
        assert_followed(&[unbalanced, &auth].concat(), b"\"\r\n", true);
    }
    // Redis rejects these lines wherever they end.
    let digits = [b'1'; 100];
    for (endless, rejected) in [
        ([b"*", &digits[..]].concat(), &b"*x\r\n"[..]),
        ([b"*1\r\n$", &digits[..]].concat(), b"*1\r\n$x\r\n"),
        ([b"*", &[0; 100][..]].concat(), b"*x\r\n"),
    ] {
        assert_followed(&endless, rejected, true);
        assert_followed(&[&endless, &b"\r\n"[..], &auth].concat(), rejected, true);
    }
    let within = [b"*2\r\n$3\r\nGET\r\n$", &digits[..], b"\r\n"].concat();
    assert_followed(&[&within[..], &auth].concat(), &within, true);
    let (passed, is_closed) = followed([&b"*2\r\n$4\r\nAUTH\r\n$x\r\n"[..], &auth]);
    assert_eq!((passed.as_slice(), is_closed), (&b"*1\r\n!\r\n"[..], true));
}

#[test]
fn endless_lines_and_passwords_take_bounded_memory() {
    for line in [&b"a"[..], b"\0\n", b"GET \n\0\n"] {
        let mut follower = CommandFollower::default();
        let stream = line.repeat(200_000);
        for mut chunk in stream.chunks(7) {
            while follower.next(&mut chunk).is_some() {}
            assert!(follower.held.len() <= MAX_LINE + 1);
        }
        assert!(follower.is_closed());
    }
    let mut follower = CommandFollower::default();
    let mut held = 0;
    for _ in 0..100 {
        let mut chunk = &[b'a'; 1024][..];
        while follower.next(&mut chunk).is_some() {}
        held = held.max(follower.held.len());
    }
    assert!(follower.is_closed() && held <= MAX_LINE + 1, "{held}");

    let (mut follower, mut begin) = (CommandFollower::default(), &b"*3\r\n$4\r\nAUTH\r\n$536870912\r\n"[..]);
    assert_eq!(follower.next(&mut begin), None);
    for _ in 0..100 {
        let mut chunk = &[b'a'; 1024][..];
        assert_eq!(follower.next(&mut chunk), None);
        let State::Identity { words, .. } = &follower.state else { panic!("{follower:?}") };
        assert!(words.iter().map(|word| word.capacity()).sum::<usize>() <= 2 * MAX_IDENTITY);
    }
    let long = array(&[b"AUTH", &[b'x'; MAX_IDENTITY]]);
    let stream = [&long[..], b"PING\r\n"].concat();
    assert_eq!(followed(stream.chunks(1000)), (b"<oversized>PING\r\n".to_vec(), false));
}

fn word() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::sample::select(vec![&b"AUTH"[..], b"HELLO", b"GET", b"hello", b"x"]).prop_map(<[u8]>::to_vec),
        prop::collection::vec(any::<u8>(), 0..8),
    ]
}

proptest! {
    #[test]
    fn arrays_are_split_at_the_same_places_in_any_chunks(
        commands in prop::collection::vec(prop::collection::vec(word(), 1..4), 0..6),
        cut in 1_usize..20,
    ) {
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        for command in &commands {
            let words: Vec<_> = command.iter().map(Vec::as_slice).collect();
            stream.extend(array(&words));
            if changes_identity(&command[0]) {
                expected.push(b'<');
                expected.extend(command.join(&b' '));
                expected.push(b'>');
            } else {
                expected.extend(array(&words));
            }
        }
        prop_assert_eq!(followed(stream.chunks(cut)), (expected, false));
    }

    #[test]
    fn any_bytes_in_any_chunks_have_the_same_result(
        parts in prop::collection::vec(prop_oneof![
            prop::sample::select(vec![
                &b"*2\r\n"[..], b"*1\r\n", b"$4\r\nAUTH\r\n", b"$1\r\nx\r\n", b"AUTH x\r\n", b"\r\n", b"*0\r\n", b"$", b"'",
                b"RESET\r\n", b"*1\r\n$4\r\nPING\r\n", b"*3\r\n$3\r\nGET\r\n$10\r\n0123456789\r\n$1\r\nx\r\n",
            ]).prop_map(<[u8]>::to_vec),
            prop::collection::vec(any::<u8>(), 0..6),
        ], 0..12),
        cut in 1_usize..10,
    ) {
        let stream = parts.concat();
        prop_assert_eq!(followed(stream.chunks(cut)), followed([&stream[..]]));
    }
}
