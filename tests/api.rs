//! The admin API: tokens and roles, changes of trusted sources, events, and hostile requests.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::api::{Api, ApiReply};
use crate::harness::pki::sha256;
use crate::harness::program::free_address;
use crate::harness::{Listener, Portcullis, Redis, TestDir, eventually};
use crate::reload::ON_SIGHUP;
use crate::revocation::MAX_REVOCATION_TIME;

/// A program with a Redis listener `main` whose rules are in a file, and with an admin socket and a TCP address.
pub(crate) struct Operated {
    pub(crate) portcullis: Portcullis,
    /// Kept open.
    pub(crate) _redis: Redis,
    pub(crate) address: SocketAddr,
}

/// Tokens of the configuration, by role.
pub(crate) const VIEWER: &str = "viewer-token";
pub(crate) const OPERATOR: &str = "operator-token";
pub(crate) const OWNER: &str = "owner-token";
const EXPIRED: &str = "expired-token";
const ELSEWHERE: &str = "elsewhere-token";

/// `[admin]` with a socket, a TCP address and one token of each role.
pub(crate) fn admin(address: SocketAddr) -> String {
    let token = |name: &str, text: &str, role: &str, rest: &str| {
        let digest = sha256(text.as_bytes());
        format!("[[admin.token]]\nname = \"{name}\"\nrole = \"{role}\"\nsha256 = \"{digest}\"\n{rest}\n")
    };
    [
        format!("[admin]\nlisten = [\"unix:admin.sock\", \"{address}\"]\ntokens_file = \"tokens.toml\"\n"),
        token("viewer", VIEWER, "viewer", ""),
        token("operator", OPERATOR, "operator", ""),
        token("owner", OWNER, "owner", ""),
        token("old", EXPIRED, "owner", "expires_at = 2020-01-01T00:00:00Z"),
        token("far", ELSEWHERE, "owner", "sources = [\"192.0.2.0/24\"]"),
    ]
    .concat()
}

impl Operated {
    pub(crate) fn start() -> Self {
        Self::with_rules("[[rule]]\ntype = \"ip_addr\"\nvalue = \"127.0.0.1\"\n")
    }

    /// The same with this `sources_file`.
    pub(crate) fn with_rules(rules: &str) -> Self {
        Self::with_keys("", rules)
    }

    /// The same with keys above the first table.
    fn with_keys(keys: &str, rules: &str) -> Self {
        let redis = Redis::start();
        let site = TestDir::new();
        site.write("main.sources", rules);
        let address = free_address();
        let listener = Listener::redis(format_args!("127.0.0.1:{}", redis.port()))
            .trusting(&[])
            .key("sources_file = \"main.sources\"");
        let portcullis = Portcullis::start(site, format!("{keys}{}{listener}", admin(address)));
        portcullis.address("main");
        Self { portcullis, _redis: redis, address }
    }

    pub(crate) fn unix(&self) -> Api {
        Api::at_socket(self.portcullis.site.path("admin.sock"))
    }

    pub(crate) fn tcp(&self) -> Api {
        Api::at(self.address)
    }

    fn sources_text(&self) -> String {
        std::fs::read_to_string(self.portcullis.site.path("main.sources")).unwrap()
    }

    /// The values of the rules in force, in order.
    fn values(&self) -> Vec<String> {
        let rules = self.unix().get(SOURCES).expect(200);
        rules["rules"].as_array().unwrap().iter().map(|rule| rule["value"].as_str().unwrap().to_owned()).collect()
    }
}

const SOURCES: &str = "/v1/listeners/main/sources";

fn rule(value: &str) -> Value {
    json!({ "type": "ip_addr", "value": value })
}

fn rules(values: &[&str]) -> Value {
    json!({ "rules": values.iter().map(|value| rule(value)).collect::<Vec<_>>() })
}

