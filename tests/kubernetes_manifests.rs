//! The manifests in packaging/kubernetes: valid by the schemas of Kubernetes, consistent, and with a configuration that passes
//! `check`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::TestDir;
use crate::harness::packages::Packages;
use crate::harness::portcullis::executable;
use crate::harness::program::{command, run};

fn packaged(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/kubernetes").join(path)
}

/// The resources that a directory of kustomize names, those of other directories first.
fn resources(directory: &Path) -> Vec<PathBuf> {
    let kustomization = fs::read_to_string(directory.join("kustomization.yaml")).unwrap();
    let list = kustomization.split_once("resources:\n").unwrap().1;
    let names = list.lines().map_while(|line| line.strip_prefix("  - "));
    let paths = names.map(|name| directory.join(name));
    paths.flat_map(|path| if path.is_dir() { resources(&path) } else { vec![path] }).collect()
}

fn validate(files: &[PathBuf]) {
    let mut validate = command("/usr/bin/python3");
    validate.args(["-m", "kubernetes_validate", "--strict"]).args(files);
    run(validate.env("PYTHONPATH", Packages::installed().python)).success();
}

#[test]
fn manifests_are_valid() {
    let mut files = resources(&packaged("gateway/base"));
    files.extend(["rbac-sources.yaml", "redis-sidecar.yaml"].map(packaged));
    validate(&files);
}

#[test]
fn kustomizations_name_every_manifest_beside_them() {
    for directory in ["gateway/base", "gateway/cert-manager"] {
        let directory = packaged(directory);
        let named = resources(&directory);
        let absent: Vec<_> = named.iter().filter(|path| !path.is_file()).collect();
        assert!(absent.is_empty(), "in a kustomization and not there: {absent:?}");
        let beside: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        let manifests = beside.iter().filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        let unnamed: Vec<_> =
            manifests.filter(|path| !path.ends_with("kustomization.yaml") && !named.contains(path)).collect();
        assert!(unnamed.is_empty(), "in no kustomization: {unnamed:?}");
    }
}

/// All manifests, those in folders too.
fn manifests(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { manifests(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect()
}

#[test]
fn no_manifest_mounts_a_file_that_kubernetes_never_updates() {
    let all = manifests(&packaged(""));
    assert!(all.len() >= 9, "{all:?}");
    for path in all {
        let text = fs::read_to_string(&path).unwrap();
        let keys = text.lines().map(|line| line.trim_start_matches([' ', '-', '{']));
        let sub_paths: Vec<_> = keys.filter(|key| !key.starts_with('#') && key.contains("subPath")).collect();
        assert!(sub_paths.is_empty(), "{}: {sub_paths:?} (kubernetes #50345)", path.display());
    }
}

#[test]
fn validation_finds_a_misspelt_key() {
    let site = TestDir::new();
    let text = fs::read_to_string(packaged("gateway/base/deployment.yaml")).unwrap();
    site.write("deployment.yaml", text.replace("preStop:", "prestop:"));
    let mut validate = command("/usr/bin/python3");
    validate.args(["-m", "kubernetes_validate", "--strict"]).arg(site.path("deployment.yaml"));
    let outcome = run(validate.env("PYTHONPATH", Packages::installed().python));
    assert_ne!(outcome.code, Some(0), "{}", outcome.text());
}

/// The number of seconds after a key.
fn seconds(text: &str, key: &str) -> u64 {
    let (_, rest) = text.split_once(key).unwrap_or_else(|| panic!("{key} is missing"));
    rest.chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect::<String>()
        .parse()
        .unwrap()
}

#[test]
fn grace_period_is_longer_than_the_drain() {
    let deployment = fs::read_to_string(packaged("gateway/base/deployment.yaml")).unwrap();
    let config = fs::read_to_string(packaged("gateway/base/portcullis.toml")).unwrap();
    let needed = seconds(&config, "drain =") + seconds(&deployment, "sleep:");
    assert!(seconds(&deployment, "terminationGracePeriodSeconds:") > needed, "{needed}");
}

#[test]
fn configuration_of_the_gateway_passes_check() {
    let site = TestDir::new();
    let config = fs::read_to_string(packaged("gateway/base/portcullis.toml")).unwrap();
    let here = site.directory().display().to_string();
    for path in ["/tls/tls.crt", "/tls/tls.key", "/fleet/seal.key", "[resolver.kubernetes]\n"] {
        assert!(config.contains(path), "{path}");
    }
    site.write("seal.key", run(command("openssl").args(["rand", "-base64", "32"])).success());
    site.write("kubernetes.token", "token\n");
    // A pod has the API server and the token in its environment.
    let api = "[resolver.kubernetes]\nserver = \"https://127.0.0.1:6443\"\ntoken_file = \"kubernetes.token\"\n";
    let config = config
        .replace("[resolver.kubernetes]\n", api)
        .replace("/tls/tls.", &format!("{here}/server."))
        .replace("/fleet/", &format!("{here}/"))
        .replace("/run/portcullis", &here);
    site.write("portcullis.toml", config);
    let mut check = executable();
    check.args(["check", "--offline", "-c", "portcullis.toml"]).current_dir(site.directory());
    run(&mut check).success();
}
