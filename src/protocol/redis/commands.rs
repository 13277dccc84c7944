//! Finds the commands that authenticate (AUTH, HELLO) in what a client sends to Redis, and leaves all other bytes as they are.
//!
//! The parser decides where commands begin exactly as Redis does (networking.c: `processInputBuffer`, `processMultibulkBuffer`,
//! `processInlineBuffer`), with its peculiarities: the byte after a carriage return is not looked at, a NUL hides the rest of a
//! line, and an empty array is no command. After something that Redis rejects, nothing more is passed, because Redis answers it
//! and closes the connection.

use std::mem;

/// A part of what a client has sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// Bytes of other commands, from the current chunk.
    Pass(&'a [u8]),
    /// Bytes of other commands, of which the first came with an earlier chunk.
    PassHeld(Vec<u8>),
    /// A whole AUTH or HELLO with its arguments, the name first.
    Authentication(Vec<Vec<u8>>),
    /// An AUTH or HELLO that is too long to be right. Its bytes are dropped.
    Oversized,
}

/// Follows the commands of one client.
#[derive(Debug, Default)]
pub(crate) struct CommandFollower {
    state: State,
    /// The first bytes of a command, as long as they do not tell whether it authenticates.
    held: Vec<u8>,
}

#[derive(Debug, Default)]
enum State {
    /// At the start of a command, or within its first bytes.
    #[default]
    Begin,
    /// Within a command that does not authenticate.
    Other(Rest),
    /// Within a command that authenticates. The last argument may be incomplete.
    Authentication { rest: Rest, arguments: Vec<Vec<u8>>, size: usize },
    /// After something that Redis rejects.
    Closed,
}

impl CommandFollower {
    /// Takes the next piece from a chunk. `None` when the chunk is used up.
    pub(crate) fn next<'a>(&mut self, chunk: &mut &'a [u8]) -> Option<Piece<'a>> {
        while !chunk.is_empty() {
            let piece = match mem::take(&mut self.state) {
                State::Begin if self.held.is_empty() => self.begin(chunk),
                State::Begin => self.begin_held(chunk),
                State::Other(rest) => Some(Piece::Pass(take(chunk, self.skip(rest, chunk)))),
                State::Authentication { rest, arguments, size } => self.collect(rest, arguments, size, chunk),
                State::Closed => {
                    self.state = State::Closed;
                    *chunk = &[];
                    None
                }
            };
            if piece.is_some() {
                return piece;
            }
        }
        None
    }

    /// Whether the client is between two commands.
    pub(crate) fn is_at_boundary(&self) -> bool {
        matches!(self.state, State::Begin) && self.held.is_empty()
    }

    /// Whether Redis has rejected something, and closes the connection.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Passes the commands at the start of a chunk up to one that authenticates.
    fn begin<'a>(&mut self, chunk: &mut &'a [u8]) -> Option<Piece<'a>> {
        let mut passed = 0;
        while let (State::Begin, Some(bytes)) = (&self.state, chunk.get(passed..).filter(|bytes| !bytes.is_empty())) {
            match start(bytes) {
                Start::Other { length, rest } => {
                    let skipped = self.skip(rest, bytes.get(length..).unwrap_or_default());
                    passed += length + skipped;
                }
                Start::Rejected { length } => {
                    passed += length;
                    self.state = State::Closed;
                }
                Start::Incomplete => {
                    if passed == 0 {
                        self.held.extend(take(chunk, bytes.len()));
                    }
                    break;
                }
                Start::Authentication { .. } | Start::Inline { .. } if passed > 0 => break,
                Start::Authentication { name, length, rest } => {
                    take(chunk, length);
                    self.state = authentication(name, rest);
                    return None;
                }
                Start::Inline { words, length } => {
                    take(chunk, length);
                    return Some(Piece::Authentication(words));
                }
            }
        }
        (passed > 0).then(|| Piece::Pass(take(chunk, passed)))
    }

    /// The same for a command whose first bytes are held.
    fn begin_held<'a>(&mut self, chunk: &mut &'a [u8]) -> Option<Piece<'a>> {
        let before = self.held.len();
        // One byte at a time, because a command must not be decided with bytes of the next one. They are few.
        while let Some((byte, rest)) = chunk.split_first() {
            self.held.push(*byte);
            *chunk = rest;
            match start(&self.held) {
                Start::Incomplete => {}
                Start::Other { rest, .. } => {
                    self.state = if rest.is_over() { State::Begin } else { State::Other(rest) };
                    return Some(Piece::PassHeld(mem::take(&mut self.held)));
                }
                Start::Rejected { .. } => {
                    self.state = State::Closed;
                    return Some(Piece::PassHeld(mem::take(&mut self.held)));
                }
                Start::Authentication { name, rest, .. } => {
                    self.held.clear();
                    self.state = authentication(name, rest);
                    return None;
                }
                Start::Inline { words, .. } => {
                    self.held.clear();
                    return Some(Piece::Authentication(words));
                }
            }
        }
        debug_assert!(self.held.len() > before);
        None
    }

    /// Skips the rest of a command. Returns how many bytes of the chunk belong to it.
    fn skip(&mut self, mut rest: Rest, bytes: &[u8]) -> usize {
        let (used, progress) = rest.advance(bytes, |_| {});
        self.state = match progress {
            Progress::Over => State::Begin,
            Progress::More => State::Other(rest),
            Progress::Rejected => State::Closed,
        };
        used
    }

    fn collect<'a>(
        &mut self,
        mut rest: Rest,
        mut arguments: Vec<Vec<u8>>,
        mut size: usize,
        chunk: &mut &'a [u8],
    ) -> Option<Piece<'a>> {
        let (used, progress) = rest.advance(chunk, |part| match part {
            Part::Argument => {
                size = size.saturating_add(ARGUMENT_OVERHEAD);
                if size <= MAX_AUTHENTICATION {
                    arguments.push(Vec::new());
                }
            }
            Part::Bytes(bytes) => {
                size = size.saturating_add(bytes.len());
                if let Some(last) = arguments.last_mut().filter(|_| size <= MAX_AUTHENTICATION) {
                    last.extend_from_slice(bytes);
                }
            }
        });
        take(chunk, used);
        match progress {
            Progress::Over if size > MAX_AUTHENTICATION => Some(Piece::Oversized),
            Progress::Over => Some(Piece::Authentication(arguments)),
            Progress::More => {
                if size > MAX_AUTHENTICATION {
                    arguments = Vec::new();
                }
                self.state = State::Authentication { rest, arguments, size };
                None
            }
            Progress::Rejected => {
                self.state = State::Closed;
                // Redis rejects any such line in the same way.
                Some(Piece::Pass(b"*1\r\n!\r\n"))
            }
        }
    }
}

