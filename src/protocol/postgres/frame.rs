//! Where the messages of a PostgreSQL server end.
//!
//! A session that has to end may be told so between two messages and nowhere else: a client takes words in the middle of
//! one for a part of it. So what a server says is followed from header to header, without looking at anything else.
//! Everything it says after the StartupMessage is made of such messages: type byte, Int32 length (counting itself, big
//! endian), body. Source: PostgreSQL documentation, "Message Formats".

/// A position in the stream from a server: between two messages, or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameTracker(FramePosition);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum FramePosition {
    /// The last message is whole, and the next one has not begun.
    #[default]
    Between,
    /// In a header of which `seen` bytes have come, and of the length's bytes these.
    Header { seen: u8, length: u32 },
    /// In a message of which so many bytes are still to come.
    Body { rest: u32 },
    /// This is not PostgreSQL, and has no boundaries.
    Lost,
}

impl FrameTracker {
    /// Whether the last message is whole and the next one has not begun.
    pub fn is_at_boundary(self) -> bool {
        self.0 == FramePosition::Between
    }

    /// Goes on over the next bytes of the stream, wherever they were cut.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        while let (FramePosition::Header { .. }, Some((&byte, rest))) = (self.0, bytes.split_first()) {
            self.0 = self.0.after_header_byte(byte);
            bytes = rest;
        }
        self.0 = match self.0 {
            FramePosition::Between => FramePosition::after_messages(bytes),
            FramePosition::Body { rest } => match bytes.get(rest as usize..) {
                Some(next) => FramePosition::after_messages(next),
                None => FramePosition::in_message(rest, bytes),
            },
            // Nothing is left, or nothing is to be found.
            position @ (FramePosition::Header { .. } | FramePosition::Lost) => position,
        };
    }
}

impl FramePosition {
    /// Where bytes lead that begin between two messages.
    fn after_messages(mut bytes: &[u8]) -> Self {
        let (mut last, mut repeats) = ([0; 4], 0);
        while let Some(&[_, length @ ..]) = bytes.first_chunk::<HEADER>() {
            let Some(size) = size(length) else { return Self::Lost };
            let Some(next) = bytes.get(size as usize..) else { return Self::in_message(size, bytes) };
            bytes = next;
            repeats = if length == last { repeats + 1 } else { 0 };
            last = length;
            if repeats == REPEATS_BEFORE_SKIP {
                bytes = skip_repeated(length, size as usize, bytes);
                repeats = 0;
            }
        }
        bytes.iter().fold(Self::Between, |position, &byte| position.after_header_byte(byte))
    }

    /// In a message of which there were so many bytes to come, more than these.
    fn in_message(rest: u32, come: &[u8]) -> Self {
        Self::Body { rest: rest.saturating_sub(u32::try_from(come.len()).unwrap_or(u32::MAX)) }
    }

    /// One byte further, between two messages or in a header.
    fn after_header_byte(self, byte: u8) -> Self {
        match self {
            Self::Between => Self::Header { seen: 1, length: 0 },
            Self::Header { seen, length } => {
                let (seen, length) = (seen + 1, length << 8 | u32::from(byte));
                if usize::from(seen) < HEADER {
                    return Self::Header { seen, length };
                }
                match size(length.to_be_bytes()) {
                    None => Self::Lost,
                    Some(MIN_MESSAGE) => Self::Between,
                    Some(size) => Self::Body { rest: size - MIN_MESSAGE },
                }
            }
            Self::Body { .. } | Self::Lost => self,
        }
    }
}

/// Skips messages that have this length, too. Where the next one begins has to be read from each of them in turn, and the
/// processor waits for it; but what is only compared with what is expected it does not wait for.
fn skip_repeated(expected: [u8; 4], size: usize, mut bytes: &[u8]) -> &[u8] {
    while let Some(&[_, length @ ..]) = bytes.first_chunk::<HEADER>()
        && length == expected
        && let Some(next) = bytes.get(size..)
    {
        bytes = next;
    }
    bytes
}

