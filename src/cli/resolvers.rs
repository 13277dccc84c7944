//! The resolvers of cloud sources, as `check` prints them.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::config::resolver::Resolvers;
use crate::resolution::settings::{AddressChoice, KubernetesSettings};

/// Writes a paragraph for each resolver.
pub(crate) fn write(out: &mut String, resolvers: &Resolvers) {
    if let Some(settings) = &resolvers.digitalocean {
        let _ = writeln!(out, "\nresolver digitalocean");
        let _ = writeln!(out, "  {:<13} {}", "endpoint", settings.endpoint);
        let _ = writeln!(out, "  {:<13} {} ms", "refresh", settings.refresh_ms);
        let _ = writeln!(out, "  {:<13} {}", "addresses", addresses(settings.addresses));
    }
    if let Some(settings) = &resolvers.kubernetes {
        let _ = writeln!(out, "\nresolver kubernetes");
        let _ = writeln!(out, "  {:<13} {}", "server", server(settings));
    }
}

/// The same as JSON; `null` for a resolver that is not configured.
pub(crate) fn to_json(resolvers: &Resolvers) -> Value {
    let digitalocean = resolvers.digitalocean.as_ref().map(|settings| {
        json!({
            "endpoint": settings.endpoint,
            "refresh_ms": settings.refresh_ms,
            "addresses": addresses(settings.addresses),
        })
    });
    let kubernetes = resolvers.kubernetes.as_ref().map(|settings| json!({ "server": server(settings) }));
    json!({ "digitalocean": digitalocean, "kubernetes": kubernetes })
}

const fn addresses(choice: AddressChoice) -> &'static str {
    match choice {
        AddressChoice::All => "all",
        AddressChoice::Public => "public",
        AddressChoice::Private => "private",
    }
}

fn server(settings: &KubernetesSettings) -> String {
    match settings {
        KubernetesSettings::InCluster => "the cluster of this pod".to_owned(),
        KubernetesSettings::Kubeconfig { file } => format!("the current context of {}", file.display()),
        KubernetesSettings::Server { server, .. } => server.clone(),
    }
}
