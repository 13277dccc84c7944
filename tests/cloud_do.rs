//! The agent with a double of DigitalOcean's API. The tests send its messages themselves.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::agent::{Agent, addresses};
use crate::harness::digitalocean_api::{DigitalOceanApi, Fault, error};
use crate::harness::portcullis::executable;
use crate::harness::program::run;
use crate::harness::{Authority, Request, TestDir, Upstream, eventually};

const TOKEN: &str = "dop_v1_5f0d2c9a";

/// A directory with `token` in it.
fn site() -> TestDir {
    let site = TestDir::new();
    site.write("token", format!("{TOKEN}\n"));
    site
}

/// `[resolver.digitalocean]` with a refresh time of one second.
fn settings(site: &TestDir, api: &DigitalOceanApi) -> Value {
    json!({
        "token": { "file": site.path("token") }, "endpoint": api.url(), "ca": site.path("ca.crt"),
        "refresh_ms": 1000, "addresses": "all",
    })
}

/// An account with one droplet with the tag `web`, and an agent that has resolved it.
fn resolved() -> (TestDir, DigitalOceanApi, Agent) {
    let site = site();
    let api = DigitalOceanApi::start(&site, TOKEN);
    api.droplet(7, &["web"], &[("10.0.0.7", "private")]);
    let mut agent = Agent::start();
    agent.resolve(&settings(&site, &api), &["tag:web"]);
    agent.assert_addresses("tag:web", &["10.0.0.7 droplet web-7"]);
    (site, api, agent)
}

#[test]
fn agent_that_is_run_by_hand_names_the_command_that_starts_it() {
    let outcome = run(executable().arg("agent"));
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("portcullis run starts this command"), "{}", outcome.stderr);
    assert!(!run(executable().arg("--help")).success().contains("agent"), "it is not for users");
}

#[test]
fn agent_is_confined() {
    let (_site, _api, agent) = resolved();
    assert_eq!(agent.hello["hello"]["version"], 1);
    for (file, begin, expected) in [
        ("status", "NoNewPrivs:", "1"),
        ("status", "Threads:", ""),
        ("limits", "Max core file size", "0 0 bytes"),
        ("limits", "Max open files", "256 256 files"),
        ("limits", "Max address space", "1073741824 1073741824 bytes"),
    ] {
        let line = agent.proc(file, begin);
        assert!(line.starts_with(expected), "{begin} {line}");
    }
    let resident: u64 = agent.proc("status", "VmRSS:").trim_end_matches(" kB").parse().unwrap();
    assert!(resident < 40 << 10, "{resident} KiB");
    // Only root may list the descriptors of a process without memory for debuggers.
    if let Ok(descriptors) = fs::read_dir(format!("/proc/{}/fd", agent.process.0.id())) {
        let open = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        let files: BTreeSet<_> = open.filter(|target| target.is_absolute() && !target.starts_with("/dev")).collect();
        assert!(files.is_empty(), "{files:?}");
    }
    if agent.hello["hello"]["confinement"] == "none" {
        eprintln!("not checked: this kernel has no Landlock");
    }
}

#[test]
fn agent_ends_when_the_program_does_or_sends_something_else() {
    let mut ended = Agent::start();
    drop(std::mem::replace(&mut ended.stream, UnixStream::pair().unwrap().0));
    assert_eq!(ended.process.exit_code(), Some(0));
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\0\0\0\x02{}", b"\0\0\0\x07\"hello\"", b"\0\0\0\0"] {
        let mut agent = Agent::start();
        agent.stream.write_all(bytes).unwrap();
        assert_eq!(agent.process.exit_code(), Some(1), "{}", bytes.escape_ascii());
    }
}

