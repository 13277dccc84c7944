//! Properties of the follower for any bytes of a client.

use super::syntax::MAX_LINE;
use super::{CommandFollower, MAX_IDENTITY, Piece, State, Words, changes_identity};
use crate::fuzz::Input;

/// The commands of a client: those that change who it is are found, and everything else passes unchanged.
pub fn redis_commands(data: &[u8]) {
    let Some(input) = Input::parse(data) else { return };
    if input.has(0) {
        return whole_arrays(input);
    }
    let at_once = followed(&[input.stream]);
    let followed = followed(&input.chunks());
    assert_eq!(followed, at_once, "chunks may end anywhere");
    // Redis would find no other command in what has passed.
    let again = self::followed(&[&followed.passed]);
    assert_eq!((&again.passed, again.identities.len()), (&followed.passed, 0));
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Followed {
    passed: Vec<u8>,
    /// How much has passed before each command, and its words. `None`: it is too long.
    identities: Vec<(usize, Option<Words>)>,
    is_closed: bool,
    is_at_boundary: bool,
}

fn followed(chunks: &[&[u8]]) -> Followed {
    let (mut follower, mut followed) = (CommandFollower::default(), Followed::default());
    // All bytes since the end of the last piece.
    let mut unknown = Vec::new();
    for chunk in chunks {
        let mut chunk = *chunk;
        loop {
            let before = chunk;
            let piece = follower.next(&mut chunk);
            unknown.extend_from_slice(before.strip_suffix(chunk).unwrap_or_default());
            assert_bounded(&follower);
            let Some(piece) = piece else { break };
            let own = std::mem::take(&mut unknown);
            match piece {
                Piece::Pass(bytes) => {
                    assert!(bytes == own || follower.is_closed(), "only a rejected line is written in another way");
                    followed.passed.extend_from_slice(bytes);
                }
                Piece::PassHeld(bytes) => {
                    assert!(bytes == own || follower.is_closed(), "only a rejected line is written in another way");
                    followed.passed.extend(bytes);
                }
                Piece::Identity(words) => {
                    assert!(words.first().is_some_and(|name| changes_identity(name)));
                    followed.identities.push((followed.passed.len(), Some(words)));
                }
                Piece::Oversized => {
                    assert!(own.len() > MAX_IDENTITY / 2);
                    followed.identities.push((followed.passed.len(), None));
                }
            }
        }
        assert!(chunk.is_empty(), "a chunk is used up");
    }
    followed.is_closed = follower.is_closed();
    followed.is_at_boundary = follower.is_at_boundary();
    followed
}

fn assert_bounded(follower: &CommandFollower) {
    assert!(follower.held.len() <= MAX_LINE + 1, "{}", follower.held.len());
    if let State::Identity { words, .. } = &follower.state {
        let held: usize = words.iter().map(|word| word.capacity()).sum();
        assert!(held <= 2 * MAX_IDENTITY, "{held}");
    }
}

/// The stream as words of commands, separated by two bytes, which are sent as arrays. So every result is known.
fn whole_arrays(input: Input<'_>) {
    let (mut stream, mut expected) = (Vec::new(), Followed { is_at_boundary: true, ..Followed::default() });
    for command in input.stream.split(|byte| *byte == b'\n') {
        let words: Vec<&[u8]> = command.split(|byte| *byte == b' ').collect();
        let array = array(&words);
        stream.extend_from_slice(&array);
        let name = words.first().copied().unwrap_or_default();
        if changes_identity(name) {
            let size: usize = words.iter().skip(1).map(|word| word.len() + super::ARGUMENT_OVERHEAD).sum();
            let words = (size <= MAX_IDENTITY).then(|| words.iter().map(|word| word.to_vec().into()).collect());
            expected.identities.push((expected.passed.len(), words));
        } else {
            expected.passed.extend(array);
        }
    }
    let input = input.with_stream(&stream);
    assert_eq!(followed(&input.chunks()), expected);
}

fn array(words: &[&[u8]]) -> Vec<u8> {
    let mut array = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        array.extend(format!("${}\r\n", word.len()).into_bytes());
        array.extend_from_slice(word);
        array.extend(b"\r\n");
    }
    array
}
