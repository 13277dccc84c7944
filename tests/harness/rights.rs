//! Rights of Kubernetes: those that a Role of the manifests grants, and those that requests need.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::kubernetes::Seen;

/// API group, resource, verb.
pub(crate) type Right = (String, String, String);

pub(crate) fn right(group: &str, resource: &str, verb: &str) -> Right {
    (group.to_owned(), resource.to_owned(), verb.to_owned())
}

/// The right that a request for a list or a watch needs.
pub(crate) fn needed(request: &Seen) -> Right {
    let mut parts: Vec<_> = request.path.trim_start_matches('/').split('/').collect();
    let group = if parts[0] == "apis" { parts[1] } else { "" };
    parts.drain(..if parts[0] == "apis" { 3 } else { 2 });
    if parts[0] == "namespaces" {
        parts.drain(..2);
    }
    assert!(request.method == "GET" && parts.len() == 1, "neither a list nor a watch: {request:?}");
    right(group, parts[0], if request.is_watch() { "watch" } else { "list" })
}

/// The rights of a ClusterRole in a file of `packaging/kubernetes`.
pub(crate) fn granted(file: &str, role: &str) -> BTreeSet<Right> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/kubernetes").join(file);
    let text = fs::read_to_string(path).unwrap();
    let head = format!("kind: ClusterRole\nmetadata:\n  name: {role}\n");
    let document = text.split("\n---\n").find(|document| document.contains(&head)).unwrap();
    let lists = |key: &str| -> Vec<Vec<String>> {
        let lines = document.lines().filter_map(|line| line.trim_start_matches([' ', '-']).strip_prefix(key));
        lines.map(|list| serde_json::from_str(list).unwrap()).collect()
    };
    let (groups, resources, verbs) = (lists("apiGroups: "), lists("resources: "), lists("verbs: "));
    assert!(groups.len() == resources.len() && groups.len() == verbs.len(), "{document}");
    assert!(!document.contains("resourceNames") && !document.contains("nonResourceURLs"), "{document}");
    let mut rights = BTreeSet::new();
    for ((groups, resources), verbs) in groups.iter().zip(&resources).zip(&verbs) {
        for (group, resource) in groups.iter().flat_map(|group| resources.iter().map(move |resource| (group, resource)))
        {
            rights.extend(verbs.iter().map(|verb| right(group, resource, verb)));
        }
    }
    rights
}
