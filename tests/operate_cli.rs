//! The commands that operate a running program, over its Unix socket and over TLS with a token.

use std::process::{Command, Stdio};
use std::thread;

use serde_json::{Value, json};

use crate::harness::log::Log;
use crate::harness::pki::sha256;
use crate::harness::portcullis::executable;
use crate::harness::program::{Outcome, Running, free_port, run};
use crate::harness::{Authority, Event, Listener, Portcullis, Redis, Request, TestDir, eventually};
use crate::revocation::MAX_REVOCATION_TIME;

/// A program with the Redis listener `cache`, whose rules are in a file, and with an admin API on a socket and over TLS.
struct Operated {
    portcullis: Portcullis,
    port: u16,
    /// Kept running.
    _redis: Redis,
}

const VIEWER: &str = "viewer-token";
const OPERATOR: &str = "operator-token";
const OWNER: &str = "owner-token";

const LOCAL: &str = "[[rule]]\ntype = \"ip_addr\"\nvalue = \"127.0.0.1\"\n";
const NONE: &str = "rule = []\n";

impl Operated {
    /// `rules` is the content of the `sources_file`, `admin_tls` further lines of `[admin.tls]`.
    fn start(rules: &str, admin_tls: &str) -> Self {
        let (redis, site, port) = (Redis::start(), TestDir::new(), free_port());
        site.write("cache.sources", rules);
        let token = |role: &str, text: &str| {
            let digest = sha256(text.as_bytes());
            format!("[[admin.token]]\nname = \"{role}\"\nrole = \"{role}\"\nsha256 = \"{digest}\"\n")
        };
        let admin = [
            &format!("[admin]\nlisten = [\"unix:admin.sock\", \"127.0.0.1:{port}\"]\ntokens_file = \"tokens.toml\"\n"),
            "[admin.tls]\ncertificates = [{ cert = \"server.crt\", key = \"server.key\" }]\n",
            admin_tls,
            &token("viewer", VIEWER),
            &token("operator", OPERATOR),
            &token("owner", OWNER),
        ]
        .concat();
        let listener = Listener::redis(format_args!("127.0.0.1:{}", redis.port())).named("cache");
        let listener = listener.trusting(&[]).key("sources_file = \"cache.sources\"");
        let portcullis = Portcullis::start(site, format!("{admin}{listener}"));
        portcullis.address("cache");
        Self { portcullis, port, _redis: redis }
    }

    /// A command over the Unix socket.
    fn at_socket(&self, arguments: &[&str]) -> Command {
        let mut command = executable();
        command
            .env_remove("PORTCULLIS_TOKEN")
            .args(arguments)
            .arg("--socket")
            .arg(self.portcullis.site.path("admin.sock"));
        command
    }

    /// A command over TLS with a token, which verifies the server.
    fn remote(&self, token: &str, arguments: &[&str]) -> Command {
        let mut command = self.remote_without_ca(token, arguments);
        command.arg("--cacert").arg(self.portcullis.site.path("ca.crt"));
        command
    }

    fn remote_without_ca(&self, token: &str, arguments: &[&str]) -> Command {
        let mut command = executable();
        command.args(arguments).args(["--url", &format!("https://127.0.0.1:{}", self.port)]);
        command.env("PORTCULLIS_TOKEN", token);
        command
    }

    fn socket(&self, arguments: &[&str]) -> Outcome {
        run(&mut self.at_socket(arguments))
    }

    /// `TYPE:VALUE` of each rule of the listener, sorted.
    fn rules(&self) -> Vec<String> {
        let list: Value =
            serde_json::from_str(&self.socket(&["sources", "list", "cache", "--json"]).success()).unwrap();
        let name = |rule: &Value| format!("{}:{}", rule["type"].as_str().unwrap(), rule["value"].as_str().unwrap());
        let mut rules: Vec<_> = list["rules"].as_array().unwrap().iter().map(name).collect();
        rules.sort_unstable();
        rules
    }
}

