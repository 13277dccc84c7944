//! A line writer that never makes anybody wait: a bounded queue, a thread behind it, and a count of what did not fit.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::event::Event;

/// The near end of a writer thread. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

/// What both ends of the queue see.
#[derive(Debug, Default)]
struct Shared {
    /// Lines that were lost and not yet told of.
    dropped: AtomicU64,
    /// Whether lines would go nowhere, so that nobody need make them.
    idle: AtomicBool,
    /// Where to write from the next line on. Beside the queue, because a full queue must not keep it out.
    next: Mutex<Option<Destination>>,
}

/// Where lines go.
#[derive(Debug)]
pub struct Destination {
    output: Output,
    /// Whether the last line was cut off by an error, so that the next must not be glued to it.
    torn: bool,
}

#[derive(Debug)]
enum Output {
    File { path: PathBuf, file: File },
    Nowhere,
    Stdout,
}

enum Message {
    Flush(Sender<()>),
    Line(Vec<u8>),
}

impl Destination {
    /// A file that is open already.
    pub fn file(path: PathBuf, file: File) -> Self {
        Self::new(Output::File { path, file })
    }

    pub(super) fn nowhere() -> Self {
        Self::new(Output::Nowhere)
    }

    pub(super) fn standard_output() -> Self {
        Self::new(Output::Stdout)
    }

    fn new(output: Output) -> Self {
        Self { output, torn: false }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let before: &[u8] = if self.torn { b"\n" } else { b"" };
        let result = match &mut self.output {
            Output::File { file, .. } => file.write_all(before).and_then(|()| file.write_all(line)),
            Output::Nowhere => Ok(()),
            Output::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(before).and_then(|()| out.write_all(line)).and_then(|()| out.flush())
            }
        };
        self.torn = result.is_err();
        result
    }

    fn is_nowhere(&self) -> bool {
        matches!(self.output, Output::Nowhere)
    }

    fn name(&self) -> String {
        match &self.output {
            Output::File { path, .. } => path.display().to_string(),
            Output::Nowhere => String::new(),
            Output::Stdout => "standard output".to_owned(),
        }
    }
}

impl Sink {
    pub(super) fn start(name: &'static str, destination: Destination) -> Self {
        let (queue, messages) = sync_channel(QUEUE_LENGTH);
        let shared = Arc::new(Shared { idle: AtomicBool::new(destination.is_nowhere()), ..Shared::default() });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(format!("portcullis-{name}"));
        if let Err(error) = thread.spawn(move || write_lines(&messages, destination, &theirs)) {
            // Without the thread every line counts as dropped; traffic goes on.
            complain(format_args!("the {name} writer cannot be started: {error}"));
        }
        Self { queue, shared }
    }

    pub(super) fn write(&self, line: Vec<u8>) {
        match self.queue.try_send(Message::Line(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether lines would go nowhere.
    pub(super) fn is_idle(&self) -> bool {
        self.shared.idle.load(Ordering::Relaxed)
    }

    pub(super) fn switch(&self, destination: Destination) {
        self.shared.idle.store(destination.is_nowhere(), Ordering::Relaxed);
        *self.shared.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(destination);
        // A nudge, so that the old file is let go of even when no line comes.
        let (done, _) = channel();
        let _ = self.queue.try_send(Message::Flush(done));
    }

    pub(super) fn flush(&self, patience: Duration) {
        let (done, waiting) = channel();
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            let _ = waiting.recv_timeout(patience);
        }
    }
}

fn write_lines(messages: &Receiver<Message>, mut destination: Destination, shared: &Shared) {
    let mut failing = false;
    for message in messages {
        if let Some(next) = shared.next.lock().unwrap_or_else(PoisonError::into_inner).take() {
            destination = next;
            failing = false;
        }
        match message {
            Message::Flush(done) => {
                let _ = done.send(());
            }
            Message::Line(line) => {
                let result = write_line(&mut destination, &line, shared);
                if let (Err(error), false) = (&result, failing) {
                    complain(format_args!("{} cannot be written: {error}; lines are dropped", destination.name()));
                }
                failing = result.is_err();
            }
        }
    }
}

/// Writes a line, and before it how many are missing.
fn write_line(destination: &mut Destination, line: &[u8], shared: &Shared) -> io::Result<()> {
    let missing = shared.dropped.swap(0, Ordering::Relaxed);
    let before = if missing > 0 { destination.write(lost_lines(missing).as_bytes()) } else { Ok(()) };
    let result = match before {
        Ok(()) => destination.write(line),
        Err(error) => {
            shared.dropped.fetch_add(missing, Ordering::Relaxed);
            Err(error)
        }
    };
    if result.is_err() {
        shared.dropped.fetch_add(1, Ordering::Relaxed);
    }
    result
}

/// The line that stands where lines are missing.
fn lost_lines(count: u64) -> String {
    Event::new("events.dropped").with("count", count).json(None)
}

/// The last resort of a writer that cannot write.
fn complain(words: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "portcullis: {words}");
}

/// Lines that may wait. At some 300 bytes each this bounds the memory of a hanging writer to about 5 MiB.
const QUEUE_LENGTH: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &std::path::Path) -> Vec<String> {
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    fn destination(path: &std::path::Path) -> Destination {
        Destination::file(path.to_owned(), File::options().append(true).create(true).open(path).unwrap())
    }

    #[test]
    fn lines_go_to_the_new_file_from_the_switch_on() {
        let directory = tempfile::tempdir().unwrap();
        let (old, new) = (directory.path().join("old"), directory.path().join("new"));
        let sink = Sink::start("test", destination(&old));
        assert!(!sink.is_idle());
        sink.write(b"one\n".to_vec());
        sink.flush(Duration::from_secs(10));
        sink.switch(destination(&new));
        sink.write(b"two\n".to_vec());
        sink.flush(Duration::from_secs(10));
        assert_eq!((lines(&old), lines(&new)), (vec!["one".to_owned()], vec!["two".to_owned()]));
        sink.switch(Destination::nowhere());
        assert!(sink.is_idle());
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_told_when_writing_works_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let sink = Sink::start("test", Destination::file("/dev/full".into(), full));
        for _ in 0..3 {
            sink.write(b"lost\n".to_vec());
        }
        sink.flush(Duration::from_secs(10));
        sink.switch(destination(&path));
        sink.write(b"found\n".to_vec());
        sink.flush(Duration::from_secs(10));
        let lines = lines(&path);
        assert!(lines[0].contains("\"event\":\"events.dropped\",\"count\":3"), "{lines:?}");
        assert_eq!(lines[1..], ["found"]);
    }

    #[test]
    fn a_line_behind_a_torn_one_begins_a_line_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        std::fs::write(&path, "{\"half").unwrap();
        let mut destination = destination(&path);
        destination.torn = true;
        destination.write(b"whole\n").unwrap();
        destination.write(b"next\n").unwrap();
        assert_eq!(lines(&path), ["{\"half", "whole", "next"]);
    }
}