#[test]
fn lists_of_several_pages_are_read_to_their_end() {
    let site = site();
    let api = DigitalOceanApi::start(&site, TOKEN);
    for id in 1..=450 {
        let ip = format!("10.0.{}.{}", id / 200, id % 200);
        api.droplet(id, if id % 150 == 0 { &["Web"] } else { &["db"] }, &[(&ip, "private")]);
    }
    api.gpu_droplet(900, &["web"], &[("10.9.0.1", "private")]);
    let mut agent = Agent::start();
    agent.resolve(&settings(&site, &api), &["tag:web", "tag:none", "droplet:7", "droplet:450"]);
    let mut found = std::collections::BTreeMap::new();
    while found.len() < 4 {
        let (source, observation) = agent.observed();
        found.insert(source, addresses(&observation));
    }
    assert_eq!(
        found["tag:web"],
        [
            "10.0.0.150 droplet web-150",
            "10.0.1.100 droplet web-300",
            "10.0.2.50 droplet web-450",
            "10.9.0.1 droplet web-900"
        ]
    );
    assert!(found["tag:none"].is_empty());
    assert_eq!(found["droplet:7"], ["10.0.0.7 droplet web-7"]);
    assert_eq!(found["droplet:450"], ["10.0.2.50 droplet web-450"]);
    let targets: Vec<_> = api.seen().into_iter().take(4).map(|seen| seen.target).collect();
    assert_eq!(
        targets,
        [
            "/v2/droplets?per_page=200&page=1",
            "/v2/droplets?per_page=200&page=2",
            "/v2/droplets?per_page=200&page=3",
            "/v2/droplets?per_page=200&page=1&type=gpus",
        ]
    );
    assert!(api.seen().iter().all(|seen| seen.token.as_deref() == Some(TOKEN)));
    assert!(api.connections() <= 2, "connections are used again");
}

#[test]
fn addresses_are_those_that_are_chosen() {
    let site = site();
    let api = DigitalOceanApi::start(&site, TOKEN);
    api.droplet(7, &[], &[("10.0.0.7", "private"), ("203.0.113.7", "public"), ("2001:db8::7", "public")]);
    let mut agent = Agent::start();
    for (choice, expected) in [
        ("all", &["10.0.0.7 droplet web-7", "203.0.113.7 droplet web-7", "2001:db8::7 droplet web-7"][..]),
        ("public", &["203.0.113.7 droplet web-7", "2001:db8::7 droplet web-7"]),
        ("private", &["10.0.0.7 droplet web-7"]),
    ] {
        let mut settings = settings(&site, &api);
        settings["addresses"] = json!(choice);
        agent.resolve(&settings, &["droplet:7"]);
        agent.await_addresses("droplet:7", expected);
    }
}

#[test]
fn nodes_of_clusters_and_their_gateways_are_resolved() {
    let site = site();
    let api = DigitalOceanApi::start(&site, TOKEN);
    api.droplet(1, &[], &[("10.0.0.1", "private"), ("203.0.113.1", "public")]);
    api.droplet(2, &[], &[("10.0.0.2", "private")]);
    api.cluster("c-open", "v1", false, &[1]);
    api.cluster("c-isolated", "v2", true, &[2]);
    api.gateway("v2", "198.51.100.2");
    api.gateway("v9", "198.51.100.9");
    let mut agent = Agent::start();
    agent.resolve(&settings(&site, &api), &["k8s:c-open", "k8s:c-isolated", "k8s:c-gone"]);
    agent.assert_addresses("k8s:c-isolated", &["10.0.0.2 node pool-2", "198.51.100.2 NAT gateway nat-0"]);
    agent.assert_addresses("k8s:c-open", &["10.0.0.1 node pool-1", "203.0.113.1 node pool-1"]);
    let gone = agent.until("k8s:c-gone", |_| true);
    assert_eq!(gone, json!({ "gone": { "detail": "the cluster does not exist (404)", "evidence": "list" } }));
    api.fail("/v2/vpc_nat_gateways", error(403));
    let error = agent.failure("k8s:c-isolated");
    assert!(error.starts_with("GET /v2/vpc_nat_gateways: 403: You do not have permission"), "{error}");
    agent.assert_addresses("k8s:c-open", &["10.0.0.1 node pool-1", "203.0.113.1 node pool-1"]);
}

#[test]
fn app_counts_by_its_dedicated_addresses() {
    let site = site();
    let api = DigitalOceanApi::start(&site, TOKEN);
    api.app("a1", &[("198.51.100.1", "ASSIGNED"), ("198.51.100.2", "REMOVED")]);
    api.app("a2", &[]);
    let mut agent = Agent::start();
    agent.resolve(&settings(&site, &api), &["app:a1", "app:a2"]);
    agent.assert_addresses("app:a1", &["198.51.100.1 app shop"]);
    let shared = agent.until("app:a2", |_| true);
    let detail = shared["unresolvable"]["detail"].as_str().unwrap();
    assert!(detail.starts_with("the app has no dedicated egress addresses"), "{detail}");
    api.delete_app("a1");
    let gone = agent.until("app:a1", |observation| observation.get("gone").is_some());
    assert_eq!(gone["gone"]["detail"], "the app does not exist (404)");
    assert!(api.seen().iter().all(|seen| seen.target.starts_with("/v2/apps/")), "no other list is needed");
}