/// How large a message is, header included. The length counts itself, but not the type, and it has a sign.
fn size(length: [u8; 4]) -> Option<u32> {
    let length = i32::from_be_bytes(length);
    if length < 4 { None } else { Some(length.unsigned_abs() + 1) }
}

/// Type and length.
const HEADER: usize = 5;

/// A message that is nothing but its header.
const MIN_MESSAGE: u32 = 5;

/// Messages of the same length in a row, after which more of them are expected. Rows of a result often are repeats; where they
/// are not, expecting them too soon costs more than it saves.
const REPEATS_BEFORE_SKIP: u32 = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same question put to a whole stream at once.
    fn ends_at_a_boundary(stream: &[u8]) -> bool {
        let mut rest = stream.iter().copied();
        while rest.next().is_some() {
            let header: Vec<u8> = rest.by_ref().take(4).collect();
            let Ok(header) = <[u8; 4]>::try_from(header) else { return false };
            let length = i32::from_be_bytes(header);
            if length < 4 || (4..length).any(|_| rest.next().is_none()) {
                return false;
            }
        }
        true
    }

    fn message(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [b"D", &length.to_be_bytes()[..], body].concat()
    }

    /// Follows a stream in pieces of these lengths, over and over, and compares every position between two of them.
    fn assert_followed(stream: &[u8], cuts: &[usize]) -> Result<(), TestCaseError> {
        let mut boundary = FrameTracker::default();
        let mut position = 0;
        for cut in cuts.iter().cycle() {
            let end = stream.len().min(position + cut);
            boundary.follow(&stream[position..end]);
            position = end;
            prop_assert_eq!(boundary.is_at_boundary(), ends_at_a_boundary(&stream[..position]), "behind {} bytes", position);
            if position == stream.len() {
                break;
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn messages_may_be_cut_anywhere(
            // So many messages of one length, so many of another.
            bodies in prop::collection::vec((prop_oneof![2 => 0_usize..4, 1 => 0_usize..300], 1_usize..30), 0..10),
            cuts in prop::collection::vec(prop_oneof![2 => 1_usize..8, 1 => 1_usize..2000], 1..20),
        ) {
            let stream: Vec<u8> = bodies.iter().flat_map(|(length, times)| message(&vec![7; *length]).repeat(*times)).collect();
            assert_followed(&stream, &cuts)?;
        }

        #[test]
        fn any_bytes_are_followed_as_far_as_they_are_messages(
            bytes in prop::collection::vec(prop_oneof![6 => Just(0_u8), 3 => 0_u8..20, 1 => any::<u8>()], 0..400),
            cuts in prop::collection::vec(1_usize..30, 1..20),
        ) {
            assert_followed(&bytes, &cuts)?;
        }
    }

    #[test]
    fn what_is_not_postgresql_has_no_boundary_ever_after() {
        for length in [0, 1, 3, 0x8000_0000, u32::MAX] {
            let header = [b"Z", &u32::to_be_bytes(length)[..]].concat();
            for cut in 0..=header.len() {
                let mut boundary = FrameTracker::default();
                boundary.follow(&header[..cut]);
                boundary.follow(&header[cut..]);
                for _ in 0..100 {
                    boundary.follow(&message(b"I"));
                    assert!(!boundary.is_at_boundary(), "length {length}, cut behind {cut} bytes");
                }
            }
        }
    }

    #[test]
    fn the_longest_message_is_skipped_chunk_by_chunk() {
        let chunk = vec![0; 1 << 20];
        let mut boundary = FrameTracker::default();
        boundary.follow(b"d\x7f\xff\xff\xff");
        let mut rest = usize::try_from(i32::MAX).unwrap() - 4;
        while rest > chunk.len() {
            boundary.follow(&chunk);
            assert!(!boundary.is_at_boundary());
            rest -= chunk.len();
        }
        boundary.follow(&chunk[..rest]);
        assert!(boundary.is_at_boundary());
    }

    #[test]
    fn an_idle_session_has_room_for_it() {
        assert!(size_of::<Option<FrameTracker>>() <= 16);
    }
}
