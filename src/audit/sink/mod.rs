//! A line writer that never makes anybody wait: a queue that is bounded in lines and in bytes, a thread behind it, and a count of
//! what did not fit.
//!
//! The thread lets lines gather for a moment and writes them together. Written one by one, each would cost the worker that
//! said it a wake-up and the machine two changes of thread.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::audit::event::Event;
use crate::fault;
use crate::fault::Backoff;

/// The near end of a writer thread. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Sink {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

/// What both ends of the queue see.
#[derive(Debug, Default)]
struct Shared {
    /// Bytes of the lines that wait.
    waiting: AtomicUsize,
    /// Lines that were lost and not yet told of.
    dropped: AtomicU64,
    /// Whether lines would go nowhere, so that nobody need make them.
    idle: AtomicBool,
    /// Where to write once what waits is written. Beside the queue, because a full queue must not keep it out.
    next: Mutex<Option<Destination>>,
}

/// Where lines go.
#[derive(Debug)]
pub(crate) struct Destination {
    output: Output,
    /// Whether the last line was cut off by an error, so that the next must not be glued to it.
    torn: bool,
}

#[derive(Debug)]
enum Output {
    File { path: PathBuf, file: File, pipe: bool },
    Nowhere,
}

enum Message {
    Flush(Sender<()>),
    Line(Box<[u8]>),
}

impl Destination {
    /// A file that is open already.
    pub(crate) fn file(path: PathBuf, file: File) -> Self {
        let pipe = file.metadata().is_ok_and(|fields| fields.file_type().is_fifo());
        Self { output: Output::File { path, file, pipe }, torn: false }
    }

    pub(crate) fn nowhere() -> Self {
        Self { output: Output::Nowhere, torn: false }
    }

    pub(crate) fn standard_output() -> Self {
        // Without the buffer of the standard library, which would not tell how much it has written.
        match io::stdout().as_fd().try_clone_to_owned() {
            Ok(descriptor) => Self::file("standard output".into(), File::from(descriptor)),
            Err(_) => Self::nowhere(),
        }
    }

    /// Writes whole lines.
    ///
    /// # Errors
    /// The error, and how many bytes had been written before it.
    fn write(&mut self, lines: &[u8]) -> Result<(), (io::Error, usize)> {
        if self.torn {
            self.write_all(b"\n").map_err(|(error, _)| (error, 0))?;
            self.torn = false;
        }
        self.write_all(lines).inspect_err(|(_, written)| {
            self.torn = lines.get(..*written).and_then(<[u8]>::last).is_some_and(|byte| *byte != b'\n');
        })
    }

    fn write_all(&mut self, lines: &[u8]) -> Result<(), (io::Error, usize)> {
        let Output::File { file, pipe, .. } = &mut self.output else { return Ok(()) };
        let (mut written, mut waited) = (0, 0);
        while let Some(rest) = lines.get(written..).filter(|rest| !rest.is_empty()) {
            let piece = if *pipe { whole_lines(rest) } else { rest };
            match file.write(piece) {
                Ok(0) => return Err((io::ErrorKind::WriteZero.into(), written)),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Its reader is behind. The queue is there for that.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && waited < MOST_PAUSES => {
                    waited += 1;
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err((error, written)),
            }
        }
        Ok(())
    }

    fn is_nowhere(&self) -> bool {
        matches!(self.output, Output::Nowhere)
    }

    fn name(&self) -> String {
        match &self.output {
            Output::File { path, .. } => path.display().to_string(),
            Output::Nowhere => String::new(),
        }
    }
}

impl Sink {
    pub(crate) fn start(name: &'static str, destination: Destination) -> Self {
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

    pub(crate) fn write(&self, line: Vec<u8>) {
        // Without spare capacity, so that the queue's bytes are the memory that it uses.
        let line = line.into_boxed_slice();
        let length = line.len();
        let before = self.shared.waiting.fetch_add(length, Ordering::Relaxed);
        if before.saturating_add(length) > QUEUE_BYTES || self.queue.try_send(Message::Line(line)).is_err() {
            self.shared.waiting.fetch_sub(length, Ordering::Relaxed);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether lines would go nowhere.
    pub(crate) fn is_idle(&self) -> bool {
        self.shared.idle.load(Ordering::Relaxed)
    }

    pub(crate) fn switch(&self, destination: Destination) {
        self.shared.idle.store(destination.is_nowhere(), Ordering::Relaxed);
        *self.shared.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(destination);
        // A nudge, so that the old file is let go of even when no line comes.
        let (done, _) = channel();
        let _ = self.queue.try_send(Message::Flush(done));
    }

    pub(crate) fn flush(&self, patience: Duration) {
        let (done, waiting) = channel();
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            let _ = waiting.recv_timeout(patience);
        }
    }
}

fn write_lines(messages: &Receiver<Message>, destination: Destination, shared: &Shared) {
    let mut writer = Writer { destination, shared, gathered: Vec::new(), failing: false };
    let mut backoff = Backoff::default();
    while fault::contain(PART, || writer.run(messages)).is_err() {
        writer.lose_gathered();
        std::thread::sleep(backoff.pause());
    }
}

/// The far end of the queue.
struct Writer<'a> {
    destination: Destination,
    shared: &'a Shared,
    /// Lines to be written together.
    gathered: Vec<u8>,
    /// Whether the last write failed, which is complained of once.
    failing: bool,
}

impl Writer<'_> {
    /// Writes until nobody can say anything any more.
    fn run(&mut self, messages: &Receiver<Message>) {
        while let Ok(first) = messages.recv() {
            if matches!(first, Message::Line(_)) {
                std::thread::sleep(GATHERING);
            }
            self.take(first);
            while let Ok(next) = messages.try_recv() {
                self.take(next);
            }
            self.write_out();
        }
    }