/// A failure that names every word, and no token.
fn assert_fails(command: &mut Command, code: i32, words: &[&str]) {
    let outcome = run(command);
    assert_eq!(outcome.code, Some(code), "{command:?}: {}{}", outcome.text(), outcome.stderr);
    for word in words {
        assert!(outcome.stderr.contains(word), "{command:?}: no {word} in {}", outcome.stderr);
    }
    for token in [VIEWER, OPERATOR, OWNER] {
        assert!(!outcome.stderr.contains(token) && !outcome.text().contains(token), "{command:?}: {}", outcome.stderr);
    }
}

#[test]
fn sources_are_appended_listed_and_removed_over_the_socket() {
    let operated = Operated::start(LOCAL, "");
    let text =
        operated.socket(&["sources", "append", "cache", "203.0.113.7", "--rule", "10.0.0.1/32,dns:app.test"]).success();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("cache: added ip_addr:203.0.113.7 (") && lines[2].contains("dns:app.test"), "{text}");
    let append = ["sources", "append", "cache", "198.51.100.1", "--description", "office", "--ttl", "2h"];
    assert!(operated.socket(&append).success().trim_end().ends_with("), expires in 2h"));
    let table = operated.socket(&["sources", "list", "cache"]).success();
    for word in ["UUID", "DESCRIPTION", "office", "in 2 h", "dns", "file"] {
        assert!(table.contains(word), "no {word} in {table}");
    }
    // By another spelling, by host name and by UUID, in one change.
    let uuid = table.lines().find(|line| line.contains("203.0.113.7")).and_then(|line| line.split(' ').next()).unwrap();
    let text = operated.socket(&["sources", "remove", "cache", uuid, "10.0.0.1", "dns:APP.test."]).success();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert_eq!(operated.rules(), ["ip_addr:127.0.0.1", "ip_addr:198.51.100.1"]);
    assert_fails(
        &mut operated.at_socket(&["sources", "remove", "cache", "10.9.9.9", "198.51.100.1"]),
        1,
        &["10.9.9.9"],
    );
    assert_eq!(operated.rules().len(), 2);
    operated.socket(&["sources", "remove", "cache", "198.51.100.1"]).success();
    let last = operated.socket(&["sources", "remove", "cache", "127.0.0.1"]);
    assert!(last.stderr.contains("no one can connect"), "{}", last.stderr);
    assert_eq!((last.code, operated.rules().len()), (Some(0), 0));
}

#[test]
fn source_is_edited_in_place_and_its_session_stays() {
    let operated = Operated::start(LOCAL, "");
    let mut client = operated.portcullis.client_of("cache").connect();
    client.ask(b"PING\r\n", b"+PONG\r\n");
    let rule = || {
        let list: Value =
            serde_json::from_str(&operated.socket(&["sources", "list", "cache", "--json"]).success()).unwrap();
        list["rules"].as_array().unwrap().iter().find(|rule| rule["value"] == "127.0.0.1").unwrap().clone()
    };
    let before = rule();
    let edit = ["sources", "edit", "cache", "127.0.0.1", "--description", "this machine", "--ttl", "2h"];
    let plan = operated.socket(&[&edit[..], &["--plan"]].concat()).success();
    assert!(plan.contains("+ ip_addr:127.0.0.1 (this machine)"), "{plan}");
    let unchanged = rule();
    assert!(unchanged["description"].is_null() && unchanged["expires_at"].is_null(), "{unchanged}");
    let edited = operated.socket(&edit).success();
    assert!(edited.starts_with("cache: changed ip_addr:127.0.0.1 ("), "{edited}");
    let after = rule();
    assert_eq!((&after["uuid"], &after["description"]), (&before["uuid"], &json!("this machine")));
    assert!(after["expires_at"].is_string());
    let uuid = after["uuid"].as_str().unwrap();
    operated.socket(&["sources", "edit", "cache", uuid, "--no-expiry"]).success();
    assert_eq!((&rule()["expires_at"], &rule()["description"]), (&Value::Null, &json!("this machine")));
    operated.socket(&["sources", "edit", "cache", uuid, "--expires-at", "2036-01-01T00:00:00Z"]).success();
    assert_eq!(rule()["expires_at"], "2036-01-01T00:00:00Z");
    assert_fails(&mut operated.at_socket(&["sources", "edit", "cache", "127.0.0.1"]), 2, &["--description"]);
    assert_fails(&mut operated.at_socket(&["sources", "edit", "cache", "10.9.9.9", "--no-expiry"]), 1, &["no rule"]);
    let sessions = operated.socket(&["sessions", "list", "cache"]).success();
    assert!(sessions.contains("ip_addr:127.0.0.1"), "{sessions}");
    client.ask(b"PING\r\n", b"+PONG\r\n");
}