fn authentication(name: Vec<u8>, rest: Rest) -> State {
    State::Authentication { rest, arguments: vec![name], size: 0 }
}

/// Removes the first bytes of a chunk and returns them.
fn take<'a>(chunk: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = chunk.split_at_checked(length).unwrap_or((chunk, &[]));
    *chunk = rest;
    taken
}

/// What the first bytes of a command tell.
#[derive(Debug, PartialEq, Eq)]
enum Start {
    /// Too little.
    Incomplete,
    /// Redis rejects the line that ends at `length`.
    Rejected { length: usize },
    /// Another command, or none. Its rest begins at `length`.
    Other { length: usize, rest: Rest },
    /// An array that begins with the name of a command that authenticates.
    Authentication { name: Vec<u8>, length: usize, rest: Rest },
    /// A line that authenticates.
    Inline { words: Vec<Vec<u8>>, length: usize },
}

fn start(bytes: &[u8]) -> Start {
    if bytes.first() != Some(&b'*') {
        return inline(bytes);
    }
    let (count, length) = match header(bytes) {
        Header::Line(line, length) => (number(line), length),
        Header::Incomplete => return Start::Incomplete,
        Header::TooLong => return Start::Rejected { length: bytes.len() },
    };
    let arguments = match count {
        Some(count) if count > i64::from(i32::MAX) => return Start::Rejected { length },
        Some(count) if count > 0 => usize::try_from(count).unwrap_or_default(),
        Some(_) => return Start::Other { length, rest: Rest::default() },
        None => return Start::Rejected { length },
    };
    let behind = bytes.get(length..).unwrap_or_default();
    let (size, name_at) = match bulk(behind) {
        Bulk::Size(size, line) => (size, length + line),
        Bulk::Incomplete => return Start::Incomplete,
        Bulk::Rejected(line) => return Start::Rejected { length: length + line },
    };
    let left = arguments - 1;
    if !NAME_LENGTHS.contains(&size) {
        return Start::Other {
            length: name_at,
            rest: Rest { body: size.saturating_add(LINE_END), left, ..Rest::default() },
        };
    }
    let Some(name) = bytes.get(name_at..name_at + size) else { return Start::Incomplete };
    let (length, rest) = (name_at + size, Rest { body: LINE_END, left, ..Rest::default() });
    if authenticates(name) {
        Start::Authentication { name: name.to_vec(), length, rest: Rest { is_between: true, ..rest } }
    } else {
        Start::Other { length, rest }
    }
}

