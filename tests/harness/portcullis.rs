//! The program under test: start, log, signals, end.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::api::Api;
use super::log::Log;
use super::program::{self, Running};
use super::{Client, Event, Leaf, Listener, TestDir, eventually};

/// A running `portcullis run`.
#[derive(Debug)]
pub(crate) struct Portcullis {
    pub(crate) process: Running,
    pub(crate) site: TestDir,
    log: Log,
    errors: Log,
    /// How often SIGHUP was sent.
    hang_ups: AtomicUsize,
}

/// The path of the built program.
pub(crate) const EXECUTABLE: &str = env!("CARGO_BIN_EXE_portcullis");

/// Configures the admin socket `admin.sock` in the directory, which [`Portcullis::status`] uses.
pub(crate) const ADMIN: &str = "admin.listen = \"unix:admin.sock\"\n";

/// The built program.
pub(crate) fn executable() -> Command {
    let mut command = program::tied(Path::new(EXECUTABLE));
    command.env_remove("PORTCULLIS_CONFIG").env_remove("CREDENTIALS_DIRECTORY");
    command
}

impl Portcullis {
    /// One listener, in a new directory.
    pub(crate) fn before(listener: Listener) -> Self {
        Self::start(TestDir::new(), listener)
    }

    /// A whole configuration, beside the files it names.
    pub(crate) fn start(site: TestDir, config: impl Display) -> Self {
        Self::start_by(executable(), site, config)
    }