#[test]
fn sources_are_replaced_and_an_empty_list_needs_an_option() {
    let operated = Operated::start(LOCAL, "");
    let mut client = operated.portcullis.client_of("cache").connect();
    client.ask(b"PING\r\n", b"+PONG\r\n");
    assert_fails(&mut operated.at_socket(&["sources", "replace", "cache"]), 2, &["--none"]);
    assert_fails(&mut operated.at_socket(&["sources", "append", "cache"]), 2, &["--my-address", "TYPE:VALUE"]);
    assert_fails(&mut operated.at_socket(&["sources", "replace", "cache", "--none", "10.0.0.1"]), 2, &["--none"]);
    let plan = operated.socket(&["sources", "replace", "cache", "--none", "--plan"]).success();
    for line in ["  - ip_addr:127.0.0.1", "no one can connect after this; 1 session would end"] {
        assert!(plan.lines().any(|found| found == line), "no {line} in {plan}");
    }
    let plan = operated.socket(&["sources", "remove", "cache", "127.0.0.1", "--plan"]).success();
    assert!(plan.contains("1 session would end"), "{plan}");
    let plan = operated.socket(&["sources", "append", "cache", "0.0.0.0/0", "--plan"]).success();
    assert!(plan.contains("  + ip_addr:0.0.0.0/0") && plan.contains("warning: "), "{plan}");
    assert_eq!(operated.rules(), ["ip_addr:127.0.0.1"]);
    client.ask(b"PING\r\n", b"+PONG\r\n");
    operated.socket(&["sources", "replace", "cache", "127.0.0.1", "10.0.0.0/8"]).success();
    assert_eq!(operated.rules(), ["ip_addr:10.0.0.0/8", "ip_addr:127.0.0.1"]);
    client.ask(b"PING\r\n", b"+PONG\r\n");
    operated.socket(&["sources", "replace", "cache", "--none"]).success();
    assert_eq!(operated.portcullis.ending(client.port()).reason(), "source_revoked");
}

#[test]
fn ci_runner_admits_itself_over_tls_until_its_rule_expires() {
    let operated = Operated::start(NONE, "");
    let append = ["sources", "append", "cache", "--my-address", "--ttl", "3s"];
    assert_fails(&mut operated.at_socket(&append), 2, &["--url"]);
    let text = run(&mut operated.remote(OPERATOR, &append)).success();
    assert!(text.starts_with("cache: added ip_addr:127.0.0.1 (") && text.contains("expires in 3s"), "{text}");
    let mut client = operated.portcullis.client_of("cache").connect();
    client.ask(b"PING\r\n", b"+PONG\r\n");
    let closed = operated.portcullis.ending(client.port());
    assert_eq!((closed.text("event"), closed.reason()), ("connection.closed", "rule_expired"), "{}", closed.0);
    let lasted = std::time::Duration::from_millis(closed.0["duration_ms"].as_u64().unwrap());
    assert!(lasted < std::time::Duration::from_secs(3) + MAX_REVOCATION_TIME, "{lasted:?}");
}

