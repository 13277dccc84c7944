//! `portcullis run` with its agent and a double of DigitalOcean's API: sources come into force, and traffic and the last good
//! sources stay when the agent or the API fails.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::dns_sources::STATE;
use crate::harness::agent::SECRET;
use crate::harness::digitalocean_api::{DigitalOceanApi, error};
use crate::harness::kubernetes::{KubernetesApi, Seen, pod};
use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::program::{run, signal};
use crate::harness::{Connection, Event, Listener, Portcullis, TestDir, Upstream, eventually};
use crate::metrics::{METRICS, reaches, scrape};
use crate::reload::ON_SIGHUP;

/// An account, and a program whose listener trusts the droplets with the tag `web`.
struct Operated {
    upstream: Upstream,
    api: DigitalOceanApi,
    portcullis: Portcullis,
}

impl Operated {
    /// The droplet 7 has the tag and an address of this machine.
    fn start() -> Self {
        let site = TestDir::new();
        site.write("do.token", format!("dop_v1_{SECRET}\n"));
        let api = DigitalOceanApi::start(&site, &format!("dop_v1_{SECRET}"));
        api.droplet(7, &["web"], &[("127.0.0.7", "private")]);
        let upstream = Upstream::echo();
        let config = config(&api, &upstream, &["tag:web"]);
        let portcullis = Portcullis::start(site, config);
        Self { upstream, api, portcullis }
    }

    /// Waits until the rule has an address.
    fn resolved() -> Self {
        let operated = Self::start();
        operated.portcullis.event("source.resolved", |event| event.is("source.resolved"));
        operated
    }

    fn session(&self, ip: &str) -> Connection {
        let mut session = self.portcullis.client().from(ip).connect();
        session.ask(b"hello", b"hello");
        session
    }

    /// The rule as the API shows it.
    fn rule(&self) -> Value {
        let mut list = executable();
        list.args(["sources", "list", "main", "--json", "--socket"]).arg(self.portcullis.site.path("admin.sock"));
        let text = run(&mut list).success();
        let rules: Value = serde_json::from_str(&text).unwrap();
        rules["rules"][0].clone()
    }

    fn await_state(&self, state: &str) -> Value {
        eventually(state, || Some(self.rule()).filter(|rule| rule["state"] == state))
    }

    /// The agent in `status`.
    fn agent(&self) -> Value {
        let mut status = executable();
        status.args(["status", "--json", "--socket"]).arg(self.portcullis.site.path("admin.sock"));
        let text = run(&mut status).success();
        serde_json::from_str::<Value>(&text).unwrap()["agent"].clone()
    }

    /// A series of the only rule.
    fn source_metric(&self, name: &str) -> f64 {
        scrape(&self.portcullis)[&source_series(name)]
    }

    fn pid(&self) -> u32 {
        eventually("an agent", || u32::try_from(self.agent()["pid"].as_u64()?).ok())
    }

    /// Waits for an agent that took the place of another one, which has resolved everything again.
    fn await_successor(&self, former: u32) -> Value {
        let is_up = |agent: &Value| agent["state"] == "up" && agent["pid"] != former;
        let agent = eventually("a new agent", || Some(self.agent()).filter(is_up));
        let requests = self.api.seen().len();
        self.api.await_requests(requests + 2);
        agent
    }
}

fn config(api: &DigitalOceanApi, upstream: &Upstream, sources: &[&str]) -> String {
    let listener = Listener::redis(upstream).trusting(sources);
    format!(
        "{STATE}{ADMIN}{METRICS}{ON_SIGHUP}[resolver.digitalocean]\ntoken_file = \"do.token\"\nendpoint = \"{}\"\nca = \"ca.crt\"\n\
         refresh = \"1s\"\n{listener}",
        api.url()
    )
}

fn source_series(name: &str) -> String {
    format!("{name}{{listener=\"main\",rule=\"tag:web\"}}")
}

fn is_stale(event: &Event) -> bool {
    event.is("source.stale")
}

