//! The process of the agent: start, environment, end.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::agent::frame::{MessageReader, MessageWriter};
use crate::agent::message::Task;
use crate::fleet::settings::{Engine, StoreSettings};
use crate::resolution::settings::{DigitalOceanSettings, KubernetesSettings, Secret};

/// The program that is the agent.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) path: OsString,
    pub(super) arguments: Vec<OsString>,
    /// Variables beside those that every agent has.
    pub(super) environment: Vec<(OsString, OsString)>,
}

impl Program {
    /// The binary that this process runs, even if its file was replaced.
    pub(super) fn itself() -> Self {
        Self { path: "/proc/self/exe".into(), arguments: vec!["agent".into()], environment: Vec::new() }
    }
}

/// A running agent. It is killed when this value is dropped.
#[derive(Debug)]
pub(super) struct AgentProcess {
    child: Child,
    process: u32,
    environment: BTreeMap<OsString, OsString>,
    pub(super) reader: MessageReader<OwnedReadHalf>,
    pub(super) writer: MessageWriter<OwnedWriteHalf>,
}

impl AgentProcess {
    /// Starts an agent whose standard input is one end of a socket pair. All other descriptors of this process are closed when
    /// it executes the program.
    ///
    /// # Errors
    /// If there are no more descriptors or processes.
    pub(super) fn start(program: &Program, task: &Task) -> io::Result<Self> {
        let (near, far) = StdStream::pair()?;
        near.set_nonblocking(true)?;
        let (read, write) = UnixStream::from_std(near)?.into_split();
        let environment = environment(task, |name| env::var_os(name));
        // The command holds the far end until it is dropped; the end of the agent could not be noticed before.
        let child = Command::new(&program.path)
            .args(&program.arguments)
            .env_clear()
            .envs(&environment)
            .envs(program.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(OwnedFd::from(far)))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            // Signals of a terminal, such as Ctrl-C, are for the program, which ends the agent.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let process = child.id().unwrap_or_default();
        let (reader, writer) = (MessageReader::new(read), MessageWriter::new(write));
        Ok(Self { child, process, environment, reader, writer })
    }

    pub(super) const fn id(&self) -> u32 {
        self.process
    }

    /// Whether the agent has all variables that the task needs.
    pub(super) fn has_environment(&self, task: &Task) -> bool {
        environment(task, |name| env::var_os(name))
            .iter()
            .all(|(name, value)| self.environment.get(name) == Some(value))
    }

    /// Closes the connection, upon which the agent ends. Returns its exit status for the log.
    pub(super) async fn stop(self) -> String {
        let Self { mut child, reader, writer, .. } = self;
        drop((reader, writer));
        ended(&mut child, STOP_TIMEOUT).await
    }

    /// Ends the agent, after a moment if it is about to end by itself. Returns its exit status for the log.
    pub(super) async fn kill(mut self, is_ending: bool) -> String {
        ended(&mut self.child, if is_ending { STOP_TIMEOUT } else { Duration::ZERO }).await
    }
}

/// Waits for the end of a process, and kills it after this time.
async fn ended(child: &mut Child, time: Duration) -> String {
    if let Ok(status) = timeout(time, child.wait()).await {
        return shown(status);
    }
    // An error means that it has ended already.
    let _ = child.start_kill();
    match timeout(KILL_TIMEOUT, child.wait()).await {
        Ok(status) => shown(status),
        Err(_) => "killed, but it has not ended".to_owned(),
    }
}

fn shown(status: io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

/// The variables of the agent: those that a task names, and those by which it finds certificates and the cluster. It gets no
/// other, because a variable may be a secret.
fn environment(task: &Task, value: impl Fn(&str) -> Option<OsString>) -> BTreeMap<OsString, OsString> {
    let digitalocean = task.digitalocean.as_ref().map(|DigitalOceanSettings { token, .. }| token);
    let kubernetes = task.kubernetes.as_ref().and_then(token);
    let store = task.store.as_ref().and_then(|StoreSettings { engine, .. }| match engine {
        Engine::Etcd(etcd) => etcd.login.as_ref().map(|login| &login.password),
        Engine::Kubernetes { connection, .. } => token(connection),
    });
    let secrets = digitalocean.into_iter().chain(kubernetes).chain(store).filter_map(|secret| match secret {
        Secret::Environment(name) => Some(name.as_str()),
        Secret::File(_) => None,
    });
    let known = secrets.chain(KEPT_VARIABLES).filter_map(|name| Some((OsStr::new(name).to_owned(), value(name)?)));
    known.collect()
}

fn token(settings: &KubernetesSettings) -> Option<&Secret> {
    match settings {
        KubernetesSettings::Server { token, .. } => token.as_ref(),
        KubernetesSettings::InCluster | KubernetesSettings::Kubeconfig { .. } => None,
    }
}

const KEPT_VARIABLES: [&str; 5] =
    ["CREDENTIALS_DIRECTORY", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "SSL_CERT_DIR", "SSL_CERT_FILE"];

/// How long an agent may take to end after its connection was closed.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a killed process may take to end. A process that the kernel cannot end is left behind.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::settings::{EtcdSettings, Login};
    use crate::resolution::settings::AddressChoice;

    #[test]
    fn environment_has_only_the_variables_that_a_task_needs() {
        let names = |task: &Task| {
            let names = environment(task, |name| Some(name.into())).into_keys();
            names.map(|name| name.into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(names(&Task::default()), KEPT_VARIABLES);
        assert!(environment(&Task::default(), |_| None).is_empty());
        let task = Task {
            digitalocean: Some(DigitalOceanSettings {
                token: Secret::Environment("DO_TOKEN".to_owned()),
                endpoint: "https://api.digitalocean.com".to_owned(),
                ca: None,
                refresh_ms: 60_000,
                addresses: AddressChoice::All,
            }),
            kubernetes: Some(KubernetesSettings::Server {
                server: "https://10.0.0.1".to_owned(),
                ca: None,
                token: Some(Secret::Environment("K8S_TOKEN".to_owned())),
            }),
            sources: Vec::new(),
            store: Some(StoreSettings {
                fleet: "prod".to_owned(),
                engine: Engine::Etcd(EtcdSettings {
                    endpoints: vec!["https://10.0.0.2:2379".to_owned()],
                    ca: None,
                    identity: None,
                    login: Some(Login {
                        user: "portcullis".to_owned(),
                        password: Secret::Environment("ETCD_PASSWORD".to_owned()),
                    }),
                    prefix: "/portcullis".to_owned(),
                }),
            }),
        };
        let own = names(&task).into_iter().filter(|name| !KEPT_VARIABLES.contains(&name.as_str()));
        assert_eq!(own.collect::<Vec<_>>(), ["DO_TOKEN", "ETCD_PASSWORD", "K8S_TOKEN"]);
    }
}
