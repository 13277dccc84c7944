//! Names and texts that clients, upstreams and files choose: output escapes and truncates them, decisions use them whole.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;

use serde_json::Value;

use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::program::{Outcome, Running, free_address, run};
use crate::harness::upstream::showing;
use crate::harness::{Authority, Client, Event, Leaf, Listener, Portcullis, Request, TestDir, Upstream, eventually};

const AUDIT_FILE: &str = "log.audit_file = \"audit.jsonl\"\n";

/// The maximum size of a field, and the mark of a text that was cut.
const MAX_FIELD: usize = 512;
const MARK: &str = "…[truncated]";

/// A name with every kind of invisible character, and its forms in a distinguished name and in other text.
const HIDDEN: &str = "a\u{202e}b\u{2066}c\u{2028}d\u{200b}e\u{feff}f\u{ad}g\u{e0041}h\u{85}i";
const IN_A_NAME: &str =
    "a\\e2\\80\\aeb\\e2\\81\\a6c\\e2\\80\\a8d\\e2\\80\\8be\\ef\\bb\\bff\\c2\\adg\\f3\\a0\\81\\81h\\c2\\85i";
const IN_WORDS: &str = "a\\u{202e}b\\u{2066}c\\u{2028}d\\u{200b}e\\u{feff}f\\u{ad}g\\u{e0041}h\\u{85}i";

fn is_hidden(character: char) -> bool {
    HIDDEN.contains(character) && !character.is_ascii()
}

fn assert_shows_all(what: &str, text: &str) {
    assert!(!text.contains(is_hidden), "{what}: {text:?}");
}

/// A certificate whose common name is as long as a handshake allows, and takes three bytes for each character when escaped.
fn very_long(authority: &Authority) -> Leaf {
    authority.issue(Request::client(&"\u{1}".repeat(64_000)))
}

fn requiring_certificates(upstream: &Upstream) -> Listener {
    Listener::redis(upstream).tls("client_auth = \"required\"").tls("client_ca = \"ca.crt\"")
}

/// Checks the size of a line and of each of its fields.
fn assert_bounded(line: &str) {
    assert!(line.len() < 4096, "{} bytes", line.len());
    let event: Value = serde_json::from_str(line).expect("a line is JSON");
    for (key, value) in event.as_object().expect("an object") {
        assert!(value.to_string().len() <= MAX_FIELD + 2, "{key} has {} bytes", value.to_string().len());
    }
}

#[test]
fn very_long_name_of_a_denied_client_is_truncated_in_log_and_audit() {
    let upstream = Upstream::silent();
    for format in ["json", "text"] {
        let site = TestDir::new();
        let address = free_address();
        let listener = requiring_certificates(&upstream).on(&[&address.to_string()]);
        let config = format!("log.format = \"{format}\"\n{AUDIT_FILE}{listener}");
        let leaf = very_long(&Authority::new("Foreign CA"));
        let fingerprint = leaf.sha256();
        let mut portcullis = Portcullis::start(site, config);
        portcullis.event("the line ready", |event| event.0.to_string().contains("ready"));
        let client = Client::new(address, &portcullis.site.ca).showing(leaf);
        client.attempt().1.unwrap_err();
        let (_, events) = portcullis.stop();
        let filed = fs::read_to_string(portcullis.site.path("audit.jsonl")).unwrap();
        let denied = filed.lines().find(|line| line.contains("connection.denied")).expect("it is in the audit file");
        assert_bounded(denied);
        let event = Event(serde_json::from_str(denied).unwrap());
        assert_eq!(event.reason(), "client_certificate_unknown_ca");
        assert_eq!(event.text("client_sha256"), fingerprint);
        let subject = event.text("client_subject");
        let kept = subject.strip_suffix(MARK).expect("it is marked").strip_prefix("CN=").unwrap();
        assert_eq!(kept, "\\01".repeat(kept.len() / 3));
        // The reason is not cut off.
        assert!(
            event.text("detail").contains(MARK) && event.text("detail").contains("not issued by any CA in client_ca")
        );
        let logged = events.iter().map(|event| event.0.as_str().map_or(event.0.to_string(), str::to_owned));
        let logged = logged.filter(|line| line.contains("connection.denied")).collect::<Vec<_>>();
        assert!(logged.len() == 1 && logged[0].len() < 4096 && logged[0].contains(MARK), "{logged:?}");
    }
}