#[test]
fn droplet_with_a_tag_is_admitted_and_its_session_ends_with_the_tag() {
    let operated = Operated::resolved();
    let resolved = operated.portcullis.event("source.resolved", |event| event.is("source.resolved"));
    assert_eq!((resolved.text("listener"), resolved.text("rule")), ("main", "tag:web"));
    assert_eq!((resolved.number("added"), resolved.number("removed")), (1, 0));
    let session = operated.session("127.0.0.7");
    assert_eq!(operated.portcullis.opened(session.port()).text("rule"), "tag:web");
    operated.api.droplet(8, &["web"], &[("127.0.0.8", "public")]);
    operated
        .portcullis
        .event("a second address", |event| event.is("source.resolved") && event.number("addresses") == 2);
    let mut other = operated.session("127.0.0.8");
    operated.api.droplet(7, &["db"], &[("127.0.0.7", "private")]);
    let ended = operated.portcullis.ending(session.port());
    assert_eq!((ended.reason(), ended.text("rule")), ("source_revoked", "tag:web"));
    other.ask(b"still here", b"still here");
    assert!(operated.portcullis.client().from("127.0.0.7").attempt().1.is_err());
}

#[test]
fn destroyed_droplets_are_removed_when_they_are_missing_twice() {
    let operated = Operated::resolved();
    let session = operated.session("127.0.0.7");
    operated.api.destroy_droplet(7);
    assert_eq!(operated.portcullis.ending(session.port()).reason(), "source_revoked");
    let rule = operated.rule();
    assert_eq!(rule["addresses"].as_array().map(Vec::len), Some(0), "{rule}");
    let events = operated.portcullis.events();
    let ended = events.iter().position(|event| event.is("session.revoked")).unwrap();
    let missing: Vec<_> = (0..events.len()).filter(|at| is_stale(&events[*at])).collect();
    assert!(matches!(missing[..], [first] if first < ended), "the first absence is only reported: {events:?}");
}

#[test]
fn failing_api_keeps_the_last_good_addresses_and_is_reported_once() {
    let operated = Operated::resolved();
    let mut session = operated.session("127.0.0.7");
    for status in [401, 403, 429, 500, 503] {
        operated.api.fail("/v2/droplets", error(status));
        let rule = operated.await_state("stale");
        assert!(rule["detail"].as_str().unwrap().contains(&status.to_string()), "{status}: {rule}");
        session.ask(b"continues", b"continues");
        drop(operated.session("127.0.0.7"));
        reaches(&operated.portcullis, &source_series("portcullis_source_stale"), 1.0);
        let last_success = operated.source_metric(LAST_SUCCESS);
        operated.api.recover();
        operated.await_state("resolved");
        reaches(&operated.portcullis, &source_series("portcullis_source_stale"), 0.0);
        eventually("a later success", || (operated.source_metric(LAST_SUCCESS) > last_success).then_some(()));
    }
    let stale: Vec<_> = operated.portcullis.events().into_iter().filter(is_stale).collect();
    assert_eq!(stale.len(), 5, "{stale:?}");
    assert!(stale.iter().all(|event| event.text("rule") == "tag:web" && !event.text("error").is_empty()), "{stale:?}");
}

#[test]
fn last_success_stays_while_the_api_fails() {
    let operated = Operated::resolved();
    operated.api.fail("/v2/droplets", error(503));
    operated.await_state("stale");
    let last_success = operated.source_metric(LAST_SUCCESS);
    operated.api.await_requests(operated.api.seen().len() + 3);
    assert!((operated.source_metric(LAST_SUCCESS) - last_success).abs() < f64::EPSILON);
}

const LAST_SUCCESS: &str = "portcullis_source_last_success_timestamp_seconds";

#[test]
fn killed_agent_is_started_again_and_disturbs_nothing() {
    let operated = Operated::resolved();
    let mut session = operated.session("127.0.0.7");
    let first = operated.pid();
    signal(first, "KILL");
    let agent = operated.await_successor(first);
    assert_eq!(agent["restarts"], 1, "{agent}");
    assert!(!agent["last_error"].as_str().unwrap().is_empty(), "{agent}");
    session.ask(b"continues", b"continues");
    operated.api.droplet(8, &["web"], &[("127.0.0.8", "public")]);
    operated
        .portcullis
        .event("a second address", |event| event.is("source.resolved") && event.number("addresses") == 2);
    drop(operated.session("127.0.0.8"));
}

