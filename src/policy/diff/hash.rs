//! A digest of the effective configuration, by which machines with the same configuration are recognised.

use std::path::{Path, absolute};
use std::sync::Arc;

use crate::config::{Config, Listener};
use crate::credential::clients::{Client, Password};
use crate::policy::diff::credentials::CLIENTS_FILE;
use crate::policy::diff::fleet;
use crate::policy::diff::setting::Setting;
use crate::policy::diff::settings;
use crate::policy::diff::value::Value;
use crate::policy::{ListenerPolicy, Snapshot};
use crate::source::rule::Rule;
use crate::timestamp;
use crate::x509::certificate::Certificate;
use crate::x509::crypto::sha256_hex;

impl Snapshot {
    /// SHA-256 of the settings, the rules and the certificates that are trusted, in lower-case hex.
    ///
    /// Equal configurations on different machines have equal hashes. So it covers neither the addresses of host names, nor keys
    /// and certificates that Portcullis presents, which each machine may have for itself, nor defaults that depend on the
    /// machine. Files count by their paths relative to the configuration file.
    pub(crate) fn config_hash(&self) -> &str {
        self.config_hash.get_or_init(|| sha256_hex(self.canonical_text().as_bytes()))
    }

    /// SHA-256 of who is admitted at each listener: the rules, the trusted certificates and the settings of client
    /// authentication. Equal at the members of a fleet, whatever their addresses, files and upstreams are.
    pub(crate) fn trust_hash(&self) -> &str {
        self.trust_hash.get_or_init(|| sha256_hex(self.trust_text().as_bytes()))
    }

    fn trust_text(&self) -> String {
        let directory = Directory::of(&self.config);
        let mut text = String::new();
        let mut listeners: Vec<_> = self.policies.iter().collect();
        listeners.sort_by(|one, other| one.name.cmp(&other.name));
        for policy in listeners {
            let Some(listener) = self.listener(policy) else { continue };
            let settings = settings::of_listener(listener, policy);
            let settings = settings.iter().filter(|setting| OF_TRUST.contains(&setting.key));
            add(&mut text, &policy.name, settings, &directory);
            // The rules of groups too: each member has its own file of them.
            let mut trust: Vec<_> = policy.sources.trusted.all_rules().map(|rule| of_rule(rule)).collect();
            trust.extend(of_trusted(policy.certificates()));
            trust.extend(policy.revocation_lists().iter().map(|list| format!("crl {}", sha256_hex(list.der()))));
            trust.extend(of_clients(policy));
            trust.sort_unstable();
            trust.dedup();
            trust.iter().for_each(|line| add_line(&mut text, line));
        }
        text
    }

    fn canonical_text(&self) -> String {
        let directory = Directory::of(&self.config);
        let mut text = String::new();
        let process = settings::of_process(&self.config);
        add(&mut text, "", process.iter().filter(|setting| !OF_MACHINE.contains(&setting.key)), &directory);
        let mut trust: Vec<_> = of_trusted(self.admin_certificates()).collect();
        trust.sort_unstable();
        trust.iter().for_each(|line| add_line(&mut text, line));
        let mut listeners: Vec<_> = self.policies.iter().collect();
        listeners.sort_by(|one, other| one.name.cmp(&other.name));
        for policy in listeners {
            let Some(listener) = self.listener(policy) else { continue };
            let settings = settings::of_listener(listener, policy);
            let counts = |setting: &&Setting| !is_built_in(setting, listener) && !is_absent(setting);
            add(&mut text, &policy.name, settings.iter().filter(counts), &directory);
            let mut trust: Vec<_> = policy.sources.trusted.rules().iter().map(|rule| of_rule(rule)).collect();
            trust.extend(of_trusted(policy.certificates()));
            trust.extend(of_clients(policy));
            add_sorted(&mut text, trust);
        }
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by(|one, other| one.name.cmp(&other.name));
        for group in groups {
            let owner = group.owner();
            let settings = settings::of_group(&self.config, owner);
            add(&mut text, &owner.to_string(), settings.iter(), &directory);
            add_sorted(&mut text, group.sources.rules().iter().map(|rule| of_rule(rule)).collect());
        }
        text
    }
}

/// Whether the value is a default that depends on the limit of open files.
fn is_built_in(setting: &Setting, listener: &Listener) -> bool {
    setting.key == MAX_HANDSHAKES && listener.limits.max_handshakes.is_none()
}

/// Whether the setting did not exist in earlier versions and is not set, so that the hash does not depend on the version.
fn is_absent(setting: &Setting) -> bool {
    setting.key == CLIENTS_FILE && setting.value == Value::Unset
}