/// A running program whose log is not read.
struct Unread {
    process: Running,
    site: TestDir,
    address: SocketAddr,
}

impl Unread {
    fn start(site: TestDir, address: SocketAddr, config: &str) -> Self {
        site.write("portcullis.toml", config);
        let mut command = executable();
        command.args(["run", "-c"]).arg(site.path("portcullis.toml"));
        // The pipe stays open in the handle of the child, and is never read.
        let process = Running::start(command.stdin(Stdio::null()).stdout(Stdio::piped()));
        eventually("it listens", || std::net::TcpStream::connect(address).ok());
        Self { process, site, address }
    }

    /// Memory in use, in KiB.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of it");
        line.trim_end_matches("kB").trim().parse().expect("a number")
    }

    /// Makes `each` handshakes from each source. All are refused.
    fn refuse(&self, leaf: &Leaf, sources: impl Iterator<Item = u32>, each: u32) {
        for source in sources {
            let source = format!("127.0.1.{source}");
            let client = Client::new(self.address, &self.site.ca).from(&source).showing(leaf);
            for _ in 0..each {
                client.attempt().1.unwrap_err();
            }
        }
    }
}

#[test]
fn denied_clients_with_very_long_names_use_bounded_memory_while_the_log_is_unread() {
    let upstream = Upstream::silent();
    let address = free_address();
    let listener = requiring_certificates(&upstream).on(&[&address.to_string()]).trusting(&["127.0.0.0/8"]);
    let unread = Unread::start(TestDir::new(), address, &format!("{AUDIT_FILE}{listener}"));
    let leaf = very_long(&Authority::new("Foreign CA"));
    unread.refuse(&leaf, 1..2, 20);
    let before = unread.resident();
    unread.refuse(&leaf, 2..14, 100);
    let after = unread.resident();
    assert!(after < before + (32 << 10), "{before} KiB have become {after} KiB");
    let filed = fs::read_to_string(unread.site.path("audit.jsonl")).unwrap();
    // The last line may be incomplete: the program still writes.
    let (complete, _) = filed.rsplit_once('\n').unwrap();
    complete.lines().for_each(assert_bounded);
    assert!(filed.len() < 4 << 20, "{} bytes", filed.len());
}

#[test]
fn flood_of_long_lines_is_suppressed_by_bytes() {
    const REFUSED: usize = 450;
    let upstream = Upstream::silent();
    let mut portcullis = Portcullis::before(requiring_certificates(&upstream));
    let client = portcullis.client().showing(very_long(&Authority::new("Foreign CA")));
    let begun = std::time::Instant::now();
    for _ in 0..REFUSED {
        client.attempt().1.unwrap_err();
    }
    let seconds = begun.elapsed().as_secs() + 1;
    let (_, events) = portcullis.stop();
    let logged_denials: Vec<_> = events.iter().filter(|event| event.is("connection.denied")).collect();
    let suppressed = events.iter().filter(|event| event.is("denials.suppressed"));
    let suppressed: u64 = suppressed.map(|event| event.number("suppressed")).sum();
    assert_eq!(logged_denials.len() as u64 + suppressed, REFUSED as u64);
    // 500 KiB, then 1 KiB a second. Each of these lines counts as 2 KiB.
    assert!((250..=250 + seconds).contains(&(logged_denials.len() as u64)), "{} in {seconds} s", logged_denials.len());
}

/// Runs a command, whose output must not contain invisible characters.
fn shown(portcullis: &Portcullis, arguments: &[&str]) -> Outcome {
    let mut command = executable();
    command.args(arguments).env("PORTCULLIS_CONFIG", portcullis.site.path("portcullis.toml"));
    let outcome = run(command.current_dir(portcullis.site.directory()));
    assert_shows_all(&format!("{arguments:?}"), &outcome.text());
    assert_shows_all(&format!("{arguments:?}"), &outcome.stderr);
    outcome
}