#[test]
fn every_route_requires_a_token_of_its_role() {
    let operated = Operated::start();
    let revoked = operated.unix().post("/v1/tokens", &json!({ "name": "gone", "role": "owner" })).expect(201);
    operated.unix().delete("/v1/tokens/gone").expect(204);
    let description = operated.tcp().with_token(VIEWER).get("/v1/openapi.json").expect(200);
    let mut routes = 0;
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let Some(required) = operation["x-role"].as_str() else { continue };
            routes += 1;
            let method = method.to_uppercase();
            // Nothing has this name, so that an admitted request changes nothing.
            let target = path.replace("{name}", "no-such").replace("{id}", "999").replace("{uuid}", "no-such");
            let target = target.replace("{sha256}", &"0".repeat(64));
            let status = |api: &Api| {
                // The response to events does not end.
                let head = api.head(&method, &target, "", 0);
                let mut stream = api.connect();
                stream.write_all(head.as_bytes()).unwrap();
                let mut line = String::new();
                BufReader::new(stream).read_line(&mut line).unwrap();
                line.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
            };
            let tcp = operated.tcp();
            for bad in [EXPIRED, ELSEWHERE, revoked["token"].as_str().unwrap()] {
                // After many of them, the source is limited.
                let got = status(&tcp.with_token(bad));
                assert!([401, 429].contains(&got), "{method} {path} with {bad}: {got}");
            }
            for (token, role) in [(VIEWER, 0), (OPERATOR, 1), (OWNER, 2)] {
                let enough = role >= ["viewer", "operator", "owner"].iter().position(|name| *name == required).unwrap();
                let got = status(&tcp.with_token(token));
                assert_eq!(got == 403, !enough, "{method} {path} by {token}: {got}");
                assert_ne!(got, 401, "{method} {path} by {token}");
                assert!(got < 500, "{method} {path} by {token}: {got}");
            }
        }
    }
    assert!(routes > 20, "{routes}");
    let answers: Vec<u16> =
        (0..100).map(|n| operated.tcp().with_token(&format!("guess-{n}")).get("/v1/status").status).collect();
    assert!(answers.contains(&429), "{answers:?}");
    let limited = operated.tcp().with_token("guess-last").get("/v1/status");
    assert!(limited.status == 401 || limited.header("retry-after").is_some());
    operated.tcp().with_token(VIEWER).get("/v1/status").expect(200);
    let denied = operated.portcullis.event("a denial", |event| event.is("admin.denied"));
    assert_eq!(denied.0["source"], "127.0.0.1");
    let log: String = operated.portcullis.events().iter().map(|event| event.0.to_string()).collect();
    assert!(!log.contains("guess-") && !log.contains(VIEWER), "a token is in the log");
}

#[test]
fn added_source_is_admitted_and_removed_source_is_cut_off_before_the_answer() {
    let operated = Operated::with_rules("# nobody yet\nrule = []\n");
    let (unix, client) = (operated.unix(), operated.portcullis.client());
    client.try_connect().unwrap_err();
    let added = unix
        .post(SOURCES, &json!({ "rules": [{ "type": "ip_addr", "value": "127.0.0.1", "description": "here" }] }))
        .expect(201);
    let uuid = added["rules"][0]["uuid"].as_str().unwrap().to_owned();
    assert!(operated.sources_text().contains("# nobody yet"), "{}", operated.sources_text());
    let mut session = client.connect();
    session.ask(b"PING\r\n", b"+PONG\r\n");
    let listed = unix.get(SOURCES).expect(200)["rules"][0].clone();
    assert_eq!(
        (&listed["sessions"], &listed["origin"], &listed["state"]),
        (&json!(1), &json!("file"), &json!("resolved"))
    );
    assert!(listed["last_used"].is_string() && listed["created_at"].is_string(), "{listed}");

    let plan = unix.delete(&format!("{SOURCES}/{uuid}?plan=true")).expect(200);
    assert_eq!(
        (&plan["admits_nobody"], &plan["sessions_ended"][0]["reason"]),
        (&json!(true), &json!("source_revoked"))
    );
    assert_eq!(plan["rules_removed"][0]["value"], "127.0.0.1");
    session.ask(b"PING\r\n", b"+PONG\r\n");

    let before = Instant::now();
    assert_eq!(unix.delete(&format!("{SOURCES}/{uuid}")).status, 204);
    client.try_connect().unwrap_err();
    session.rest().unwrap();
    assert!(before.elapsed() < MAX_REVOCATION_TIME, "{:?}", before.elapsed());
    unix.delete(&format!("{SOURCES}/{uuid}")).expect_error(404, "not_found");
    let action = operated
        .portcullis
        .event("the removal", |event| event.is("admin.action") && event.0["action"] == "sources.remove");
    assert_eq!(action.0["target"], format!("main/{uuid}"));
    assert_eq!((&action.0["actor"], &action.0["role"]), (&json!("unix"), &json!("owner")));
    assert!(action.0["request_id"].is_string());
}

