//! Interrupted runs of the tests: no process that they started outlives them.
//!
//! `scripts/run-tests` checks the same after every run.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, thread};

use crate::harness::program::{Running, supervised};
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
        let mut command = Command::new(env::current_exe().unwrap());
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
