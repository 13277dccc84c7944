//! Finds the message boundaries in the stream from a PostgreSQL server.
//!
//! A farewell message may be sent only between two messages: in the middle of one, the client would take it for a part of
//! that message. The tracker therefore reads each header and skips each body. After the StartupMessage, the whole stream of a
//! server consists of messages: type byte, Int32 length (including itself, big endian), body. Source: PostgreSQL
//! documentation, "Message Formats".

/// Tracks whether the stream from a server is at a message boundary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameTracker(FramePosition);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum FramePosition {
    /// The last message is complete, and the next one has not begun.
    #[default]
    Between,
    /// In a header. `seen` bytes of it have arrived; `length` holds those of the length field.
    Header { seen: u8, length: u32 },
    /// In a message body with `rest` bytes still to come.
    Body { rest: u32 },
    /// The stream is not PostgreSQL and has no boundaries.
    Lost,
}

impl FrameTracker {
    /// Whether the last message is complete and the next one has not begun.
    pub fn is_at_boundary(self) -> bool {
        self.0 == FramePosition::Between
    }

    /// Tracks the next chunk of the stream. Chunks may end anywhere.
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
            // The chunk is used up, or the stream has no boundaries.
            position @ (FramePosition::Header { .. } | FramePosition::Lost) => position,
        };
    }
}

impl FramePosition {
    /// The position after `bytes`, which start at a message boundary.
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

    /// The position in a message with `rest` bytes to come, after the bytes `come`, which are fewer.
    fn in_message(rest: u32, come: &[u8]) -> Self {
        Self::Body { rest: rest.saturating_sub(u32::try_from(come.len()).unwrap_or(u32::MAX)) }
    }

    /// The position after one more byte at a boundary or in a header.
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

/// Skips further messages of the expected length. Reading each length makes the next load depend on it, so the processor
/// waits. Comparing with an expected length lets it predict the branch and load ahead.
fn skip_repeated(expected: [u8; 4], size: usize, mut bytes: &[u8]) -> &[u8] {
    while let Some(&[_, length @ ..]) = bytes.first_chunk::<HEADER>()
        && length == expected
        && let Some(next) = bytes.get(size..)
    {
        bytes = next;
    }
    bytes
}

/// The size of a message in bytes, with its header. The length field includes itself but not the type byte, and is signed.
fn size(length: [u8; 4]) -> Option<u32> {
    let length = i32::from_be_bytes(length);
    if length < 4 { None } else { Some(length.unsigned_abs() + 1) }
}

/// Size in bytes of the type and the length.
const HEADER: usize = 5;

/// Size in bytes of a message without a body.
const MIN_MESSAGE: u32 = 5;

/// Number of messages of one length in a row after which more are expected. The rows of a result often have one length.
/// Where they do not, a lower number costs more than it saves.
const REPEATS_BEFORE_SKIP: u32 = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A simple model of the tracker, for a whole stream at once.
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

    /// Tracks a stream in chunks of these lengths, repeated, and compares with the model after each chunk.
    fn assert_followed(stream: &[u8], cuts: &[usize]) -> Result<(), TestCaseError> {
        let mut tracker = FrameTracker::default();
        let mut position = 0;
        for cut in cuts.iter().cycle() {
            let end = stream.len().min(position + cut);
            tracker.follow(&stream[position..end]);
            position = end;
            prop_assert_eq!(
                tracker.is_at_boundary(),
                ends_at_a_boundary(&stream[..position]),
                "behind {} bytes",
                position
            );
            if position == stream.len() {
                break;
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn boundaries_are_found_in_any_chunks(
            // Runs of messages of one length.
            bodies in prop::collection::vec((prop_oneof![2 => 0_usize..4, 1 => 0_usize..300], 1_usize..30), 0..10),
            cuts in prop::collection::vec(prop_oneof![2 => 1_usize..8, 1 => 1_usize..2000], 1..20),
        ) {
            let stream: Vec<u8> = bodies.iter().flat_map(|(length, times)| message(&vec![7; *length]).repeat(*times)).collect();
            assert_followed(&stream, &cuts)?;
        }

        #[test]
        fn any_bytes_are_tracked_like_the_model(
            bytes in prop::collection::vec(prop_oneof![6 => Just(0_u8), 3 => 0_u8..20, 1 => any::<u8>()], 0..400),
            cuts in prop::collection::vec(1_usize..30, 1..20),
        ) {
            assert_followed(&bytes, &cuts)?;
        }
    }

    #[test]
    fn stream_that_is_not_postgresql_never_reaches_a_boundary() {
        for length in [0, 1, 3, 0x8000_0000, u32::MAX] {
            let header = [b"Z", &u32::to_be_bytes(length)[..]].concat();
            for cut in 0..=header.len() {
                let mut tracker = FrameTracker::default();
                tracker.follow(&header[..cut]);
                tracker.follow(&header[cut..]);
                for _ in 0..100 {
                    tracker.follow(&message(b"I"));
                    assert!(!tracker.is_at_boundary(), "length {length}, cut behind {cut} bytes");
                }
            }
        }
    }

    #[test]
    fn longest_message_is_skipped_in_chunks() {
        let chunk = vec![0; 1 << 20];
        let mut tracker = FrameTracker::default();
        tracker.follow(b"d\x7f\xff\xff\xff");
        let mut rest = usize::try_from(i32::MAX).unwrap() - 4;
        while rest > chunk.len() {
            tracker.follow(&chunk);
            assert!(!tracker.is_at_boundary());
            rest -= chunk.len();
        }
        tracker.follow(&chunk[..rest]);
        assert!(tracker.is_at_boundary());
    }

    #[test]
    fn tracker_takes_at_most_16_bytes() {
        assert!(size_of::<Option<FrameTracker>>() <= 16);
    }
}