fn add<'a>(text: &mut String, scope: &str, settings: impl Iterator<Item = &'a Setting>, directory: &Directory) {
    for Setting { key, value, .. } in settings {
        let values: &[String] = match value {
            Value::Unset => &[],
            Value::One(value) | Value::TicketKeys { file: value, .. } | Value::Passwords { file: value, .. } => {
                std::slice::from_ref(value)
            }
            Value::Many(values) => values,
        };
        add_line(text, &format!("{scope} {key} {}", values.len()));
        values.iter().for_each(|value| add_line(text, &directory.strip_from(value)));
    }
}

fn add_sorted(text: &mut String, mut lines: Vec<String>) {
    lines.sort_unstable();
    lines.dedup();
    lines.iter().for_each(|line| add_line(text, line));
}

/// Each line starts with its length, so that no value can look like two.
fn add_line(text: &mut String, line: &str) {
    text.push_str(&format!("{} {line}\n", line.len()));
}

fn of_rule(rule: &Rule) -> String {
    let Rule { uuid: _, has_stated_uuid: _, source, spelling: _, description: _, expires_at, origin: _ } = rule;
    let refresh = source.host().map(|host| host.refresh.as_millis());
    let (kind, value, expiry) = (source.kind(), source.value(), expires_at.map(timestamp::seconds));
    format!("rule {kind}:{value} {expiry:?} {refresh:?}")
}

/// The trusted ones among certificates with their role.
fn of_trusted<'a>(certificates: impl Iterator<Item = (&'static str, &'a Certificate)>) -> impl Iterator<Item = String> {
    let trusted = certificates.filter(|(role, _)| !PRESENTED.contains(role));
    trusted.map(|(role, certificate)| format!("{role} {}", certificate.sha256))
}

/// The clients that may authenticate.
fn of_clients(policy: &ListenerPolicy) -> Vec<String> {
    let credentials = policy.credentials.as_ref();
    let of = |client: &Arc<Client>| {
        let Client { user, passwords, certificates, upstream_user, is_disabled } = &**client;
        let password = |password: &Arc<Password>| {
            let Password { id, verifier, created_at: _, expires_at } = &**password;
            format!("password {user} {id} {verifier} {:?}", expires_at.map(timestamp::seconds))
        };
        let certificates: Vec<_> = certificates.iter().map(ToString::to_string).collect();
        let settings = format!("client {user} {certificates:?} {upstream_user:?} {is_disabled}");
        passwords.iter().map(password).chain([settings]).collect::<Vec<_>>()
    };
    credentials.into_iter().flat_map(|credentials| credentials.clients.iter()).flat_map(of).collect()
}

/// The directory of the configuration file, as it begins absolute paths.
struct Directory(String);

impl Directory {
    fn of(config: &Config) -> Self {
        let file = absolute(&config.file).unwrap_or_else(|_| config.file.clone());
        Self(format!("{}/", file.parent().unwrap_or(Path::new("")).display()))
    }

    fn strip_from(&self, value: &str) -> String {
        value.replace(&self.0, "")
    }
}

/// The roles of certificates that Portcullis presents.
const PRESENTED: [&str; 3] = ["server", "upstream_certificate", "admin"];

/// Keys that differ between equal machines.
const OF_MACHINE: [&str; 2] = ["state.directory", fleet::MEMBER];

/// The keys of a listener that say who is admitted, besides rules and certificates.
const OF_TRUST: [&str; 6] =
    ["enforcement", "tls", "tls.client_auth", "tls.trusted_clients", "tls.anchor_validity", "tls.crl_expired"];

const MAX_HANDSHAKES: &str = "limits.max_handshakes";

#[cfg(test)]
mod tests {
    use time::{Duration, OffsetDateTime};

    use crate::credential::clients::fixtures;
    use crate::policy::fixtures::{ConfigDir, listener};

    fn hash(site: &ConfigDir, config: &str) -> String {
        site.snapshot(config, None).config_hash().to_owned()
    }

    fn site() -> ConfigDir {
        let site = ConfigDir::new();
        site.install("main", OffsetDateTime::now_utc() + Duration::days(30));
        site
    }

