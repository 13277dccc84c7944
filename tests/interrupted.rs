//! Interrupted runs of the tests: no process that they started outlives them.
//!
//! `scripts/run-tests` checks the same after every run.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::{env, thread};

use nix::sys::signal::Signal;

use crate::harness::program::{Running, command, find, run, supervised, tied};
use crate::harness::{Haproxy, Listener, Portcullis, Postgres, Redis, eventually, hosts};

/// Names the temporary directory of the run that is interrupted, and marks its processes.
const RUN: &str = "PORTCULLIS_TEST_INTERRUPTED";

/// The command lines of all processes that belong to the run: its directory is in their environment, their command line or
/// their working directory. Redis overwrites its environment.
fn processes_of(run: &Path) -> Vec<String> {
    let run = run.to_str().expect("UTF-8");
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let belongs = |process: &std::path::PathBuf| {
        let read = |file: &str| String::from_utf8_lossy(&fs::read(process.join(file)).unwrap_or_default()).into_owned();
        let directory = fs::read_link(process.join("cwd")).unwrap_or_default().display().to_string();
        let is_zombie = read("stat").contains(") Z ");
        !is_zombie && [read("environ"), read("cmdline"), directory].iter().any(|text| text.contains(run))
    };
    processes.filter(belongs).map(|process| fs::read_to_string(process.join("cmdline")).unwrap_or_default()).collect()
}

#[test]
fn interrupted_run_leaves_no_process() {
    for signal in ["INT", "TERM", "KILL"] {
        let directory = tempfile::tempdir().unwrap();
        // PostgreSQL runs as another user.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let mut command = tied(&env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "interrupted::starts_each_kind_of_process_and_waits"]);
        command.env("TMPDIR", directory.path()).env(RUN, directory.path());
        let mut run = Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()));
        eventually("everything runs", || {
            assert!(run.0.try_wait().unwrap().is_none(), "the run ended early");
            directory.path().join("started").exists().then_some(())
        });
        let started = processes_of(directory.path());
        for program in ["portcullis", "redis-server", "postgres", "haproxy", "sleep"] {
            assert!(started.iter().any(|process| process.contains(program)), "no {program} in {started:?}");
        }
        run.signal(signal);
        run.exit_code();
        eventually(&format!("no process is left after SIG{signal}"), || {
            processes_of(directory.path()).is_empty().then_some(())
        });
    }
}

/// Whether each of these signals is ignored, by the line `SigIgn` of /proc/PID/status.
fn ignored(status: &str) -> [bool; 4] {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let mask = u64::from_str_radix(line.trim(), 16).unwrap();
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM]
        .map(|signal| mask >> (signal as i32 - 1) & 1 == 1)
}

#[test]
fn run_that_ignores_signals_starts_programs_that_do_not() {
    let mut ignoring = command("env");
    ignoring.arg("--ignore-signal=HUP,INT,QUIT,TERM").arg(env::current_exe().unwrap());
    ignoring.args(["--ignored", "--exact", "interrupted::starts_programs_that_ignore_no_signal"]);
    let output = run(ignoring.env(RUN, "")).success();
    assert!(output.contains("1 passed"), "{output}");
}

#[test]
#[ignore = "started by run_that_ignores_signals_starts_programs_that_do_not"]
fn starts_programs_that_ignore_no_signal() {
    const STATUS: &str = "/proc/self/status";
    if env::var_os(RUN).is_none() {
        return;
    }
    assert_eq!(ignored(&fs::read_to_string(STATUS).unwrap()), [true; 4], "this run");
    let (cat, mut supervised) = (find("cat"), supervised());
    for command in [&mut tied(&cat), supervised.arg(&cat)] {
        assert_eq!(ignored(&run(command.arg(STATUS)).success()), [false; 4], "{command:?}");
    }
}

#[test]
#[ignore = "started and interrupted by interrupted_run_leaves_no_process"]
fn starts_each_kind_of_process_and_waits() {
    let Some(run) = env::var_os(RUN) else { return };
    let (redis, postgres) = (Redis::start(), Postgres::start());
    let portcullis = Portcullis::before(Listener::redis(&redis));
    let haproxy = Haproxy::before(&portcullis, "send-proxy");
    let site = crate::harness::TestDir::new();
    hosts::name(&site, &[("app.test", &["127.0.0.5"])]);
    let inside = hosts::start(site, Listener::postgres(&postgres));
    let mut shell = supervised();
    // One process in the background, and one that only SIGKILL ends.
    shell.args(["sh", "-c", "sleep 1000 & (trap '' TERM; sleep 1001) & wait"]);
    let shell = Running::start(&mut shell);
    portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");
    eventually("the shell has started its programs", || {
        let all = processes_of(Path::new(&run));
        (all.iter().filter(|process| process.starts_with("sleep")).count() == 2).then_some(())
    });
    fs::write(Path::new(&run).join("started"), "").unwrap();
    loop {
        thread::park();
        // A spurious wake-up ends nothing.
        let _ = (&haproxy, &inside, &shell);
    }
}
