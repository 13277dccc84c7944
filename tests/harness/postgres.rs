//! A PostgreSQL server for one test.

use std::env;
use std::fmt::{self, Display, Formatter};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::OnceLock;

use tempfile::TempDir;

use super::program::{self, Running};
use super::{Authority, Leaf, TestDir, eventually};

/// All users may do everything without a password, except `keyed`, which needs one.
const HBA: &str = "local all all trust\n\
                   host all keyed 127.0.0.1/32 scram-sha-256\n\
                   host all all 127.0.0.1/32 trust\n";
/// The same with TLS required: `certified` needs a certificate of that name, `keyed` a password.
const HBA_TLS: &str = "local all all trust\n\
                       hostssl all keyed 127.0.0.1/32 scram-sha-256\n\
                       hostssl all certified 127.0.0.1/32 trust clientcert=verify-full\n\
                       hostssl all all 127.0.0.1/32 trust\n";
/// The same with a certificate required too, except for standbys.
const HBA_CERTIFIED: &str = "local all all trust\n\
                             local replication all trust\n\
                             hostssl all keyed 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\n\
                             hostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n";
const READY: &str = "database system is ready to accept connections";
const READ_ONLY: &str = "database system is ready to accept read-only connections";

/// A server on a free port of 127.0.0.1 and on a Unix socket, with the superuser `app`.
#[derive(Debug)]
pub(crate) struct Postgres {
    process: Running,
    directory: TempDir,
    port: u16,
}

impl Postgres {
    pub(crate) fn start() -> Self {
        Self::serve(copied(), &[])
    }

    /// One with TLS that presents `own` and verifies clients by the CA of the directory.
    pub(crate) fn with_tls(site: &TestDir, own: &Leaf) -> Self {
        let directory = copied();
        install(&directory, own, &site.ca.pem());
        keep(&directory, "pg_hba.conf", HBA_TLS);
        Self::serve(directory, &["-c", "ssl=on", "-c", "ssl_ca_file=root.crt"])
    }

    fn serve(directory: TempDir, options: &[&str]) -> Self {
        let with_options = |port| {
            let mut server = server(&directory, port);
            server.args(options);
            server
        };
        let (process, port) = program::serve(READY, with_options);
        Self { process, directory, port }
    }

    /// Presents another certificate from now on, and verifies clients by these CAs.
    pub(crate) fn use_certificate(&self, own: &Leaf, clients: &str) {
        install(&self.directory, own, clients);
        self.reread();
    }

    /// A primary, with a password for `keyed`.
    pub(crate) fn primary() -> Self {
        let directory = copied();
        keep(&directory, "pg_hba.conf", &format!("local replication all trust\n{HBA}"));
        let primary = Self::serve(directory, &[]);
        primary.direct("create role keyed login password 'open sesame'");
        primary
    }

    /// A standby that follows another server.
    pub(crate) fn following(primary: &Self) -> Self {
        let directory = directory();
        let source = format!("host={} port={} user=app", primary.directory.path().display(), primary.port);
        let mut copy = as_servant("pg_basebackup");
        copy.args(["--no-sync", "-R", "-X", "stream", "-c", "fast", "-d", &source, "-D"]).arg(data(&directory));
        program::run(&mut copy).success();
        let (process, port) = program::serve(READ_ONLY, |port| server(&directory, port));
        let standby = Self { process, directory, port };
        assert_eq!(standby.direct("select pg_is_in_recovery()"), "t");
        standby
    }

    /// Presents this certificate from now on, and requires TLS and a client certificate of this CA on TCP connections.
    pub(crate) fn demand_certificates(&self, own: &Leaf, clients: &Authority) {
        install(&self.directory, own, &clients.pem());
        keep(&self.directory, "pg_hba.conf", HBA_CERTIFIED);
        self.direct("alter system set ssl_ca_file = 'root.crt'");
        self.direct("alter system set ssl = on");
        self.direct("select pg_reload_conf()");
        eventually("the server has TLS", || (self.direct("show ssl") == "on").then_some(()));
    }

    /// Makes a standby the primary.
    pub(crate) fn promote(&self) {
        assert_eq!(self.direct("select pg_promote()"), "t");
    }

    /// Sends a signal: `TERM` waits for the last session, `INT` ends them, `QUIT` ends at once. `STOP` and `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Waits for it to end.
    pub(crate) fn ends(&mut self) {
        self.process.exit_code();
    }

    /// Starts it again on the same port.
    pub(crate) fn start_again(&mut self) {
        let again = program::serve_on(self.port, READY, |port| server(&self.directory, port));
        self.process = again.expect("nobody else took the port");
    }