/// A command in one line.
fn inline(bytes: &[u8]) -> Start {
    let Some(end) = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n' || *byte == 0) else {
        return if bytes.len() > MAX_LINE { Start::Rejected { length: bytes.len() } } else { Start::Incomplete };
    };
    if bytes.get(end) == Some(&0) {
        // Redis looks for the end of the line with strchr, and never finds it.
        return if bytes.len() > MAX_LINE { Start::Rejected { length: bytes.len() } } else { Start::Incomplete };
    }
    let line = bytes.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let length = end + 1;
    match split_words(line) {
        None => Start::Rejected { length },
        Some(words) if words.first().is_some_and(|name| authenticates(name)) => Start::Inline { words, length },
        Some(_) => Start::Other { length, rest: Rest::default() },
    }
}

fn authenticates(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"AUTH") || name.eq_ignore_ascii_case(b"HELLO")
}

/// What remains of an array.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rest {
    /// Bytes of the current argument that remain, with its line end.
    body: usize,
    /// Arguments after the current one.
    left: usize,
    /// The header of the next argument, as far as it has come.
    header: Vec<u8>,
    /// Whether `body` is only a line end, which belongs to no argument.
    is_between: bool,
}

/// A part of the arguments of an array.
enum Part<'a> {
    /// An argument begins.
    Argument,
    /// Bytes of the current argument.
    Bytes(&'a [u8]),
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    More,
    Over,
    Rejected,
}

impl Rest {
    fn is_over(&self) -> bool {
        self.body == 0 && self.left == 0
    }

    /// Reads on. Returns how many bytes belong to the command, and whether it is over.
    fn advance(&mut self, bytes: &[u8], mut sink: impl FnMut(Part<'_>)) -> (usize, Progress) {
        let mut used = 0;
        loop {
            let rest = bytes.get(used..).unwrap_or_default();
            if self.body > 0 {
                let taken = self.body.min(rest.len());
                let own = self.body.saturating_sub(LINE_END).min(taken);
                if own > 0 && !self.is_between {
                    sink(Part::Bytes(rest.get(..own).unwrap_or_default()));
                }
                self.body -= taken;
                used += taken;
                if self.body > 0 {
                    return (used, Progress::More);
                }
                self.is_between = false;
                continue;
            }
            if self.left == 0 {
                return (used, Progress::Over);
            }
            let (size, length) = match self.next_header(rest) {
                Ok(Some(found)) => found,
                Ok(None) => return (bytes.len(), Progress::More),
                Err(length) => return (used + length, Progress::Rejected),
            };
            used += length;
            self.left -= 1;
            self.body = size.saturating_add(LINE_END);
            sink(Part::Argument);
        }
    }

    /// The size of the next argument, and how many bytes its header has here. Keeps a header that is incomplete.
    ///
    /// # Errors
    /// The length of a header that Redis rejects.
    fn next_header(&mut self, bytes: &[u8]) -> Result<Option<(usize, usize)>, usize> {
        if self.header.is_empty() {
            return match bulk(bytes) {
                Bulk::Size(size, length) => Ok(Some((size, length))),
                Bulk::Rejected(length) => Err(length),
                Bulk::Incomplete => {
                    self.header.extend_from_slice(bytes);
                    Ok(None)
                }
            };
        }
        for (index, byte) in bytes.iter().enumerate() {
            self.header.push(*byte);
            match bulk(&self.header) {
                Bulk::Size(size, _) => {
                    self.header = Vec::new();
                    return Ok(Some((size, index + 1)));
                }
                Bulk::Rejected(_) => return Err(index + 1),
                Bulk::Incomplete => {}
            }
        }
        Ok(None)
    }
}

/// A line that announces the size of an argument.
enum Bulk {
    Incomplete,
    /// The size, and the length of the line.
    Size(usize, usize),
    /// The length of a line that Redis rejects.
    Rejected(usize),
}

fn bulk(bytes: &[u8]) -> Bulk {
    match header(bytes) {
        Header::Incomplete => Bulk::Incomplete,
        Header::TooLong => Bulk::Rejected(bytes.len()),
        Header::Line(line, length) => {
            let size = number(line).filter(|_| bytes.first() == Some(&b'$'));
            match size.and_then(|size| usize::try_from(size).ok()) {
                // Redis' own limit can be raised.
                Some(size) => Bulk::Size(size, length),
                None => Bulk::Rejected(length),
            }
        }
    }
}

/// A line before its carriage return, without its first byte, and its length with the line end.
enum Header<'a> {
    Incomplete,
    TooLong,
    Line(&'a [u8], usize),
}

fn header(bytes: &[u8]) -> Header<'_> {
    let end = bytes.iter().take(MAX_LINE + 1).position(|byte| matches!(byte, b'\r' | 0));
    match end {
        // The byte after the carriage return is not looked at.
        Some(end) if bytes.get(end) == Some(&b'\r') && bytes.len() >= end + LINE_END => {
            Header::Line(bytes.get(1..end).unwrap_or_default(), end + LINE_END)
        }
        Some(end) if bytes.get(end) == Some(&b'\r') => Header::Incomplete,
        _ if bytes.len() > MAX_LINE => Header::TooLong,
        _ => Header::Incomplete,
    }
}

