//! How the APIs of clouds and clusters are reached: `[resolver.…]` of the configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[resolver.digitalocean]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DigitalOceanSettings {
    pub token: Secret,
    /// An `https` URL. Requests and the token go to this host only.
    pub endpoint: String,
    /// PEM file of the trust anchors; `None` means those of the system.
    pub ca: Option<PathBuf>,
    /// Milliseconds between two polls, at least 1000.
    pub refresh_ms: u64,
    pub addresses: AddressChoice,
}

/// Which addresses of a droplet count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AddressChoice {
    #[default]
    All,
    Public,
    Private,
}

/// `[resolver.kubernetes]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "connection", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum KubernetesSettings {
    /// The service account of the pod.
    InCluster,
    /// The current context of a kubeconfig file.
    Kubeconfig { file: PathBuf },
    /// An API server by its URL.
    Server { server: String, ca: Option<PathBuf>, token: Option<Secret> },
}

/// Where the agent reads a secret. It reads it again when it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Secret {
    /// A file, also that of a systemd credential.
    File(PathBuf),
    /// A variable of the environment.
    Environment(String),
}
