//! Other programs: found or reported with their Debian package, limited in time, ended with the test.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::{env, fs, thread};

use super::log::Log;
use super::{Event, WAIT_TIMEOUT, eventually};

/// A command that is killed when the thread of the test ends.
pub(crate) fn command(name: &str) -> Command {
    tied(&find(name))
}

/// The same for a program whose path is known.
pub(crate) fn tied(program: &Path) -> Command {
    setpriv(&["--pdeathsig", "KILL"], program)
}

/// A program that runs with these options of setpriv and the default action of every signal. A test that runs as a
/// background job of a script ignores SIGINT, one under nohup SIGHUP, and programs inherit that.
pub(crate) fn setpriv(options: &[&str], program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal", "setpriv"]).args(options).arg("--").arg(program);
    command
}

/// A command that runs its arguments in a process group. All of the group is killed when the test's thread ends, however it
/// ends: `--pdeathsig` alone reaches a shell and not the programs that the shell has started.
pub(crate) fn supervised() -> Command {
    // If the parent has ended before the first line, no signal will come. The shell makes its background job ignore SIGINT.
    const SUPERVISOR: &str =
        "trap 'kill -KILL 0' TERM; [ $PPID = $0 ] || exit 1; env --default-signal \"$@\" & wait $!";
    let mut command = setpriv(&["--pdeathsig", "TERM"], "sh");
    command.args(["-c", SUPERVISOR, &std::process::id().to_string()]);
    command.process_group(0);
    command
}

/// A process that was started by [`supervised`], and its group.
#[derive(Debug)]
pub(crate) struct Group(pub(crate) Running);

impl Group {
    /// The command lines of the group's processes that still run.
    pub(crate) fn left(&self) -> String {
        let mut list = Command::new("pgrep");
        list.args(["--runstates", "D,R,S,T", "--list-full", "--pgroup", &self.0.0.id().to_string()]);
        String::from_utf8_lossy(&list.output().expect("procps is installed").stdout).into_owned()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // `kill -KILL -- …` is an error in dash.
        let group = format!("kill -s KILL -- -{}", self.0.0.id());
        // An error means that no process is left.
        let _ = Command::new("sh").args(["-c", &group]).stderr(Stdio::null()).status();
    }
}

/// Where a program is. PostgreSQL's own are preferred to Debian's wrappers in /usr/bin.
pub(crate) fn find(name: &str) -> PathBuf {
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    versions.reverse();
    let path = env::var_os("PATH").unwrap_or_default();
    versions
        .into_iter()
        .chain(env::split_paths(&path))
        .chain([PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: apt-get install {}", package(name)))
}

fn package(name: &str) -> &str {
    match name {
        "initdb" | "postgres" | "pgbench" => "postgresql",
        "psql" | "pg_basebackup" => "postgresql-client",
        "dnsmasq" => "dnsmasq-base",
        "etcd" => "etcd-server",
        "etcdctl" => "etcd-client",
        "ip" => "iproute2",
        "redis-cli" | "redis-benchmark" => "redis-tools",
        "rsyslogd" => "rsyslog",
        "nginx" => "nginx-light libnginx-mod-stream",
        "promtool" => "prometheus",
        other => other,
    }
}

/// A process that is killed at the end of the test.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")))
    }

    /// Sends a signal by its name (`TERM`, `HUP`, …).
    pub(crate) fn signal(&self, name: &str) {
        signal(self.0.id(), name);
    }

    /// Waits for the process to end by itself.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let process = self.0.id();
        let name = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default().replace('\0', " ");
        let what = format!("process {process} ({}) ends", name.trim_end());
        eventually(&what, || self.0.try_wait().expect("a child can be waited for")).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal with `kill` of the shell, which needs no unsafe code.
pub(crate) fn signal(process: u32, name: &str) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).output();
    let sent = sent.expect("every system has sh");
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
}

/// The result of a program.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The standard output of a program that has to succeed.
    pub(crate) fn success(self) -> String {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.text(), self.stderr);
        self.text()
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs a command to its end, with nothing on its standard input.
pub(crate) fn run(command: &mut Command) -> Outcome {
    run_with_input(command, b"")
}

