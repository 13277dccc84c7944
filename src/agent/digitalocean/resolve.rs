//! From the API's objects to the addresses of a source.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::agent::digitalocean::shapes::{App, Cluster, Droplet, NatGateway};
use crate::printable;
use crate::resolution::observation::{Evidence, MAX_ADDRESSES, ObjectAddress, Observation};
use crate::resolution::settings::AddressChoice;
use crate::source::cloud::Tag;

/// The addresses of droplets.
pub(super) fn of_droplets<'a>(droplets: impl IntoIterator<Item = &'a Droplet>, choice: AddressChoice) -> Observation {
    let mut found = Found::default();
    for droplet in droplets {
        found.add_droplet(droplet, "droplet", &droplet.name, choice);
    }
    found.observation()
}

/// The addresses of the droplets with a tag. The API ignores the case of tags.
pub(super) fn of_tag(droplets: &BTreeMap<u64, Droplet>, tag: &Tag, choice: AddressChoice) -> Observation {
    let has_tag = |droplet: &&Droplet| droplet.tags.iter().any(|own| own.eq_ignore_ascii_case(tag.as_str()));
    of_droplets(droplets.values().filter(has_tag), choice)
}

/// The addresses of a cluster's nodes, and of the gateways by which nodes without public addresses reach the internet.
pub(super) fn of_cluster(
    cluster: &Cluster,
    droplet: impl Fn(u64) -> Option<Droplet>,
    gateways: &[NatGateway],
    choice: AddressChoice,
) -> Observation {
    let mut found = Found::default();
    for node in cluster.nodes() {
        if let Some(droplet) = node.droplet_id.parse().ok().and_then(&droplet) {
            found.add_droplet(&droplet, "node", &node.name, choice);
        }
    }
    if cluster.has_isolated_workers() && choice != AddressChoice::Private {
        let is_in_vpc = |gateway: &&NatGateway| gateway.vpcs.iter().any(|vpc| vpc.vpc_uuid == cluster.vpc_uuid);
        for gateway in gateways.iter().filter(is_in_vpc) {
            for address in &gateway.egresses.public_gateways {
                found.add(&address.ipv4, "NAT gateway", &gateway.name);
            }
        }
        if found.addresses.is_empty() && found.invalid.is_none() {
            let detail = "its workers are isolated, and its VPC has no NAT gateway with a public address".to_owned();
            return Observation::Unresolvable { detail };
        }
    }
    found.observation()
}

/// The egress addresses of an app. Without dedicated ones, it shares addresses with other customers.
pub(super) fn of_app(app: &App, choice: AddressChoice) -> Observation {
    let mut found = Found::default();
    if choice != AddressChoice::Private {
        for address in app.dedicated_ips.iter().filter(|address| address.is_assigned()) {
            found.add(&address.ip, "app", app.name());
        }
    }
    if choice != AddressChoice::Public {
        for address in app.egress_ips() {
            found.add(&address.ip, "app", app.name());
        }
    }
    if !found.addresses.is_empty() || found.invalid.is_some() {
        return found.observation();
    }
    let detail = match (app.dedicated_ips.is_empty(), choice) {
        (true, _) => {
            "the app has no dedicated egress addresses, so it shares its addresses with other customers; enable dedicated \
             egress IP addresses in its settings"
        }
        (false, AddressChoice::Private) => "the app has no address in a VPC, and addresses = \"private\"",
        (false, _) => "the dedicated egress addresses of the app are not assigned yet",
    };
    Observation::Unresolvable { detail: detail.to_owned() }
}

#[derive(Debug, Default)]
struct Found {
    addresses: Vec<ObjectAddress>,
    /// The first text that is not an address.
    invalid: Option<String>,
}

impl Found {
    fn add_droplet(&mut self, droplet: &Droplet, kind: &str, name: &str, choice: AddressChoice) {
        for network in droplet.networks.v4.iter().chain(&droplet.networks.v6) {
            let is_chosen = match choice {
                AddressChoice::All => true,
                AddressChoice::Public => network.kind == "public",
                AddressChoice::Private => network.kind == "private",
            };
            if is_chosen {
                self.add(&network.ip_address, kind, name);
            }
        }
    }

