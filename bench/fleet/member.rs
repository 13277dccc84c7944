//! The replicas: each a program with a listener whose rules are in the store.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use portcullis::timestamp;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::fault::{Context as _, Fault, Result};
use crate::pki::Pki;
use crate::process::Running;
use crate::sessions::Echo;
use crate::store::{FLEET, Store};

/// The files of a run, and the upstream of all members.
#[derive(Debug)]
pub(crate) struct Site {
    /// Before `directory`, whose files it uses.
    upstream: Echo,
    directory: TempDir,
    pub(crate) pki: Pki,
    binary: PathBuf,
}

impl Site {
    pub(crate) async fn new(binary: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let pki = Pki::make(directory.path())?;
        let upstream = Echo::start(directory.path()).await?;
        Ok(Self { upstream, directory, pki, binary: binary.to_owned() })
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts members and waits until each knows all others.
    pub(crate) async fn members(&self, count: usize, store: &Store) -> Result<Vec<Member>> {
        let mut members = (0..count).map(|number| self.member(number, store)).collect::<Result<Vec<_>>>()?;
        for member in &mut members {
            member.wait_for("ready", |member| member.address).await?;
        }
        let deadline = Instant::now() + PATIENCE;
        for member in &members {
            loop {
                let live = member.live_members().await.unwrap_or_default();
                if live == count {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(format!("{live} of {count} members are live; {}", member.process.log_tail()).into());
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(members)
    }

    fn member(&self, number: usize, store: &Store) -> Result<Member> {
        let home = self.directory().join(format!("m{number}"));
        fs::create_dir(&home).context(|| format!("cannot create {}", home.display()))?;
        let config = home.join("portcullis.toml");
        let (cert, key) = (self.pki.ecdsa.cert.display(), self.pki.ecdsa.key.display());
        let text = format!(
            "state.directory = \"state\"\nadmin.listen = \"unix:admin.sock\"\n\
             [fleet]\nname = \"{FLEET}\"\nmember = \"m{number}\"\nstore = \"etcd\"\n\
             [fleet.etcd]\nendpoints = [\"{}\"]\n\
             [[listener]]\nname = \"cache\"\nprotocol = \"tcp\"\nlisten = \"127.0.0.1:0\"\nsources_store = \"fleet\"\n\
             upstream = \"{}\"\n[listener.tls]\ncertificates = [{{ cert = \"{cert}\", key = \"{key}\" }}]\n",
            store.url(),
            self.upstream.address(),
        );
        fs::write(&config, text).context(|| format!("cannot write {}", config.display()))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.binary).arg("run").arg("-c").arg(&config);
        command.current_dir(&home);
        let log = home.join("log");
        // Nobody needs a farewell.
        let process = Running::start(command, &log)?.stop_signal(Signal::SIGKILL);
        let lines = BufReader::new(File::open(&log)?);
        Ok(Member { process, lines, socket: home.join("admin.sock"), added: HashMap::new(), address: None })
    }
}

/// A running replica.
#[derive(Debug)]
pub(crate) struct Member {
    process: Running,
    lines: BufReader<File>,
    socket: PathBuf,
    /// When each rule was in force at the latest, since 1970.
    added: HashMap<String, Duration>,
    address: Option<SocketAddr>,
}

impl Member {
    /// Where the listener accepts clients.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Waits until a rule is in force. Returns when it was at the latest, since 1970.
    pub(crate) async fn has(&mut self, rule: &str) -> Result<Duration> {
        self.wait_for(rule, |member| member.added.get(rule).copied()).await
    }

    async fn wait_for<T>(&mut self, what: &str, of: impl Fn(&Self) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.read()?;
            if let Some(found) = of(self) {
                return Ok(found);
            }
            self.process.check_alive()?;
            if Instant::now() > deadline {
                return Err(format!("no event {what}; end of the log: {}", self.process.log_tail()).into());
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Reads the new lines of the log.
    fn read(&mut self) -> Result<()> {
        let mut line = String::new();
        loop {
            let read = self.lines.read_line(&mut line)?;
            if read == 0 || !line.ends_with('\n') {
                // A part of a line stays in the file until its rest is there.
                self.lines.seek_relative(-i64::try_from(read)?)?;
                return Ok(());
            }
            let event: Value = serde_json::from_str(&line).context(|| format!("a line of the log: {line}"))?;
            let field = |name: &str| event.get(name).and_then(Value::as_str);
            match field("event") {
                // The event comes after the policy is published, and the sessions that it ends learn of it.
                Some("source.added") => {
                    let rule = field("rule").ok_or("an event without a rule")?;
                    let at = field("ts").and_then(timestamp::parse).ok_or("an event without a time")?;
                    let at = Duration::from_nanos(u64::try_from(at.unix_timestamp_nanos())?);
                    self.added.entry(rule.to_owned()).or_insert(at + RESOLUTION);
                }
                Some("ready") => {
                    let address = event.pointer("/addresses/0").and_then(Value::as_str);
                    self.address = address.and_then(|text| text.parse().ok());
                }
                _ => {}
            }
            line.clear();
        }
    }

    /// Replaces all rules.
    pub(crate) async fn put(&self, rules: &Value) -> Result<Answer> {
        let answer = self.change("PUT", rules).await?;
        if answer.is_done() { Ok(answer) } else { Err(answer.into_error()) }
    }

    /// Changes the rules.
    pub(crate) async fn change(&self, method: &str, rules: &Value) -> Result<Answer> {
        self.request(method, "/v1/listeners/cache/sources", &rules.to_string()).await
    }

    async fn live_members(&self) -> Result<usize> {
        let answer = self.request("GET", "/v1/fleet", "").await?;
        let fleet: Value = serde_json::from_str(answer.body())?;
        let members = fleet.get("members").and_then(Value::as_array);
        let is_live = |member: &&Value| member.get("state").is_some_and(|state| state == "live");
        Ok(members.map_or(0, |members| members.iter().filter(is_live).count()))
    }

    async fn request(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        let exchange = async {
            let asked = since_1970();
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.as_bytes()).await?;
            let mut text = vec![0; 1];
            stream.read_exact(&mut text).await?;
            let answered = since_1970();
            stream.read_to_end(&mut text).await?;
            Ok(Answer { asked, answered, text: String::from_utf8(text)? })
        };
        timeout(PATIENCE, exchange).await?
    }
}

/// An answer of the admin API.
#[derive(Debug)]
pub(crate) struct Answer {
    /// When the request began, since 1970.
    pub(crate) asked: Duration,
    /// When the answer began, since 1970.
    pub(crate) answered: Duration,
    text: String,
}

impl Answer {
    pub(crate) fn status(&self) -> &str {
        self.text.split(' ').nth(1).unwrap_or_default()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.status().starts_with('2')
    }

    /// Whether the change is in the store, and not yet in force at the member that was asked.
    pub(crate) fn is_late(&self) -> bool {
        self.status() == "503" && self.body().contains("the change is in the store")
    }

    pub(crate) fn into_error(self) -> Fault {
        format!("a change of rules was answered with {} {}", self.status(), self.body()).into()
    }

    fn body(&self) -> &str {
        self.text.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }
}

/// The clock of the log.
pub(crate) fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The log cuts times to this.
const RESOLUTION: Duration = Duration::from_millis(1);

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);