#[test]
fn stale_etag_is_refused_and_a_current_one_is_accepted() {
    let operated = Operated::start();
    let unix = operated.unix();
    let etag = unix.get(SOURCES).header("etag").unwrap().to_owned();
    let if_match = format!("If-Match: {etag}\r\n");
    let body = rules(&["127.0.0.1", "127.0.0.2"]).to_string();
    assert_eq!(unix.request("PUT", SOURCES, &if_match, body.as_bytes()).status, 204);
    let stale = unix.request("PUT", SOURCES, &if_match, body.as_bytes());
    stale.expect_error(412, "precondition_failed");
    let fresh = unix.get(SOURCES).header("etag").unwrap().to_owned();
    assert_ne!(etag, fresh);
    let answer = unix.request("PUT", SOURCES, &format!("If-Match: {fresh}\r\n"), body.as_bytes());
    assert_eq!(answer.header("etag"), Some(fresh.as_str()), "the same rules have the same tag");
    assert_eq!(operated.values(), ["127.0.0.1", "127.0.0.2"]);
}

#[test]
fn broken_configuration_is_named_also_with_the_etag_of_the_list() {
    let operated = Operated::start();
    let (unix, site) = (operated.unix(), &operated.portcullis.site);
    let if_match = format!("If-Match: {}\r\n", unix.get(SOURCES).header("etag").unwrap());
    let body = rules(&["127.0.0.1", "127.0.0.2"]).to_string();
    let put = |query: &str| unix.request("PUT", &format!("{SOURCES}{query}"), &if_match, body.as_bytes());
    let config = std::fs::read_to_string(site.path("portcullis.toml")).unwrap();
    let broken = format!("{config}\n[listener\n");
    site.write("portcullis.toml", &broken);
    operated.portcullis.event("a rejection", |event| event.is("reload.rejected"));
    let position = format!("portcullis.toml:{}:", broken.lines().count());
    for query in ["?plan=true", ""] {
        let message = put(query).expect_error(422, "reload_rejected");
        assert!(message.contains(&position), "{position}: {message}");
    }
    site.write("portcullis.toml", &config);
    put("?plan=true").expect(200);
    assert_eq!(put("").status, 204);
    assert_eq!(operated.values(), ["127.0.0.1", "127.0.0.2"]);
}

#[test]
fn list_that_was_edited_by_hand_is_refused_and_a_comment_is_kept() {
    let site = |site: &TestDir| std::fs::read_to_string(site.path("main.sources")).unwrap();
    let operated = Operated::with_keys(ON_SIGHUP, "[[rule]]\ntype = \"ip_addr\"\nvalue = \"127.0.0.1\"\n");
    let (unix, directory) = (operated.unix(), &operated.portcullis.site);
    let before = site(directory);
    let if_match = format!("If-Match: {}\r\n", unix.get(SOURCES).header("etag").unwrap());
    let body = rules(&["127.0.0.1", "127.0.0.2"]).to_string();
    let put = || unix.request("PUT", SOURCES, &if_match, body.as_bytes());
    directory.write("main.sources", before.replace("127.0.0.1", "127.0.0.9"));
    let message = put().expect_error(412, "precondition_failed");
    assert!(message.contains("edited by hand"), "{message}");
    directory.write("main.sources", format!("# by hand\n{before}"));
    assert_eq!(put().status, 204);
    assert!(site(directory).starts_with("# by hand\n"), "{}", site(directory));
}