    fn add(&mut self, ip: &str, kind: &str, name: &str) {
        match ip.parse::<IpAddr>() {
            Ok(ip) => {
                let object = Arc::from(printable::quoted(format_args!("{kind} {name}")));
                self.addresses.push(ObjectAddress { ip: ip.to_canonical(), object });
            }
            // An object that is being made has no address yet.
            Err(_) if ip.is_empty() => {}
            Err(_) => self.invalid = self.invalid.take().or_else(|| Some(printable::quoted(ip))),
        }
    }

    fn observation(mut self) -> Observation {
        if let Some(text) = self.invalid {
            return Observation::Failed {
                error: printable::field(format_args!("the answer has an invalid address: {text}")),
            };
        }
        self.addresses.sort_unstable();
        self.addresses.dedup();
        if self.addresses.len() > MAX_ADDRESSES {
            let error = format!("{} addresses, and at most {MAX_ADDRESSES} are supported", self.addresses.len());
            return Observation::Failed { error };
        }
        Observation::Addresses { addresses: self.addresses, evidence: Evidence::List }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::agent::digitalocean::shapes::AppAnswer;
    use crate::agent::digitalocean::shapes::ClusterAnswer;

    fn droplet(id: u64, tags: &[&str]) -> Droplet {
        let public = json!({ "ip_address": format!("203.0.113.{id}"), "netmask": "255.255.255.0", "gateway": null, "type": "public" });
        let private = json!({ "ip_address": format!("10.0.0.{id}"), "gateway": "10.0.0.1", "type": "private" });
        let v6 = json!({ "ip_address": format!("2001:DB8::{id}"), "netmask": 64, "type": "public" });
        let networks = json!({ "v4": [public, private], "v6": [v6] });
        serde_json::from_value(json!({ "id": id, "name": format!("web-{id}"), "tags": tags, "networks": networks }))
            .unwrap()
    }

    /// `IP is OBJECT`, or the text of another observation.
    fn shown(observation: Observation) -> Vec<String> {
        match observation {
            Observation::Addresses { addresses, evidence: Evidence::List } => {
                addresses.iter().map(|address| format!("{} is {}", address.ip, address.object)).collect()
            }
            Observation::Failed { error: text } | Observation::Unresolvable { detail: text } => vec![text],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn droplet_has_the_addresses_that_are_chosen() {
        let addresses = |choice| shown(of_droplets([&droplet(7, &[])], choice));
        let private = "10.0.0.7 is droplet web-7";
        let public = ["203.0.113.7 is droplet web-7", "2001:db8::7 is droplet web-7"];
        assert_eq!(addresses(AddressChoice::All), [private, public[0], public[1]]);
        assert_eq!(addresses(AddressChoice::Private), [private]);
        assert_eq!(addresses(AddressChoice::Public), public);
    }

    #[test]
    fn tag_is_compared_without_case() {
        let droplets = BTreeMap::from([(1, droplet(1, &["Backend"])), (2, droplet(2, &["backend-2"]))]);
        let of = |tag: &str| shown(of_tag(&droplets, &tag.parse().unwrap(), AddressChoice::Private));
        assert_eq!(of("BACKEND"), ["10.0.0.1 is droplet web-1"]);
        assert!(of("other").is_empty());
    }

    #[test]
    fn invalid_address_is_no_answer() {
        let mut broken = droplet(1, &[]);
        broken.networks.v4[0].ip_address = "10.0.0".to_owned();
        assert_eq!(shown(of_droplets([&broken], AddressChoice::All)), ["the answer has an invalid address: 10.0.0"]);
        broken.networks.v4[0].ip_address = String::new();
        assert_eq!(shown(of_droplets([&broken], AddressChoice::All)).len(), 2, "it has no address yet");
        broken.networks.v4[0].ip_address = "::ffff:10.9.9.9".to_owned();
        assert_eq!(shown(of_droplets([&broken], AddressChoice::All))[1], "10.9.9.9 is droplet web-1");
    }

    fn cluster(isolated: bool) -> Cluster {
        let nodes = json!([{ "name": "pool-a1", "droplet_id": "1" }, { "name": "pool-a2", "droplet_id": "" }]);
        let cluster = json!({ "vpc_uuid": "v1", "isolated_workers": isolated, "node_pools": [{ "nodes": nodes }] });
        serde_json::from_value::<ClusterAnswer>(json!({ "kubernetes_cluster": cluster })).unwrap().kubernetes_cluster
    }

    #[test]
    fn isolated_workers_count_by_the_gateways_of_their_vpc() {
        let gateway = |vpc: &str, ip: &str| -> NatGateway {
            let egresses = json!({ "public_gateways": [{ "ipv4": ip }] });
            serde_json::from_value(
                json!({ "id": ip, "name": "nat", "vpcs": [{ "vpc_uuid": vpc }], "egresses": egresses }),
            )
            .unwrap()
        };
        let gateways = [gateway("v1", "198.51.100.1"), gateway("v2", "198.51.100.2")];
        let mut isolated = droplet(1, &[]);
        isolated.networks.v4.remove(0);
        isolated.networks.v6.clear();
        let of = |isolated_workers, gateways: &[NatGateway], choice| {
            let node = |id| (id == 1).then(|| isolated.clone());
            shown(of_cluster(&cluster(isolated_workers), node, gateways, choice))
        };
        let node = "10.0.0.1 is node pool-a1";
        assert_eq!(of(true, &gateways, AddressChoice::All), [node, "198.51.100.1 is NAT gateway nat"]);
        assert_eq!(of(true, &gateways, AddressChoice::Public), ["198.51.100.1 is NAT gateway nat"]);
        assert_eq!(of(true, &gateways, AddressChoice::Private), [node]);
        assert_eq!(of(false, &gateways, AddressChoice::All), [node]);
        let none = of(true, &[], AddressChoice::Public);
        assert_eq!(none, ["its workers are isolated, and its VPC has no NAT gateway with a public address"]);
    }

    fn app(app: Value, choice: AddressChoice) -> Vec<String> {
        shown(of_app(&serde_json::from_value::<AppAnswer>(json!({ "app": app })).unwrap().app, choice))
    }

    #[test]
    fn app_has_its_dedicated_addresses_or_a_reason() {
        let ip = |ip: &str, status: &str| json!({ "ip": ip, "id": "x", "status": status });
        let ips =
            json!([ip("198.51.100.7", "ASSIGNED"), ip("198.51.100.8", "ASSIGNING"), ip("198.51.100.9", "REMOVED")]);
        let whole = json!({ "spec": { "name": "shop" }, "dedicated_ips": ips, "vpc": { "egress_ips": [{ "ip": "10.1.0.7" }] } });
        let (public, private) = ("198.51.100.7 is app shop", "10.1.0.7 is app shop");
        assert_eq!(app(whole.clone(), AddressChoice::All), [private, public]);
        assert_eq!(app(whole.clone(), AddressChoice::Public), [public]);
        assert_eq!(app(whole, AddressChoice::Private), [private]);
        for (answer, choice, expected) in [
            (json!({}), AddressChoice::All, "the app has no dedicated egress addresses"),
            (json!({ "dedicated_ips": null }), AddressChoice::All, "the app has no dedicated egress addresses"),
            (
                json!({ "dedicated_ips": [ip("", "ASSIGNING")] }),
                AddressChoice::All,
                "the dedicated egress addresses of the app",
            ),
            (
                json!({ "dedicated_ips": [ip("1.2.3.4", "ASSIGNED")] }),
                AddressChoice::Private,
                "the app has no address in a VPC",
            ),
        ] {
            let texts = app(answer, choice);
            assert!(texts.len() == 1 && texts[0].starts_with(expected), "{texts:?}");
        }
    }
}
