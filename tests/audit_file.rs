//! The audit file: rotated, a FIFO, beside the configuration.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::client::port;
use crate::harness::portcullis::executable;
use crate::harness::program::run;
use crate::harness::{Event, Listener, Portcullis, TestDir, Upstream, eventually, wire};
use crate::reload::{ON_CHANGE, ON_SIGHUP};

const AUDIT_FILE: &str = "log.audit_file = \"audit.log\"\n";

/// An untrusted source connects and is denied, which logs a line. Returns its source port.
fn rejected_source_port(portcullis: &Portcullis) -> u16 {
    let mut untrusted = portcullis.client().from("127.0.0.2").dial();
    assert_eq!(wire::read_until_closed(&mut untrusted), b"");
    port(&untrusted)
}

fn fifo(site: &TestDir) {
    run(Command::new("mkfifo").arg(site.path("audit.log"))).success();
}

#[test]
fn sighup_reopens_the_audit_file_even_if_the_configuration_is_invalid() {
    let upstream = Upstream::echo();
    let config = format!("{ON_SIGHUP}{AUDIT_FILE}{}", Listener::redis(&upstream));
    let portcullis = Portcullis::start(TestDir::new(), config);
    portcullis.address("main");
    let file = portcullis.site.path("audit.log");
    fs::rename(&file, portcullis.site.path("audit.log.1")).unwrap();
    let rejected = portcullis.reconfigure("[[listener");
    assert!(rejected.is("reload.rejected"), "{}", rejected.0);
    let port = format!("\"source_port\":{},", rejected_source_port(&portcullis));
    eventually("the event is in the new file", || fs::read_to_string(&file).ok()?.contains(&port).then_some(()));
}

#[test]
fn fifo_without_a_reader_fails_the_start() {
    let site = TestDir::new();
    fifo(&site);
    site.write("portcullis.toml", format!("{AUDIT_FILE}{}", Listener::redis("127.0.0.1:6379")));
    let outcome = run(executable().args(["run", "-c"]).arg(site.path("portcullis.toml")));
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let words = "audit.log cannot be opened for writing";
    assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
}

#[test]
fn fifo_that_loses_its_reader_does_not_stop_traffic() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    fifo(&site);
    let mut options = File::options();
    let reader = options.read(true).custom_flags(libc::O_NONBLOCK).open(site.path("audit.log")).unwrap();
    let config = format!("{ON_SIGHUP}{AUDIT_FILE}{}", Listener::redis(&upstream));
    let mut portcullis = Portcullis::start(site, config);
    portcullis.client().connect().ask(b"hello", b"hello");
    drop(reader);
    portcullis.applies(|| portcullis.hang_up());
    portcullis.client().connect().ask(b"hello", b"hello");
    assert_eq!(portcullis.stop().0, Some(0));
}

#[test]
fn audit_file_beside_the_configuration_triggers_no_reload() {
    const SOURCES: u64 = 4 * 1024 * 1024;
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let padding = "#".repeat(usize::try_from(SOURCES).unwrap());
    site.write("sources.toml", format!("rule = []\n{padding}\n"));
    let listener = Listener::redis(&upstream).key("sources_file = \"sources.toml\"");
    let portcullis = Portcullis::start(site, format!("{ON_CHANGE}{AUDIT_FILE}{listener}"));
    portcullis.address("main");
    let before = portcullis.bytes_read();
    // Longer than changes are left to settle, so that files which are looked at are read at least once.
    let end = Instant::now() + Duration::from_millis(1500);
    let mut last = 0;
    while Instant::now() < end {
        // Events of admitted clients are never suppressed.
        let mut client = portcullis.client().connect();
        client.ask(b"hello", b"hello");
        last = client.port();
    }
    portcullis.ending(last);
    let read = portcullis.bytes_read() - before;
    assert!(read < SOURCES, "{read} bytes were read while only the audit file changed");
}

#[test]
fn audit_file_symlink_that_others_can_write_fails_start_and_check() {
    let site = TestDir::new();
    let shared = site.path("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o777)).unwrap();
    symlink(site.path("target"), shared.join("audit.log")).unwrap();
    site.write(
        "portcullis.toml",
        format!("log.audit_file = \"shared/audit.log\"\n{}", Listener::redis("127.0.0.1:6379")),
    );
    for (command, code) in [("run", 1), ("check", 78)] {
        let outcome = run(executable().args([command, "-c"]).arg(site.path("portcullis.toml")));
        assert_eq!(outcome.code, Some(code), "{command}: {}", outcome.stderr);
        for words in ["audit.log is a symbolic link in", "(mode 0777)", "set log.audit_file to the file itself"] {
            assert!(outcome.stderr.contains(words), "{command}: no {words} in {}", outcome.stderr);
        }
    }
    assert!(!site.path("target").exists());
    // A link that no other user can write is accepted.
    fs::set_permissions(&shared, Permissions::from_mode(0o755)).unwrap();
    run(executable().args(["check", "-c"]).arg(site.path("portcullis.toml"))).success();
}

#[test]
fn audit_file_that_becomes_a_symlink_is_not_reopened_on_sighup() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let (shared, target) = (site.path("shared"), site.path("target"));
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o777)).unwrap();
    let config = format!("{ON_SIGHUP}log.audit_file = \"shared/audit.log\"\n{}", Listener::redis(&upstream));
    let portcullis = Portcullis::start(site, config);
    portcullis.address("main");
    let (file, rotated) = (shared.join("audit.log"), shared.join("audit.log.1"));
    fs::rename(&file, &rotated).unwrap();
    symlink(&target, &file).unwrap();
    portcullis.hang_up();
    let warned = |event: &Event| event.0["error"].as_str().is_some_and(|words| words.contains("is a symbolic link"));
    let warning = portcullis.event("a warning", warned);
    assert_eq!(warning.text("message"), "cannot reopen audit_file, continuing with the previous one");
    let port = format!("\"source_port\":{},", rejected_source_port(&portcullis));
    eventually("the event is in the old file", || fs::read_to_string(&rotated).ok()?.contains(&port).then_some(()));
    assert!(!target.exists());
}
