//! The settings of `[resolver]`.

use std::time::Duration;

use crate::config::resolver::Resolvers;
use crate::policy::diff::setting::{Setting, optional, plain};
use crate::policy::diff::value::{Exposure, duration, path};
use crate::resolution::settings::{AddressChoice, DigitalOceanSettings, KubernetesSettings, Secret};

pub(crate) fn of_resolvers(resolvers: &Resolvers) -> Vec<Setting> {
    // The files of the other two fields are those of the settings.
    let Resolvers { digitalocean, kubernetes, ca: _, secrets: _ } = resolvers;
    let mut settings = digitalocean.as_ref().map(of_digitalocean).unwrap_or_default();
    settings.extend(kubernetes.as_ref().map(of_kubernetes).unwrap_or_default());
    settings
}

fn of_digitalocean(settings: &DigitalOceanSettings) -> Vec<Setting> {
    let DigitalOceanSettings { token, endpoint, ca, refresh_ms, addresses } = settings;
    let (word, admitted) = match addresses {
        AddressChoice::All => ("all", [1, 1]),
        AddressChoice::Public => ("public", [1, 0]),
        AddressChoice::Private => ("private", [0, 1]),
    };
    vec![
        plain("resolver.digitalocean.token_file", secret(token)),
        plain("resolver.digitalocean.endpoint", endpoint),
        optional("resolver.digitalocean.ca", ca.as_deref().map(path)),
        plain("resolver.digitalocean.refresh", duration(Duration::from_millis(*refresh_ms))),
        plain("resolver.digitalocean.addresses", word).exposing(Exposure::Degrees(admitted.to_vec())),
    ]
}

fn of_kubernetes(settings: &KubernetesSettings) -> Vec<Setting> {
    let (kubeconfig, server, ca, token) = connection(settings);
    vec![
        optional("resolver.kubernetes.kubeconfig", kubeconfig),
        optional("resolver.kubernetes.server", server),
        optional("resolver.kubernetes.ca", ca),
        optional("resolver.kubernetes.token_file", token),
    ]
}

/// The values of `kubeconfig`, `server`, `ca` and `token_file`.
pub(crate) fn connection(
    settings: &KubernetesSettings,
) -> (Option<String>, Option<String>, Option<String>, Option<String>) {
    match settings {
        KubernetesSettings::InCluster => (None, Some("in cluster".to_owned()), None, None),
        KubernetesSettings::Kubeconfig { file } => (Some(path(file)), None, None, None),
        KubernetesSettings::Server { server, ca, token } => {
            (None, Some(server.clone()), ca.as_deref().map(path), token.as_ref().map(secret))
        }
    }
}

pub(crate) fn secret(secret: &Secret) -> String {
    match secret {
        Secret::File(file) => path(file),
        Secret::Environment(name) => format!("env:{name}"),
    }
}
