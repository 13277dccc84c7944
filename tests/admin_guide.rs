//! docs/ADMIN.md: its commands are executed as they are written, and its reference is compared with the program.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::api::{Operated, VIEWER};
use crate::harness::Redis;
use crate::harness::guide::{Rehearsal, blocks, document};
use crate::harness::program::free_port;

const GUIDE: &str = "docs/ADMIN.md";

#[test]
fn commands_of_the_admin_guide_work_as_written() {
    let redis = Redis::start();
    let mut guide = document(GUIDE).replace("127.0.0.1:6379", &redis.to_string());
    for port in ["6380", "9642"] {
        guide = guide.replace(port, &free_port().to_string());
    }
    Rehearsal::of(blocks(&guide, |_| true)).run();
}

#[test]
fn commands_of_the_panel_guide_work_as_written() {
    let mut guide = document("docs/PANEL.md");
    for port in ["6379", "6380", "9642"] {
        guide = guide.replace(port, &free_port().to_string());
    }
    Rehearsal::of(blocks(&guide, |_| true)).run();
}

/// The method, path and role of each row in the table of paths.
fn documented_routes(guide: &str) -> BTreeSet<String> {
    let (_, after) = guide.split_once("\n## Paths\n").expect("a section with the paths");
    let rows = after.lines().take_while(|line| !line.starts_with('#')).filter_map(|line| line.strip_prefix("| `"));
    let route = |row: &str| {
        let (route, rest) = row.split_once("` | ").expect("a route");
        let (role, _) = rest.split_once(" | ").expect("a role");
        format!("{route} {role}")
    };
    rows.map(route).collect()
}

#[test]
fn reference_has_every_route_with_its_role_and_parameters() {
    let operated = Operated::start();
    let guide = document(GUIDE);
    let routes = operated.tcp().get("/").expect(200);
    let of_program: BTreeSet<String> = routes["paths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|route| {
            let text = |field: &str| route[field].as_str().unwrap_or("none");
            format!("{} {} {}", text("method"), text("path"), text("role"))
        })
        .collect();
    assert_eq!(documented_routes(&guide), of_program);

    let description = operated.tcp().with_token(VIEWER).get("/v1/openapi.json").expect(200);
    let operations =
        description["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values());
    let parameters = operations.flat_map(|operation| operation["parameters"].as_array().unwrap());
    for name in
        parameters.filter(|parameter| parameter["in"] == "query").map(|parameter| parameter["name"].as_str().unwrap())
    {
        assert!(guide.contains(&format!("`{name}`")), "the parameter {name} is not in {GUIDE}");
    }
}

/// All keys of the objects in a value.
pub(crate) fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            found.insert(key.clone());
            keys(value, found);
        }),
        Value::Array(items) => items.iter().for_each(|item| keys(item, found)),
        _ => {}
    }
}

#[test]
fn reference_has_every_field_of_the_answers() {
    let operated = Operated::with_rules("[[rule]]\ntype = \"dns\"\nvalue = \"localhost\"\n");
    let unix = operated.unix();
    let client = operated.portcullis.client();
    let mut session = client.connect();
    session.ask(b"PING\r\n", b"+PONG\r\n");
    unix.post("/v1/tokens", &serde_json::json!({ "name": "new", "role": "viewer" })).expect(201);
    let plan = unix.put("/v1/listeners/main/sources?plan=true", &serde_json::json!({ "rules": [] })).expect(200);
    assert_ne!(plan["sessions_ended_count"], 0, "{plan}");
    let reload = |target: &str| unix.request("POST", target, "", b"").expect(200);
    let mut answers = vec![plan, reload("/v1/reload"), reload("/v1/reload?plan=true")];
    let paths = [
        "/v1/status",
        "/v1/history",
        "/v1/listeners/main/sources",
        "/v1/listeners/main/client-certificates",
        "/v1/sessions",
        "/v1/certificates",
        "/v1/rotation",
        "/v1/denials",
        "/v1/explain?listener=main&source=127.0.0.1",
        "/v1/tokens",
    ];
    answers.extend(paths.map(|path| unix.get(path).expect(200)));
    let mut found = BTreeSet::new();
    answers.iter().for_each(|answer| keys(answer, &mut found));
    assert!(found.len() > 80, "{found:?}");
    let guide = document(GUIDE);
    let missing: Vec<_> = found.iter().filter(|key| !guide.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "{GUIDE} does not describe {missing:?}");
}