#[test]
fn concurrent_writers_lose_nothing() {
    let operated = Operated::start();
    thread::scope(|scope| {
        for writer in 0..10 {
            let unix = operated.unix();
            scope.spawn(move || {
                for number in 0..5 {
                    unix.post(SOURCES, &rules(&[&format!("10.0.{writer}.{number}")])).expect(201);
                }
            });
        }
    });
    assert_eq!(operated.values().len(), 51);
    assert_eq!(operated.sources_text().matches("[[rule]]").count(), 51);
}

#[test]
fn killed_program_leaves_the_old_or_the_new_file() {
    let mut operated = Operated::start();
    let old = operated.sources_text();
    let many: Vec<String> = (0..2_000).map(|n| format!("10.1.{}.{}", n / 256, n % 256)).collect();
    let body = rules(&many.iter().map(String::as_str).collect::<Vec<_>>()).to_string();
    let unix = operated.unix();
    let is_stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // The answer may never come.
            let head = unix.head("PUT", SOURCES, "", body.len());
            while !is_stopped.load(Ordering::Relaxed) {
                let Ok(mut stream) =
                    std::os::unix::net::UnixStream::connect(operated.portcullis.site.path("admin.sock"))
                else {
                    return;
                };
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.write_all(body.as_bytes());
                let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
            }
        });
        // Until the first change is in the file, in a moment that is different in every run.
        eventually("a change of the file", || (operated.sources_text() != old).then_some(()));
        operated.portcullis.process.0.kill().unwrap();
        operated.portcullis.process.0.wait().unwrap();
        is_stopped.store(true, Ordering::Relaxed);
    });
    let text = operated.sources_text();
    let count = text.matches("[[rule]]").count();
    assert!(count == 2_000 || text == old, "{count} rules");
}

#[test]
fn hundred_thousand_rules_are_replaced_and_one_is_appended() {
    let operated = Operated::start();
    let unix = operated.unix();
    let many: Vec<Value> =
        (0..100_000).map(|n| rule(&format!("10.{}.{}.{}", n / 65_536, n / 256 % 256, n % 256))).collect();
    assert_eq!(unix.put(SOURCES, &json!({ "rules": many })).status, 204);
    unix.post(SOURCES, &rules(&["192.0.2.1"])).expect(201);
    assert_eq!(operated.values().len(), 100_001);
}

