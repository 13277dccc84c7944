//! Reads a password from standard input.

use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::read as read_some;
use zeroize::Zeroizing;

use crate::cli::Failure;
use crate::credential::password::MAX_LENGTH;
use crate::printable;

/// Reads a password: twice and without echo from a terminal, otherwise all of the input without a line break at its end.
pub(crate) fn read(user: &str) -> Result<Zeroizing<String>, Failure> {
    let input = io::stdin();
    if !input.is_terminal() {
        return text(read_input(input.as_fd(), |_| false).map_err(cannot_read)?);
    }
    let terminal = SilentTerminal::new(input.as_fd()).map_err(cannot_read)?;
    let password = terminal.ask(&format!("Password for {}: ", printable::quoted(user)))?;
    let again = terminal.ask("The same password again: ")?;
    drop(terminal);
    if password == again {
        Ok(password)
    } else {
        Err(Failure::Failed("the two passwords differ; try again".to_owned()))
    }
}

/// Reads up to the end of the input, or until `is_complete`. Not through the buffer of the standard library, which keeps a copy.
fn read_input(input: BorrowedFd<'_>, is_complete: impl Fn(&[u8]) -> bool) -> io::Result<Zeroizing<Vec<u8>>> {
    // Reserved in full: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_INPUT + CHUNK));
    let mut chunk = Zeroizing::new([0; CHUNK]);
    while bytes.len() <= MAX_INPUT && !is_complete(&bytes) {
        let count = match read_some(input, &mut *chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
    }
    Ok(bytes)
}

/// The input without its line break. One that is too long is rejected later, like a password that is.
fn text(bytes: Zeroizing<Vec<u8>>) -> Result<Zeroizing<String>, Failure> {
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let text = std::str::from_utf8(line).map_err(|_| Failure::Failed("the password is not UTF-8".to_owned()))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// A terminal without echo. Signals that would end the program wait until the echo is on again, because a shell may not restore
/// it.
struct SilentTerminal<'t> {
    input: BorrowedFd<'t>,
    before: Termios,
    mask: SigSet,
    signals: SignalFd,
}

impl<'t> SilentTerminal<'t> {
    fn new(input: BorrowedFd<'t>) -> io::Result<Self> {
        let before = tcgetattr(input)?;
        let mut ending = SigSet::empty();
        ENDING.into_iter().for_each(|signal| ending.add(signal));
        let signals = SignalFd::with_flags(&ending, SfdFlags::SFD_CLOEXEC)?;
        let mask = SigSet::thread_get_mask()?;
        ending.thread_block()?;
        // From here on, dropping it restores everything.
        let terminal = Self { input, before, mask, signals };
        let mut silent = terminal.before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        silent.local_flags.insert(LocalFlags::ECHONL);
        tcsetattr(input, SetArg::TCSAFLUSH, &silent)?;
        Ok(terminal)
    }

    fn ask(&self, question: &str) -> Result<Zeroizing<String>, Failure> {
        let mut out = io::stderr().lock();
        let _ = write!(out, "{question}").and_then(|()| out.flush());
        self.wait().map_err(cannot_read)?;
        let line = read_input(self.input, |bytes| bytes.ends_with(b"\n")).map_err(cannot_read)?;
        text(line)
    }

    /// Waits for a line. Dropping the terminal after an error delivers the signal.
    fn wait(&self) -> io::Result<()> {
        let mut events =
            [PollFd::new(self.input, PollFlags::POLLIN), PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        while let Err(errno) = poll(&mut events, PollTimeout::NONE) {
            if errno != Errno::EINTR {
                return Err(errno.into());
            }
        }
        let [_, signal] = events;
        if signal.any() == Some(true) { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

impl Drop for SilentTerminal<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.input, SetArg::TCSAFLUSH, &self.before);
        let _ = self.mask.thread_set_mask();
    }
}

fn cannot_read(error: io::Error) -> Failure {
    Failure::Failed(format!("cannot read the password from standard input: {error}"))
}

/// A password with a line break.
const MAX_INPUT: usize = MAX_LENGTH + 2;

/// A line that is longer arrives in parts.
const CHUNK: usize = 1024;

const ENDING: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
