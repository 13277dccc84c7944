//! A double of DigitalOcean's API, over TLS: droplets, clusters, NAT gateways and apps.
//!
//! It follows <https://github.com/digitalocean/openapi>: pages, links, totals, errors, headers of the rate limit. Tests make it
//! fail in each way that the API or the network between may fail.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

use super::upstream::{Secured, Upstream, showing};
use super::{TestDir, eventually};

/// The server. Its certificate is that of the directory's authority.
#[derive(Debug)]
pub(crate) struct DigitalOceanApi {
    server: Upstream,
    state: Arc<Mutex<State>>,
}

/// A request that it received.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) token: Option<String>,
}

/// How a request fails.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// This status, with these headers and this body.
    Status(u16, Vec<(&'static str, String)>, String),
    /// The right answer is cut off in the middle, and the connection is closed.
    Cut,
    /// The right length, but only half of the body, and then silence.
    Stall,
    /// A 200 with a body that is not JSON.
    Garbage,
    /// The right answer with another total.
    Total(usize),
    /// The total grows with each page.
    GrowingTotal,
    /// The link to the next page, on every page.
    Next(String),
    /// The first page again, whichever is requested.
    SamePage,
    /// A body longer than any list.
    Endless,
}

#[derive(Debug, Default)]
struct State {
    tokens: Vec<String>,
    droplets: BTreeMap<u64, Value>,
    /// Numbers of droplets with a GPU, which the default list leaves out.
    gpus: Vec<u64>,
    clusters: BTreeMap<String, Value>,
    gateways: Vec<Value>,
    apps: BTreeMap<String, Value>,
    /// By the beginning of the path.
    faults: BTreeMap<String, Fault>,
    seen: Vec<Seen>,
    /// `ratelimit-limit` and `ratelimit-remaining`
    rate_limit: Option<(u64, u64)>,
}

impl DigitalOceanApi {
    /// An empty account with this token.
    pub(crate) fn start(site: &TestDir, token: &str) -> Self {
        let state = Arc::new(Mutex::new(State { tokens: vec![token.to_owned()], ..State::default() }));
        let shared = Arc::clone(&state);
        let server = Upstream::tls(showing(&site.server()), move |stream| serve(stream, &shared));
        Self { server, state }
    }

    /// The value of `endpoint`.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.server)
    }

    /// The number of connections that it has accepted.
    pub(crate) fn connections(&self) -> usize {
        self.server.connections()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tokens that it accepts from now on.
    pub(crate) fn accept(&self, tokens: &[&str]) {
        self.state().tokens = tokens.iter().map(ToString::to_string).collect();
    }

    /// Adds or replaces a droplet. `networks` are addresses with their type.
    pub(crate) fn droplet(&self, id: u64, tags: &[&str], networks: &[(&str, &str)]) {
        let network = |is_v6| {
            let of_family = networks.iter().filter(move |(ip, _)| ip.contains(':') == is_v6);
            let network = |(ip, kind): &(&str, &str)| match is_v6 {
                true => json!({ "ip_address": ip, "netmask": 64, "gateway": "2001:db8::1", "type": kind }),
                false => json!({ "ip_address": ip, "netmask": "255.255.255.0", "gateway": null, "type": kind }),
            };
            of_family.map(network).collect::<Vec<_>>()
        };
        let droplet = json!({
            "id": id, "name": format!("web-{id}"), "memory": 1024, "vcpus": 1, "disk": 25, "locked": false, "status": "active",
            "kernel": null, "created_at": "2026-07-21T18:37:44Z", "features": ["private_networking"], "backup_ids": [],
            "next_backup_window": null, "snapshot_ids": [], "image": { "id": 63663980, "slug": "debian-13-x64", "regions": [] },
            "volume_ids": [], "size": { "slug": "s-1vcpu-1gb" }, "size_slug": "s-1vcpu-1gb",
            "networks": { "v4": network(false), "v6": network(true) }, "region": { "slug": "nyc3" }, "tags": tags,
            "vpc_uuid": "760e09ef-dc84-11e8-981e-3cfdfeaae000",
        });
        self.state().droplets.insert(id, droplet);
    }

    pub(crate) fn gpu_droplet(&self, id: u64, tags: &[&str], networks: &[(&str, &str)]) {
        self.droplet(id, tags, networks);
        self.state().gpus.push(id);
    }

    pub(crate) fn destroy_droplet(&self, id: u64) {
        self.state().droplets.remove(&id);
    }

    /// A cluster whose nodes are these droplets.
    pub(crate) fn cluster(&self, id: &str, vpc: &str, isolated: bool, nodes: &[u64]) {
        let node = |droplet: &u64| {
            json!({
                "id": format!("478247f8-b1bb-4f7a-8db9-{droplet:012}"), "name": format!("pool-{droplet}"),
                "status": { "state": "running" }, "droplet_id": droplet.to_string(),
            })
        };
        let mut nodes: Vec<_> = nodes.iter().map(node).collect();
        nodes.push(json!({ "id": "new", "name": "pool-new", "status": { "state": "provisioning" }, "droplet_id": "" }));
        let cluster = json!({
            "id": id, "name": "prod", "region": "nyc3", "version": "1.33.1-do.1", "vpc_uuid": vpc, "isolated_workers": isolated,
            "tags": ["k8s", format!("k8s:{id}")], "status": { "state": "running" },
            "node_pools": [{ "id": "cdda885e", "name": "pool", "size": "s-1vcpu-2gb", "count": nodes.len(), "nodes": nodes }],
        });
        self.state().clusters.insert(id.to_owned(), cluster);
    }

    pub(crate) fn gateway(&self, vpc: &str, ip: &str) {
        let mut state = self.state();
        let number = state.gateways.len();
        state.gateways.push(json!({
            "id": format!("70e1b58d-cdec-4e95-b3ee-{number:012}"), "name": format!("nat-{number}"), "type": "PUBLIC",
            "state": "ACTIVE", "region": "nyc3", "size": 1, "vpcs": [{ "vpc_uuid": vpc, "gateway_ip": "10.118.0.35" }],
            "egresses": { "public_gateways": [{ "ipv4": ip }] }, "udp_timeout_seconds": 30,
        }));
    }

    /// An app with these dedicated addresses and their status.
    pub(crate) fn app(&self, id: &str, addresses: &[(&str, &str)]) {
        let address = |(ip, status): &(&str, &str)| json!({ "ip": ip, "id": "c24d8f48", "status": status });
        let addresses: Vec<_> = addresses.iter().map(address).collect();
        let kind = if addresses.is_empty() { "AUTOASSIGN" } else { "DEDICATED_IP" };
        let app = json!({
            "id": id, "owner_uuid": "5a52b23a", "spec": { "name": "shop", "region": "nyc", "egress": { "type": kind } },
            "default_ingress": "https://shop.ondigitalocean.app", "dedicated_ips": addresses,
        });
        self.state().apps.insert(id.to_owned(), app);
    }

    pub(crate) fn delete_app(&self, id: &str) {
        self.state().apps.remove(id);
    }

    /// Lets requests fail whose path begins like this.
    pub(crate) fn fail(&self, path: &str, fault: Fault) {
        self.state().faults.insert(path.to_owned(), fault);
    }

    /// Ends all faults.
    pub(crate) fn recover(&self) {
        self.state().faults.clear();
    }

    pub(crate) fn limit_rate(&self, limit: u64, remaining: u64) {
        self.state().rate_limit = Some((limit, remaining));
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// Waits until this many requests have arrived.
    pub(crate) fn await_requests(&self, count: usize) {
        eventually("the requests arrive", || (self.seen().len() >= count).then_some(()));
    }
}

/// An answer of the API with this status.
pub(crate) fn error(status: u16) -> Fault {
    let (id, message) = match status {
        401 => ("unauthorized", "Unable to authenticate you."),
        403 => ("forbidden", "You do not have permission to perform this action."),
        404 => ("not_found", "The resource you requested could not be found."),
        429 => ("too_many_requests", "API rate limit exceeded."),
        _ => ("server_error", "Unexpected server-side error"),
    };
    Fault::Status(status, Vec::new(), json!({ "id": id, "message": message }).to_string())
}

/// Serves one connection until it is closed.
fn serve(mut stream: Secured, state: &Mutex<State>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while let Ok(1) = stream.read(&mut byte) {
        head.push(byte[0]);
        if head.ends_with(b"\r\n\r\n") {
            let is_open = answer(&mut stream, &String::from_utf8_lossy(&head), state);
            if !is_open {
                return;
            }
            head.clear();
        }
    }
}

/// Answers one request. Returns whether the connection stays open.
fn answer(stream: &mut Secured, head: &str, state: &Mutex<State>) -> bool {
    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let header = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
    };
    let token = header("authorization").and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned));
    let host = header("host").unwrap_or_default();
    let (status, mut headers, body, fault) = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.seen.push(Seen { at: Instant::now(), target: target.clone(), token: token.clone() });
        let (status, body) = state.answer(&target, token.as_deref(), &host, head.starts_with("GET "));
        let fault =
            state.faults.iter().rfind(|(path, _)| target.starts_with(path.as_str())).map(|(_, fault)| fault.clone());
        let headers: Vec<(&str, String)> = state.rate_limit.map_or_else(Vec::new, |(limit, remaining)| {
            vec![("ratelimit-limit", limit.to_string()), ("ratelimit-remaining", remaining.to_string())]
        });
        (status, headers, body, fault)
    };
    headers.push(("x-request-id", "5d9e1bd0-1b4f-4a8a-9f7e-5c5b0b5b5b5b".to_owned()));
    let (status, body) = match &fault {
        Some(Fault::Status(status, more, body)) => {
            headers.extend(more.iter().cloned());
            (*status, body.clone())
        }
        Some(Fault::Garbage) => (200, "<html>".to_owned()),
        Some(Fault::Endless) => (200, " ".repeat(17 << 20)),
        _ => (status, body.to_string()),
    };
    let mut bytes =
        format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        bytes += &format!("{name}: {value}\r\n");
    }
    bytes += "\r\n";
    let whole = match fault {
        Some(Fault::Cut | Fault::Stall) => &body[..body.len() / 2],
        _ => &body,
    };
    bytes += whole;
    let is_sent = stream.write_all(bytes.as_bytes()).and_then(|()| stream.flush()).is_ok();
    if matches!(fault, Some(Fault::Stall)) {
        let _ = stream.read(&mut [0]);
    }
    is_sent && !matches!(fault, Some(Fault::Cut | Fault::Stall))
}