#[test]
fn invalid_changes_are_explained_and_change_nothing() {
    let operated = Operated::start();
    let unix = operated.unix();
    let before = operated.sources_text();
    let generation = unix.get("/v1/status").expect(200)["generation"].clone();
    let deep = format!("{{\"rules\":{}{}}}", "[".repeat(5_000), "]".repeat(5_000));
    let long = "1".repeat(100_000);
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("PUT", b"".to_vec(), 400, "bad_request"),
        ("PUT", b"{".to_vec(), 400, "bad_request"),
        ("PUT", b"\xff\xfe".to_vec(), 400, "bad_request"),
        ("PUT", deep.into_bytes(), 422, "unprocessable_entity"),
        ("PUT", b"[]".to_vec(), 422, "unprocessable_entity"),
        ("PUT", b"{\"rules\":null}".to_vec(), 422, "unprocessable_entity"),
        ("PUT", b"{\"rules\":{}}".to_vec(), 422, "unprocessable_entity"),
        ("PUT", b"{\"rules\":[1]}".to_vec(), 422, "unprocessable_entity"),
        ("PUT", b"{\"rules\":[],\"rules\":[]}".to_vec(), 422, "unprocessable_entity"),
        ("PUT", b"{\"rules\":[],\"more\":1}".to_vec(), 422, "unprocessable_entity"),
        ("PUT", br#"{"rules":[{"type":"ip_addr"}]}"#.to_vec(), 422, "unprocessable_entity"),
        ("PUT", br#"{"rules":[{"type":"ip_addr","value":"10.0.0.1/8"}]}"#.to_vec(), 422, "unprocessable_entity"),
        ("PUT", br#"{"rules":[{"type":"ip_addr","value":"10.0.0.1\u0000"}]}"#.to_vec(), 422, "unprocessable_entity"),
        ("PUT", br#"{"rules":[{"type":"planet","value":"mars"}]}"#.to_vec(), 422, "unprocessable_entity"),
        ("PUT", br#"{"rules":[{"type":"tag","value":"web"}]}"#.to_vec(), 422, "unprocessable_entity"),
        (
            "PUT",
            br#"{"rules":[{"type":"ip_addr","value":"10.0.0.1","colour":"red"}]}"#.to_vec(),
            422,
            "unprocessable_entity",
        ),
        (
            "PUT",
            br#"{"rules":[{"type":"ip_addr","value":"10.0.0.1","expires_at":"soon"}]}"#.to_vec(),
            422,
            "unprocessable_entity",
        ),
        (
            "PUT",
            format!(r#"{{"rules":[{{"type":"ip_addr","value":"{long}"}}]}}"#).into_bytes(),
            422,
            "unprocessable_entity",
        ),
        (
            "PUT",
            format!(r#"{{"rules":[{{"type":"ip_addr","value":"10.0.0.1","description":"{long}"}}]}}"#).into_bytes(),
            422,
            "unprocessable_entity",
        ),
        ("POST", br#"{"rules":[]}"#.to_vec(), 422, "unprocessable_entity"),
        (
            "POST",
            br#"{"rules":[{"type":"ip_addr","value":"10.0.0.1","ttl":"never"}]}"#.to_vec(),
            422,
            "unprocessable_entity",
        ),
    ];
    for (method, body, status, id) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(90)]).into_owned();
        let reply = unix.request(method, SOURCES, "", &body);
        assert_eq!((reply.status, reply.body["id"].as_str()), (status, Some(id)), "{shown}: {}", reply.body);
        let message = reply.expect_error(status, id);
        assert!(message.len() < 2_000, "{shown}: {} bytes", message.len());
    }
    unix.get("/v1/listeners/none/sources").expect_error(404, "not_found");
    unix.delete(&format!("{SOURCES}/x")).expect_error(422, "unprocessable_entity");
    unix.get(&format!("{SOURCES}?paln=true")).expect_error(422, "unprocessable_entity");
    unix.request("PUT", &format!("{SOURCES}?plan=maybe"), "", b"{\"rules\":[]}")
        .expect_error(422, "unprocessable_entity");
    assert_eq!(operated.sources_text(), before);
    assert_eq!(unix.get("/v1/status").expect(200)["generation"], generation);
}

#[test]
fn hostile_requests_get_an_answer_and_hold_up_nobody() {
    let operated = Operated::start();
    let tcp = operated.tcp().with_token(OPERATOR);
    // Slow heads, slow bodies, and connections that send nothing.
    let slow: Vec<_> = (0..20)
        .map(|n| {
            let mut stream = tcp.connect();
            let head = tcp.head("PUT", SOURCES, "", 1_000);
            let part = match n % 3 {
                0 => "",
                1 => head.get(..40).unwrap(),
                _ => head.as_str(),
            };
            stream.write_all(part.as_bytes()).unwrap();
            stream
        })
        .collect();
    for (request, status) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], 400),
        (b"GET /v1/status HTTP/1.1\r\n\r\n", 400),
        (b"GET /v1/status HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"garbage\r\n\r\n", 400),
    ] {
        let reply = ApiReply::parse(&tcp.raw(request));
        assert_eq!(reply.status, status, "{request:?}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(3_000));
    assert_eq!(ApiReply::parse(&operated.unix().raw(long.as_bytes())).status, 414);
    let huge = tcp.request("POST", "/v1/reload", "", &vec![b' '; 70_000]);
    huge.expect_error(413, "payload_too_large");
    // A second request behind the first is not answered, and does not disturb it.
    let pipelined = [tcp.head("GET", "/v1/status", "", 0), "\u{0}garbage\r\n\r\n".to_owned()].concat();
    ApiReply::parse(&tcp.raw(pipelined.as_bytes())).expect(200);
    tcp.get("/v1/status").expect(200);
    drop(slow);
}

#[test]
fn slow_reader_of_events_loses_some_and_slows_nothing_down() {
    let operated = Operated::start();
    let unix = operated.unix();
    let mut slow = unix.connect();
    slow.write_all(unix.head("GET", "/v1/events", "", 0).as_bytes()).unwrap();
    let mut live = BufReader::new(unix.connect());
    live.get_mut().write_all(unix.head("GET", "/v1/events?event=admin.action", "", 0).as_bytes()).unwrap();
    let mut line = String::new();
    live.read_line(&mut line).unwrap();
    assert!(line.contains("200"), "{line}");
    // The slow reader reads nothing, while many events happen.
    let client = operated.portcullis.client();
    let sessions = 400;
    for _ in 0..sessions {
        let mut session = client.connect();
        session.ask(b"PING\r\n", b"+PONG\r\n");
    }
    unix.post(SOURCES, &rules(&["10.9.8.7"])).expect(201);
    let found = (&mut live).lines().map(Result::unwrap).find(|line| line.starts_with("data: "));
    let event: Value = serde_json::from_str(found.unwrap().strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!((&event["event"], &event["action"]), (&json!("admin.action"), &json!("sources.append")));
    drop(slow);
    let recent = unix.get("/v1/status").expect(200);
    assert!(recent["faults"].as_array().unwrap().is_empty());
}

#[test]
fn events_end_with_their_token() {
    let operated = Operated::start();
    let created = operated.unix().post("/v1/tokens", &json!({ "name": "tail", "role": "viewer" })).expect(201);
    let tail = operated.tcp().with_token(created["token"].as_str().unwrap());
    let mut stream = BufReader::new(tail.connect());
    stream.get_mut().write_all(tail.head("GET", "/v1/events?recent=5", "", 0).as_bytes()).unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert!(line.contains("200"), "{line}");
    operated.unix().delete("/v1/tokens/tail").expect(204);
    let rest = stream.lines().map_while(Result::ok).count();
    assert!(rest > 0, "the stream ends");
    tail.get("/v1/status").expect_error(401, "unauthorized");
}

#[test]
fn token_is_replaced_while_both_are_valid_and_the_list_shows_which_is_used() {
    let operated = Operated::start();
    let owner = operated.tcp().with_token(OWNER);
    let new = |name: &str| {
        let body = json!({ "name": name, "role": "operator", "ttl": "1h", "sources": ["127.0.0.0/8"] });
        owner.post("/v1/tokens", &body).expect(201)["token"].as_str().unwrap().to_owned()
    };
    let (old, fresh) = (new("ci-1"), new("ci-2"));
    assert!(old.starts_with("pcl_") && old != fresh);
    owner.post("/v1/tokens", &json!({ "name": "ci-1", "role": "viewer" })).expect_error(409, "conflict");
    let is_stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        for token in [&old, &fresh] {
            let api = operated.tcp().with_token(token);
            let is_stopped = &is_stopped;
            scope.spawn(move || {
                let mut count = 0;
                while !is_stopped.load(Ordering::Relaxed) || count == 0 {
                    api.get("/v1/status").expect(200);
                    count += 1;
                }
            });
        }
        eventually("both are used", || {
            let list = owner.get("/v1/tokens").expect(200);
            let used = |name: &str| {
                let mut all = list["tokens"].as_array().unwrap().iter();
                all.find(|token| token["name"] == name).unwrap()["last_used_from"] == "127.0.0.1"
            };
            (used("ci-1") && used("ci-2")).then_some(())
        });
        is_stopped.store(true, Ordering::Relaxed);
    });
    owner.delete("/v1/tokens/ci-1").expect(204);
    operated.tcp().with_token(&old).get("/v1/status").expect_error(401, "unauthorized");
    operated.tcp().with_token(&fresh).get("/v1/status").expect(200);
    owner.delete("/v1/tokens/viewer").expect_error(409, "conflict");
    let text = std::fs::read_to_string(operated.portcullis.site.path("tokens.toml")).unwrap();
    assert!(text.contains("ci-2") && !text.contains("ci-1") && !text.contains(&fresh), "{text}");
    let list = owner.get("/v1/tokens").expect(200).to_string();
    assert!(!list.contains(&fresh) && !list.contains("sha256"), "{list}");
}

#[test]
fn source_with_a_ttl_is_cut_off_when_it_ends() {
    let operated = Operated::with_rules("rule = []\n");
    let body = json!({ "rules": [{ "type": "ip_addr", "value": "127.0.0.1", "ttl": "3s" }] });
    operated.unix().post(SOURCES, &body).expect(201);
    let mut session = operated.portcullis.client().connect();
    session.ask(b"PING\r\n", b"+PONG\r\n");
    session.rest().unwrap();
    let ended = operated.portcullis.event("the end", |event| event.is("session.revoked"));
    assert_eq!(ended.reason(), "rule_expired");
    assert_eq!(operated.unix().get(SOURCES).expect(200)["rules"][0]["state"], "expired");
    // The same source is admitted again, now for longer than any machine needs.
    let body = json!({ "rules": [{ "type": "ip_addr", "value": "127.0.0.1", "ttl": "1h" }] });
    operated.unix().post(SOURCES, &body).expect(201);
    operated.portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");
}

#[test]
fn listener_without_a_sources_file_explains_how_to_add_one() {
    let redis = Redis::start();
    let listener = Listener::redis(format_args!("127.0.0.1:{}", redis.port()));
    let portcullis = Portcullis::start(TestDir::new(), format!("{}{listener}", admin(free_address())));
    portcullis.address("main");
    let api = Api::at_socket(portcullis.site.path("admin.sock"));
    let message = api.post(SOURCES, &rules(&["10.0.0.1"])).expect_error(409, "conflict");
    assert!(message.contains("sources_file = "), "{message}");
    assert!(api.get(SOURCES).expect(200)["rules"][0]["origin"] == "config");
    let uuid = api.get(SOURCES).expect(200)["rules"][0]["uuid"].as_str().unwrap().to_owned();
    api.delete(&format!("{SOURCES}/{uuid}")).expect_error(409, "conflict");
}

#[test]
fn denied_source_is_listed_with_the_rule_that_admits_it() {
    let operated = Operated::with_rules("rule = []\n");
    let unix = operated.unix();
    for _ in 0..3 {
        operated.portcullis.client().try_connect().unwrap_err();
    }
    let denial = eventually("three denials", || {
        let denials = unix.get("/v1/denials?listener=main&since=10m").expect(200);
        let first = denials["denials"][0].clone();
        (first["count"] == 3).then_some(first)
    });
    assert_eq!((&denial["network"], &denial["reason"]), (&json!("127.0.0.1"), &json!("untrusted_source")));
    assert_eq!(denial["command"], "portcullis sources append main ip_addr:127.0.0.1");
    assert_eq!(denial["detail"], "no rule trusts this address");
    unix.post(SOURCES, &json!({ "rules": [denial["rule"]] })).expect(201);
    operated.portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");
    unix.get("/v1/denials?listener=none").expect_error(404, "not_found");
}

#[test]
fn events_of_the_past_come_first() {
    let operated = Operated::start();
    for _ in 0..3 {
        operated.portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");
    }
    let unix = operated.unix();
    let mut stream = BufReader::new(unix.connect());
    let head = unix.head("GET", "/v1/events?recent=100&event=connection.opened&listener=main", "", 0);
    stream.get_mut().write_all(head.as_bytes()).unwrap();
    let events: Vec<_> = stream.lines().map(Result::unwrap).filter(|line| line.starts_with("data: ")).take(3).collect();
    assert!(events.iter().all(|line| line.contains("connection.opened")), "{events:?}");
}

#[test]
fn waiting_for_members_without_a_fleet_is_an_error_and_changes_nothing() {
    let operated = Operated::start();
    let rules = json!({ "rules": [{ "type": "ip_addr", "value": "203.0.113.7" }] });
    let reply = operated.unix().post("/v1/listeners/main/sources?wait=1s", &rules).expect(409);
    assert!(reply["message"].as_str().unwrap().contains("sources_store"), "{reply}");
    let rules = operated.unix().get("/v1/listeners/main/sources").expect(200);
    assert_eq!(rules["rules"].as_array().map(Vec::len), Some(1), "{rules}");
    operated.unix().request("DELETE", "/v1/sessions?client=x&wait=1s", "", b"").expect(422);
}
