//! DigitalOcean's API with its clients: pydo, `@digitalocean/dots`, curl, and the messages of doctl and Terraform.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::api::{OPERATOR, Operated, VIEWER, admin};
use crate::harness::Request;
use crate::harness::api::{Api, ApiReply};
use crate::harness::digitalocean::{Doctl, Godo, GodoRule, Sdk, Terraform, rules, rules_body};
use crate::harness::guide::{Rehearsal, blocks, document};
use crate::harness::packages::Packages;
use crate::harness::program::{command, free_address, free_port, run, run_with_input};
use crate::harness::{Listener, Portcullis, Redis, TestDir};
use crate::revocation::MAX_REVOCATION_TIME;

const FIREWALL: &str = "/v2/databases/main/firewall";

/// A program with the listener `main`, which has this `sources_file` and a `ca_bundle`, and the listener `bare`, which has
/// neither. `tls` is the text of `[admin.tls]`.
fn start_with(site: TestDir, sources: &str, tls: &str) -> Operated {
    let redis = Redis::start();
    site.write("main.sources", sources);
    let address = free_address();
    let main = Listener::redis(&redis).trusting(&["192.0.2.1"]);
    let main = main.key("sources_file = \"main.sources\"").key("ca_bundle = \"ca.crt\"");
    let bare = Listener::redis(&redis).named("bare");
    let portcullis = Portcullis::start(site, format!("{}{tls}{main}{bare}", admin(address)));
    portcullis.address("main");
    Operated { portcullis, _redis: redis, address }
}

fn start(sources: &str) -> Operated {
    start_with(TestDir::new(), sources, "")
}

/// The same with TLS, by the authority in `ca.crt`. Returns the URL too.
fn start_with_tls() -> (Operated, String) {
    let site = TestDir::new();
    site.install("admin", &site.ca.issue(Request::server(&["127.77.0.1"])));
    let tls = "[admin.tls]\ncertificates = [{ cert = \"admin.crt\", key = \"admin.key\" }]\n";
    let operated = start_with(site, LOCAL, tls);
    let url = format!("https://{}", operated.address);
    (operated, url)
}

fn godo(operated: &Operated) -> Godo {
    Godo::new(operated.tcp(), OPERATOR)
}

/// The rules in the response of the API.
fn listed(api: &Api) -> Vec<Value> {
    api.get(FIREWALL).expect(200)["rules"].as_array().unwrap().clone()
}

fn values(rules: &[GodoRule]) -> Vec<&str> {
    rules.iter().map(|rule| rule.value.as_str()).collect()
}

const NOBODY: &str = "rule = []\n";
const LOCAL: &str = "[[rule]]\ntype = \"ip_addr\"\nvalue = \"127.0.0.1\"\n";

