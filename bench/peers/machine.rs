//! The machine: its cores, its limits, and its description for the report.

use std::fs;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::utsname::uname;
use nix::unistd::Pid;

use crate::fault::Result;

/// The assignment of cores.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cores {
    /// The measured target.
    pub(crate) proxy: usize,
    /// Clients and databases.
    pub(crate) clients: usize,
}

impl Cores {
    /// The first two cores that this process may use. With one core, all share it.
    pub(crate) fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
        let proxy = cores.next().ok_or("this process may not use any core")?;
        Ok(Self { proxy, clients: cores.next().unwrap_or(proxy) })
    }

    /// Pins this process to the core of the clients.
    pub(crate) fn settle(self) -> Result<()> {
        let mut set = CpuSet::new();
        set.set(self.clients)?;
        Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
    }
}

/// Raises the limit of open files of this process and its children, and returns it.
pub(crate) fn raise_file_limit() -> Result<u64> {
    const PLENTY: u64 = 1 << 16;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Root may raise the hard limit. Otherwise the hard limit applies.
    if hard < PLENTY && setrlimit(Resource::RLIMIT_NOFILE, PLENTY, PLENTY).is_ok() {
        return Ok(PLENTY);
    }
    let limit = hard.min(PLENTY).max(soft);
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard)?;
    Ok(limit)
}

/// Lines for the report.
pub(crate) fn describe(cores: Cores) -> Vec<(&'static str, String)> {
    let processor = read("/proc/cpuinfo");
    let model = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, m)| m);
    let siblings = read(&format!("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cores.proxy));
    let memory = read("/proc/meminfo");
    let memory = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    let release = uname().map(|name| name.release().to_string_lossy().into_owned());
    let os = read("/etc/os-release");
    let os = os.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown").trim_matches('"');
    vec![
        ("processor", format!("{}, {} cores", model.unwrap_or("unknown"), processor.matches("processor\t").count())),
        ("threads of the proxy's physical core", siblings.trim().to_owned()),
        ("memory", format!("{} MiB", memory.unwrap_or(0) / 1024)),
        ("kernel", release.unwrap_or_else(|_| "unknown".to_owned())),
        ("system", os.to_owned()),
        ("proxy on core", cores.proxy.to_string()),
        ("clients and databases on core", cores.clients.to_string()),
    ]
}

/// The one-minute load average of the machine.
pub(crate) fn load() -> f64 {
    read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