    /// Gives up what has gathered, and counts it.
    fn lose_gathered(&mut self) {
        self.shared.dropped.fetch_add(lines_in(&self.gathered), Ordering::Relaxed);
        self.gathered.clear();
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Flush(done) => {
                self.write_out();
                let _ = done.send(());
            }
            Message::Line(line) => {
                self.shared.waiting.fetch_sub(line.len(), Ordering::Relaxed);
                self.gathered.extend_from_slice(&line);
                if self.gathered.len() >= MOST_GATHERED {
                    self.write_out();
                }
            }
        }
    }

    /// Writes what has gathered, and moves on to the next destination where there is one.
    fn write_out(&mut self) {
        self.write_gathered();
        if let Some(next) = self.shared.next.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.destination = next;
            self.failing = false;
        }
    }

    /// Writes what has gathered, and before it how many lines are missing.
    fn write_gathered(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let missing = self.shared.dropped.swap(0, Ordering::Relaxed);
        let before = if missing > 0 { lost_lines(missing) } else { String::new() };
        self.gathered.splice(..0, before.bytes());
        let result = self.destination.write(&self.gathered);
        if let Err((error, written)) = &result {
            let told = if *written >= before.len() { 0 } else { missing };
            let lines = self.gathered.get(before.len().max(*written)..).unwrap_or_default();
            self.shared.dropped.fetch_add(told + lines_in(lines), Ordering::Relaxed);
            if !self.failing {
                complain(format_args!("{} cannot be written: {error}; lines are dropped", self.destination.name()));
            }
        }
        self.failing = result.is_err();
        self.gathered.clear();
        self.gathered.shrink_to(MOST_GATHERED);
    }
}

fn lines_in(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// The line that stands where lines are missing.
fn lost_lines(count: u64) -> String {
    Event::new("events.dropped").with("count", count).json(None)
}

/// The last resort of a writer that cannot write.
fn complain(words: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "portcullis: {words}");
}

/// What the faults of writers are noted under.
const PART: &str = "log writer";

/// Lines that may wait.
const QUEUE_LENGTH: usize = 16_384;

/// Bytes that may wait, which bounds the memory of a writer that hangs. A line has about 300 to 700 bytes.
const QUEUE_BYTES: usize = 8 << 20;

/// How late a line may be written. Long enough for a storm of connections to cost few writes, shorter than anybody waits.
const GATHERING: Duration = Duration::from_millis(10);

/// As much of `lines` as a pipe takes whole or not at all (PIPE_BUF, pipe(7)), by whole lines; at least one.
fn whole_lines(lines: &[u8]) -> &[u8] {
    let most = lines.get(..ATOMIC).unwrap_or(lines);
    let end = most.iter().rposition(|byte| *byte == b'\n');
    let end = end.or_else(|| lines.iter().position(|byte| *byte == b'\n'));
    end.and_then(|end| lines.get(..=end)).unwrap_or(lines)
}

const ATOMIC: usize = 4096;

/// A reader may be behind by as long as this, all pauses together, before lines are dropped.
const MOST_PAUSES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);

/// What is written at a time, give or take a line.
const MOST_GATHERED: usize = 64 << 10;