    /// The same with a command that ends in the path of the program, for example with a limit or an environment.
    pub(crate) fn start_by(mut command: Command, site: TestDir, config: impl Display) -> Self {
        site.write("portcullis.toml", config);
        command.args([OsStr::new("run"), OsStr::new("-c")]).arg(site.path("portcullis.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Running::start(&mut command);
        let log = Log::of(process.0.stdout.take().expect("stdout is piped"));
        let errors = Log::of(process.0.stderr.take().expect("stderr is piped"));
        Self { process, site, log, errors, hang_ups: AtomicUsize::new(0) }
    }

    /// A client of the listener `main`.
    pub(crate) fn client(&self) -> Client {
        self.client_of("main")
    }

    pub(crate) fn client_of(&self, listener: &str) -> Client {
        Client::new(self.address(listener), &self.site.ca)
    }

    /// The first port of a listener, once it is bound.
    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        self.addresses(listener)[0]
    }

    pub(crate) fn addresses(&self, listener: &str) -> Vec<SocketAddr> {
        let named = |event: &Event| event.is("ready") && event.0["listener"] == listener;
        self.event(&format!("ready of {listener}"), named);
        let ready = self.events().into_iter().rfind(named).expect("it was there");
        let addresses = ready.0["addresses"].as_array().expect("a list of addresses").iter();
        let ports = addresses.map(|text| text.as_str().expect("text")).filter(|text| !text.starts_with("unix:"));
        ports.map(|text| text.parse().expect("address")).collect()
    }

    /// Waits for the first event that matches.
    pub(crate) fn event(&self, what: &str, matches: impl Fn(&Event) -> bool) -> Event {
        self.log.after(0, what, matches)
    }

    /// The same among the events after the first `seen` ones.
    pub(crate) fn event_after(&self, seen: usize, what: &str, matches: impl Fn(&Event) -> bool) -> Event {
        self.log.after(seen, what, matches)
    }

    /// The last event of the connection from this source port.
    pub(crate) fn ending(&self, source_port: u16) -> Event {
        self.event("the end of the connection", |event| event.ends(source_port))
    }

    /// Why it was denied; it must not have been admitted.
    pub(crate) fn refusal(&self, source_port: u16) -> String {
        let ending = self.ending(source_port);
        assert!(ending.is("connection.denied"), "it was admitted: {}", ending.0);
        ending.reason().to_owned()
    }

    /// The event that the connection from this source port was admitted.
    pub(crate) fn opened(&self, source_port: u16) -> Event {
        self.event("the opening of the connection", |event| {
            event.is("connection.opened") && event.0["source_port"] == source_port
        })
    }

    /// Waits for this many events that match, and checks that there are no more. A client may be answered before the log
    /// has the line.
    pub(crate) fn assert_count(&self, what: &str, count: usize, matches: impl Fn(&Event) -> bool) {
        let counted = || self.events().iter().filter(|event| matches(event)).count();
        eventually(what, || (counted() >= count).then_some(()));
        assert_eq!(counted(), count, "{what}");
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.log.events()
    }

    /// The number of log lines so far. Later lines are the effect of what the test does next.
    pub(crate) fn seen(&self) -> usize {
        self.log.events().len()
    }

    /// Standard error so far.
    pub(crate) fn errors(&self) -> String {
        text_of(&self.errors.events())
    }

    /// Does something, and waits for the reload that it causes. The event is `reload.applied` or `reload.rejected`.
    ///
    /// The watcher may reload the files before a signal is received. So if the change sends SIGHUP, the reload is the one that
    /// SIGHUP requested.
    pub(crate) fn reload_after(&self, change: impl FnOnce()) -> Event {
        let seen = self.seen();
        let signals = self.hang_ups.load(Ordering::Relaxed);
        change();
        self.log.reload_after(seen, self.hang_ups.load(Ordering::Relaxed) > signals)
    }

    /// Sends SIGHUP.
    pub(crate) fn hang_up(&self) {
        self.hang_ups.fetch_add(1, Ordering::Relaxed);
        self.process.signal("HUP");
    }

    /// The same, for a change that must be applied.
    pub(crate) fn applies(&self, change: impl FnOnce()) -> Event {
        let event = self.reload_after(change);
        assert!(event.is("reload.applied"), "{}", event.0);
        event
    }

    /// Writes a new configuration and sends SIGHUP.
    pub(crate) fn reconfigure(&self, config: impl Display) -> Event {
        self.reload_after(|| {
            self.site.replace("portcullis.toml", config);
            self.hang_up();
        })
    }

    /// Ends the program with SIGTERM. Returns its exit code and all log lines.
    pub(crate) fn stop(&mut self) -> (Option<i32>, Vec<Event>) {
        self.process.signal("TERM");
        (self.process.exit_code(), self.log.to_the_end())
    }

    /// The first listener in `status`, once the program answers.
    pub(crate) fn status(&self) -> Value {
        let answer = eventually("an answer of status", || {
            let mut command = executable();
            command.args(["status", "--json", "--socket"]).arg(self.site.path("admin.sock"));
            Some(program::run(&mut command)).filter(|outcome| outcome.code == Some(0))
        });
        let answer: Value = serde_json::from_str(&answer.text()).expect("JSON");
        answer["listeners"][0].clone()
    }

    /// The sessions in `sessions list`, once the program answers.
    pub(crate) fn sessions(&self) -> Vec<Value> {
        let answer = eventually("an answer of sessions list", || {
            let mut command = executable();
            command.args(["sessions", "list", "--json", "--socket"]).arg(self.site.path("admin.sock"));
            Some(program::run(&mut command)).filter(|outcome| outcome.code == Some(0))
        });
        let answer: Value = serde_json::from_str(&answer.text()).expect("JSON");
        answer["sessions"].as_array().expect("a list").clone()
    }

    /// Sends a request to the admin socket directly, which is faster than a command. Returns the status and the body.
    pub(crate) fn ask(&self, method: &str, target: &str) -> (u16, Value) {
        self.ask_with(method, target, "")
    }

    /// The same with a body.
    pub(crate) fn ask_with(&self, method: &str, target: &str, body: &str) -> (u16, Value) {
        let reply = Api::at_socket(self.site.path("admin.sock")).request(method, target, "", body.as_bytes());
        (reply.status, reply.body)
    }

    /// Waits until no connection is left and the memory of each is free, which is after its last event. Needs [`ADMIN`].
    pub(crate) fn wait_until_idle(&self) {
        let connections = || self.ask("GET", "/v1/status").1["descriptors"]["connections"].clone();
        eventually("every connection has ended", || (connections() == 0).then_some(()));
    }

    /// Memory in use, in KiB.
    pub(crate) fn resident(&self) -> u64 {
        self.kib("VmRSS:")
    }

    /// The peak of memory in use, in KiB.
    pub(crate) fn peak_resident(&self) -> u64 {
        self.kib("VmHWM:")
    }

    /// Anonymous memory in use, in KiB: without the pages of the program's file, which are read as new code runs.
    pub(crate) fn anonymous_memory(&self) -> u64 {
        self.kib("RssAnon:")
    }

    fn kib(&self, field: &str) -> u64 {
        let status = fs::read_to_string(self.proc("status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.expect("the field is there").parse().expect("a number")
    }

    /// CPU time used so far, in ticks of 10 ms.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(self.proc("stat")).expect("it runs");
        // Counted after the command name, which may contain spaces: user and system time are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(") ").expect("a command name");
        let times = fields.split(' ').skip(11).take(2);
        times.map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
    }

    /// Bytes read so far, from files and pipes but not from sockets.
    pub(crate) fn bytes_read(&self) -> u64 {
        let io = fs::read_to_string(self.proc("io")).expect("it runs");
        let number = io.lines().find_map(|line| line.strip_prefix("rchar: "));
        number.expect("an rchar line").parse().expect("a number")
    }

    /// The number of open files.
    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(self.proc("fd")).expect("it runs").count()
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.process.0.id())
    }
}

fn text_of(lines: &[Event]) -> String {
    lines.iter().map(|line| line.0.as_str().map_or(line.0.to_string(), str::to_owned) + "\n").collect()
}

impl Drop for Portcullis {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of portcullis\n{}--- its standard error\n{}", text_of(&self.events()), self.errors());
        }
    }
}

/// The audit event of a client that presents a certificate and must be denied.
pub(crate) fn refused(portcullis: &Portcullis, leaf: &Leaf) -> Event {
    let (port, attempt) = portcullis.client().showing(leaf).attempt();
    attempt.unwrap_err();
    let denied = portcullis.ending(port);
    assert!(denied.is("connection.denied"), "{}", denied.0);
    denied
}
