//! A line writer that never blocks its callers: a queue bounded in lines and bytes, a writer thread, and a count of dropped
//! lines.
//!
//! The thread gathers lines for a short time and writes them together. Writing each line at once would cost the worker a
//! wake-up and the machine two context switches.

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

/// The sending end of a writer thread. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Sink {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

/// The state that both ends of the queue share.
#[derive(Debug, Default)]
struct Shared {
    /// Bytes of the queued lines.
    waiting: AtomicUsize,
    /// Dropped lines that were not reported yet.
    dropped: AtomicU64,
    /// All dropped lines since the start.
    dropped_total: AtomicU64,
    /// Whether lines are discarded, so that callers need not build them.
    idle: AtomicBool,
    /// The next destination, once the queued lines are written. It is not in the queue, because a full queue must not block it.
    next: Mutex<Option<Destination>>,
}

/// Where lines go.
#[derive(Debug)]
pub(crate) struct Destination {
    output: Output,
    /// Whether an error cut the last line off, so that the next one needs a line feed before it.
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
    /// An open file.
    pub(crate) fn file(path: PathBuf, file: File) -> Self {
        let pipe = file.metadata().is_ok_and(|fields| fields.file_type().is_fifo());
        Self { output: Output::File { path, file, pipe }, torn: false }
    }

    pub(crate) fn nowhere() -> Self {
        Self { output: Output::Nowhere, torn: false }
    }

    pub(crate) fn standard_output() -> Self {
        // Not `io::Stdout`: its buffer hides how many bytes were written.
        match io::stdout().as_fd().try_clone_to_owned() {
            Ok(descriptor) => Self::file("standard output".into(), File::from(descriptor)),
            Err(_) => Self::nowhere(),
        }
    }

    /// Writes whole lines.
    ///
    /// # Errors
    /// The error, and the number of bytes written before it.
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
                // The reader is slow. The queue absorbs that.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && waited < MAX_PAUSES => {
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
        let (queue, messages) = sync_channel(MAX_QUEUED_LINES);
        let shared = Arc::new(Shared { idle: AtomicBool::new(destination.is_nowhere()), ..Shared::default() });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(format!("portcullis-{name}"));
        if let Err(error) = thread.spawn(move || write_lines(&messages, destination, &theirs)) {
            // Without the thread, every line counts as dropped. Traffic continues.
            report_failure(format_args!("cannot start the {name} writer: {error}; its lines are dropped"));
        }
        Self { queue, shared }
    }

    pub(crate) fn write(&self, line: Vec<u8>) {
        // A boxed slice has no spare capacity, so the byte count of the queue is the memory it uses.
        let line = line.into_boxed_slice();
        let length = line.len();
        let before = self.shared.waiting.fetch_add(length, Ordering::Relaxed);
        if before.saturating_add(length) > MAX_QUEUED_BYTES || self.queue.try_send(Message::Line(line)).is_err() {
            self.shared.waiting.fetch_sub(length, Ordering::Relaxed);
            self.shared.count_dropped(1);
        }
    }

    /// Whether lines are discarded.
    pub(crate) fn is_idle(&self) -> bool {
        self.shared.idle.load(Ordering::Relaxed)
    }

    /// How many lines were dropped since the start.
    pub(crate) fn dropped(&self) -> u64 {
        self.shared.dropped_total.load(Ordering::Relaxed)
    }

    pub(crate) fn switch(&self, destination: Destination) {
        self.shared.idle.store(destination.is_nowhere(), Ordering::Relaxed);
        *self.shared.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(destination);
        // Wakes the writer, so that it closes the old file even when no line comes.
        let (done, _) = channel();
        let _ = self.queue.try_send(Message::Flush(done));
    }

    pub(crate) fn flush(&self, limit: Duration) {
        let (done, waiting) = channel();
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            let _ = waiting.recv_timeout(limit);
        }
    }
}