    #[test]
    fn hash_of_who_is_admitted_changes_with_rules_groups_and_trust_and_with_nothing_else() {
        let site = site();
        let trust = |config: &str| site.snapshot(config, None).trust_hash().to_owned();
        std::fs::copy(site.path("main.crt"), site.path("ca.crt")).unwrap();
        let group = |value: &str| format!("[[source_group]]\nname = \"web\"\ntrusted_sources = [\"{value}\"]\n");
        let base = listener("main", 1001, "\"10.0.0.0/8\", \"group:web\"");
        let ca = |auth: &str| {
            format!("{base}tls.client_auth = \"{auth}\"\ntls.client_ca = \"ca.crt\"\n{}", group("192.0.2.1"))
        };
        let whole = format!("{}{base}", group("192.0.2.1"));
        let mut hashes = vec![
            trust(&whole),
            trust(&whole.replace("10.0.0.0/8", "10.0.0.0/9")),
            trust(&whole.replace("192.0.2.1", "192.0.2.2")),
            trust(&ca("required")),
            trust(&ca("optional")),
            trust(&whole.replace("\"main\"", "\"other\"").replace("other.", "main.")),
        ];
        let all = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), all, "each of these admits others");
        let elsewhere = whole.replace("1001", "1002").replace("127.0.0.1:1\"", "127.0.0.1:2\"");
        assert_ne!(elsewhere, whole);
        assert_eq!(trust(&elsewhere), trust(&whole), "addresses and upstreams do not matter");
        let other_site = super::tests::site();
        assert_eq!(
            other_site.snapshot(&whole, None).trust_hash(),
            trust(&whole),
            "neither do server certificates and files"
        );
    }

    #[test]
    fn equal_configurations_in_two_directories_have_equal_hashes() {
        let config = listener("main", 1001, "\"10.0.0.0/8\", \"192.0.2.1\"");
        let [one, other] = [site(), site()].map(|site| hash(&site, &config));
        assert_eq!(one, other);
        assert_eq!(one.len(), 64);
    }

    #[test]
    fn order_and_descriptions_of_rules_do_not_matter() {
        let site = site();
        let described = "{ type = \"ip_addr\", value = \"10.0.0.0/8\", description = \"office\" }";
        let [one, other] = ["\"10.0.0.0/8\", \"192.0.2.1\"", &format!("\"192.0.2.1\", {described}")]
            .map(|sources| hash(&site, &listener("main", 1001, sources)));
        assert_eq!(one, other);
    }

    #[test]
    fn every_change_of_rules_trust_or_settings_changes_the_hash() {
        let site = site();
        let base = listener("main", 1001, "\"10.0.0.0/8\"");
        let ca = |config: &str| format!("{config}tls.client_auth = \"required\"\ntls.client_ca = \"ca.crt\"\n");
        let install_ca = || {
            site.install("other", OffsetDateTime::now_utc() + Duration::days(30));
            std::fs::copy(site.path("other.crt"), site.path("ca.crt")).unwrap();
        };
        let mut hashes = vec![
            hash(&site, &base),
            hash(&site, &listener("main", 1001, "\"10.0.0.0/9\"")),
            hash(
                &site,
                &listener(
                    "main",
                    1001,
                    "{ type = \"ip_addr\", value = \"10.0.0.0/8\", expires_at = 2099-01-01T00:00:00Z }",
                ),
            ),
            hash(&site, &format!("{base}limits.max_connections = 5\n")),
            hash(&site, &format!("[shutdown]\ndrain = \"1s\"\n{base}")),
        ];
        for _ in 0..2 {
            install_ca();
            hashes.push(hash(&site, &ca(&base).replace("client_ca", "client_certificates")));
        }
        let count = hashes.len();
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), count);
    }

    #[test]
    fn every_change_of_clients_changes_both_hashes() {
        let site = site();
        let config = listener("main", 1001, "\"10.0.0.0/8\"").replace("\"tcp\"", "\"redis\"");
        let hashes = |clients: &str| {
            std::fs::write(site.path("clients.toml"), clients).unwrap();
            let config = format!("{config}credentials.clients_file = \"clients.toml\"\n");
            let snapshot = site.snapshot(config, None);
            [snapshot.config_hash(), snapshot.trust_hash()].map(str::to_owned)
        };
        let table = |text: &str, rest: &str| {
            let verifier = fixtures::password("p1", text).verifier;
            format!("[[client]]\nuser = \"app\"\npasswords = [{{ id = \"p1\", scram = \"{verifier}\"{rest} }}]\n")
        };
        let base = table("one", "");
        assert_eq!(
            hashes(&base),
            hashes(&format!("# comment\n{}", table("one", ", created_at = 2026-01-31T00:00:00Z")))
        );
        let changed = [
            "client = []\n".to_owned(),
            table("two", ""),
            table("one", ", expires_at = 2999-01-31T00:00:00Z"),
            format!("{base}disabled = true\n"),
            format!("{base}upstream_user = \"owner\"\n"),
            format!("{base}certificates = \"cn:app\"\n"),
            base.clone(),
        ];
        for kind in 0..2 {
            let mut all: Vec<_> = changed.iter().map(|clients| hashes(clients)[kind].clone()).collect();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), changed.len());
        }
        assert_ne!(hashes("client = []\n")[0], hash(&site, &config));
    }
}