#[test]
fn invisible_characters_are_escaped_in_log_audit_and_tables() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let leaf = site.ca.issue(Request::client(HIDDEN));
    site.write("client.crt", leaf.pem());
    site.install("second", &site.ca.issue(Request::server(&["second.test"]).organization(HIDDEN)));
    let source = format!("{{ type = \"ip_addr\", value = \"127.0.0.0/8\", description = \"{HIDDEN}\" }}");
    let listener = requiring_certificates(&upstream)
        .certificates(&["server", "second"])
        .tls("client_certificates = \"client.crt\"")
        .tls(&format!("trusted_clients = [\"cn:{}\", \"cn:app\"]", HIDDEN.replace('\u{85}', "")))
        .to_string()
        .replace("trusted_sources = [\"127.0.0.1\"]", &format!("trusted_sources = [{source}]"));
    let mut portcullis = Portcullis::start(site, format!("{ADMIN}{AUDIT_FILE}{listener}"));
    // A common name with a control character matches no pattern.
    let (port, refused) = portcullis.client().showing(&leaf).attempt();
    refused.unwrap_err();
    let denied = portcullis.ending(port);
    assert_eq!(denied.reason(), "client_not_trusted", "{}", denied.0);
    assert_eq!(denied.text("client_subject"), format!("CN={IN_A_NAME}"));

    let name = HIDDEN.replace('\u{85}', "");
    let known = portcullis.site.ca.issue(Request::client(&name).organization(HIDDEN));
    portcullis.site.write("known.crt", known.pem());
    let (port, session) = portcullis.client().showing(&known).attempt();
    let session = session.expect("it is trusted by its whole name");
    let subject = portcullis.opened(port).text("client_subject").to_owned();
    assert!(subject.starts_with(&format!("O={IN_A_NAME},CN=a\\e2\\80\\ae")), "{subject}");

    assert!(shown(&portcullis, &["sessions", "list"]).success().contains("a\\e2\\80\\aeb"));
    let list: Value = serde_json::from_str(&shown(&portcullis, &["sessions", "list", "--json"]).success()).unwrap();
    assert_eq!(list["sessions"][0]["client_subject"], subject);
    let rotation = shown(&portcullis, &["status", "--rotation", "--json"]).success();
    let rotation: Value = serde_json::from_str(&rotation).unwrap();
    let texts = rotation.to_string();
    assert!(texts.contains(&Value::from(IN_WORDS).to_string()), "the description: {texts}");
    shown(&portcullis, &["status", "--rotation"]).success();
    shown(&portcullis, &["status"]).success();
    shown(&portcullis, &["status", "--json"]).success();
    assert!(shown(&portcullis, &["check"]).success().contains(&format!("({IN_WORDS})")));
    let check: Value = serde_json::from_str(&shown(&portcullis, &["check", "--json"]).success()).unwrap();
    assert_eq!(check["listeners"][0]["sources"][0]["description"], IN_WORDS);
    let explain = ["explain", "--listener", "main", "--source", "127.0.0.1", "--client-cert"];
    assert!(shown(&portcullis, &[&explain[..], &["known.crt"]].concat()).success().contains(&subject));
    assert_eq!(shown(&portcullis, &[&explain[..], &["client.crt"]].concat()).code, Some(3));
    let inspected = shown(&portcullis, &["certs", "inspect", "client.crt", "second.crt"]).success();
    assert!(inspected.contains(&format!("CN={IN_A_NAME}")) && inspected.contains(&format!("O={IN_A_NAME}")));

    // Error texts are escaped, too.
    portcullis.site.replace("portcullis.toml", format!("{ADMIN}{AUDIT_FILE}{listener}\n\"{}\" = 1\n", &name));
    let reload = shown(&portcullis, &["reload"]);
    assert!(reload.code == Some(1) && reload.stderr.contains("a\\u{202e}b"), "{}", reload.stderr);
    assert!(shown(&portcullis, &["check"]).stderr.contains("a\\u{202e}b"));
    shown(&portcullis, &["status"]).success();
    shown(&portcullis, &["status", "--json"]).success();

    drop(session);
    let (_, events) = portcullis.stop();
    for event in &events {
        assert_shows_all("the log", &event.0.to_string());
    }
    assert_shows_all("the audit", &fs::read_to_string(portcullis.site.path("audit.jsonl")).unwrap());
}

