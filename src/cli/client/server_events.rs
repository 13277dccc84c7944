//! Parses server-sent events (WHATWG HTML, "Server-sent events").

use std::mem;

/// An event with its name, and the lines of its data joined by line feeds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerEvent {
    pub(crate) name: String,
    pub(crate) data: String,
}

/// Collects events from pieces of a body.
#[derive(Debug, Default)]
pub(crate) struct EventParser {
    /// The beginning of a line.
    line: Vec<u8>,
    event: ServerEvent,
}

/// An event is larger than [`MAX_EVENT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event has more than {} KiB", MAX_EVENT >> 10)]
pub(crate) struct EventTooLarge;

impl EventParser {
    /// The events that end in this piece.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<Vec<ServerEvent>, EventTooLarge> {
        let mut events = Vec::new();
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let size = self.line.len() + self.event.data.len() + part.len();
            if size > MAX_EVENT {
                return Err(EventTooLarge);
            }
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = mem::take(&mut self.line);
                let line = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
                events.extend(self.end_line(&line));
            }
        }
        Ok(events)
    }

    /// Returns the event that an empty line ends. An event without data is ignored, as is a comment.
    fn end_line(&mut self, line: &str) -> Option<ServerEvent> {
        if line.is_empty() {
            return Some(mem::take(&mut self.event)).filter(|event| !event.data.is_empty());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            _ => {}
        }
        None
    }
}

/// Bytes; far above the largest audit event.
const MAX_EVENT: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str =
        ": keep-alive\n\nevent: lost\ndata: {\"lost\":3}\n\nevent: a\r\ndata: {}\r\n\r\ndata:x\ndata: y\nid: 1\n\n";

    fn events() -> Vec<ServerEvent> {
        let event = |name: &str, data: &str| ServerEvent { name: name.to_owned(), data: data.to_owned() };
        vec![event("lost", "{\"lost\":3}"), event("a", "{}"), event("", "x\ny")]
    }

    proptest! {
        #[test]
        fn events_are_the_same_for_every_division_into_pieces(cuts in proptest::collection::vec(0..STREAM.len(), 0..9)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let mut parser = EventParser::default();
            let pieces = cuts.windows(2).map(|ends| &STREAM.as_bytes()[ends[0]..ends[1]]);
            let parsed: Vec<_> = pieces.flat_map(|piece| parser.push(piece).unwrap()).collect();
            prop_assert_eq!(parsed, events());
        }
    }

    #[test]
    fn endless_event_is_rejected() {
        let mut parser = EventParser::default();
        let piece = vec![b'x'; MAX_EVENT];
        assert_eq!(parser.push(&piece), Ok(Vec::new()));
        assert_eq!(parser.push(b"x"), Err(EventTooLarge));
        let mut parser = EventParser::default();
        let line = format!("data: {}\n", "x".repeat(1000));
        assert!((0..2000).any(|_| parser.push(line.as_bytes()).is_err()));
    }
}
