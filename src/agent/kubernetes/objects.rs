//! The addresses of objects, and the set of all objects of one source.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::printable;
use crate::resolution::observation::{MAX_ADDRESSES, ObjectAddress};
use crate::source::cloud::KubernetesSource;

/// An object that has addresses.
pub(super) trait Addressed {
    /// Its addresses. Text that is no address is skipped, and never admits anyone.
    fn addresses(&self, source: &KubernetesSource) -> Vec<ObjectAddress>;
}

/// The addresses of the types InternalIP and ExternalIP.
impl Addressed for Node {
    fn addresses(&self, _: &KubernetesSource) -> Vec<ObjectAddress> {
        let object = label("node", None, self.metadata.name.as_deref());
        let addresses = self.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let of_node = addresses.filter(|address| matches!(address.type_.as_str(), "InternalIP" | "ExternalIP"));
        of_node.filter_map(|address| object_address(&address.address, &object)).collect()
    }
}

/// A pod that has ended no longer owns its address, which may belong to another pod already. The address of a pod in the
/// network of its host is that of the node.
impl Addressed for Pod {
    fn addresses(&self, _: &KubernetesSource) -> Vec<ObjectAddress> {
        let Some(status) = &self.status else { return Vec::new() };
        let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if has_ended || self.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
            return Vec::new();
        }
        let object = label("pod", self.metadata.namespace.as_deref(), self.metadata.name.as_deref());
        let ips = status.pod_ips.iter().flatten().map(|pod_ip| pod_ip.ip.as_str());
        ips.filter_map(|ip| object_address(ip, &object)).collect()
    }
}

/// Every endpoint of IPv4 and IPv6 slices, whether it is ready or not.
impl Addressed for EndpointSlice {
    fn addresses(&self, source: &KubernetesSource) -> Vec<ObjectAddress> {
        if !matches!(self.address_type.as_str(), "IPv4" | "IPv6") {
            return Vec::new();
        }
        let namespace = self.metadata.namespace.as_deref();
        let of_endpoint = |endpoint: &Endpoint| {
            let object = endpoint_label(endpoint, namespace, source);
            let addresses = endpoint.addresses.iter();
            addresses.filter_map(|address| object_address(address, &object)).collect::<Vec<_>>()
        };
        self.endpoints.iter().flat_map(of_endpoint).collect()
    }
}

fn endpoint_label(endpoint: &Endpoint, namespace: Option<&str>, source: &KubernetesSource) -> Arc<str> {
    let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    match (pod, source) {
        (Some(pod), _) => label("pod", pod.namespace.as_deref().or(namespace), pod.name.as_deref()),
        (None, KubernetesSource::Service { namespace, name }) => {
            label("endpoint of service", Some(namespace.as_str()), Some(name.as_str()))
        }
        (None, _) => label("endpoint", namespace, None),
    }
}

/// The name of an object for people: `pod shop/web-0`.
fn label(kind: &str, namespace: Option<&str>, name: Option<&str>) -> Arc<str> {
    let name = name.unwrap_or("?");
    let text = match namespace {
        Some(namespace) => printable::field(format_args!("{kind} {namespace}/{name}")),
        None => printable::field(format_args!("{kind} {name}")),
    };
    text.into()
}

fn object_address(text: &str, object: &Arc<str>) -> Option<ObjectAddress> {
    let ip: IpAddr = text.parse().ok()?;
    Some(ObjectAddress { ip: ip.to_canonical(), object: Arc::clone(object) })
}

/// All objects of a source that have addresses, by name.
#[derive(Debug, Default)]
pub(super) struct Objects {
    by_name: BTreeMap<String, Vec<ObjectAddress>>,
    /// The number of addresses of all objects.
    count: usize,
}

/// A source has more than [`MAX_ADDRESSES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_ADDRESSES} addresses; use a narrower source")]
pub(super) struct TooManyAddresses;