    /// Its Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join(format!(".s.PGSQL.{}", self.port))
    }

    /// Requires a password of this role at the Unix socket, too.
    pub(crate) fn ask_for_passwords_at_its_socket(&self, role: &str) {
        keep(&self.directory, "pg_hba.conf", &format!("local all {role} scram-sha-256\n{HBA}"));
        self.reread();
    }

    /// Requires a password of this role on TCP connections by this method, such as `md5`.
    pub(crate) fn ask_by(&self, role: &str, method: &str) {
        keep(&self.directory, "pg_hba.conf", &format!("host all {role} 127.0.0.1/32 {method}\n{HBA}"));
        self.reread();
    }

    /// Reloads its configuration, and waits for that.
    fn reread(&self) {
        let before = self.direct("select pg_conf_load_time()");
        self.process.signal("HUP");
        eventually("the server reads its files", || {
            (self.direct("select pg_conf_load_time()") != before).then_some(())
        });
    }

    /// The result of SQL over its Unix socket, not through Portcullis.
    pub(crate) fn direct(&self, sql: &str) -> String {
        program::run(self.psql().args(["-c", sql])).success().trim_end().to_owned()
    }

    /// `psql` over the Unix socket.
    pub(crate) fn psql(&self) -> Command {
        let mut command = client("psql");
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d"]);
        let directory = self.directory.path().display();
        command.arg(format!("host={directory} port={} user=app dbname=postgres", self.port));
        command
    }
}

impl Display for Postgres {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "127.0.0.1:{}", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // An immediate shutdown, which ends its children and frees its shared memory.
        if self.process.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.process.signal("QUIT");
            self.process.exit_code();
        }
    }
}

/// A client program of PostgreSQL, without settings from the home directory and the environment.
pub(crate) fn client(name: &str) -> Command {
    let mut command = program::command(name);
    for (variable, _) in env::vars_os() {
        if variable.to_string_lossy().starts_with("PG") {
            command.env_remove(variable);
        }
    }
    command.env("HOME", "/nonexistent");
    command
}

fn server(directory: &TempDir, port: u16) -> Command {
    let mut command = as_servant("postgres");
    command.arg("-D").arg(data(directory)).arg("-k").arg(directory.path());
    command.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
    command.args(["-c", "fsync=off", "-c", "autovacuum=off", "-c", "shared_buffers=32MB"]);
    command
}

/// A directory with a new cluster.
fn copied() -> TempDir {
    let directory = directory();
    program::run(Command::new("cp").arg("-a").arg(template()).arg(data(&directory))).success();
    directory
}

/// A freshly initialised cluster to copy, made once for all tests and all runs.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let version = program::run(program::command("postgres").arg("--version")).success();
        let major: String = version.chars().filter(char::is_ascii_digit).take(2).collect();
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let template = kept.join(format!("postgres-{major}-of-{}", user()));
        if !template.exists() {
            // Made where the user of the server has access, kept in the build directory.
            let directory = directory();
            let mut initdb = as_servant("initdb");
            initdb.args(["-U", "app", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
            program::run(initdb.arg("-D").arg(data(&directory))).success();
            fs::write(data(&directory).join("pg_hba.conf"), HBA).expect("a file can be written");
            let mine = kept.join(format!("postgres-{}", process::id()));
            program::run(Command::new("cp").arg("-a").arg(data(&directory)).arg(&mine)).success();
            if fs::rename(&mine, &template).is_err() {
                fs::remove_dir_all(&mine).expect("another run made one at the same time");
            }
        }
        template
    })
}

/// Writes a certificate, its key, and the CAs of clients where the server reads them.
fn install(directory: &TempDir, own: &Leaf, clients: &str) {
    keep(directory, "server.crt", &own.pem());
    keep(directory, "server.key", &own.key_pem());
    keep(directory, "root.crt", clients);
}

/// Writes a file that only the server can read.
fn keep(directory: &TempDir, name: &str, text: &str) {
    let (path, beside) = (data(directory).join(name), data(directory).join("beside"));
    fs::write(&beside, text).expect("a file can be written");
    fs::set_permissions(&beside, Permissions::from_mode(0o600)).expect("it is ours");
    own(&beside);
    fs::rename(&beside, path).expect("a file can be renamed");
}

fn data(directory: &TempDir) -> PathBuf {
    directory.path().join("data")
}

/// A directory that the server's user owns.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("it is ours");
    own(directory.path());
    directory
}

fn own(path: &Path) {
    if user() == 0 {
        program::run(Command::new("chown").arg("postgres:").arg(path)).success();
    }
}

/// PostgreSQL refuses to run as root, so that tests of root run it as its own user.
fn as_servant(program: &str) -> Command {
    let path = program::find(program);
    let mut command = program::tied(&path);
    if user() == 0 {
        let options = ["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig", "KILL"];
        command = program::setpriv(&options, &path);
    }
    command.current_dir("/");
    command
}

fn user() -> u32 {
    fs::metadata("/proc/self").expect("there is a /proc").uid()
}