#[test]
fn agent_that_hangs_is_replaced() {
    let operated = Operated::resolved();
    let mut session = operated.session("127.0.0.7");
    let first = operated.pid();
    signal(first, "STOP");
    let agent = operated.await_successor(first);
    assert!(agent["last_error"].as_str().unwrap().contains("15s"), "{agent}");
    session.ask(b"continues", b"continues");
    eventually("the first one is gone", || (!Path::new(&format!("/proc/{first}")).exists()).then_some(()));
}

#[test]
fn addresses_survive_a_restart_while_the_api_is_down() {
    let operated = Operated::resolved();
    eventually("the addresses on disk", || {
        let mut files = fs::read_dir(operated.portcullis.site.path("state")).ok()?.flatten();
        files.find_map(|file| fs::read_to_string(file.path()).ok().filter(|text| text.contains("127.0.0.7")))
    });
    operated.api.fail("/v2/droplets", error(503));
    let Operated { upstream, api, mut portcullis } = operated;
    portcullis.stop();
    let site = std::mem::replace(&mut portcullis.site, TestDir::new());
    let again = config(&api, &upstream, &["tag:web"]);
    let operated = Operated { upstream, api, portcullis: Portcullis::start(site, again) };
    drop(operated.session("127.0.0.7"));
    operated.await_state("stale");
    operated.api.recover();
    operated.await_state("resolved");
}

#[test]
fn explain_names_the_droplet_behind_an_address() {
    let operated = Operated::resolved();
    let mut explain = executable();
    explain.args(["explain", "--listener", "main", "--source", "127.0.0.7", "-c", "portcullis.toml"]);
    let text = run(explain.current_dir(operated.portcullis.site.directory())).success();
    assert!(text.contains("127.0.0.7 is droplet web-7 by tag:web"), "{text}");
}

#[test]
fn agent_runs_only_while_a_rule_needs_it() {
    let operated = Operated::resolved();
    let first = operated.pid();
    let without = config(&operated.api, &operated.upstream, &["127.0.0.1"]);
    assert!(operated.portcullis.reconfigure(without).is("reload.applied"));
    eventually("no agent", || operated.agent().is_null().then_some(()));
    eventually("the process is gone", || (!Path::new(&format!("/proc/{first}")).exists()).then_some(()));
    let with = config(&operated.api, &operated.upstream, &["droplet:7"]);
    assert!(operated.portcullis.reconfigure(with).is("reload.applied"));
    operated.portcullis.event("the droplet", |event| event.is("source.resolved") && event.text("rule") == "droplet:7");
    drop(operated.session("127.0.0.7"));
}

#[test]
fn agent_ends_with_the_program_and_its_token_is_nowhere_to_be_seen() {
    let mut operated = Operated::resolved();
    let first = operated.pid();
    let status =
        run(executable().args(["status", "--socket"]).arg(operated.portcullis.site.path("admin.sock"))).success();
    assert!(status.contains("agent") && !status.contains(SECRET), "{status}");
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{first}/{file}")).unwrap();
        assert!(!String::from_utf8_lossy(&text).contains(SECRET), "{file}");
    }
    operated.portcullis.process.0.kill().unwrap();
    operated.portcullis.process.0.wait().unwrap();
    eventually("the agent is gone", || (!Path::new(&format!("/proc/{first}")).exists()).then_some(()));
    assert!(operated.portcullis.events().iter().all(|event| !event.0.to_string().contains(SECRET)));
}

#[test]
fn token_that_others_can_read_causes_a_warning() {
    let site = TestDir::new();
    site.write("do.token", format!("dop_v1_{SECRET}\n"));
    fs::set_permissions(site.path("do.token"), fs::Permissions::from_mode(0o644)).unwrap();
    let api = DigitalOceanApi::start(&site, &format!("dop_v1_{SECRET}"));
    site.write("portcullis.toml", config(&api, &Upstream::echo(), &["tag:web"]));
    let mut check = executable();
    check.args(["check", "--offline", "-c", "portcullis.toml"]).current_dir(site.directory());
    let text = run(&mut check).success();
    assert!(text.contains("do.token") && !text.contains(SECRET), "{text}");
}