/// Runs a command to its end with this input. The input stays open until the command has read it all.
pub(crate) fn run_with_input(command: &mut Command, input: &[u8]) -> Outcome {
    command.stdin(Stdio::piped());
    if input.is_empty() {
        command.stdin(Stdio::null());
    }
    let mut running = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let stdout = collect(running.0.stdout.take().expect("stdout is piped"));
    let stderr = collect(running.0.stderr.take().expect("stderr is piped"));
    if let Some(mut stdin) = running.0.stdin.take() {
        // A program may well end without having read everything.
        let _ = stdin.write_all(input);
    }
    let what = format!("{command:?} ends");
    let stdout = stdout.recv_timeout(WAIT_TIMEOUT).unwrap_or_else(|_| panic!("{what}: not in time"));
    let stderr = stderr.recv_timeout(WAIT_TIMEOUT).unwrap_or_else(|_| panic!("{what}: not in time"));
    let status = running.0.wait().expect("a child can be waited for");
    Output { status, stdout, stderr }.into()
}

/// Reads a pipe to its end in a separate thread, so that two pipes cannot block each other.
fn collect(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// A server that cannot report its port: started on one that was free a moment ago, and on another when another
/// process takes it first.
pub(crate) fn serve(ready: &str, command: impl Fn(u16) -> Command) -> (Running, u16) {
    loop {
        let port = free_port();
        if let Some(server) = serve_on(port, ready, &command) {
            return (server, port);
        }
    }
}

/// The same on a given port; `None` when it is taken.
pub(crate) fn serve_on(port: u16, ready: &str, command: impl Fn(u16) -> Command) -> Option<Running> {
    let (output, input) = io::pipe().expect("a pipe can be made");
    let mut command = command(port);
    command.stdin(Stdio::null());
    command.stdout(input.try_clone().expect("a pipe can be cloned")).stderr(input);
    let server = Running::start(&mut command);
    drop(command);
    let contains = |line: &Event, words: &str| line.0.as_str().is_some_and(|line| line.contains(words));
    let taken = "Address already in use";
    let line = Log::of(output).after(0, ready, |line| contains(line, ready) || contains(line, taken));
    contains(&line, ready).then_some(server)
}

/// A port of 127.0.0.1 where no server listens, and which is given to no other test.
pub(crate) fn free_port() -> u16 {
    free("127.0.0.1").port()
}

/// An address that no other test uses, for programs that cannot start on port 0.
pub(crate) fn free_address() -> SocketAddr {
    free("127.77.0.1")
}

/// Ports outside net.ipv4.ip_local_port_range, which the kernel assigns to no socket by itself. This process uses each port
/// once before it uses one again. Other processes begin elsewhere. Servers and clients have separate ranges.
struct Ports {
    first: u32,
    count: u32,
    next: AtomicU32,
}

static SERVER_PORTS: Ports = Ports { first: 12_000, count: 5_000, next: AtomicU32::new(0) };
static CLIENT_PORTS: Ports = Ports { first: 17_000, count: 15_000, next: AtomicU32::new(0) };

impl Ports {
    fn next(&self) -> u16 {
        let begin = std::process::id().wrapping_mul(7919);
        let number = begin.wrapping_add(self.next.fetch_add(1, Ordering::Relaxed));
        u16::try_from(self.first + number % self.count).expect("it is a port")
    }
}

fn free(host: &str) -> SocketAddr {
    let free = || TcpListener::bind((host, SERVER_PORTS.next())).ok()?.local_addr().ok();
    (0..SERVER_PORTS.count).find_map(|_| free()).expect("a port is free")
}

/// The source port of the next client.
pub(crate) fn next_client_port() -> u16 {
    CLIENT_PORTS.next()
}

/// Raises the limit of open files of this process and its future children to several thousand.
pub(crate) fn allow_many_files() {
    let own = std::process::id().to_string();
    run(command("prlimit").args(["--pid", &own, "--nofile=8192:"])).success();
}