impl Shared {
    fn count_dropped(&self, lines: u64) {
        self.dropped.fetch_add(lines, Ordering::Relaxed);
        self.dropped_total.fetch_add(lines, Ordering::Relaxed);
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

/// The receiving end of the queue.
struct Writer<'a> {
    destination: Destination,
    shared: &'a Shared,
    /// Lines that are written together.
    gathered: Vec<u8>,
    /// Whether the last write failed. A failure is reported once.
    failing: bool,
}

impl Writer<'_> {
    /// Writes until all senders are dropped.
    fn run(&mut self, messages: &Receiver<Message>) {
        while let Ok(first) = messages.recv() {
            if matches!(first, Message::Line(_)) {
                std::thread::sleep(GATHER_TIME);
            }
            self.take(first);
            while let Ok(next) = messages.try_recv() {
                self.take(next);
            }
            self.write_out();
        }
    }

    /// Drops the gathered lines and counts them.
    fn lose_gathered(&mut self) {
        self.shared.count_dropped(lines_in(&self.gathered));
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
                if self.gathered.len() >= MAX_GATHERED {
                    self.write_out();
                }
            }
        }
    }

    /// Writes the gathered lines, then switches to the next destination, if any.
    fn write_out(&mut self) {
        self.write_gathered();
        if let Some(next) = self.shared.next.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.destination = next;
            self.failing = false;
        }
    }

    /// Writes the gathered lines, preceded by the number of dropped ones.
    fn write_gathered(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let missing = self.shared.dropped.swap(0, Ordering::Relaxed);
        let before = if missing > 0 { lost_lines(missing) } else { String::new() };
        self.gathered.splice(..0, before.bytes());
        let result = self.destination.write(&self.gathered);
        if let Err((error, written)) = &result {
            let unreported = if *written >= before.len() { 0 } else { missing };
            let lines = self.gathered.get(before.len().max(*written)..).unwrap_or_default();
            // Counted before, and still to be reported.
            self.shared.dropped.fetch_add(unreported, Ordering::Relaxed);
            self.shared.count_dropped(lines_in(lines));
            if !self.failing {
                report_failure(format_args!(
                    "cannot write to {}: {error}; its lines are dropped",
                    self.destination.name()
                ));
            }
        }
        self.failing = result.is_err();
        self.gathered.clear();
        self.gathered.shrink_to(MAX_GATHERED);
    }
}

fn lines_in(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// The line in place of dropped lines.
fn lost_lines(count: u64) -> String {
    Event::new("events.dropped").with("count", count).json(None)
}

/// Reports on standard error that the writer cannot write.
fn report_failure(message: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "portcullis: {message}");
}

/// The name of this part in fault reports.
const PART: &str = "log writer";

/// Maximum number of queued lines.
const MAX_QUEUED_LINES: usize = 16_384;

/// Maximum size of the queued lines in bytes, which bounds the memory when the writer hangs. A line has about 300 to 700 bytes.
const MAX_QUEUED_BYTES: usize = 8 << 20;

/// How long lines are gathered. Long enough that many connections cost few writes, too short for an operator to notice.
const GATHER_TIME: Duration = Duration::from_millis(10);

/// The whole lines at the start of `lines` that a pipe writes atomically (PIPE_BUF, pipe(7)); at least one line.
fn whole_lines(lines: &[u8]) -> &[u8] {
    let most = lines.get(..PIPE_BUF).unwrap_or(lines);
    let end = most.iter().rposition(|byte| *byte == b'\n');
    let end = end.or_else(|| lines.iter().position(|byte| *byte == b'\n'));
    end.and_then(|end| lines.get(..=end)).unwrap_or(lines)
}

const PIPE_BUF: usize = 4096;

/// Maximum number of pauses in which a slow reader can catch up before lines are dropped.
const MAX_PAUSES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);

/// Maximum number of bytes written at once, plus one line.
const MAX_GATHERED: usize = 64 << 10;