#[test]
fn droplet_that_is_destroyed_is_gone() {
    let (site, api, mut agent) = resolved();
    agent.resolve(&settings(&site, &api), &["tag:web", "droplet:7"]);
    agent.assert_addresses("droplet:7", &["10.0.0.7 droplet web-7"]);
    api.destroy_droplet(7);
    let gone = agent.until("droplet:7", |observation| observation.get("gone").is_some());
    assert_eq!(gone, json!({ "gone": { "detail": "the droplet does not exist (404)", "evidence": "list" } }));
    agent.await_addresses("tag:web", &[]);
    api.droplet(7, &["web"], &[("10.0.0.8", "private")]);
    agent.await_addresses("droplet:7", &["10.0.0.8 droplet web-7"]);
}

#[test]
fn failed_request_is_no_answer_and_is_repeated() {
    let (_site, api, mut agent) = resolved();
    let redirect = ("location", "https://evil.test/".to_owned());
    let list = "GET /v2/droplets: the list is not complete: ";
    for (fault, expected) in [
        (error(401), "the token is rejected (401: Unable to authenticate you.); replace the token".to_owned()),
        (
            error(403),
            "GET /v2/droplets: 403: You do not have permission to perform this action.; give the token".to_owned(),
        ),
        (error(404), "GET /v2/droplets: 404; correct endpoint".to_owned()),
        (error(429), "the rate limit of the token is exceeded (429: API rate limit exceeded.)".to_owned()),
        (error(500), "GET /v2/droplets: 500: Unexpected server-side error".to_owned()),
        (error(503), "GET /v2/droplets: 503: Unexpected server-side error".to_owned()),
        (Fault::Status(302, vec![redirect], String::new()), "GET /v2/droplets: 302, a redirect".to_owned()),
        (
            Fault::Status(500, Vec::new(), "{\"message\":\"a\\u001b[2Jb\"}".to_owned()),
            "GET /v2/droplets: 500: a\\u{1b}[2Jb".to_owned(),
        ),
        (Fault::Cut, format!("{}: the answer is cut off", api.url())),
        (Fault::Garbage, "GET /v2/droplets: the answer is invalid: expected value".to_owned()),
        (Fault::Endless, format!("{}: the answer has more than 16 MiB", api.url())),
        (Fault::Total(2), format!("{list}it has 1 items, and its total is 2")),
        (Fault::Total(0), format!("{list}it has 1 items, and its total is 0")),
        (
            Fault::Next("https://evil.test/v2/droplets?page=2".to_owned()),
            format!("{list}the next page is on another host: https://evil.test/"),
        ),
        (
            Fault::Next("http://127.0.0.1/v2/droplets?page=2".to_owned()),
            format!("{list}the next page is on another host: http://127.0.0.1/"),
        ),
    ] {
        let failed = Instant::now();
        api.fail("/v2/droplets", fault.clone());
        let failure = agent.failure("tag:web");
        assert!(failure.starts_with(&expected), "{fault:?}: {failure}");
        api.recover();
        agent.assert_addresses("tag:web", &["10.0.0.7 droplet web-7"]);
        assert!(failed.elapsed() < Duration::from_secs(60), "{fault:?}");
    }
}

#[test]
fn pages_that_do_not_fit_together_are_no_answer() {
    let (_site, api, mut agent) = resolved();
    (1..=300).for_each(|id| api.droplet(id, &["web"], &[(&format!("10.1.{}.{}", id / 200, id % 200), "private")]));
    let list = "GET /v2/droplets: the list is not complete: ";
    for (fault, expected) in [
        (Fault::GrowingTotal, "its total changed from 301 to 302 between two pages"),
        (Fault::SamePage, "two pages have the same item 1"),
    ] {
        api.fail("/v2/droplets", fault.clone());
        let failure = agent.until("tag:web", |observation| {
            observation["failed"]["error"].as_str().is_some_and(|error| error.starts_with(list))
        });
        assert_eq!(failure["failed"]["error"], format!("{list}{expected}"), "{fault:?}");
        api.recover();
        let all = agent.until("tag:web", |observation| observation.get("addresses").is_some());
        assert_eq!(addresses(&all).len(), 300);
    }
}

