//! Clients of DigitalOcean's API.
//!
//! pydo and `@digitalocean/dots` are the real ones. doctl and Terraform's provider are in no package registry, so their messages
//! are sent here as their sources state them: godo 1.201.0, `commands/databases.go` of doctl, and
//! `digitalocean/database/resource_database_firewall.go` of the provider.

use std::collections::HashSet;

use portcullis::internals::timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::TestDir;
use super::api::{Api, ApiReply};
use super::packages::Packages;
use super::program::run;

/// The HTTP client that doctl and Terraform's provider share.
#[derive(Clone, Debug)]
pub(crate) struct Godo {
    api: Api,
    token: String,
}

/// A rule as godo reads and writes it: it ignores all other fields, and always writes these, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GodoRule {
    #[serde(default)]
    pub(crate) uuid: String,
    #[serde(default)]
    pub(crate) cluster_uuid: String,
    #[serde(default, rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) value: String,
    #[serde(default = "zero_time")]
    pub(crate) created_at: String,
}

#[derive(Serialize, Deserialize)]
struct GodoRules {
    rules: Vec<GodoRule>,
}

/// How Go writes a time that was not set.
fn zero_time() -> String {
    "0001-01-01T00:00:00Z".to_owned()
}

impl GodoRule {
    pub(crate) fn new(kind: &str, value: &str) -> Self {
        let (uuid, cluster_uuid) = (String::new(), String::new());
        Self { uuid, cluster_uuid, kind: kind.to_owned(), value: value.to_owned(), created_at: zero_time() }
    }

    /// Splits `TYPE:VALUE` at the first colon.
    fn parse(text: &str) -> Self {
        let (kind, value) = text.split_once(':').expect("a type and a value");
        Self::new(kind, value)
    }

    /// What doctl sends for a rule that it has read: the time is not copied.
    fn resent_by_doctl(self) -> Self {
        Self { created_at: zero_time(), ..self }
    }
}

impl Godo {
    pub(crate) fn new(api: Api, token: &str) -> Self {
        Self { api, token: token.to_owned() }
    }

    /// `GetFirewallRules`. An error response is returned as it is.
    pub(crate) fn rules(&self, database: &str) -> Result<Vec<GodoRule>, ApiReply> {
        let body = self.send("GET", &format!("/v2/databases/{database}/firewall"), None)?;
        let GodoRules { rules } = serde_json::from_value(body).expect("godo can decode the rules");
        for rule in &rules {
            timestamp::parse(&rule.created_at).expect("Go can decode created_at");
        }
        Ok(rules)
    }

    /// `UpdateFirewallRules`
    pub(crate) fn update(&self, database: &str, rules: Vec<GodoRule>) -> Result<(), ApiReply> {
        self.send("PUT", &format!("/v2/databases/{database}/firewall"), Some(&rules_body(rules))).map(drop)
    }

    /// `GetCA`
    pub(crate) fn ca(&self, database: &str) -> Result<Value, ApiReply> {
        self.send("GET", &format!("/v2/databases/{database}/ca"), None)
    }

    /// Any 2xx is a success.
    fn send(&self, method: &str, path: &str, body: Option<&str>) -> Result<Value, ApiReply> {
        let Self { api, token } = self;
        let content = match body {
            Some(body) => format!("Content-Length: {}\r\nContent-Type: application/json\r\n", body.len()),
            None => String::new(),
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: doctl/1.150.0 godo/1.201.0\r\n{content}\
             Accept: application/json\r\nAuthorization: Bearer {token}\r\nAccept-Encoding: gzip\r\n\r\n{}",
            body.unwrap_or_default()
        );
        let reply = ApiReply::parse(&api.raw(request.as_bytes()));
        if (200..300).contains(&reply.status) { Ok(reply.body) } else { Err(reply) }
    }
}

/// The body of `UpdateFirewallRules`. Go's encoder ends it with a newline.
pub(crate) fn rules_body(rules: Vec<GodoRule>) -> String {
    serde_json::to_string(&GodoRules { rules }).expect("rules are JSON") + "\n"
}

/// The messages of doctl.
#[derive(Debug)]
pub(crate) struct Doctl(pub(crate) Godo);

impl Doctl {
    /// `databases firewalls list DATABASE`
    pub(crate) fn list(&self, database: &str) -> Result<Vec<GodoRule>, ApiReply> {
        self.0.rules(database)
    }

    /// `databases firewalls append DATABASE --rule TYPE:VALUE`
    pub(crate) fn append(&self, database: &str, rule: &str) -> Result<Vec<GodoRule>, ApiReply> {
        // The argument, whether it is a UUID or not.
        let mut rules = vec![GodoRule { cluster_uuid: database.to_owned(), ..GodoRule::parse(rule) }];
        rules.extend(self.0.rules(database)?.into_iter().map(GodoRule::resent_by_doctl));
        self.0.update(database, rules)?;
        self.list(database)
    }

    /// `databases firewalls replace DATABASE --rule TYPE:VALUE,…`
    pub(crate) fn replace(&self, database: &str, rules: &str) -> Result<Vec<GodoRule>, ApiReply> {
        self.0.update(database, rules.split(',').map(GodoRule::parse).collect())?;
        self.list(database)
    }

    /// `databases firewalls remove DATABASE --uuid UUID`
    pub(crate) fn remove(&self, database: &str, uuid: &str) -> Result<Vec<GodoRule>, ApiReply> {
        let rules = self.0.rules(database)?.into_iter().filter(|rule| rule.uuid != uuid);
        self.0.update(database, rules.map(GodoRule::resent_by_doctl).collect())?;
        self.list(database)
    }