#[test]
fn running_pod_is_admitted_and_its_session_ends_when_it_has_finished() {
    let site = TestDir::new();
    let api = KubernetesApi::start(&site);
    api.require_token("token-1");
    site.write("cluster.token", "token-1\n");
    fs::set_permissions(site.path("cluster.token"), fs::Permissions::from_mode(0o600)).unwrap();
    let pod = |name: &str, ip: &str, phase: &str| {
        let mut pod = pod("shop", name, ip, json!({}));
        pod["status"]["phase"] = json!(phase);
        pod
    };
    api.put(&pod("web-1", "127.0.0.7", "Running"));
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).trusting(&["kubernetes:pods:shop"]);
    let resolver = format!("server = \"{}\"\nca = \"ca.crt\"\ntoken_file = \"cluster.token\"", api.url());
    let config = format!("{STATE}{ADMIN}{ON_SIGHUP}[resolver.kubernetes]\n{resolver}\n{listener}");
    let portcullis = Portcullis::start(site, config);
    portcullis.event("source.resolved", |event| event.is("source.resolved"));
    let finishing = portcullis.client().from("127.0.0.7").connect();
    eventually("a watch", || api.requests().iter().any(Seen::is_watch).then_some(()));

    // The fastest of several changes: a busy machine delays some.
    let mut fastest = [Duration::MAX; 2];
    for number in 1..=3 {
        let name = format!("job-{number}");
        let (seen, changed) = (portcullis.seen(), Instant::now());
        api.put(&pod(&name, "127.0.0.9", "Running"));
        portcullis
            .event_after(seen, "another pod", |event| event.is("source.resolved") && event.number("addresses") == 2);
        let session = portcullis.client().from("127.0.0.9").connect();
        fastest[0] = fastest[0].min(changed.elapsed());
        assert_eq!(portcullis.opened(session.port()).text("object"), format!("pod shop/{name}"));
        let changed = Instant::now();
        api.put(&pod(&name, "127.0.0.9", "Succeeded"));
        assert_eq!(portcullis.ending(session.port()).reason(), "source_revoked");
        fastest[1] = fastest[1].min(changed.elapsed());
    }
    assert!(fastest.iter().all(|time| *time < Duration::from_secs(2)), "{fastest:?}");

    let seen = portcullis.seen();
    api.put(&pod("web-2", "127.0.0.8", "Running"));
    portcullis.event_after(seen, "a second pod", |event| event.is("source.resolved") && event.number("addresses") == 2);
    let mut other = portcullis.client().from("127.0.0.8").connect();
    other.ask(b"hello", b"hello");

    api.put(&pod("web-1", "127.0.0.7", "Succeeded"));
    let ended = portcullis.ending(finishing.port());
    assert_eq!((ended.reason(), ended.text("rule")), ("source_revoked", "kubernetes:pods:shop"));
    other.ask(b"continues", b"continues");
    let mut explain = executable();
    explain.args(["explain", "--listener", "main", "--source", "127.0.0.8", "--socket"]);
    let text = run(explain.arg(portcullis.site.path("admin.sock"))).success();
    assert!(text.contains("127.0.0.8 is pod shop/web-2 by kubernetes:pods:shop"), "{text}");
}

#[test]
fn status_and_metric_show_whether_the_agent_answers() {
    let operated = Operated::resolved();
    let mut session = operated.session("127.0.0.7");
    reaches(&operated.portcullis, "portcullis_agent_up", 1.0);
    let mut status = executable();
    status.args(["status", "--socket"]).arg(operated.portcullis.site.path("admin.sock"));
    let (mut killed, mut is_zero, mut is_shown) = (0, false, false);
    // After each failure, the pause before the next start is longer, until it is seen.
    eventually("the agent is down", || {
        if let Some(pid) = operated.agent()["pid"].as_u64().filter(|pid| *pid != killed) {
            signal(pid.try_into().unwrap(), "KILL");
            killed = pid;
        }
        is_zero |= scrape(&operated.portcullis)["portcullis_agent_up"] == 0.0;
        is_shown |= run(&mut status).success().contains("DOWN for");
        (is_zero && is_shown).then_some(())
    });
    session.ask(b"continues", b"continues");
    drop(operated.session("127.0.0.7"));
}