#[test]
fn token_is_not_sent_to_another_host() {
    let (_site, api, mut agent) = resolved();
    let other = Upstream::silent();
    api.fail("/v2/droplets", Fault::Next(format!("https://{other}/v2/droplets?page=2")));
    agent.failure("tag:web");
    api.fail("/v2/droplets", Fault::Status(307, vec![("location", format!("https://{other}/"))], String::new()));
    agent.until("tag:web", |observation| {
        observation["failed"]["error"].as_str().is_some_and(|error| error.contains("307"))
    });
    other.assert_untouched();
    assert!(agent.errors.events().is_empty(), "nothing is logged");
}

#[test]
fn answer_that_stops_is_a_failure_and_pings_are_answered_meanwhile() {
    let (_site, api, mut agent) = resolved();
    let seen = api.seen().len();
    api.fail("/v2/droplets", Fault::Stall);
    api.await_requests(seen + 1);
    let asked = Instant::now();
    agent.send(&json!({ "ping": { "number": 1 } }));
    while agent.receive().expect("the agent runs") != json!({ "pong": { "number": 1 } }) {}
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    let failure = agent.failure("tag:web");
    assert_eq!(failure, format!("{}: no answer within 10s", api.url()));
    api.recover();
    agent.assert_addresses("tag:web", &["10.0.0.7 droplet web-7"]);
}

#[test]
fn retry_after_is_obeyed_also_for_new_sources() {
    let (site, api, mut agent) = resolved();
    let Fault::Status(status, _, body) = error(429) else { unreachable!() };
    api.fail("/v2/droplets", Fault::Status(status, vec![("retry-after", "6".to_owned())], body));
    agent.failure("tag:web");
    let (failed, seen) = (Instant::now(), api.seen().len());
    api.recover();
    agent.resolve(&settings(&site, &api), &["tag:web", "droplet:7"]);
    agent.assert_addresses("droplet:7", &["10.0.0.7 droplet web-7"]);
    let next = api.seen()[seen].at;
    assert!(next.duration_since(failed) > Duration::from_secs(5), "{:?}", next.duration_since(failed));
}

#[test]
fn polls_become_rare_when_the_rate_limit_is_small() {
    let (_site, api, _agent) = resolved();
    api.limit_rate(100, 100);
    // The next poll learns of the limit: 18 requests an hour, and 2 at once.
    eventually("the limit is sent", || api.seen().len().checked_sub(3));
    sleep(Duration::from_secs(5));
    let seen = api.seen().len();
    assert!(seen <= 6, "{seen} requests");
}

#[test]
fn late_failure_is_retried_in_time_with_one_request_if_the_rate_limit_is_small() {
    let site = site();
    let api = DigitalOceanApi::start(&site, TOKEN);
    (1..=500).for_each(|id| api.droplet(id, &["web"], &[(&format!("10.2.{}.{}", id / 200, id % 200), "private")]));
    // Nine requests an hour, and one on top.
    api.limit_rate(50, 50);
    let last = "/v2/droplets?per_page=200&page=3";
    api.fail(last, error(500));
    let mut agent = Agent::start();
    agent.resolve(&settings(&site, &api), &["tag:web", "tag:db"]);
    agent.failure("tag:db");
    api.await_requests(6);
    let seen = api.seen();
    assert!(seen[3..].iter().all(|request| request.target == last), "{seen:?}");
    // Four refresh times, and time for a busy machine.
    assert!(seen[5].at.duration_since(seen[2].at) < Duration::from_secs(60), "{seen:?}");
}

#[test]
fn replaced_token_is_used_at_once() {
    let (site, api, mut agent) = resolved();
    // Rejected: the file has another token by then, and the request is repeated with it.
    api.accept(&["dop_v1_second"]);
    site.replace("token", "dop_v1_second");
    let seen = api.seen().len();
    api.await_requests(seen + 2);
    agent.assert_addresses("tag:web", &["10.0.0.7 droplet web-7"]);
    api.accept(&["dop_v1_third"]);
    assert!(agent.failure("tag:web").starts_with("the token is rejected (401"));
    site.replace("token", "dop_v1_third");
    agent.assert_addresses("tag:web", &["10.0.0.7 droplet web-7"]);
    site.write("token", "");
    assert!(agent.failure("tag:web").ends_with("token has no valid token; a token is one line of printable ASCII"));
    fs::remove_file(site.path("token")).unwrap();
    agent.until("tag:web", |observation| {
        observation["failed"]["error"]
            .as_str()
            .is_some_and(|error| error.ends_with("No such file or directory (os error 2)"))
    });
}