    /// `databases get-ca DATABASE`
    pub(crate) fn ca(&self, database: &str) -> Result<Value, ApiReply> {
        self.0.ca(database)
    }

    /// A command line of doctl for a database. `None` for a command that doctl does not have.
    pub(crate) fn command(&self, line: &str) -> Option<Result<Vec<GodoRule>, ApiReply>> {
        let words: Vec<&str> = line.split(' ').collect();
        Some(match words.as_slice() {
            ["firewalls", "list", database] => self.list(database),
            ["firewalls", "append", database, "--rule", rule] => self.append(database, rule),
            ["firewalls", "replace", database, "--rule", rules] => self.replace(database, rules),
            ["firewalls", "remove", database, "--uuid", uuid] => self.remove(database, uuid),
            ["get-ca", database] => self.ca(database).map(|_| Vec::new()),
            _ => return None,
        })
    }
}

/// The messages of a `digitalocean_database_firewall` of Terraform, and what it remembers between them.
#[derive(Debug)]
pub(crate) struct Terraform {
    godo: Godo,
    cluster_id: String,
    /// `None` before it is created, and when the database no longer exists.
    state: Option<Vec<GodoRule>>,
}

impl Terraform {
    pub(crate) fn new(godo: Godo, cluster_id: &str) -> Self {
        Self { godo, cluster_id: cluster_id.to_owned(), state: None }
    }

    /// `terraform import`
    pub(crate) fn import(godo: Godo, cluster_id: &str) -> Result<Self, ApiReply> {
        let mut imported = Self::new(godo, cluster_id);
        imported.state = Some(Vec::new());
        imported.refresh()?;
        Ok(imported)
    }

    /// `terraform plan`: whether it shows a change. Reads the state first.
    pub(crate) fn plans_a_change(&mut self, wanted: &[(&str, &str)]) -> Result<bool, ApiReply> {
        self.refresh()?;
        let Some(state) = &self.state else { return Ok(true) };
        // The set compares type and value, byte for byte. The fields that only the server sets do not count.
        let state: HashSet<_> = state.iter().map(|rule| (rule.kind.as_str(), rule.value.as_str())).collect();
        Ok(state != wanted.iter().copied().collect())
    }

    /// `terraform apply`: creates or updates.
    pub(crate) fn apply(&mut self, wanted: &[(&str, &str)]) -> Result<(), ApiReply> {
        if !self.plans_a_change(wanted)? {
            return Ok(());
        }
        let state = self.state.clone().unwrap_or_default();
        // A rule of the state that stays keeps its UUID. The other fields are not sent.
        let known = |kind: &str, value: &str| state.iter().find(|rule| rule.kind == kind && rule.value == value);
        let rule = |&(kind, value): &(&str, &str)| GodoRule {
            uuid: known(kind, value).map(|rule| rule.uuid.clone()).unwrap_or_default(),
            ..GodoRule::new(kind, value)
        };
        self.godo.update(&self.cluster_id, wanted.iter().map(rule).collect())?;
        self.state = Some(Vec::new());
        self.refresh()
    }

    /// `terraform destroy`
    pub(crate) fn destroy(&mut self) -> Result<(), ApiReply> {
        self.godo.update(&self.cluster_id, Vec::new())?;
        self.state = None;
        Ok(())
    }

    /// Whether the resource is in the state.
    pub(crate) fn is_created(&self) -> bool {
        self.state.is_some()
    }

    fn refresh(&mut self) -> Result<(), ApiReply> {
        if self.state.is_none() {
            return Ok(());
        }
        self.state = match self.godo.rules(&self.cluster_id) {
            Err(reply) if reply.status == 404 => None,
            other => Some(other?),
        };
        Ok(())
    }
}

/// A real client of a package registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sdk {
    /// pydo for Python.
    Pydo,
    /// `@digitalocean/dots` for TypeScript.
    Dots,
}

impl Sdk {
    pub(crate) const ALL: [Self; 2] = [Self::Pydo, Self::Dots];

    /// Uses an API with TLS, whose certificate is from the authority in `ca.crt` of the directory.
    pub(crate) fn at(self, site: &TestDir, url: String) -> SdkClient<'_> {
        SdkClient { sdk: self, site, url }
    }
}

/// One client with the URL of an API.
#[derive(Debug)]
pub(crate) struct SdkClient<'a> {
    sdk: Sdk,
    site: &'a TestDir,
    url: String,
}

impl SdkClient<'_> {
    /// Performs steps. tests/clients/firewall.py states the form of steps and results.
    pub(crate) fn perform(&self, token: &str, database: &str, steps: &Value) -> Vec<Value> {
        let Self { sdk, site, url } = self;
        let packages = Packages::installed();
        let mut client = match sdk {
            Sdk::Pydo => {
                let mut python = packages.python_script("firewall.py");
                python.env("REQUESTS_CA_BUNDLE", site.path("ca.crt"));
                python
            }
            Sdk::Dots => {
                let mut node = packages.node_script("firewall.mjs", site);
                node.env("NODE_EXTRA_CA_CERTS", site.path("ca.crt"));
                node
            }
        };
        let output = run(client.args([url, token, database, &steps.to_string()])).success();
        serde_json::from_str(&output).expect("the client prints JSON")
    }
}

/// The body of a `PUT` with these values, each as `TYPE:VALUE`.
pub(crate) fn rules(texts: &[&str]) -> Value {
    let rule = |text: &&str| {
        let (kind, value) = text.split_once(':').expect("a type and a value");
        json!({ "type": kind, "value": value })
    };
    json!(texts.iter().map(rule).collect::<Vec<_>>())
}
