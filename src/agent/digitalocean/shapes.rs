//! The parts of DigitalOcean's answers that matter (<https://github.com/digitalocean/openapi>). Unknown members are ignored.

use serde::{Deserialize, Deserializer};

/// One page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page<T> {
    #[serde(
        alias = "droplets",
        alias = "vpc_nat_gateways",
        deserialize_with = "nullable",
        bound = "T: Deserialize<'de>"
    )]
    pub(super) items: Vec<T>,
    #[serde(default)]
    links: Option<Links>,
    meta: Meta,
}

#[derive(Debug, Deserialize)]
struct Links {
    #[serde(default)]
    pages: Option<Pages>,
}

#[derive(Debug, Deserialize)]
struct Pages {
    #[serde(default)]
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Meta {
    total: usize,
}

impl<T> Page<T> {
    /// The number of items on all pages.
    pub(super) const fn total(&self) -> usize {
        self.meta.total
    }

    /// The link to the next page.
    pub(super) fn next(&self) -> Option<&str> {
        self.links.as_ref()?.pages.as_ref()?.next.as_deref()
    }
}

/// An item of a list.
pub(super) trait Item {
    /// What no other item of the list has.
    fn id(&self) -> String;
}

/// `GET /v2/droplets/{id}`
#[derive(Debug, Deserialize)]
pub(super) struct DropletAnswer {
    pub(super) droplet: Droplet,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Droplet {
    pub(super) id: u64,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) tags: Vec<String>,
    #[serde(default)]
    pub(super) networks: Networks,
}

impl Item for Droplet {
    fn id(&self) -> String {
        self.id.to_string()
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Networks {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) v4: Vec<Network>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) v6: Vec<Network>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Network {
    pub(super) ip_address: String,
    /// `public` or `private`.
    #[serde(rename = "type")]
    pub(super) kind: String,
}

/// `GET /v2/kubernetes/clusters/{id}`
#[derive(Debug, Deserialize)]
pub(super) struct ClusterAnswer {
    pub(super) kubernetes_cluster: Cluster,
}

#[derive(Debug, Deserialize)]
pub(super) struct Cluster {
    #[serde(default)]
    pub(super) vpc_uuid: String,
    #[serde(default)]
    isolated_workers: Option<bool>,
    #[serde(deserialize_with = "nullable")]
    pub(super) node_pools: Vec<NodePool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct NodePool {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Node {
    #[serde(default)]
    pub(super) name: String,
    /// The number of its droplet; empty while it is provisioned.
    #[serde(default)]
    pub(super) droplet_id: String,
}

impl Cluster {
    /// Whether its nodes have no public addresses.
    pub(super) fn has_isolated_workers(&self) -> bool {
        self.isolated_workers == Some(true)
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.node_pools.iter().flat_map(|pool| &pool.nodes)
    }
}

/// An item of `GET /v2/vpc_nat_gateways`.
#[derive(Debug, Deserialize)]
pub(super) struct NatGateway {
    id: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) vpcs: Vec<GatewayVpc>,
    #[serde(default)]
    pub(super) egresses: Egresses,
}

impl Item for NatGateway {
    fn id(&self) -> String {
        self.id.clone()
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct GatewayVpc {
    pub(super) vpc_uuid: String,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Egresses {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) public_gateways: Vec<PublicGateway>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PublicGateway {
    #[serde(default)]
    pub(super) ipv4: String,
}

/// `GET /v2/apps/{id}`
#[derive(Debug, Deserialize)]
pub(super) struct AppAnswer {
    pub(super) app: App,
}

#[derive(Debug, Deserialize)]
pub(super) struct App {
    #[serde(default)]
    spec: AppSpec,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) dedicated_ips: Vec<DedicatedIp>,
    #[serde(default)]
    vpc: Option<AppVpc>,
}

#[derive(Debug, Default, Deserialize)]
struct AppSpec {
    #[serde(default)]
    name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct DedicatedIp {
    #[serde(default)]
    pub(super) ip: String,
    #[serde(default)]
    status: String,
}

impl DedicatedIp {
    /// Whether the address belongs to the app.
    pub(super) fn is_assigned(&self) -> bool {
        self.status == "ASSIGNED"
    }
}

#[derive(Debug, Deserialize)]
struct AppVpc {
    #[serde(default, deserialize_with = "nullable")]
    egress_ips: Vec<EgressIp>,
}

#[derive(Debug, Deserialize)]
pub(super) struct EgressIp {
    #[serde(default)]
    pub(super) ip: String,
}

impl App {
    pub(super) fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its addresses in a VPC.
    pub(super) fn egress_ips(&self) -> &[EgressIp] {
        self.vpc.as_ref().map_or(&[], |vpc| &vpc.egress_ips)
    }
}

/// The body of an error.
#[derive(Debug, Deserialize)]
pub(super) struct ApiError {
    pub(super) message: String,
}

/// A list that may be `null`.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