#[test]
fn replaced_token_ends_a_long_pause_after_failures() {
    let site = site();
    let api = DigitalOceanApi::start(&site, "dop_v1_other");
    let mut agent = Agent::start();
    let mut settings = settings(&site, &api);
    settings["refresh_ms"] = json!(3_600_000);
    agent.resolve(&settings, &["tag:web"]);
    let start = Instant::now();
    agent.failure("tag:web");
    site.replace("token", "dop_v1_other");
    agent.assert_addresses("tag:web", &[]);
    // The next attempt without a new token comes after 6 seconds at the earliest.
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

#[test]
fn token_in_the_environment_is_used() {
    let site = site();
    let api = DigitalOceanApi::start(&site, TOKEN);
    let mut agent = Agent::start_with(&[("DO_TOKEN", TOKEN)]);
    let mut settings = settings(&site, &api);
    settings["token"] = json!({ "environment": "DO_TOKEN" });
    agent.resolve(&settings, &["tag:web"]);
    agent.assert_addresses("tag:web", &[]);
}

#[test]
fn server_is_verified_with_the_file_as_it_is_now() {
    let site = site();
    let api = DigitalOceanApi::start(&site, TOKEN);
    let mut agent = Agent::start();
    site.write("api.crt", Authority::new("Another CA").pem());
    let mut settings = settings(&site, &api);
    settings["ca"] = json!(site.path("api.crt"));
    agent.resolve(&settings, &["tag:web"]);
    let failure = agent.failure("tag:web");
    assert!(failure.contains("cannot connect") && failure.contains("UnknownIssuer"), "{failure}");
    assert!(api.seen().is_empty(), "the token is not sent");
    site.replace("api.crt", site.ca.pem());
    agent.assert_addresses("tag:web", &[]);
    site.replace("api.crt", "nothing");
    assert!(agent.failure("tag:web").contains("api.crt: it has no certificate"));
    settings["ca"] = Value::Null;
    agent.resolve(&settings, &["tag:web"]);
    let failure = agent.failure("tag:web");
    assert!(failure.contains("UnknownIssuer") || failure.contains("ca-certificates"), "{failure}");
}

#[test]
fn server_with_another_name_is_rejected() {
    let site = site();
    let leaf = site.ca.issue(Request::server(&["other.test"]));
    let other = Upstream::tls(crate::harness::upstream::showing(&leaf), |_| {});
    let api = DigitalOceanApi::start(&site, TOKEN);
    let mut settings = settings(&site, &api);
    settings["endpoint"] = json!(format!("https://{other}"));
    let mut agent = Agent::start();
    agent.resolve(&settings, &["tag:web"]);
    let failure = agent.failure("tag:web");
    assert!(failure.contains("cannot connect") && failure.contains("not valid for"), "{failure}");
}

#[test]
fn task_of_any_size_is_resolved_with_one_list() {
    let (site, api, mut agent) = resolved();
    (1..=500).for_each(|id| api.droplet(id, &[], &[(&format!("10.2.{}.{}", id / 200, id % 200), "private")]));
    let sources: Vec<_> = (1..=500).map(|id| format!("droplet:{id}")).collect();
    let seen = api.seen().len();
    let mut slow = settings(&site, &api);
    slow["refresh_ms"] = json!(3_600_000);
    agent.resolve(&slow, &sources.iter().map(String::as_str).collect::<Vec<_>>());
    let mut found = BTreeSet::new();
    while found.len() < 500 {
        let (source, observation) = agent.observed();
        assert!(observation.get("addresses").is_some(), "{source}: {observation}");
        if source.starts_with("droplet:") {
            found.insert(source);
        }
    }
    let requests = api.seen()[seen..].iter().filter(|seen| seen.target.contains("page=3")).count();
    assert_eq!(requests, 1, "a new task is resolved at once, and once");
}
