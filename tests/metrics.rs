//! `/metrics`, `/healthz` and `/readyz`, and what is shipped for Prometheus and Grafana.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use portcullis::internals::metrics_reference;
use serde_json::Value;

use crate::harness::portcullis::ADMIN;
use crate::harness::program::{self, run, run_with_input};
use crate::harness::prometheus::{Answer, Prometheus, exchange, request};
use crate::harness::{Event, Listener, Portcullis, Redis, TestDir, eventually};

/// `[admin]` with the metrics on a port that the kernel chooses.
pub(crate) const METRICS: &str = "admin.metrics = \"127.0.0.1:0\"\n";

fn start(listeners: &str) -> Portcullis {
    let portcullis = Portcullis::start(TestDir::new(), format!("{ADMIN}{METRICS}{listeners}"));
    // The metrics are served before: while an address is not bound, /readyz is 503.
    portcullis.event("the listeners are bound", |event| event.is("ready"));
    portcullis
}

/// Where the metrics are served now.
fn address(portcullis: &Portcullis) -> SocketAddr {
    portcullis.event("the metrics are served", |event| event.0["message"] == "serving metrics");
    let serving = portcullis.events().into_iter().rfind(|event| event.0["message"] == "serving metrics");
    serving.unwrap().text("address").parse().unwrap()
}

fn get(portcullis: &Portcullis, path: &str) -> Answer {
    request(address(portcullis), "GET", path, "")
}

/// The samples of a scrape by series, such as `up{job="a"}`.
pub(crate) fn scrape(portcullis: &Portcullis) -> BTreeMap<String, f64> {
    samples(&get(portcullis, "/metrics").body)
}

fn samples(body: &str) -> BTreeMap<String, f64> {
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    let parts = lines.map(|line| line.rsplit_once(' ').unwrap());
    parts.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

/// Waits until a series has a value: a client may be answered before its connection is counted.
pub(crate) fn reaches(portcullis: &Portcullis, series: &str, value: f64) {
    eventually(&format!("{series} is {value}"), || (scrape(portcullis).get(series) == Some(&value)).then_some(()));
}

fn packaged(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

#[test]
fn reference_is_generated_from_the_catalog() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/METRICS.md");
    if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
        fs::write(&file, metrics_reference()).unwrap();
    }
    assert!(
        fs::read_to_string(file).unwrap() == metrics_reference(),
        "docs/METRICS.md is out of date; its first lines have the command"
    );
}

#[test]
fn every_documented_series_is_in_a_scrape_and_no_other() {
    let redis = Redis::start();
    let listener = Listener::redis(&redis).trusting(&["127.0.0.1", "dns:localhost"]).key("shield = \"auto\"");
    let portcullis = start(&listener.limit("max_connections = 9").to_string());
    portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");
    let answer = get(&portcullis, "/metrics");
    let types = answer.body.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let shown: BTreeSet<_> = types.filter_map(|line| line.split(' ').next()).collect();
    let reference = metrics_reference();
    let rows = reference.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: BTreeSet<_> =
        rows.filter(|name| name.starts_with("portcullis_") || name.starts_with("process_")).collect();
    let missing: Vec<_> = documented.difference(&shown).collect();
    // Nobody has used the API, and there are neither cloud sources nor a fleet.
    let absent = [
        "portcullis_admin_requests_total",
        "portcullis_agent_up",
        "portcullis_fleet_members",
        "portcullis_fleet_revision",
    ];
    assert_eq!(missing, absent.each_ref());
    assert_eq!(shown.difference(&documented).count(), 0, "{shown:?}");
    for reason in ["untrusted_source", "upstream_unreachable", "client_certificate_revoked"] {
        let series = format!("portcullis_connections_denied_total{{listener=\"main\",reason=\"{reason}\"}}");
        assert_eq!(samples(&answer.body).get(&series), Some(&0.0), "{series}");
    }
    run_with_input(program::command("promtool").args(["check", "metrics"]), answer.body.as_bytes()).success();
}

#[test]
fn features_that_are_not_configured_have_no_series() {
    let portcullis = start(&Listener::tcp("127.0.0.1:1").without_tls().to_string());
    portcullis.address("main");
    let body = get(&portcullis, "/metrics").body;
    for absent in [
        "agent",
        "tls_handshakes",
        "handshake_seconds",
        "certificate",
        "credential",
        "source_",
        "shield",
        "limit",
        "upstream_up",
    ] {
        assert!(!body.contains(&format!("portcullis_{absent}")), "{absent}: {body}");
    }
}