#[test]
fn remote_commands_verify_the_server_and_name_the_token() {
    let operated = Operated::start(LOCAL, "");
    let site = &operated.portcullis.site;
    site.write("other.crt", Authority::new("Other CA").pem());
    site.write("token", format!("{VIEWER}\n"));
    let status = ["status"];
    assert!(run(&mut operated.remote(VIEWER, &status)).success().contains("last reload"));
    let mut from_file = operated.remote("ignored", &status);
    assert!(run(from_file.arg("--token-file").arg(site.path("token"))).success().contains("cache"));

    assert_fails(&mut operated.remote_without_ca(VIEWER, &status), 1, &["not trusted", "--cacert"]);
    let mut wrong_ca = operated.remote_without_ca(VIEWER, &status);
    assert_fails(wrong_ca.arg("--cacert").arg(site.path("other.crt")), 1, &["not trusted", "--cacert"]);
    assert_fails(&mut operated.remote("wrong-token", &status), 1, &["the token in $PORTCULLIS_TOKEN is not accepted"]);
    site.write("token", "wrong-token\n");
    let mut wrong_file = operated.remote(VIEWER, &status);
    assert_fails(wrong_file.arg("--token-file").arg(site.path("token")), 1, &["/token is not accepted"]);
    assert_fails(
        operated.remote(VIEWER, &status).env_remove("PORTCULLIS_TOKEN"),
        2,
        &["$PORTCULLIS_TOKEN", "--token-file"],
    );
    let append = ["sources", "append", "cache", "10.0.0.1"];
    assert_fails(&mut operated.remote(VIEWER, &append), 1, &["viewer", "operator"]);
    assert_fails(&mut operated.remote(OPERATOR, &["token", "list"]), 1, &["owner"]);
    assert_eq!(operated.rules(), ["ip_addr:127.0.0.1"]);

    let url = |url: &str| {
        let mut command = executable();
        command.args(["status", "--url", url]).env("PORTCULLIS_TOKEN", VIEWER);
        command
    };
    assert_fails(&mut url("http://192.0.2.1:9642"), 2, &["https://"]);
    assert_fails(&mut url(&format!("http://127.0.0.1:{}", operated.port)), 1, &["https://"]);
    assert_fails(&mut url(&format!("https://127.0.0.1:{}", free_port())), 1, &["connection refused"]);
    assert_fails(operated.remote(VIEWER, &status).args(["--socket", "x"]), 2, &["--socket"]);
}

#[test]
fn remote_command_presents_its_client_certificate() {
    let operated = Operated::start(LOCAL, "client_ca = \"ca.crt\"\n");
    let site = &operated.portcullis.site;
    assert_fails(&mut operated.remote(VIEWER, &["status"]), 1, &["client certificate", "--cert"]);
    site.install("ops", &site.ca.issue(Request::client("ops")));
    let mut command = operated.remote(VIEWER, &["status"]);
    command.arg("--cert").arg(site.path("ops.crt"));
    assert_fails(&mut command, 2, &["--key"]);
    assert!(run(command.arg("--key").arg(site.path("ops.key"))).success().contains("cache"));
}

#[test]
fn unknown_listener_is_wrong_usage_in_every_command() {
    let operated = Operated::start(LOCAL, "");
    operated.portcullis.site.install("client", &operated.portcullis.site.ca.issue(Request::client("app")));
    let file = operated.portcullis.site.path("client.crt").display().to_string();
    let commands: [&[&str]; 12] = [
        &["certs", "pin", "no-such", &file],
        &["certs", "unpin", "no-such", &file],
        &["certs", "issue", "--listener", "no-such", "--name", "app"],
        &["sources", "list", "no-such"],
        &["sources", "append", "no-such", "10.0.0.1"],
        &["sources", "append", "no-such", "10.0.0.1", "--plan"],
        &["sources", "remove", "no-such", "10.0.0.1"],
        &["sources", "replace", "no-such", "--none"],
        &["denials", "no-such"],
        &["sessions", "list", "no-such"],
        &["events", "--listener", "no-such"],
        &["explain", "--listener", "no-such", "--source", "127.0.0.1"],
    ];
    for command in commands {
        assert_fails(&mut operated.at_socket(command), 2, &["no-such"]);
        assert_fails(&mut operated.remote(OPERATOR, command), 2, &["no-such"]);
    }
}