/// A number as `string2ll` of Redis reads it: no sign but a minus, no leading zeros, no spaces.
fn number(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_plain = match digits {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    std::str::from_utf8(text).ok().filter(|_| is_plain)?.parse().ok()
}

/// Splits a line into words as `sdssplitargs` of Redis does. `None` if quotes are not balanced.
fn split_words(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let is_space = |byte: u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c);
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        while let Some((first, behind)) = rest.split_first().filter(|(first, _)| is_space(**first)) {
            let _ = first;
            rest = behind;
        }
        if rest.is_empty() {
            return Some(words);
        }
        let mut word = Vec::new();
        loop {
            match rest {
                [] => break,
                [first, behind @ ..] if is_space(*first) => {
                    rest = behind;
                    break;
                }
                [b'"', behind @ ..] => rest = double_quoted(behind, &mut word)?,
                [b'\'', behind @ ..] => rest = single_quoted(behind, &mut word)?,
                [first, behind @ ..] => {
                    word.push(*first);
                    rest = behind;
                }
            }
        }
        words.push(word);
    }
}

/// Reads to the closing quote, which must end the word.
fn double_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [b'\\', b'x', high, low, behind @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digits = [*high, *low];
                word.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
                behind
            }
            [b'\\', escaped, behind @ ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                behind
            }
            [b'"', behind @ ..] => return ends_word(behind),
            [byte, behind @ ..] => {
                word.push(*byte);
                behind
            }
            [] => return None,
        };
    }
}

fn single_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [b'\\', b'\'', behind @ ..] => {
                word.push(b'\'');
                behind
            }
            [b'\'', behind @ ..] => return ends_word(behind),
            [byte, behind @ ..] => {
                word.push(*byte);
                behind
            }
            [] => return None,
        };
    }
}

fn ends_word(rest: &[u8]) -> Option<&[u8]> {
    rest.first().is_none_or(u8::is_ascii_whitespace).then_some(rest)
}

/// The lengths of the names of commands that authenticate.
const NAME_LENGTHS: [usize; 2] = [4, 5];

/// A carriage return and the byte after it.
const LINE_END: usize = 2;

/// `PROTO_INLINE_MAX_SIZE` of Redis.
const MAX_LINE: usize = 64 * 1024;

/// A longer AUTH or HELLO holds no password that was ever set.
const MAX_AUTHENTICATION: usize = 16 * 1024;

/// What an argument costs beside its bytes.
const ARGUMENT_OVERHEAD: usize = 32;

#[cfg(test)]
mod tests {
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
                    Piece::Authentication(words) => {
                        all.push(b'<');
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
    fn commands_that_authenticate_are_found_between_others() {
        let get = array(&[b"GET", b"key"]);
        let stream =
            [&get[..], &array(&[b"auth", b"p\r\n"]), &get, &array(&[b"Hello", b"3", b"AUTH", b"u", b"p"]), &get];
        let expected = [&get[..], b"<auth p\r\n>", &get, b"<Hello 3 AUTH u p>", &get];
        assert_followed(&stream.concat(), &expected.concat(), false);
        assert_followed(
            b"AUTH 'a b'\r\n \"\\x41UTH\" \"p\\n\\\"\"\nHELLO\r\n*1\r\n$4\r\nAUTH\r\n",
            b"<AUTH a b><AUTH p\n\"><HELLO><AUTH>",
            false,
        );
        assert_followed(b"*2\rX$4\rXAUTHXX$1\rXpXXPING\r\n", b"<AUTH p>PING\r\n", false);
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
            b"GET 'a\r\n",
            b"GET \"a\"b\r\n",
        ] {
            let stream = [rejected, &auth].concat();
            assert_followed(&stream, rejected, true);
        }
        let (passed, is_closed) = followed([&b"*2\r\n$4\r\nAUTH\r\n$x\r\n"[..], &auth]);
        assert_eq!((passed.as_slice(), is_closed), (&b"*1\r\n!\r\n"[..], true));
    }

    #[test]
    fn endless_lines_and_passwords_take_bounded_memory() {
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
            let State::Authentication { arguments, .. } = &follower.state else { panic!("{follower:?}") };
            assert!(arguments.iter().map(Vec::len).sum::<usize>() <= MAX_AUTHENTICATION);
        }
        let long = array(&[b"AUTH", &[b'x'; MAX_AUTHENTICATION]]);
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
                if authenticates(&command[0]) {
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
                ]).prop_map(<[u8]>::to_vec),
                prop::collection::vec(any::<u8>(), 0..6),
            ], 0..12),
            cut in 1_usize..10,
        ) {
            let stream = parts.concat();
            prop_assert_eq!(followed(stream.chunks(cut)), followed([&stream[..]]));
        }
    }
}