#[test]
fn sdks_list_append_remove_and_replace_rules() {
    let (operated, url) = start_with_tls();
    for sdk in Sdk::ALL {
        let client = sdk.at(&operated.portcullis.site, url.clone());
        let perform = |token: &str, steps: Value| client.perform(token, "main", &steps);
        let results = perform(
            OPERATOR,
            json!([
                ["list"],
                ["append", { "type": "ip_addr", "value": "2001:DB8::/32", "description": "office" }],
                ["list"],
                ["remove", "127.0.0.1"],
                ["list"],
                ["replace", rules(&["ip_addr:127.0.0.1", "ip_addr:10.0.0.1/32"])],
                ["list"],
                ["ca"],
            ]),
        );
        for (result, requests) in results.iter().zip([1, 2, 1, 2, 1, 1, 1, 1]) {
            assert!(result["error"].is_null() && result["requests"] == requests, "{sdk:?}: {results:?}");
        }
        let read = |step: usize| results[step]["result"]["rules"].as_array().unwrap();
        let values = |step: usize| read(step).iter().map(|rule| rule["value"].as_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(values(0), ["127.0.0.1"], "{sdk:?}");
        assert_eq!(values(2), ["127.0.0.1", "2001:DB8::/32"], "{sdk:?}");
        assert_eq!(values(4), ["2001:DB8::/32"], "{sdk:?}");
        assert_eq!(values(6), ["127.0.0.1", "10.0.0.1/32"], "{sdk:?}");
        assert_eq!((&read(4)[0]["description"], &read(4)[0]["uuid"]), (&json!("office"), &read(2)[1]["uuid"]));
        assert!(results[7]["result"]["ca"]["certificate"].is_string(), "{sdk:?}: {}", results[7]);
        operated.portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");

        let results = perform(VIEWER, json!([["list"], ["replace", []], ["list"]]));
        assert_eq!((&results[0], &results[1]["status"]), (&results[2], &json!(403)), "{sdk:?}: {results:?}");
        let results = perform(OPERATOR, json!([["replace", []], ["list"], ["replace", rules(&["ip_addr:127.0.0.1"])]]));
        assert_eq!(results[1]["result"]["rules"], json!([]), "{sdk:?}: {results:?}");
    }
}

#[test]
fn rule_of_a_type_that_digitalocean_does_not_have_is_never_lost_silently() {
    let (operated, url) = start_with_tls();
    let client = |sdk: Sdk| sdk.at(&operated.portcullis.site, url.clone());
    let unix = operated.unix();
    let sources = "/v1/listeners/main/sources";
    unix.post(sources, &json!({ "rules": rules(&["dns:db.invalid"]) })).expect(201);
    let values = || listed(&unix).iter().map(|rule| rule["value"].clone()).collect::<Vec<_>>();
    let append = |address: &str| json!([["append", { "type": "ip_addr", "value": address }]]);
    let appended = client(Sdk::Pydo).perform(OPERATOR, "main", &append("10.0.0.1"));
    assert!(appended[0]["error"].is_null(), "{appended:?}");
    assert_eq!(values(), ["127.0.0.1", "db.invalid", "10.0.0.1"]);
    // dots sends the rule back without its type.
    let refused = &client(Sdk::Dots).perform(OPERATOR, "main", &append("10.0.0.2"))[0];
    assert_eq!((&refused["status"], &refused["requests"]), (&json!(422), &json!(2)), "{refused}");
    assert_eq!(values(), ["127.0.0.1", "db.invalid", "10.0.0.1"]);
}

#[test]
fn sdks_fail_at_once_with_the_errors_of_digitalocean() {
    let (operated, url) = start_with_tls();
    for sdk in Sdk::ALL {
        let client = sdk.at(&operated.portcullis.site, url.clone());
        let perform = |token: &str, database: &str, steps: Value| client.perform(token, database, &steps);
        let change = json!([["replace", rules(&["ip_addr:10.0.0.1"])]]);
        let invalid = json!([["replace", rules(&["ip_addr:10.0.0.1/8"])], ["replace", rules(&["tag:web"])]]);
        let errors = [
            (
                perform("unknown", "main", json!([["list"]])),
                "ClientAuthenticationError",
                401,
                "Unable to authenticate you.",
            ),
            (
                perform("unknown", "main", change.clone()),
                "ClientAuthenticationError",
                401,
                "Unable to authenticate you.",
            ),
            (perform(VIEWER, "main", change.clone()), "HttpResponseError", 403, "You do not have permission"),
            (perform(OPERATOR, "bare", change.clone()), "ResourceExistsError", 409, "sources_file"),
            (perform(OPERATOR, "main", invalid), "HttpResponseError", 422, "rules[0].value"),
        ];
        for (results, class, status, message) in errors {
            let first = &results[0];
            let text = first["message"].as_str().unwrap_or_default();
            assert!(first["status"] == status && text.contains(message), "{sdk:?}: {results:?}");
            assert!(sdk == Sdk::Dots || first["error"] == class, "{sdk:?}: {results:?}");
            assert!(results.iter().all(|result| result["requests"] == 1), "{sdk:?} tries again: {results:?}");
        }
        // pydo takes this error for the result.
        let missing = &perform(OPERATOR, "none", json!([["list"]]))[0];
        let message = if sdk == Sdk::Pydo { &missing["result"]["message"] } else { &missing["message"] };
        assert_eq!(*message, "The resource you requested could not be found.", "{sdk:?}: {missing}");
    }
    let unix = operated.unix();
    assert_eq!(listed(&unix)[0]["value"], "127.0.0.1");
}

#[test]
fn curl_lists_and_replaces_rules() {
    let (operated, url) = start_with_tls();
    let curl = |arguments: &[&str]| {
        let mut curl = command("curl");
        curl.args(["--silent", "--show-error", "--fail-with-body", "--include", "--cacert"]);
        curl.arg(operated.portcullis.site.path("ca.crt")).args(arguments);
        run(&mut curl)
    };
    let firewall = format!("{url}{FIREWALL}");
    let token = format!("Authorization: Bearer {OPERATOR}");
    let read = ApiReply::parse(&curl(&["--header", &token, &firewall]).stdout);
    assert_eq!((read.status, &read.body["rules"][0]["value"]), (200, &json!("127.0.0.1")));
    // What was read can be sent back as it is.
    let body = read.body.to_string();
    let written = curl(&["--request", "PUT", "--header", &token, "--data", &body, &firewall]);
    let written = ApiReply::parse(&written.success().into_bytes());
    assert_eq!((written.status, written.body), (204, Value::Null));
    assert_eq!(ApiReply::parse(&curl(&["--header", &token, &firewall]).stdout).body, read.body);
    let denied = curl(&[&firewall]);
    assert_eq!(denied.code, Some(22), "{denied:?}");
    ApiReply::parse(&denied.stdout).expect_error(401, "unauthorized");
}

#[test]
fn body_of_godo_is_as_go_writes_it() {
    let rules = vec![GodoRule { cluster_uuid: "main".to_owned(), ..GodoRule::new("ip_addr", "10.0.0.1") }];
    assert_eq!(
        rules_body(rules),
        "{\"rules\":[{\"uuid\":\"\",\"cluster_uuid\":\"main\",\"type\":\"ip_addr\",\"value\":\"10.0.0.1\",\
         \"created_at\":\"0001-01-01T00:00:00Z\"}]}\n"
    );
}

#[test]
fn doctl_lists_appends_replaces_and_removes_rules() {
    let operated = start(NOBODY);
    let doctl = Doctl(godo(&operated));
    assert_eq!(doctl.list("main").unwrap(), []);
    let added = doctl.append("main", "ip_addr:127.0.0.1").unwrap();
    operated.portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");
    // The value contains colons too. The new rule is first in the request.
    let both = doctl.append("main", "ip_addr:2001:DB8::/32").unwrap();
    let found: HashSet<&str> = values(&both).into_iter().collect();
    assert_eq!((both.len(), found), (2, HashSet::from(["127.0.0.1", "2001:DB8::/32"])));
    assert!(both.contains(&added[0]), "{both:?} differs from {added:?}");
    // A UUID that no rule has is ignored.
    assert_eq!(doctl.remove("main", "00000000-0000-4000-8000-000000000000").unwrap(), both);
    let replaced = doctl.replace("main", "ip_addr:10.0.0.0/8,ip_addr:127.0.0.1").unwrap();
    assert_eq!(values(&replaced).into_iter().collect::<HashSet<_>>(), HashSet::from(["10.0.0.0/8", "127.0.0.1"]));
    assert!(replaced.contains(&added[0]), "{replaced:?} differs from {added:?}");
    let left = doctl.remove("main", &added[0].uuid).unwrap();
    assert_eq!(values(&left), ["10.0.0.0/8"]);
    operated.portcullis.client().try_connect().unwrap_err();
    assert_eq!(doctl.remove("main", &left[0].uuid).unwrap(), []);
    // The commands accept the UUID of the listener as well.
    let added = doctl.append("main", "ip_addr:127.0.0.1").unwrap();
    let uuid = added[0].cluster_uuid.clone();
    assert_eq!(doctl.list(&uuid).unwrap(), added);
    assert_eq!(doctl.append(&uuid, "ip_addr:127.0.0.1").unwrap(), added);
    assert!(doctl.ca(&uuid).unwrap()["ca"]["certificate"].is_string());
    doctl.list("none").unwrap_err().expect_error(404, "not_found");
}

#[test]
fn terraform_sees_no_drift_after_it_applied() {
    let operated = start(NOBODY);
    let mut terraform = Terraform::new(godo(&operated), "main");
    // Two spellings of one address, one address of the configuration file, host names and networks of both families.
    let first = [
        ("ip_addr", "127.0.0.1/32"),
        ("ip_addr", "127.0.0.1"),
        ("ip_addr", "192.0.2.1"),
        ("ip_addr", "2001:DB8:0::1"),
        ("ip_addr", "::ffff:10.1.2.3"),
        ("ip_addr", "10.0.0.0/8"),
    ];
    terraform.apply(&first).unwrap();
    assert!(!terraform.plans_a_change(&first).unwrap(), "{terraform:?}");
    operated.portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");
    let second = [&first[1..], &[("ip_addr", "198.51.100.7")]].concat();
    assert!(terraform.plans_a_change(&second).unwrap());
    terraform.apply(&second).unwrap();
    assert!(!terraform.plans_a_change(&second).unwrap(), "{terraform:?}");
    let mut imported = Terraform::import(godo(&operated), "main").unwrap();
    assert!(!imported.plans_a_change(&second).unwrap(), "{imported:?}");
    terraform.destroy().unwrap();
    assert!(imported.plans_a_change(&second).unwrap());
    operated.portcullis.client().try_connect().unwrap_err();
    // The listener is removed: the resource leaves the state.
    let mut gone = Terraform::import(godo(&operated), "bare").unwrap();
    let config = std::fs::read_to_string(operated.portcullis.site.path("portcullis.toml")).unwrap();
    let (others, _) = config.rsplit_once("\n[[listener]]").unwrap();
    operated.portcullis.site.replace("portcullis.toml", others);
    operated
        .portcullis
        .event("the removal", |event| event.is("reload.applied") && event.0["listeners_removed"] == "bare");
    gone.plans_a_change(&[]).unwrap();
    assert!(!gone.is_created(), "{gone:?}");
}

#[test]
fn rule_keeps_its_fields_when_a_client_does_not_send_them() {
    let operated = start(
        "[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.0.0.1\"\ndescription = \"office\"\n\
         expires_at = 2037-01-31T00:00:00Z\ncreated_at = 2026-01-31T00:00:00Z\n",
    );
    let unix = operated.unix();
    let before = listed(&unix);
    assert_eq!(
        (&before[0]["description"], &before[0]["created_at"]),
        (&json!("office"), &json!("2026-01-31T00:00:00Z"))
    );
    let put = |rules: Value| assert_eq!(unix.put(FIREWALL, &json!({ "rules": rules })).status, 204);
    for uuid in ["", "00000000-0000-4000-8000-000000000000", "not a uuid"] {
        put(json!([{ "uuid": uuid, "cluster_uuid": "x", "type": "ip_addr", "value": "10.0.0.1", "created_at": "" }]));
        assert_eq!(listed(&unix), before, "{uuid:?}");
    }
    // A rule has one identity, however it is spelled.
    put(json!([{ "type": "ip_addr", "value": "10.0.0.1/32" }]));
    let respelled = listed(&unix);
    assert_eq!(respelled[0]["value"], "10.0.0.1/32");
    for field in ["uuid", "created_at", "description"] {
        assert_eq!(respelled[0][field], before[0][field], "{field}");
    }
    let expiry =
        || unix.get("/v1/listeners/main/sources").expect(200)["rules"].as_array().unwrap()[1]["expires_at"].clone();
    assert_eq!(expiry(), "2037-01-31T00:00:00Z");
    for (cleared, expires_at) in [(json!(""), json!("2037-01-31T00:00:00Z")), (json!(null), Value::Null)] {
        put(json!([{ "type": "ip_addr", "value": "10.0.0.1", "description": "home" }]));
        assert_eq!(listed(&unix)[0]["description"], "home");
        let mut rule = json!({ "type": "ip_addr", "value": "10.0.0.1", "description": cleared });
        if expires_at.is_null() {
            rule["expires_at"] = Value::Null;
        }
        put(json!([rule]));
        assert_eq!((&listed(&unix)[0]["description"], expiry()), (&json!(""), expires_at));
    }
}

#[test]
fn each_spelling_is_a_rule_of_its_own_and_no_rule_shares_a_uuid() {
    let operated = start(NOBODY);
    let unix = operated.unix();
    let spellings = ["ip_addr:127.0.0.1", "ip_addr:127.0.0.1/32", "ip_addr:192.0.2.1"];
    let sent = [&spellings[..], &["ip_addr:127.0.0.1"]].concat();
    assert_eq!(unix.put(FIREWALL, &json!({ "rules": rules(&sent) })).status, 204);
    let found = listed(&unix);
    let of = |field: &str| found.iter().map(|rule| rule[field].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(of("value"), ["127.0.0.1", "127.0.0.1/32", "192.0.2.1"]);
    assert_eq!(of("cluster_uuid").into_iter().collect::<HashSet<_>>().len(), 1);
    // 192.0.2.1 is in the configuration file too.
    let all = unix.get("/v1/listeners/main/sources").expect(200);
    let uuids: HashSet<&str> =
        all["rules"].as_array().unwrap().iter().map(|rule| rule["uuid"].as_str().unwrap()).collect();
    assert_eq!(uuids.len(), 4, "{all}");
    assert!(of("uuid").iter().all(|uuid| uuids.contains(uuid)));
    // Either of both admits, and the removal of one keeps the session.
    let mut session = operated.portcullis.client().connect();
    session.ask(b"PING\r\n", b"+PONG\r\n");
    for kept in ["ip_addr:127.0.0.1", "ip_addr:127.0.0.1/32"] {
        assert_eq!(unix.put(FIREWALL, &json!({ "rules": rules(&[kept]) })).status, 204);
        session.ask(b"PING\r\n", b"+PONG\r\n");
    }
}

#[test]
fn empty_list_admits_nobody_and_rules_of_the_configuration_stay() {
    let operated = start(LOCAL);
    let mut session = operated.portcullis.client().connect();
    session.ask(b"PING\r\n", b"+PONG\r\n");
    let before = std::time::Instant::now();
    godo(&operated).update("main", Vec::new()).unwrap();
    operated.portcullis.client().try_connect().unwrap_err();
    session.rest().unwrap();
    assert!(before.elapsed() < MAX_REVOCATION_TIME, "{:?}", before.elapsed());
    let all = operated.unix().get("/v1/listeners/main/sources").expect(200);
    assert_eq!((all["rules"].as_array().unwrap().len(), &all["rules"][0]["value"]), (1, &json!("192.0.2.1")));
}

#[test]
fn more_rules_than_digitalocean_permits_are_accepted() {
    let operated = start(NOBODY);
    let many = (0..1_000).map(|n| format!("2001:db8::{n:x}")).map(|value| GodoRule::new("ip_addr", &value));
    let many: Vec<GodoRule> = many.collect();
    let godo = godo(&operated);
    godo.update("main", many.clone()).unwrap();
    assert_eq!(values(&godo.rules("main").unwrap()), values(&many));
}

#[test]
fn responses_have_the_headers_of_digitalocean_and_an_id_that_is_in_the_audit() {
    let operated = start(LOCAL);
    let api = operated.tcp().with_token(OPERATOR);
    let body = json!({ "rules": rules(&["ip_addr:10.0.0.1"]) });
    let written = api.put(FIREWALL, &body);
    let replies = [
        api.get(FIREWALL),
        api.get("/v2/databases/main/ca"),
        api.get("/v2/databases/none/firewall"),
        api.put(FIREWALL, &json!({ "rules": null })),
        operated.tcp().get(FIREWALL),
    ];
    let mut ids = HashSet::new();
    for reply in replies.iter().chain([&written]) {
        for name in ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"] {
            let value = reply.header(name).unwrap_or_else(|| panic!("{name} is missing: {reply:?}"));
            assert!(value.parse::<u64>().is_ok(), "{name}: {value}");
        }
        assert!(ids.insert(reply.header("x-request-id").unwrap()), "{reply:?}");
    }
    assert_eq!((written.status, &written.body), (204, &Value::Null));
    let action = operated.portcullis.event("the change", |event| event.is("admin.action"));
    let field = |name: &str| action.0[name].as_str().unwrap_or_default();
    assert_eq!(Some(field("request_id")), written.header("x-request-id"));
    assert_eq!((field("action"), field("target"), field("actor")), ("sources.replace", "main", "token:operator"));
    assert_eq!((field("role"), field("source")), ("operator", "127.0.0.1"));
}

#[test]
fn invalid_requests_get_the_errors_of_digitalocean_and_change_nothing() {
    let operated = start(LOCAL);
    let unix = operated.unix();
    let before = listed(&unix);
    let parsing = "error parsing request body";
    for (body, status, id, message) in [
        ("", 400, "bad_request", parsing),
        ("{", 400, "bad_request", parsing),
        ("{\"rules\":null}", 422, "unprocessable_entity", "null"),
        ("{}", 422, "unprocessable_entity", "rules"),
        (r#"{"rules":[{"type":"ip_addr","value":"10.0.0.1/8"}]}"#, 422, "unprocessable_entity", "10.0.0.0/8"),
        (r#"{"rules":[{"type":"ip_addr","value":""}]}"#, 422, "unprocessable_entity", "rules[0].value"),
        (r#"{"rules":[{"type":"","value":"10.0.0.1"}]}"#, 422, "unprocessable_entity", "rules[0].type"),
        (r#"{"rules":[{"type":"droplet","value":"163973392"}]}"#, 422, "unprocessable_entity", "droplet"),
        (r#"{"rules":[{"type":"ip_addr","value":7}]}"#, 422, "unprocessable_entity", "string"),
    ] {
        let found = unix.request("PUT", FIREWALL, "", body.as_bytes()).expect_error(status, id);
        assert!(found.contains(message), "{body}: {found}");
    }
    let bare = "/v2/databases/bare/firewall";
    assert_eq!(unix.get(bare).expect(200), json!({ "rules": [] }));
    let message = unix.put(bare, &json!({ "rules": [] })).expect_error(409, "conflict");
    assert!(message.contains("sources_file"), "{message}");
    unix.get("/v2/databases/bare/ca").expect_error(404, "not_found");
    unix.get("/v2/databases/main").expect_error(404, "not_found");
    unix.post(FIREWALL, &json!({ "rules": [] })).expect_error(405, "method_not_allowed");
    assert_eq!(listed(&unix), before);
}

#[test]
fn stale_etag_is_refused_as_in_the_other_api() {
    let operated = start(LOCAL);
    let unix = operated.unix();
    let etag = unix.get(FIREWALL).header("etag").unwrap().to_owned();
    let replace = |value: &str| {
        let body = json!({ "rules": rules(&[value]) }).to_string();
        unix.request("PUT", FIREWALL, &format!("If-Match: {etag}\r\n"), body.as_bytes())
    };
    assert_eq!(replace("ip_addr:10.0.0.1").status, 204);
    replace("ip_addr:10.0.0.2").expect_error(412, "precondition_failed");
    assert_eq!(listed(&unix)[0]["value"], "10.0.0.1");
}

#[test]
fn ca_is_the_file_in_base64() {
    let operated = start(LOCAL);
    let ca = operated.unix().get("/v2/databases/main/ca").expect(200);
    let encoded = ca["ca"]["certificate"].as_str().unwrap();
    let decoded = run_with_input(command("base64").arg("--decode"), encoded.as_bytes()).success();
    assert_eq!(decoded, operated.portcullis.site.ca.pem());
}

#[test]
fn commands_of_the_guide_do_what_it_states() {
    let redis = Redis::start();
    let guide = document(GUIDE).replace("127.0.0.1:6379", &redis.to_string());
    let guide = guide.replace("6380", &free_port().to_string()).replace("9642", &free_port().to_string());
    let Packages { python: pydo, node: dots } = Packages::installed();
    Rehearsal::of(blocks(&guide, |_| true))
        .with_program("python3", "/usr/bin/python3")
        .with_variable("PYTHONPATH", pydo.to_str().unwrap())
        .with_variable("PYTHONDONTWRITEBYTECODE", "1")
        .with_link("node_modules", dots.join("node_modules"))
        .run();
}

#[test]
fn doctl_and_terraform_of_the_guide_do_what_it_states() {
    let operated = start(NOBODY);
    let doctl = Doctl(godo(&operated));
    let blocks = blocks(&document(GUIDE), |_| true);
    let lines_of = |language: &str| {
        blocks.iter().filter(|block| block.language == language).flat_map(|block| &block.lines).collect::<Vec<_>>()
    };
    let mut count = 0;
    for line in lines_of("console") {
        let Some(command) = line.strip_prefix("doctl -u $URL -t $TOKEN databases ") else { continue };
        count += 1;
        let first = doctl.list("main").unwrap().first().map(|rule| rule.uuid.clone()).unwrap_or_default();
        let command = command.replace(" cache", " main").replace(" UUID", &format!(" {first}"));
        doctl.command(&command).unwrap_or_else(|| panic!("doctl has no command {line:?}")).unwrap();
    }
    assert_eq!(count, 6);
    assert_eq!(values(&doctl.list("main").unwrap()), ["192.0.2.7", "10.0.0.1"]);

    let value_of = |line: &&String| Some(line.trim().strip_prefix("value = \"")?.strip_suffix('"')?.to_owned());
    let wanted: Vec<String> = lines_of("hcl").iter().filter_map(value_of).collect();
    let wanted: Vec<(&str, &str)> = wanted.iter().map(|value| ("ip_addr", value.as_str())).collect();
    let mut terraform = Terraform::new(godo(&operated), "main");
    terraform.apply(&wanted).unwrap();
    assert!(!terraform.plans_a_change(&wanted).unwrap(), "{terraform:?}");
    assert_eq!(values(&doctl.list("main").unwrap()), ["203.0.113.7", "2001:db8::/32"]);
}

const GUIDE: &str = "docs/DIGITALOCEAN.md";