#[test]
fn format_follows_the_accept_header() {
    let portcullis = start(&Listener::tcp("127.0.0.1:1").to_string());
    let address = address(&portcullis);
    let plain = request(address, "GET", "/metrics", "");
    assert_eq!(plain.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(plain.body.contains("# TYPE portcullis_connections_opened_total counter\n"), "{}", plain.body);
    assert!(!plain.body.contains("# EOF"));
    let open = request(address, "GET", "/metrics", "accept: application/openmetrics-text; version=1.0.0\r\n");
    assert_eq!(open.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(open.body.contains("# TYPE portcullis_connections_opened counter\n"), "{}", open.body);
    assert!(open.body.ends_with("# EOF\n"));
    // The formats write the bounds of buckets differently.
    let series = |body: &str| samples(body).into_keys().filter(|series| !series.contains("le=\"")).collect::<Vec<_>>();
    assert_eq!(series(&plain.body), series(&open.body));
}

#[test]
fn only_three_paths_are_served_and_only_to_be_read() {
    let portcullis = start(&Listener::tcp("127.0.0.1:1").to_string());
    let address = address(&portcullis);
    for (method, path, status) in [
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("HEAD", "/metrics", 200),
        ("POST", "/metrics", 405),
        ("DELETE", "/healthz", 405),
        ("GET", "/", 404),
        ("GET", "/v1/status", 404),
        ("POST", "/v1/reload", 404),
        ("GET", "/metrics/", 404),
        ("GET", "//metrics", 404),
    ] {
        assert_eq!(request(address, method, path, "").status, status, "{method} {path}");
    }
    assert_eq!(request(address, "GET", "/healthz", "").body, "ok\n");
    assert_eq!(request(address, "POST", "/metrics", "").header("allow"), Some("GET, HEAD"));
    let oversized = format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(64 << 10));
    for garbage in [&b"\0\xff\r\n\r\n"[..], b"GET /metrics HTTP/9.9\r\n\r\n", oversized.as_bytes()] {
        let answer = exchange(address, garbage);
        assert!(!answer.contains("portcullis_"), "{answer}");
    }
    let silent: Vec<_> = (0..8).map(|_| TcpStream::connect(address).unwrap()).collect();
    assert_eq!(request(address, "GET", "/metrics", "").status, 200);
    drop(silent);
}

#[test]
fn draining_program_is_healthy_and_not_ready() {
    let redis = Redis::start();
    let mut portcullis = start(&Listener::redis(&redis).to_string());
    let mut session = portcullis.client().connect();
    session.ask(b"PING\r\n", b"+PONG\r\n");
    portcullis.process.signal("TERM");
    portcullis.event("it drains", |event| event.0["message"] == "draining");
    let ready = get(&portcullis, "/readyz");
    assert_eq!((ready.status, ready.body.as_str()), (503, "draining\n"));
    assert_eq!(get(&portcullis, "/healthz").status, 200);
    reaches(&portcullis, "portcullis_connections_active{listener=\"main\"}", 1.0);
    drop(session);
    assert_eq!(portcullis.process.exit_code(), Some(0));
}

#[test]
fn connections_and_bytes_are_counted_while_sessions_run() {
    let redis = Redis::start();
    let config = |sources: &[&str]| format!("{ADMIN}{METRICS}{}", Listener::redis(&redis).trusting(sources));
    let portcullis = Portcullis::start(TestDir::new(), config(&["127.0.0.1"]));
    let client = portcullis.client();
    let mut session = client.connect();
    session.ask(b"PING\r\n", b"+PONG\r\n");
    let relayed =
        |direction: &str| format!("portcullis_relayed_bytes_total{{listener=\"main\",direction=\"{direction}\"}}");
    reaches(&portcullis, &relayed("in"), 6.0);
    reaches(&portcullis, &relayed("out"), 7.0);
    reaches(&portcullis, "portcullis_connections_active{listener=\"main\"}", 1.0);
    reaches(
        &portcullis,
        "portcullis_upstream_up{listener=\"main\",address=\"ADDRESS\"}".replace("ADDRESS", &redis.to_string()).as_str(),
        1.0,
    );
    let fingerprint = "portcullis_credential_sessions{listener=\"main\",kind=\"server_certificate\"";
    let (_, sessions) = scrape(&portcullis).into_iter().find(|(series, _)| series.starts_with(fingerprint)).unwrap();
    assert!((sessions - 1.0).abs() < f64::EPSILON);

    let mut resumed = client.connect();
    resumed.ask(b"PING\r\n", b"+PONG\r\n");
    for resumed in ["false", "true"] {
        let series = "portcullis_tls_handshakes_total{listener=\"main\",version=\"TLSv1.3\",resumed=\"RESUMED\"}";
        reaches(&portcullis, &series.replace("RESUMED", resumed), 1.0);
    }
    reaches(&portcullis, "portcullis_handshake_seconds_count{listener=\"main\"}", 2.0);
    reaches(&portcullis, "portcullis_handshake_seconds_bucket{listener=\"main\",le=\"+Inf\"}", 2.0);

    drop(portcullis.client().from("127.0.0.2").dial());
    reaches(&portcullis, "portcullis_connections_denied_total{listener=\"main\",reason=\"untrusted_source\"}", 1.0);
    portcullis.reconfigure(config(&["127.0.0.3"]));
    reaches(&portcullis, "portcullis_sessions_revoked_total{listener=\"main\",reason=\"source_revoked\"}", 2.0);
    reaches(&portcullis, "portcullis_connections_active{listener=\"main\"}", 0.0);
    reaches(&portcullis, "portcullis_connections_opened_total{listener=\"main\"}", 2.0);
    reaches(&portcullis, &relayed("in"), 12.0);
    reaches(&portcullis, "portcullis_trusted_sources{listener=\"main\"}", 1.0);
}

#[test]
fn two_hundred_sources_make_no_new_series() {
    let redis = Redis::start();
    let portcullis = start(&Listener::redis(&redis).trusting(&["127.7.1.0/24"]).to_string());
    let ask = |source: &str| portcullis.client().from(source).connect().ask(b"PING\r\n", b"+PONG\r\n");
    // The client rejects the certificate, which is for another name.
    let misname =
        |source: &str| drop(portcullis.client().from(source).named(&format!("n{}.test", &source[8..])).attempt());
    ask("127.7.1.250");
    misname("127.7.2.250");
    let denied = "portcullis_connections_denied_total{listener=\"main\",reason=\"untrusted_source\"}";
    reaches(&portcullis, denied, 1.0);
    let before: Vec<_> = scrape(&portcullis).into_keys().collect();
    for number in 1..=100 {
        ask(&format!("127.7.1.{number}"));
        misname(&format!("127.7.1.{number}"));
        misname(&format!("127.7.2.{number}"));
    }
    reaches(&portcullis, denied, 101.0);
    reaches(&portcullis, "portcullis_connections_opened_total{listener=\"main\"}", 101.0);
    assert_eq!(scrape(&portcullis).into_keys().collect::<Vec<_>>(), before);
}

#[test]
fn counters_never_fall_through_reloads_and_when_a_listener_returns() {
    let redis = Redis::start();
    let listener = |name: &str| Listener::redis(&redis).named(name).to_string();
    let both = format!("{ADMIN}{METRICS}{}{}", listener("main"), listener("other"));
    let one = format!("{ADMIN}{METRICS}{}", listener("other"));
    let portcullis = Portcullis::start(TestDir::new(), &both);
    let opened = "portcullis_connections_opened_total{listener=\"main\"}";
    portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");
    reaches(&portcullis, opened, 1.0);
    // The last table of a listener is its limits.
    let changed = portcullis.reconfigure(format!("{both}max_connections = 5\n"));
    assert!(changed.is("reload.applied"), "{}", changed.0);
    reaches(&portcullis, opened, 1.0);
    reaches(&portcullis, "portcullis_connections_active{listener=\"main\"}", 0.0);

    portcullis.reconfigure(&one);
    eventually("its series are gone", || (!scrape(&portcullis).contains_key(opened)).then_some(()));
    portcullis.reconfigure("nonsense");
    reaches(&portcullis, "portcullis_config_last_reload_successful", 0.0);
    assert!(scrape(&portcullis)["portcullis_reloads_total{result=\"rejected\"}"] >= 1.0);
    let seen = portcullis.seen();
    portcullis.reconfigure(&both);
    reaches(&portcullis, "portcullis_config_last_reload_successful", 1.0);
    // The watcher may reload once more for each change.
    assert!(scrape(&portcullis)["portcullis_reloads_total{result=\"applied\"}"] >= 3.0);
    reaches(&portcullis, opened, 1.0);
    // It has another port, which the log shows a moment later.
    let is_ready = |event: &Event| event.is("ready") && event.0["listener"] == "main";
    portcullis.event_after(seen, "main is bound again", is_ready);
    portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");
    reaches(&portcullis, opened, 2.0);
}

#[test]
fn reload_moves_the_address_and_rejects_one_that_is_taken() {
    let listener = Listener::tcp("127.0.0.1:1").to_string();
    let portcullis = start(&listener);
    let first = address(&portcullis);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = |address: &str| format!("{ADMIN}admin.metrics = \"{address}\"\n{listener}");
    let rejected = portcullis.reconfigure(metrics(&taken.local_addr().unwrap().to_string()));
    assert!(rejected.is("reload.rejected"), "{}", rejected.0);
    assert!(rejected.text("error").contains("admin.metrics: 127.0.0.1:"), "{}", rejected.0);
    assert_eq!(request(first, "GET", "/readyz", "").status, 200);

    let port = program::free_port();
    portcullis.reconfigure(metrics(&format!("127.0.0.1:{port}")));
    assert_eq!(request(SocketAddr::from(([127, 0, 0, 1], port)), "GET", "/readyz", "").status, 200);
    eventually("the first address is closed", || TcpStream::connect(first).err());
    portcullis.reconfigure(format!("{ADMIN}{listener}"));
    eventually("metrics are off", || TcpStream::connect(("127.0.0.1", port)).err());
}

#[test]
fn two_programs_with_equal_configurations_have_the_same_hash() {
    let hash = |listener: &str| {
        let portcullis = start(listener);
        scrape(&portcullis).into_keys().find(|series| series.starts_with("portcullis_config_hash")).unwrap()
    };
    let base = Listener::tcp("127.0.0.1:1");
    assert_eq!(hash(&base.to_string()), hash(&base.to_string()));
    assert_ne!(hash(&base.to_string()), hash(&base.trusting(&["127.0.0.2"]).to_string()));
}

#[test]
fn alert_rules_pass_their_tests() {
    let promtool = |words: &[&str], file: &str| {
        run(program::command("promtool").args(words).arg(packaged(file))).success();
    };
    promtool(&["check", "rules"], "prometheus/portcullis-alerts.yml");
    promtool(&["test", "rules"], "prometheus/portcullis-alerts.test.yml");
}

/// The expressions of all panels, with the variables that Grafana would replace.
fn panel_expressions() -> Vec<String> {
    let dashboard = fs::read_to_string(packaged("grafana/portcullis.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    let expressions = targets.map(|target| target["expr"].as_str().unwrap());
    let all = [("$__rate_interval", "1m"), ("$instance", ".*"), ("$listener", ".*")];
    let replaced = |expression: &str| {
        all.into_iter().fold(expression.to_owned(), |text, (variable, value)| text.replace(variable, value))
    };
    expressions.map(replaced).collect()
}

#[test]
fn prometheus_scrapes_and_answers_every_alert_and_panel() {
    let redis = Redis::start();
    let listener = Listener::redis(&redis).trusting(&["127.0.0.1", "dns:localhost"]).limit("max_connections = 9");
    let portcullis = start(&listener.key("shield = \"auto\"").to_string());
    portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");
    drop(portcullis.client().from("127.0.0.2").dial());
    let rules = packaged("prometheus/portcullis-alerts.yml");
    let prometheus = Prometheus::start(&portcullis.site, address(&portcullis), rules.to_str().unwrap());
    prometheus.eventually("up{job=\"portcullis\"} == 1");
    prometheus.eventually("portcullis_connections_denied_total{reason=\"untrusted_source\"} == 1");

    let known = prometheus.ask("/api/v1/metadata");
    let names = reference_names();
    for expression in panel_expressions() {
        prometheus.query(&expression);
        assert_names_are_documented(&expression, &names);
    }
    let groups = eventually("the rules are evaluated", || {
        let answer = prometheus.ask("/api/v1/rules");
        let groups = answer["data"]["groups"].as_array()?.clone();
        let rules = groups.first()?["rules"].as_array()?.clone();
        rules.iter().all(|rule| rule["health"] == "ok").then_some(rules)
    });
    assert_eq!(groups.len(), 14);
    for rule in &groups {
        let expression = rule["query"].as_str().unwrap();
        prometheus.query(expression);
        assert_names_are_documented(expression, &names);
        // The certificate of the test is valid, and the configuration is in force.
        assert_ne!(rule["state"], "firing", "{rule}");
    }
    assert_eq!(known["data"]["portcullis_handshake_seconds"][0]["type"], "histogram", "{known}");
}

fn reference_names() -> BTreeSet<String> {
    let reference = metrics_reference();
    reference.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned())).collect()
}

/// A misspelt name would be an empty answer and not an error.
fn assert_names_are_documented(expression: &str, names: &BTreeSet<String>) {
    let words = expression.split(|sign: char| !sign.is_ascii_alphanumeric() && sign != '_');
    for word in words.filter(|word| word.starts_with("portcullis_") || word.starts_with("process_")) {
        let name = word.strip_suffix("_bucket").unwrap_or(word);
        assert!(names.contains(name), "{word} in {expression}");
    }
}
