//! The CPU time and the proportional memory of a process and its descendants.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::fault::{Context, Result};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Tree {
    root: u32,
}

impl Tree {
    pub(crate) fn of(root: u32) -> Self {
        Self { root }
    }

    /// The process ids, root first.
    pub(crate) fn processes(self) -> Result<Vec<i32>> {
        let mut parents = Vec::new();
        for entry in fs::read_dir("/proc").context(|| "cannot read /proc".to_owned())?.flatten() {
            let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            // A process may end after it was listed.
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            parents.extend(parent(&stat).map(|parent| (process, parent)));
        }
        let root = i32::try_from(self.root)?;
        let (mut found, mut order) = (BTreeSet::from([root]), vec![root]);
        loop {
            let born: Vec<i32> = parents
                .iter()
                .filter(|(process, parent)| found.contains(parent) && !found.contains(process))
                .map(|(process, _)| *process)
                .collect();
            if born.is_empty() {
                return Ok(order);
            }
            found.extend(&born);
            order.extend(born);
        }
    }

    /// CPU time in user and kernel mode of all threads, including those that have ended.
    pub(crate) fn cpu(self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for process in self.processes()? {
            let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(process));
            let time = clock.and_then(clock_gettime).context(|| format!("CPU clock of process {process}"))?;
            sum += Duration::from(time);
        }
        Ok(sum)
    }

    /// Proportional set size in KiB: a page that several processes share counts once in total.
    pub(crate) fn pss(self) -> Result<u64> {
        let mut sum = 0;
        for process in self.processes()? {
            let path = format!("/proc/{process}/smaps_rollup");
            let text = fs::read_to_string(&path).context(|| format!("cannot read {path}"))?;
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            let number = line.and_then(|rest| rest.split_whitespace().next());
            sum += number.and_then(|number| number.parse::<u64>().ok()).context_none(&path)?;
        }
        Ok(sum)
    }
}

trait ContextNone<T> {
    fn context_none(self, path: &str) -> Result<T>;
}

impl<T> ContextNone<T> for Option<T> {
    fn context_none(self, path: &str) -> Result<T> {
        self.ok_or_else(|| format!("{path} has no Pss").into())
    }
}

/// The parent in a line of /proc/PID/stat. The name before it may contain any character, including parentheses.
fn parent(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
