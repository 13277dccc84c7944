//! The settings of `[fleet]`.

use crate::config::fleet::Fleet;
use crate::fleet::settings::{Engine, EtcdSettings};
use crate::policy::diff::resolvers::{connection, secret};
use crate::policy::diff::setting::{Setting, list, optional, plain};
use crate::policy::diff::value::{duration, path};

pub(crate) fn of_fleet(fleet: &Fleet) -> Vec<Setting> {
    // The directory follows from the name and state.directory; the files of the last two fields are those of the settings.
    let Fleet { store, member, key_file, ticket_rotation, directory: _, certificates: _, secrets: _ } = fleet;
    let mut settings = vec![
        plain("fleet.name", &store.fleet),
        plain(MEMBER, member),
        optional("fleet.key_file", key_file.as_ref().map(|file| path(&file.path))),
        plain("fleet.ticket_rotation", duration(*ticket_rotation)),
    ];
    match &store.engine {
        Engine::Etcd(etcd) => settings.extend(of_etcd(etcd)),
        Engine::Kubernetes { connection: kubernetes, namespace } => {
            let (kubeconfig, server, ca, token) = connection(kubernetes);
            settings.extend([
                plain("fleet.store", "kubernetes"),
                optional("fleet.kubernetes.namespace", namespace.as_ref()),
                optional("fleet.kubernetes.kubeconfig", kubeconfig),
                optional("fleet.kubernetes.server", server),
                optional("fleet.kubernetes.ca", ca),
                optional("fleet.kubernetes.token_file", token),
            ]);
        }
    }
    settings
}

fn of_etcd(settings: &EtcdSettings) -> Vec<Setting> {
    let EtcdSettings { endpoints, ca, identity, login, prefix } = settings;
    vec![
        plain("fleet.store", "etcd"),
        list("fleet.etcd.endpoints", endpoints.clone()),
        optional("fleet.etcd.ca", ca.as_deref().map(path)),
        optional("fleet.etcd.cert", identity.as_ref().map(|identity| path(&identity.cert))),
        optional("fleet.etcd.key", identity.as_ref().map(|identity| path(&identity.key))),
        optional("fleet.etcd.user", login.as_ref().map(|login| &login.user)),
        optional("fleet.etcd.password_file", login.as_ref().map(|login| secret(&login.password))),
        plain("fleet.etcd.prefix", prefix),
    ]
}

/// The key that differs between the members of a fleet.
pub(crate) const MEMBER: &str = "fleet.member";