#[test]
fn concurrent_changes_lose_nothing() {
    let operated = Operated::start(LOCAL, "");
    let at_once = |commands: Vec<Command>| {
        thread::scope(|scope| {
            let running: Vec<_> =
                commands.into_iter().map(|mut command| scope.spawn(move || run(&mut command).success())).collect();
            running.into_iter().for_each(|running| drop(running.join().unwrap()));
        });
    };
    let pair = |number: usize| [format!("10.0.{number}.1"), format!("10.0.{number}.2")];
    let command = |verb: &str, number: usize| {
        let [one, other] = pair(number);
        let arguments = ["sources", verb, "cache", &one, &other];
        if number.is_multiple_of(2) { operated.at_socket(&arguments) } else { operated.remote(OPERATOR, &arguments) }
    };
    at_once((0..10).map(|number| command("append", number)).collect());
    assert_eq!(operated.rules().len(), 21);
    // Each of them removes two rules by one replacement of the list.
    at_once((0..5).map(|number| command("remove", number)).collect());
    let mut left: Vec<_> = (5..10).flat_map(pair).map(|value| format!("ip_addr:{value}")).collect();
    left.push("ip_addr:127.0.0.1".to_owned());
    assert_eq!(operated.rules(), left);
}

#[test]
fn denied_source_is_admitted_by_the_command_that_denials_prints() {
    let operated = Operated::start(NONE, "");
    operated.portcullis.client_of("cache").attempt().1.unwrap_err();
    let text = eventually("the denial is listed", || {
        let text = run(&mut operated.remote(VIEWER, &["denials", "cache", "--since", "10m"])).success();
        text.contains("untrusted_source").then_some(text)
    });
    let command = text.lines().map(str::trim).find_map(|line| line.strip_prefix("portcullis ")).unwrap();
    let arguments: Vec<_> = command.split(' ').collect();
    operated.socket(&arguments).success();
    operated.portcullis.client_of("cache").connect().ask(b"PING\r\n", b"+PONG\r\n");
    let status = operated.socket(&["status"]).success();
    let row = status.lines().find(|line| line.starts_with("cache ")).unwrap();
    assert!(status.contains("DENIED counts the last 10m") && row.contains("on "), "{status}");
}

#[test]
fn sessions_are_selected_and_closed_and_certificates_listed() {
    let operated = Operated::start(LOCAL, "");
    let mut client = operated.portcullis.client_of("cache").connect();
    client.ask(b"PING\r\n", b"+PONG\r\n");
    let list = |arguments: &[&str]| {
        let all = [&["sessions", "list", "--json"][..], arguments].concat();
        let body: Value = serde_json::from_str(&run(&mut operated.remote(VIEWER, &all)).success()).unwrap();
        body["sessions"].as_array().unwrap().clone()
    };
    let id = list(&["cache", "--source", "127.0.0.0/8"])[0]["session"].to_string();
    assert!(list(&["--source", "10.0.0.0/8"]).is_empty() && list(&["--client", "CN=other"]).is_empty());
    let closed = run(&mut operated.remote(OPERATOR, &["sessions", "close", &id])).success();
    assert_eq!(closed, format!("session {id} is closed\n"));
    assert_eq!(operated.portcullis.ending(client.port()).reason(), "closed_by_admin");
    assert_fails(&mut operated.remote(OPERATOR, &["sessions", "close", "999999"]), 1, &["no session 999999"]);
    let certificates = run(&mut operated.remote(VIEWER, &["certs", "list"])).success();
    assert!(certificates.contains("server") && certificates.contains("admin"), "{certificates}");
    let explained = operated.remote(VIEWER, &["explain", "--listener", "cache", "--source", "192.0.2.1"]);
    let explained = run(&mut { explained });
    assert_eq!(explained.code, Some(3), "{}", explained.stderr);
    assert!(explained.text().contains("running program") && explained.text().contains("untrusted_source"));
}

