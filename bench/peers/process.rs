//! Finds other programs, pins them to a core, and terminates them with their children at the end of the run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::account::Tree;
use crate::fault::{Context, Result};

/// The path of a program. PostgreSQL's own programs come before Debian's wrappers of the same name.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let mut postgres: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    postgres.sort();
    postgres.reverse();
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let directories = postgres.into_iter().chain(env::split_paths(&path)).chain(system);
    directories.map(|directory| directory.join(name)).find(|candidate| candidate.is_file())
}

/// The path of a required program.
pub(crate) fn need(name: &str) -> Result<PathBuf> {
    find(name).ok_or_else(|| format!("{name} is not installed: run scripts/install-bench-peers").into())
}

/// How a program is started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placement {
    pub(crate) core: usize,
    /// Runs as the user postgres if root starts it, for programs that refuse to run as root.
    pub(crate) as_postgres: bool,
    /// Uses the scheduler's idle class.
    pub(crate) idle: bool,
}

impl Placement {
    pub(crate) fn on(core: usize) -> Self {
        Self { core, as_postgres: false, idle: false }
    }

    /// A command that is killed when the benchmark ends, even if that is killed. Each wrapper replaces itself by the next, so
    /// the started process is the program.
    pub(crate) fn command(self, program: &Path) -> Command {
        let mut command = Command::new("taskset");
        command.args(["-c", &self.core.to_string()]);
        if self.idle {
            command.args(["chrt", "--idle", "0"]);
        }
        command.arg("setpriv");
        if self.as_postgres && nix::unistd::geteuid().is_root() {
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        }
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    }
}

/// A running program, terminated when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
    /// The signal that ends it with its children.
    stop_signal: Signal,
}

impl Running {
    /// Starts a program in a separate process group. Its output goes to a file.
    pub(crate) fn start(mut command: Command, log: &Path) -> Result<Self> {
        let file = File::create(log).context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, log: log.to_owned(), stop_signal: Signal::SIGTERM })
    }

    pub(crate) fn stop_signal(mut self, signal: Signal) -> Self {
        self.stop_signal = signal;
        self
    }

    /// This process and its descendants.
    pub(crate) fn tree(&self) -> Tree {
        Tree::of(self.child.id())
    }

    /// Fails with the end of the log if the program has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("ended with {status}; end of its log: {}", self.log_tail()).into()),
        }
    }

    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines: Vec<&str> = text.lines().rev().take(5).collect();
        lines.reverse();
        lines.join(" | ")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Descendants outside the process group are found while the root is alive. A program with children gets a signal first,
        // so that it can clean up. An error means that the process has already ended.
        let processes = self.tree().processes().unwrap_or_default();
        let Some((root, others)) = processes.split_first() else { return };
        if !others.is_empty() {
            let _ = kill(Pid::from_raw(*root), self.stop_signal);
            let deadline = Instant::now() + Duration::from_secs(3);
            while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Orphans become children of this process, which has to reap them; see `adopt_orphans`.
        for orphan in others.iter().copied().map(Pid::from_raw) {
            let _ = kill(orphan, Signal::SIGKILL);
            let _ = waitpid(orphan, None);
        }
    }
}

/// Makes orphaned descendants children of this process, so that it can reap them.
pub(crate) fn adopt_orphans() -> Result<()> {
    set_child_subreaper(true).context(|| "cannot adopt orphans".to_owned())
}

/// The first line with a digit in the version output of a program.
pub(crate) fn version_line(program: &Path, argument: &str) -> String {
    let Ok(output) = Command::new(program).arg(argument).stdin(Stdio::null()).output() else {
        return "unknown".to_owned();
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| line.contains(|c: char| c.is_ascii_digit())).unwrap_or("unknown");
    line.trim().to_owned()
}