impl State {
    fn answer(&self, target: &str, token: Option<&str>, host: &str, is_get: bool) -> (u16, Value) {
        let failed = |status, id: &str, message: &str| (status, json!({ "id": id, "message": message }));
        if !token.is_some_and(|token| self.tokens.iter().any(|known| known == token)) {
            return failed(401, "unauthorized", "Unable to authenticate you.");
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query: BTreeMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let found = |name: &str, object: Option<&Value>| object.map(|object| json!({ name: object }));
        let answer =
            match path.strip_prefix("/v2/").filter(|_| is_get).unwrap_or_default().split('/').collect::<Vec<_>>()[..] {
                ["droplets"] => Some(self.page(path, &self.droplets(&query), &query, host)),
                ["droplets", id] => found("droplet", id.parse().ok().and_then(|id: u64| self.droplets.get(&id))),
                ["kubernetes", "clusters", id] => found("kubernetes_cluster", self.clusters.get(id)),
                ["apps", id] => found("app", self.apps.get(id)),
                ["vpc_nat_gateways"] => Some(self.page(path, &self.gateways, &query, host)),
                _ => None,
            };
        match answer {
            Some(answer) => (200, answer),
            None => failed(404, "not_found", "The resource you requested could not be found."),
        }
    }

    fn droplets(&self, query: &BTreeMap<&str, &str>) -> Vec<Value> {
        let has_gpu = query.get("type") == Some(&"gpus");
        let of_type = self.droplets.iter().filter(|(id, _)| self.gpus.contains(id) == has_gpu);
        of_type.map(|(_, droplet)| droplet.clone()).collect()
    }

    fn page(&self, path: &str, items: &[Value], query: &BTreeMap<&str, &str>, host: &str) -> Value {
        let number = |name: &str, default: usize| query.get(name).and_then(|text| text.parse().ok()).unwrap_or(default);
        let (size, page) = (number("per_page", 20).clamp(1, 200), number("page", 1).max(1));
        let fault = self.faults.iter().rfind(|(prefix, _)| path.starts_with(prefix.as_str())).map(|(_, fault)| fault);
        let shown = if matches!(fault, Some(Fault::SamePage)) { 1 } else { page };
        let part: Vec<_> = items.iter().skip((shown - 1) * size).take(size).collect();
        let last = items.len().div_ceil(size).max(1);
        let kind = query.get("type").map(|kind| format!("&type={kind}")).unwrap_or_default();
        let link = |page: usize| json!(format!("https://{host}{path}?page={page}&per_page={size}{kind}"));
        let mut pages = serde_json::Map::new();
        if page > 1 {
            pages.insert("first".to_owned(), link(1));
            pages.insert("prev".to_owned(), link(page - 1));
        }
        if page < last {
            pages.insert("next".to_owned(), link(page + 1));
            pages.insert("last".to_owned(), link(last));
        }
        let mut total = items.len();
        match fault {
            Some(Fault::Total(other)) => total = *other,
            Some(Fault::GrowingTotal) => total += page,
            Some(Fault::Next(next)) => drop(pages.insert("next".to_owned(), json!(next))),
            _ => {}
        }
        let links = if pages.is_empty() { json!({}) } else { json!({ "pages": pages }) };
        let name = path.rsplit('/').next().unwrap_or_default();
        json!({ name: part, "links": links, "meta": { "total": total } })
    }
}
