//! Resources of the process, as the official client libraries report them.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeVal;

use crate::metrics::exposition::catalog::{
    CPU_SECONDS, MAX_FDS, OPEN_FDS, RESIDENT_MEMORY, START_TIME, VIRTUAL_MEMORY,
};
use crate::metrics::exposition::families::Families;

/// Adds the `process_*` series. A figure that the kernel does not report is absent.
pub(crate) fn collect(families: &mut Families) {
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let used = seconds(usage.user_time()) + seconds(usage.system_time());
        families.set(&CPU_SECONDS, [], used);
    }
    if let Some(open) = open_files() {
        families.set(&OPEN_FDS, [], open);
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        families.set(&MAX_FDS, [], soft);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(bytes) = memory(&status, "VmSize:") {
        families.set(&VIRTUAL_MEMORY, [], bytes);
    }
    if let Some(bytes) = memory(&status, "VmRSS:") {
        families.set(&RESIDENT_MEMORY, [], bytes);
    }
    if let Some(started) = start_time() {
        families.set(&START_TIME, [], started);
    }
}

/// The number of open files, without the one that lists them.
fn open_files() -> Option<u64> {
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(count.saturating_sub(1)).ok()
}

/// A size of `/proc/self/status` (proc_pid_status(5)) in bytes.
fn memory(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

/// Seconds since 1970, from proc_pid_stat(5) and the boot time in proc_stat(5).
fn start_time() -> Option<f64> {
    let boot_time = fs::read_to_string("/proc/stat").ok()?;
    let boot_time: u32 = boot_time.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let ticks = start_ticks(&fs::read_to_string("/proc/self/stat").ok()?)?;
    Some(f64::from(boot_time) + Duration::from_millis(ticks.checked_mul(1000 / TICKS_PER_SECOND)?).as_secs_f64())
}

/// Field 22 of `/proc/self/stat`. The name of the program, field 2, may contain spaces and parentheses.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

fn seconds(time: TimeVal) -> f64 {
    let whole = Duration::from_secs(u64::try_from(time.tv_sec()).unwrap_or(0));
    let rest = Duration::from_micros(u64::try_from(time.tv_usec()).unwrap_or(0));
    whole.saturating_add(rest).as_secs_f64()
}

/// The unit of times in `/proc`. Linux shows them in hundredths of a second on every supported processor (time(7)).
const TICKS_PER_SECOND: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_is_read_behind_a_name_with_parentheses() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2";
        assert_eq!(start_ticks(stat), Some(4711));
        assert_eq!(start_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn process_started_in_the_past_and_has_memory_and_files() {
        let now = time::OffsetDateTime::now_utc().unix_timestamp() as f64;
        let started = start_time().unwrap();
        assert!(started > 1_600_000_000.0 && started <= now + 2.0, "{started} {now}");
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert!(memory(&status, "VmSize:").unwrap() >= memory(&status, "VmRSS:").unwrap());
        assert!(open_files().unwrap() > 0);
    }
}
