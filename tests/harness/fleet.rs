//! Members of a fleet: whole programs that share a store.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::api::{Api, ApiReply};
use super::portcullis::{ADMIN, executable};
use super::program::{Outcome, run};
use super::{Connection, Listener, Portcullis, TestDir, Upstream, eventually};
use crate::metrics::METRICS;

/// Where the rules of the listener `main` are in the API.
pub(crate) const SOURCES: &str = "/v1/listeners/main/sources";

/// Seals the ticket keys of a test's fleet.
pub(crate) const FLEET_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n";

pub(crate) struct Member(pub(crate) Portcullis);

impl Member {
    /// Starts a member. `store` is the rest of `[fleet]`, with the section of the store.
    pub(crate) fn start(site: TestDir, name: &str, store: &str, listener: &Listener) -> Self {
        if !site.path("fleet.key").exists() {
            site.write("fleet.key", FLEET_KEY);
        }
        let config = format!(
            "{ADMIN}{METRICS}state.directory = \"state\"\n[fleet]\nname = \"prod\"\nmember = \"{name}\"\n\
             key_file = \"fleet.key\"\n{store}{listener}"
        );
        let member = Self(Portcullis::start(site, config));
        member.0.address("main");
        member
    }

    /// Stops the member cleanly. Returns its directory.
    pub(crate) fn stop(mut self) -> TestDir {
        self.0.stop();
        std::mem::replace(&mut self.0.site, TestDir::new())
    }

    /// Kills the member. Returns its directory.
    pub(crate) fn kill(mut self) -> TestDir {
        self.0.process.signal("KILL");
        self.0.process.exit_code();
        std::mem::replace(&mut self.0.site, TestDir::new())
    }

    pub(crate) fn api(&self) -> Api {
        Api::at_socket(self.0.site.path("admin.sock"))
    }

    pub(crate) fn append(&self, value: &str) -> ApiReply {
        self.api().post(SOURCES, &rules(&[value]))
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Outcome {
        let mut command = executable();
        run(command.args(arguments).arg("--socket").arg(self.0.site.path("admin.sock")))
    }

    /// The sources of the fleet, sorted.
    pub(crate) fn values(&self) -> Vec<String> {
        let rules = self.api().get(SOURCES).expect(200);
        let rules = rules["rules"].as_array().unwrap();
        assert!(rules.iter().all(|rule| rule["origin"] == "fleet"), "{rules:?}");
        let mut values: Vec<_> = rules.iter().map(|rule| rule["value"].as_str().unwrap().to_owned()).collect();
        values.sort();
        values
    }

    pub(crate) fn has(&self, values: &[&str]) {
        eventually(&format!("the rules are {values:?}"), || (self.values() == values).then_some(()));
    }

    pub(crate) fn fleet(&self) -> Value {
        self.api().get("/v1/fleet").expect(200)
    }

    pub(crate) fn await_store(&self, state: &str) {
        eventually(&format!("the store is {state}"), || (self.fleet()["store"]["state"] == state).then_some(()));
    }

    pub(crate) fn await_members(&self, live: usize, unknown: usize) {
        let count = |fleet: &Value, state: &str| {
            fleet["members"].as_array().unwrap().iter().filter(|member| member["state"] == state).count()
        };
        eventually(&format!("{live} live and {unknown} unknown members"), || {
            let fleet = self.fleet();
            (count(&fleet, "live") == live && count(&fleet, "unknown") == unknown).then_some(())
        });
    }

    /// The process ID of its agent.
    pub(crate) fn agent(&self) -> u32 {
        let pid = || u32::try_from(self.0.ask("GET", "/v1/status").1["agent"]["pid"].as_u64()?).ok();
        eventually("an agent", pid)
    }

    pub(crate) fn session(&self, ip: &str) -> Connection {
        let mut session = self.0.client().from(ip).connect();
        session.ask(b"hello", b"hello");
        session
    }

    pub(crate) fn admits(&self, ip: &str) -> bool {
        self.0.client().from(ip).try_connect().is_ok()
    }
}

/// Adds and removes a rule at one member several times. All but the slowest changes come into force at the other one, and end
/// its sessions, within a second.
pub(crate) fn assert_changes_are_prompt(one: &Member, other: &Member) {
    let (mut in_force, mut ended) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let added = one.append("127.0.0.9").expect(201);
        let answered = Instant::now();
        other.has(&["127.0.0.9"]);
        in_force.push(answered.elapsed());
        let mut session = other.session("127.0.0.9");
        let uuid = added["rules"][0]["uuid"].as_str().unwrap();
        assert_eq!(one.api().delete(&format!("{SOURCES}/{uuid}")).status, 204);
        let answered = Instant::now();
        let _ = session.rest();
        ended.push(answered.elapsed());
        assert_eq!(other.0.ending(session.port()).reason(), "source_revoked");
        other.has(&[]);
    }
    for mut times in [in_force, ended] {
        times.sort();
        println!("after the answer: median {:?}, maximum {:?}", times[5], times[9]);
        assert!(times[8] < Duration::from_secs(1), "{times:?}");
    }
}

/// A listener whose rules are in the store.
pub(crate) fn listener(upstream: &Upstream) -> Listener {
    Listener::tcp(upstream).trusting(&[]).key("sources_store = \"fleet\"")
}

/// Rules as the API takes them.
pub(crate) fn rules(values: &[&str]) -> Value {
    json!({ "rules": values.iter().map(|value| json!({ "type": "ip_addr", "value": value })).collect::<Vec<_>>() })
}