#[test]
fn new_token_is_printed_alone_works_and_can_be_revoked() {
    let operated = Operated::start(LOCAL, "");
    let new = ["token", "new", "--name", "ci", "--role", "viewer", "--ttl", "90d", "--source", "127.0.0.0/8"];
    let created = run(&mut operated.remote(OWNER, &new));
    assert!(created.stderr.contains("not shown again"), "{}", created.stderr);
    let created = created.success();
    let token = created.strip_suffix('\n').unwrap();
    assert!(token.starts_with("pcl_") && !token.contains(char::is_whitespace), "{token}");
    run(&mut operated.remote(token, &["status"])).success();
    let list = operated.socket(&["token", "list"]).success();
    let row = list.lines().find(|line| line.starts_with("ci ")).unwrap();
    assert!(row.contains("viewer") && row.contains("127.0.0.0/8"), "{list}");
    assert!(!list.contains(token));
    assert_fails(&mut operated.remote(OWNER, &new), 1, &["ci"]);
    assert!(operated.socket(&["token", "revoke", "ci"]).success().contains("revoked"));
    assert_fails(&mut operated.remote(token, &["status"]), 1, &["not accepted"]);
    assert_fails(&mut operated.at_socket(&["token", "revoke", "ci"]), 1, &["ci"]);
}

#[test]
fn new_token_without_networks_is_valid_from_everywhere() {
    let operated = Operated::start(LOCAL, "");
    let created = operated.socket(&["token", "new", "--name", "any", "--role", "viewer"]).success();
    run(&mut operated.remote(created.trim_end(), &["status"])).success();
    let list = operated.socket(&["token", "list"]).success();
    let row = list.lines().find(|line| line.starts_with("any ")).unwrap();
    assert!(row.ends_with("all"), "{list}");
}

/// A command whose output is read line by line.
fn follow(mut command: Command) -> (Running, Log, Log) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running::start(&mut command);
    let stdout = Log::of(running.0.stdout.take().unwrap());
    let stderr = Log::of(running.0.stderr.take().unwrap());
    (running, stdout, stderr)
}

#[test]
fn events_are_followed_until_interrupted() {
    let operated = Operated::start(LOCAL, "");
    operated.socket(&["sources", "append", "cache", "10.0.0.1"]).success();
    let is_append = |event: &Event| event.is("admin.action");
    let past = eventually("the action is recorded", || {
        let text = run(&mut operated.remote(VIEWER, &["events", "--event", "admin.action"])).success();
        (!text.is_empty()).then_some(text)
    });
    assert!(past.contains("admin.action") && past.lines().count() == 1, "{past}");
    for command in [
        operated.remote(VIEWER, &["events", "--follow", "--json"]),
        operated.at_socket(&["events", "--follow", "--json"]),
    ] {
        let (mut running, output, _) = follow(command);
        output.after(0, "the past action", is_append);
        let seen = output.events().len();
        operated.socket(&["sources", "remove", "cache", "10.0.0.1"]).success();
        output.after(seen, "the new action", is_append);
        operated.socket(&["sources", "append", "cache", "10.0.0.1"]).success();
        running.signal("INT");
        assert_eq!(running.exit_code(), Some(0));
    }
}

#[test]
fn followed_events_end_with_their_reader_and_with_the_program() {
    let mut operated = Operated::start(LOCAL, "");
    operated.socket(&["sources", "append", "cache", "10.0.0.1"]).success();
    // The reader ends after the first line, and no further event is needed to notice that.
    let mut pipeline = Command::new("sh");
    pipeline.args(["-c", "\"$@\" | head -n 1", "sh"]);
    let events = operated.at_socket(&["events", "--follow", "--event", "admin.action"]);
    pipeline.arg(events.get_program()).args(events.get_args()).env_remove("PORTCULLIS_TOKEN");
    assert_eq!(run(&mut pipeline).success().lines().count(), 1);

    let (mut running, output, errors) = follow(operated.at_socket(&["events", "--follow"]));
    output.after(0, "a line", |_| true);
    operated.portcullis.stop();
    assert_eq!(running.exit_code(), Some(1));
    errors.after(0, "the reason", |line| line.0.as_str().is_some_and(|line| line.contains("ended the stream")));
}
