//! Other programs: found, pinned to a core, and ended with their children whatever becomes of the run.

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

/// Where a program is. PostgreSQL's own come before Debian's wrappers of the same name.
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

/// The same for a program without which there is nothing to measure.
pub(crate) fn need(name: &str) -> Result<PathBuf> {
    find(name).ok_or_else(|| format!("{name} is not installed: run scripts/install-bench-peers").into())
}

/// How a program is started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) core: usize,
    /// As the user postgres when root starts it: for programs that refuse to run as root.
    pub(crate) servant: bool,
    /// Only when nobody else wants its core.
    pub(crate) idle: bool,
}

impl Manner {
    pub(crate) fn on(core: usize) -> Self {
        Self { core, servant: false, idle: false }
    }

    /// A command that dies with the benchmark, even when that is killed. Every step of the chain replaces itself by the
    /// next, so the process that is started is the program.
    pub(crate) fn command(self, program: &Path) -> Command {
        let mut command = Command::new("taskset");
        command.args(["-c", &self.core.to_string()]);
        if self.idle {
            command.args(["chrt", "--idle", "0"]);
        }
        command.arg("setpriv");
        if self.servant && nix::unistd::geteuid().is_root() {
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        }
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    }
}

/// A program that runs, and ends with this value.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
    /// What asks it to end, where a kill would leave its children behind.
    farewell: Signal,
}

impl Running {
    /// Starts a program in a process group of its own; what it says goes to a file.
    pub(crate) fn start(mut command: Command, log: &Path) -> Result<Self> {
        let file = File::create(log).context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, log: log.to_owned(), farewell: Signal::SIGTERM })
    }

    pub(crate) fn farewell(mut self, signal: Signal) -> Self {
        self.farewell = signal;
        self
    }

    /// This process and all below it.
    pub(crate) fn tree(&self) -> Tree {
        Tree::of(self.child.id())
    }

    /// Fails once the program has ended, with the last it said.
    pub(crate) fn still_there(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("ended with {status}; its last words: {}", self.last_words()).into()),
        }
    }

    pub(crate) fn last_words(&self) -> String {
        let said = fs::read(&self.log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let mut lines: Vec<&str> = said.lines().rev().take(5).collect();
        lines.reverse();
        lines.join(" | ")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Those that left the process group are found while the root still lives. One that has children is asked first, so
        // that it can clear up after them. An error means: gone already.
        let processes = self.tree().processes().unwrap_or_default();
        let Some((root, others)) = processes.split_first() else { return };
        if !others.is_empty() {
            let _ = kill(Pid::from_raw(*root), self.farewell);
            let patience = Instant::now() + Duration::from_secs(3);
            while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < patience {
                thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Orphans come to this process, which has to bury them; see `adopt_orphans`.
        for orphan in others.iter().copied().map(Pid::from_raw) {
            let _ = kill(orphan, Signal::SIGKILL);
            let _ = waitpid(orphan, None);
        }
    }
}

/// Makes processes whose parent has ended children of this one, so that none escapes it.
pub(crate) fn adopt_orphans() -> Result<()> {
    set_child_subreaper(true).context(|| "cannot adopt orphans".to_owned())
}

/// What a program prints that tells its version: the first line that has a digit.
pub(crate) fn says(program: &Path, argument: &str) -> String {
    let Ok(output) = Command::new(program).arg(argument).stdin(Stdio::null()).output() else {
        return "unknown".to_owned();
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| line.contains(|c: char| c.is_ascii_digit())).unwrap_or("unknown");
    line.trim().to_owned()
}
