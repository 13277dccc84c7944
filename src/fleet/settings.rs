//! How the store of a fleet is reached: `[fleet]` of the configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::resolution::settings::{KubernetesSettings, Secret};

/// The store of a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoreSettings {
    /// The name of the fleet.
    pub fleet: String,
    pub engine: Engine,
}

/// What the store is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Engine {
    Etcd(EtcdSettings),
    Kubernetes {
        connection: KubernetesSettings,
        /// `None` means the pod's.
        namespace: Option<String>,
    },
}

/// `[fleet.etcd]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EtcdSettings {
    /// At least one `http` or `https` URL without a path.
    pub endpoints: Vec<String>,
    /// PEM file of the trust anchors; `None` means those of the system.
    pub ca: Option<PathBuf>,
    /// PEM files of the client certificate and its key.
    pub identity: Option<Identity>,
    pub login: Option<Login>,
    /// Begins with `/` and does not end with one.
    pub prefix: String,
}

/// A client certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// A user of etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    pub user: String,
    pub password: Secret,
}