impl Objects {
    /// Enters the addresses of a new or changed object.
    ///
    /// # Errors
    /// When there are too many.
    pub(super) fn apply(&mut self, name: &str, addresses: Vec<ObjectAddress>) -> Result<(), TooManyAddresses> {
        self.remove(name);
        let count = self.count.saturating_add(addresses.len());
        if count > MAX_ADDRESSES {
            return Err(TooManyAddresses);
        }
        if !addresses.is_empty() {
            self.count = count;
            self.by_name.insert(name.to_owned(), addresses);
        }
        Ok(())
    }

    /// Removes a deleted object.
    pub(super) fn remove(&mut self, name: &str) {
        if let Some(addresses) = self.by_name.remove(name) {
            self.count = self.count.saturating_sub(addresses.len());
        }
    }

    /// Each address once, with the first of its objects by name.
    pub(super) fn addresses(&self) -> Vec<ObjectAddress> {
        let mut by_ip: BTreeMap<IpAddr, &Arc<str>> = BTreeMap::new();
        for address in self.by_name.values().flatten() {
            by_ip.entry(address.ip).or_insert(&address.object);
        }
        by_ip.into_iter().map(|(ip, object)| ObjectAddress { ip, object: Arc::clone(object) }).collect()
    }
}

/// Whether a list lacks an address of an earlier one. Both are sorted by address.
pub(super) fn lacks_addresses(found: &[ObjectAddress], earlier: &[ObjectAddress]) -> bool {
    let is_missing = |address: &ObjectAddress| found.binary_search_by_key(&address.ip, |address| address.ip).is_err();
    earlier.iter().any(is_missing)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn shown<K: Addressed + DeserializeOwned>(source: &str, object: Value) -> Vec<String> {
        let object: K = serde_json::from_value(object).unwrap();
        let addresses = object.addresses(&source.parse().unwrap());
        addresses.iter().map(|address| format!("{} {}", address.ip, address.object)).collect()
    }

    #[test]
    fn node_has_its_internal_and_external_addresses() {
        let node = json!({ "metadata": { "name": "worker-1" }, "status": { "addresses": [
            { "type": "Hostname", "address": "10.0.0.9" },
            { "type": "InternalIP", "address": "10.0.0.1" },
            { "type": "InternalIP", "address": "::ffff:10.0.0.2" },
            { "type": "ExternalIP", "address": "2001:db8::1" },
            { "type": "ExternalIP", "address": "010.0.0.3" },
            { "type": "InternalDNS", "address": "10.0.0.8" },
        ] } });
        let expected = ["10.0.0.1 node worker-1", "10.0.0.2 node worker-1", "2001:db8::1 node worker-1"];
        assert_eq!(shown::<Node>("nodes", node), expected);
        assert_eq!(shown::<Node>("nodes", json!({ "metadata": { "name": "new" } })), [""; 0]);
    }

    fn pod(phase: &str, extra: Value) -> Value {
        let mut pod = json!({
            "metadata": { "name": "web-0", "namespace": "shop" },
            "spec": { "containers": [] },
            "status": { "phase": phase, "podIPs": [{ "ip": "10.244.0.7" }, { "ip": "fd00::7" }] },
        });
        for (key, value) in extra.as_object().unwrap() {
            let target = pod.as_object_mut().unwrap().entry(key.clone()).or_insert_with(|| json!({}));
            target.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        }
        pod
    }

    #[test]
    fn pod_counts_until_it_has_ended() {
        let addresses = ["10.244.0.7 pod shop/web-0", "fd00::7 pod shop/web-0"];
        for phase in ["Pending", "Running", "Unknown"] {
            assert_eq!(shown::<Pod>("pods:shop", pod(phase, json!({}))), addresses, "{phase}");
        }
        let deleted = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } });
        assert_eq!(shown::<Pod>("pods:shop", pod("Running", deleted)), addresses);
        for phase in ["Succeeded", "Failed"] {
            assert_eq!(shown::<Pod>("pods:shop", pod(phase, json!({}))), [""; 0], "{phase}");
        }
        assert_eq!(shown::<Pod>("pods:shop", pod("Running", json!({ "spec": { "hostNetwork": true } }))), [""; 0]);
        assert_eq!(shown::<Pod>("pods:shop", json!({ "metadata": { "name": "new" } })), [""; 0]);
    }

    fn slice(address_type: &str) -> Value {
        json!({ "metadata": { "name": "web-x7k2p", "namespace": "shop" }, "addressType": address_type, "endpoints": [
            { "addresses": ["10.244.0.7"], "conditions": { "ready": true },
              "targetRef": { "kind": "Pod", "name": "web-0", "namespace": "shop" } },
            { "addresses": ["10.244.0.8"], "conditions": { "ready": false, "serving": false, "terminating": true },
              "targetRef": { "kind": "Pod", "name": "web-1" } },
            { "addresses": ["192.0.2.1"] },
            { "addresses": ["192.0.2.2"], "targetRef": { "kind": "Node", "name": "worker-1" } },
        ] })
    }

    #[test]
    fn slice_has_every_endpoint_whatever_its_readiness() {
        let expected = [
            "10.244.0.7 pod shop/web-0",
            "10.244.0.8 pod shop/web-1",
            "192.0.2.1 endpoint of service shop/web",
            "192.0.2.2 endpoint of service shop/web",
        ];
        assert_eq!(shown::<EndpointSlice>("service:shop/web", slice("IPv4")), expected);
        assert_eq!(shown::<EndpointSlice>("service:shop/web", slice("IPv6")), expected);
        assert_eq!(shown::<EndpointSlice>("service:shop/web", slice("FQDN")), [""; 0]);
        let empty = json!({ "metadata": { "name": "a" }, "addressType": "IPv4", "endpoints": null });
        assert_eq!(shown::<EndpointSlice>("service:shop/web", empty), [""; 0]);
    }

    #[test]
    fn object_name_is_printable_and_cut() {
        let name = format!("a\u{202e}\n{}", "x".repeat(2000));
        let node = json!({ "metadata": { "name": name }, "status": { "addresses": [
            { "type": "InternalIP", "address": "10.0.0.1" },
        ] } });
        let shown = shown::<Node>("nodes", node);
        assert!(shown[0].starts_with("10.0.0.1 node a\\u{202e}\\nxxx"), "{shown:?}");
        assert!(shown[0].len() < 530 && shown[0].ends_with("[truncated]"), "{}", shown[0].len());
    }

    fn addresses(list: &[&str]) -> Vec<ObjectAddress> {
        list.iter().map(|ip| ObjectAddress { ip: ip.parse().unwrap(), object: Arc::from("pod a/b") }).collect()
    }

    fn ips(objects: &Objects) -> Vec<String> {
        objects.addresses().iter().map(|address| address.ip.to_string()).collect()
    }

    #[test]
    fn set_follows_changed_and_deleted_objects() {
        let mut objects = Objects::default();
        objects.apply("b", addresses(&["10.0.0.3", "10.0.0.1"])).unwrap();
        objects.apply("a", addresses(&["10.0.0.1", "10.0.0.2"])).unwrap();
        assert_eq!(ips(&objects), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        objects.remove("b");
        assert_eq!(ips(&objects), ["10.0.0.1", "10.0.0.2"], "another object has 10.0.0.1 too");
        objects.apply("a", addresses(&["10.0.0.4"])).unwrap();
        objects.apply("c", Vec::new()).unwrap();
        objects.remove("unknown");
        assert_eq!((ips(&objects), objects.count), (vec!["10.0.0.4".to_owned()], 1));
        objects.apply("a", Vec::new()).unwrap();
        assert_eq!((ips(&objects).len(), objects.count), (0, 0));
    }

    #[test]
    fn too_many_addresses_are_an_error() {
        let many = |count: usize| vec![addresses(&["10.0.0.1"])[0].clone(); count];
        let mut objects = Objects::default();
        objects.apply("a", many(MAX_ADDRESSES)).unwrap();
        assert_eq!(objects.apply("b", many(1)), Err(TooManyAddresses));
        objects.apply("a", many(MAX_ADDRESSES - 1)).unwrap();
        objects.apply("b", many(1)).unwrap();
    }

    #[test]
    fn list_lacks_an_address_of_an_earlier_one() {
        for (found, earlier, lacks) in [
            (&["10.0.0.1"][..], &["10.0.0.1"][..], false),
            (&["10.0.0.1", "10.0.0.2"], &["10.0.0.1"], false),
            (&["10.0.0.2"], &["10.0.0.1"], true),
            (&["10.0.0.2"], &[], false),
            (&[], &[], false),
            (&[], &["10.0.0.1"], true),
        ] {
            assert_eq!(lacks_addresses(&addresses(found), &addresses(earlier)), lacks, "{found:?} {earlier:?}");
        }
    }

    /// JSON of any shape, with the keys that the conversion reads.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[0-9a-f:.]{0,20}".prop_map(Value::from),
            prop_oneof!["InternalIP", "Running", "IPv4", "Pod", "\\PC{0,8}"].prop_map(Value::from),
            any::<[u8; 4]>().prop_map(|octets| Value::from(IpAddr::from(octets).to_string())),
        ];
        let key = prop::sample::select(vec![
            "metadata",
            "name",
            "namespace",
            "status",
            "addresses",
            "address",
            "type",
            "phase",
            "podIPs",
            "ip",
            "spec",
            "hostNetwork",
            "addressType",
            "endpoints",
            "targetRef",
            "kind",
            "containers",
        ]);
        leaf.prop_recursive(5, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..7)
                    .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            ]
        })
    }

    /// The number of texts in a value that are addresses, which the conversion can at most find.
    fn texts(value: &Value) -> usize {
        match value {
            Value::String(text) => usize::from(text.parse::<IpAddr>().is_ok()),
            Value::Array(list) => list.iter().map(texts).sum(),
            Value::Object(map) => map.values().map(texts).sum(),
            _ => 0,
        }
    }

    proptest! {
        #[test]
        fn any_object_converts_without_panic(value in any_json()) {
            let source: KubernetesSource = "service:shop/web".parse().unwrap();
            let found = [
                serde_json::from_value::<Node>(value.clone()).ok().map(|object| object.addresses(&source)),
                serde_json::from_value::<Pod>(value.clone()).ok().map(|object| object.addresses(&source)),
                serde_json::from_value::<EndpointSlice>(value.clone()).ok().map(|object| object.addresses(&source)),
            ];
            for addresses in found.into_iter().flatten() {
                prop_assert!(addresses.len() <= texts(&value));
                for address in addresses {
                    prop_assert_eq!(address.ip, address.ip.to_canonical());
                    prop_assert!(address.object.len() <= crate::resolution::observation::MAX_TEXT);
                    prop_assert!(!address.object.chars().any(printable::is_hidden));
                }
            }
        }

        #[test]
        fn set_equals_that_of_a_fresh_list(
            changes in prop::collection::vec((0..6_u8, prop::collection::vec(0..8_u8, 0..4)), 0..40),
        ) {
            let of = |last: &[u8]| -> Vec<ObjectAddress> {
                last.iter().map(|last| ObjectAddress { ip: [10, 0, 0, *last].into(), object: Arc::from("x") }).collect()
            };
            let (mut objects, mut model) = (Objects::default(), BTreeMap::new());
            for (name, last) in changes {
                if last.is_empty() {
                    objects.remove(&name.to_string());
                    model.remove(&name);
                } else {
                    objects.apply(&name.to_string(), of(&last)).unwrap();
                    model.insert(name, last);
                }
            }
            let mut fresh = Objects::default();
            for (name, last) in &model {
                fresh.apply(&name.to_string(), of(last)).unwrap();
            }
            prop_assert_eq!(objects.addresses(), fresh.addresses());
            prop_assert_eq!(objects.count, fresh.count);
            prop_assert!(objects.addresses().is_sorted());
        }
    }
}
