//! Envoy: one worker, tcp_proxy behind filter chains that match trusted sources.

use std::env;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Abilities, Launch, Listener, Program, Setup, TRUSTED};
use crate::fault::Result;
use crate::process::{find, version_line};
use crate::route::Route;

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

#[derive(Debug)]
pub(super) struct Envoy;

impl Program for Envoy {
    /// In PATH, or where scripts/install-bench-peers installs it: beside the build.
    fn find(&self) -> Option<PathBuf> {
        let own = env::current_exe().ok()?;
        let beside = own.ancestors().map(|above| above.join("bench-tools/envoy/_bin/envoy")).find(|path| path.exists());
        find("envoy").or(beside)
    }

    fn version(&self, program: &Path) -> String {
        version_line(program, "--version").replace(&program.display().to_string(), "envoy").trim().to_owned()
    }

    fn abilities(&self) -> Abilities {
        Abilities { routes: Route::REDIS, tls: true, allowlist: true, hybrid: true, many_rules: false }
    }

    fn launch(&self, setup: &Setup<'_>) -> Result<Launch> {
        let listeners: Vec<Value> = setup.listeners.iter().map(|listener| listener_json(*listener, setup)).collect();
        let clusters: Vec<Value> = setup.listeners.iter().map(|listener| cluster_json(*listener)).collect();
        let bootstrap = json!({ "static_resources": { "listeners": listeners, "clusters": clusters } });
        let text = serde_json::to_string_pretty(&bootstrap)?;
        let path = setup.write("envoy.json", &text)?;
        let path = path.display().to_string();
        let arguments = ["-c", &path, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"];
        Ok(Launch { arguments: arguments.map(str::to_owned).to_vec(), configuration: text })
    }
}

fn listener_json(listener: Listener, setup: &Setup<'_>) -> Value {
    let certificate = listener.certificate(setup.pki);
    let mutual = listener.route == Route::Mutual;
    let mut common = json!({
        "tls_certificates": [{
            "certificate_chain": { "filename": certificate.cert },
            "private_key": { "filename": certificate.key },
        }],
    });
    if let (true, Some(common)) = (mutual, common.as_object_mut()) {
        common.insert("validation_context".to_owned(), json!({ "trusted_ca": { "filename": setup.pki.ca } }));
    }
    let name = listener.route.name();
    json!({
        "name": name,
        "address": address(listener.port),
        "filter_chains": [{
            "filter_chain_match": { "source_prefix_ranges": [{ "address_prefix": TRUSTED, "prefix_len": 32 }] },
            "transport_socket": {
                "name": "tls",
                "typed_config": { "@type": TLS, "common_tls_context": common, "require_client_certificate": mutual },
            },
            "filters": [{
                "name": "tcp_proxy",
                "typed_config": { "@type": TCP_PROXY, "stat_prefix": name, "cluster": name, "idle_timeout": "3600s" },
            }],
        }],
    })
}

fn cluster_json(listener: Listener) -> Value {
    let name = listener.route.name();
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        // The default of 1,024 connections would end the memory rows.
        "circuit_breakers": { "thresholds": [{ "max_connections": 1_000_000, "max_pending_requests": 1_000_000 }] },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(listener.upstream) } }] }],
        },
    })
}

fn address(port: u16) -> Value {
    json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } })
}
