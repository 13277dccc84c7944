//! etcd for one test: one member or three, with TLS and users.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;

use tempfile::TempDir;

use super::program::{Outcome, Running, command, free_port, run, run_with_input};
use super::{TestDir, eventually};

/// A member of a cluster. It is killed at the end of the test.
#[derive(Debug)]
pub(crate) struct Etcd {
    name: String,
    process: Option<Running>,
    directory: TempDir,
    /// The number of the data directory, which a restored backup replaces.
    generation: u32,
    port: u16,
    peer_port: u16,
    /// All members, as `--initial-cluster`.
    cluster: String,
    options: Vec<String>,
    client_options: Vec<String>,
}

impl Etcd {
    /// A cluster of one member.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(options: &[&str]) -> Self {
        let mut members = Self::members(1);
        let mut etcd = members.remove(0);
        etcd.options = options.iter().map(ToString::to_string).collect();
        etcd.run();
        etcd.ready();
        etcd
    }

    /// One that accepts only TLS with a client certificate of the test's authority. Installs `client.crt` and `client.key`.
    pub(crate) fn with_tls(site: &TestDir) -> Self {
        let file = |name: &str| site.path(name).display().to_string();
        let mut etcd = Self::members(1).remove(0);
        for (option, name) in
            [("--cert-file", "server.crt"), ("--key-file", "server.key"), ("--trusted-ca-file", "ca.crt")]
        {
            etcd.options.extend([option.to_owned(), file(name)]);
        }
        etcd.options.push("--client-cert-auth".to_owned());
        for (option, name) in [("--cacert", "ca.crt"), ("--cert", "client.crt"), ("--key", "client.key")] {
            etcd.client_options.extend([option.to_owned(), file(name)]);
        }
        etcd.run();
        etcd.ready();
        etcd
    }

    /// A cluster of three members.
    pub(crate) fn cluster() -> Vec<Self> {
        let mut members = Self::members(3);
        members.iter_mut().for_each(Self::run);
        members.iter().for_each(Self::ready);
        members
    }

    fn members(count: usize) -> Vec<Self> {
        let names: Vec<_> = (0..count).map(|number| (format!("member-{number}"), free_port(), free_port())).collect();
        let peers: Vec<_> = names.iter().map(|(name, _, peer)| format!("{name}=http://127.0.0.1:{peer}")).collect();
        let member = |(name, port, peer_port)| Self {
            name,
            process: None,
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
            generation: 0,
            port,
            peer_port,
            cluster: peers.join(","),
            options: Vec::new(),
            client_options: Vec::new(),
        };
        names.into_iter().map(member).collect()
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join(format!("data-{}", self.generation))
    }

    pub(crate) fn url(&self) -> String {
        let is_tls = self.options.iter().any(|option| option == "--cert-file");
        let scheme = if is_tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Starts its process.
    pub(crate) fn run(&mut self) {
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.peer_port));
        let log = File::create(self.directory.path().join("log")).expect("a file can be made");
        let mut etcd = command("etcd");
        etcd.args(["--name", &self.name, "--data-dir"]).arg(self.data());
        etcd.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        etcd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        etcd.args(["--initial-cluster", &self.cluster, "--heartbeat-interval", "200", "--election-timeout", "2000"]);
        etcd.args(["--logger", "zap", "--log-outputs", "stderr"]).args(&self.options);
        etcd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(Running::start(&mut etcd));
    }

    /// Waits until it answers.
    pub(crate) fn ready(&self) {
        eventually(&format!("etcd answers: {}", self.directory.path().display()), || {
            let health = self.client(&["endpoint", "health"], b"");
            (health.code == Some(0)).then_some(())
        });
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.process.as_ref().expect("it runs").0.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        self.process.as_ref().expect("it runs").signal(name);
    }

    pub(crate) fn is_leader(&self) -> bool {
        let status = self.etcdctl(&["endpoint", "status", "--write-out", "simple"]);
        status.split(", ").nth(4) == Some("true")
    }

    /// Runs a command of etcdctl, which has to succeed.
    pub(crate) fn etcdctl(&self, arguments: &[&str]) -> String {
        self.client(arguments, b"").success()
    }

    pub(crate) fn put(&self, key: &str, value: &str) {
        self.client(&["put", key], value.as_bytes()).success();
    }

    pub(crate) fn change_password(&self, user: &str, password: &str) {
        self.client(&["user", "passwd", user, "--interactive=false"], format!("{password}\n").as_bytes()).success();
    }

    fn client(&self, arguments: &[&str], input: &[u8]) -> Outcome {
        let mut etcdctl = command("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").args(["--command-timeout", "20s", "--endpoints", &self.url()]);
        etcdctl.args(&self.client_options).args(arguments);
        if input.is_empty() { run(&mut etcdctl) } else { run_with_input(&mut etcdctl, input) }
    }

    /// Uses this user for the commands of [`Self::etcdctl`].
    pub(crate) fn log_in(&mut self, user: &str) {
        self.client_options = vec!["--user".to_owned(), user.to_owned()];
    }

    /// Saves a backup.
    pub(crate) fn backup(&self) -> PathBuf {
        let file = self.directory.path().join("backup");
        self.etcdctl(&["snapshot", "save", file.to_str().expect("the path is UTF-8")]);
        file
    }

    /// Stops it, and starts it from a backup. Another token makes another cluster.
    pub(crate) fn restore(&mut self, backup: &PathBuf, token: &str) {
        self.kill();
        self.generation += 1;
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let mut etcdctl = command("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(backup).arg("--data-dir").arg(self.data());
        etcdctl.args(["--name", &self.name, "--initial-cluster", &self.cluster]);
        etcdctl.args(["--initial-advertise-peer-urls", &peer, "--initial-cluster-token", token]);
        run(&mut etcdctl).success();
        self.run();
        self.ready();
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

/// A server that is none: it accepts connections and sends these bytes, or nothing.
#[derive(Debug)]
pub(crate) struct Garbage {
    address: SocketAddr,
}

impl Garbage {
    pub(crate) fn start(bytes: &'static [u8], is_closed: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("a listening socket has an address");
        thread::spawn(move || {
            for mut socket in listener.incoming().flatten() {
                thread::spawn(move || {
                    let _ = socket.write_all(bytes);
                    if !is_closed {
                        drain(&mut socket);
                    }
                });
            }
        });
        Self { address }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Reads until the client closes the connection.
fn drain(socket: &mut TcpStream) {
    let mut bytes = [0; 4096];
    while matches!(socket.read(&mut bytes), Ok(1..)) {}
}
