//! The log lines of Portcullis, read as they are written.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use serde_json::Value;

use super::WAIT_TIMEOUT;

/// One line of the log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event(pub(crate) Value);

impl Event {
    /// Whether this is the named event.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.0["event"] == name
    }

    /// Whether this is the last event of a connection from this source port.
    pub(crate) fn ends(&self, source_port: u16) -> bool {
        (self.is("connection.denied") || self.is("connection.closed")) && self.0["source_port"] == source_port
    }

    pub(crate) fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_else(|| panic!("no text {key} in {}", self.0))
    }

    pub(crate) fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_else(|| panic!("no number {key} in {}", self.0))
    }

    pub(crate) fn reason(&self) -> &str {
        self.text("reason")
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some()
    }
}

/// The lines so far, filled by a thread that reads the pipe.
#[derive(Debug, Clone)]
pub(crate) struct Log(Arc<(Mutex<Lines>, Condvar)>);

#[derive(Debug, Default)]
struct Lines {
    events: Vec<Event>,
    ended: bool,
}

impl Log {
    pub(crate) fn of(pipe: impl Read + Send + 'static) -> Self {
        let log = Self(Arc::default());
        let filled = log.clone();
        thread::spawn(move || filled.fill(pipe));
        log
    }

    fn fill(&self, pipe: impl Read) {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line);
            let event = serde_json::from_str(&text).unwrap_or(Value::String(text.into_owned()));
            self.lines().events.push(Event(event));
            self.0.1.notify_all();
        }
        self.lines().ended = true;
        self.0.1.notify_all();
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All lines so far.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.lines().events.clone()
    }

    /// All lines until the program closes the pipe.
    pub(crate) fn to_the_end(&self) -> Vec<Event> {
        self.wait("the end of the log", |lines| lines.ended.then(|| lines.events.clone()))
    }

    /// The first event after the first `seen` ones that matches.
    pub(crate) fn after(&self, seen: usize, what: &str, matches: impl Fn(&Event) -> bool) -> Event {
        self.wait(what, |lines| {
            let found = lines.events.iter().skip(seen).find(|event| matches(event)).cloned();
            assert!(found.is_some() || !lines.ended, "{what}: the program ended without it");
            found
        })
    }

    /// The first reload after the first `seen` lines. With `by_signal`, the one that SIGHUP requested.
    pub(crate) fn reload_after(&self, seen: usize, by_signal: bool) -> Event {
        self.wait("a reload", |lines| {
            let is_request = |event: &Event| event.0["message"] == "reload requested by SIGHUP";
            let mut after = lines.events.iter().skip(seen).skip_while(|event| by_signal && !is_request(event));
            let found = after.find(|event| event.is("reload.applied") || event.is("reload.rejected")).cloned();
            assert!(found.is_some() || !lines.ended, "the program ended without a reload");
            found
        })
    }

    fn wait<T>(&self, what: &str, look: impl Fn(&Lines) -> Option<T>) -> T {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        let mut lines = self.lines();
        loop {
            if let Some(found) = look(&lines) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what}: not in the log within {WAIT_TIMEOUT:?}");
            let waited = self.0.1.wait_timeout(lines, left);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