#[test]
fn description_of_a_source_is_escaped_and_truncated_in_the_audit() {
    let upstream = Upstream::silent();
    let site = TestDir::new();
    site.write("sources.toml", "rule = []\n");
    let listener = Listener::redis(&upstream).key("sources_file = \"sources.toml\"");
    let portcullis = Portcullis::start(site, format!("{}{listener}", crate::reload::ON_SIGHUP));
    portcullis.address("main");
    let rule =
        |ip: &str, words: &str| format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"{ip}\"\ndescription = \"{words}\"\n");
    let rules = rule("192.0.2.1", HIDDEN) + &rule("192.0.2.2", &"long ".repeat(1000));
    portcullis.site.replace("sources.toml", rules);
    portcullis.applies(|| portcullis.hang_up());
    let added = |ip: &str| {
        let is_it = |event: &Event| event.is("source.added") && event.text("rule") == format!("ip_addr:{ip}");
        portcullis.event("the rule", is_it).text("description").to_owned()
    };
    assert_eq!(added("192.0.2.1"), IN_WORDS);
    let long = added("192.0.2.2");
    assert!(long.len() <= MAX_FIELD && long.ends_with(MARK), "{long}");
}

#[test]
fn certificate_of_an_upstream_is_escaped_and_truncated_in_audit_and_status() {
    let site = TestDir::new();
    let name = format!("{HIDDEN}{}", "\u{1}".repeat(10_000));
    let many: Vec<String> = (0..400).map(|number| format!("a-name-of-an-upstream-{number}.test")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let leaf = site.ca.issue(Request::server(&many).organization(&name));
    let [first, second] = [(); 2].map(|()| Upstream::tls(showing(&leaf), drop));
    let listener = Listener::redis(&first).upstream_tls("verify-full", "ca.crt").to_string();
    let listener = listener.replace(&format!("\"{first}\""), &format!("[\"{first}\", \"{second}\"]"));
    let portcullis = Portcullis::start(site, format!("{ADMIN}{listener}"));
    let mut client = portcullis.client().connect();
    client.rest().unwrap();
    let denied = portcullis.ending(client.port());
    assert_eq!(denied.reason(), "upstream_tls_failed", "{}", denied.0);
    assert_bounded(&denied.0.to_string());
    // Both upstreams are named, and share the field.
    for upstream in [&first, &second] {
        assert!(denied.text("detail").contains(&format!("upstream {upstream}: ")), "{}", denied.0);
    }
    let status = portcullis.status();
    for upstream in status["upstreams"].as_array().unwrap() {
        let error = upstream["error"].as_str().expect("it does not answer");
        assert!(error.len() <= MAX_FIELD && error.contains("it is not for \"127.0.0.1\""), "{error}");
    }
    for event in portcullis.events() {
        assert_shows_all("the log", &event.0.to_string());
        assert!(event.0.to_string().len() < 4096, "{}", event.0);
    }
}

#[test]
fn names_that_differ_after_the_truncation_are_distinguishable() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let long = "x".repeat(700);
    let [right, wrong] = ["right", "wrong"].map(|end| site.ca.issue(Request::client(&format!("{long}{end}"))));
    // Its subject and the issuer of the other certificate differ only after the truncation.
    let pinned = Authority::new("One").issue(Request::client(&format!("{long}one")));
    let beside = Authority::new(&format!("{long}other")).issue(Request::client("beside"));
    site.write("pinned.crt", format!("{}{}", beside.pem(), pinned.pem()));
    let listener = requiring_certificates(&upstream).tls(&format!("trusted_clients = [\"cn:{long}right\"]"));
    let pins = Listener::redis(&upstream)
        .named("pins")
        .tls("client_auth = \"required\"")
        .tls("client_certificates = \"pinned.crt\"");
    let portcullis = Portcullis::start(site, format!("{listener}{pins}"));
    portcullis.client().showing(&right).attempt().1.expect("its name is listed");
    let (port, refused) = portcullis.client().showing(&wrong).attempt();
    refused.unwrap_err();
    assert_eq!(portcullis.refusal(port), "client_not_trusted");
    portcullis.client_of("pins").showing(&pinned).attempt().1.expect("it is one of client_certificates");
}
