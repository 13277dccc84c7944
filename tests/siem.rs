//! The audit file, forwarded by rsyslog with the configurations of `packaging/siem/`, and the mapping in docs/SIEM.md.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::cloud_sources::{RESOLVER, keep};
use crate::dns_sources::STATE;
use crate::harness::client::port;
use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::program::{self, Running, run};
use crate::harness::{
    Authority, Event, Listener, Portcullis, Request, TestDir, Upstream, WAIT_TIMEOUT, eventually, wire,
};
use crate::reload::ON_SIGHUP;

/// A common name with everything that a format escapes.
const HOSTILE_NAME: &str = "a\"]=\\|b";

/// A private rsyslogd that tails the audit file and forwards it to the test.
struct Rsyslog {
    frames: BufReader<TcpStream>,
    _process: Running,
}

impl Rsyslog {
    /// `configuration` is the name of a file in `packaging/siem/`, of which the test changes only the paths and the target.
    fn forwarding(portcullis: &Portcullis, configuration: &str) -> Self {
        let siem = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = siem.local_addr().unwrap().port();
        let file = portcullis.site.path("rsyslog.conf");
        fs::write(&file, adapted(configuration, portcullis.site.directory(), port)).unwrap();
        let mut command = program::command("rsyslogd");
        command.args(["-n", "-C", "-i", "NONE", "-f"]).arg(file).stdin(Stdio::null());
        let process = Running::start(&mut command);
        siem.set_nonblocking(true).unwrap();
        let (stream, _) = eventually("rsyslog connects", || siem.accept().ok());
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        Self { frames: BufReader::new(stream), _process: process }
    }

    /// The next message (RFC 6587 section 3.4.1: its length, a space, its bytes).
    fn message(&mut self) -> String {
        let mut length = Vec::new();
        self.frames.read_until(b' ', &mut length).expect("rsyslog forwards another event");
        let length: usize = String::from_utf8(length).unwrap().trim_end().parse().unwrap();
        let mut message = vec![0; length];
        self.frames.read_exact(&mut message).unwrap();
        String::from_utf8(message).unwrap()
    }

    fn messages(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.message()).collect()
    }
}

fn adapted(configuration: &str, directory: &Path, siem: u16) -> String {
    let packaged = fs::read_to_string(Path::new("packaging/siem").join(configuration)).unwrap();
    let directory = directory.display();
    let mut own = format!("global(workDirectory=\"{directory}\" maxMessageSize=\"128k\")\n{packaged}");
    for (packaged, of_test) in [
        ("/var/log/portcullis/audit.log", format!("{directory}/audit.log")),
        ("target=\"siem.example.com\" port=\"601\"", format!("target=\"127.0.0.1\" port=\"{siem}\"")),
    ] {
        assert!(own.contains(packaged), "no {packaged} in {configuration}");
        own = own.replace(packaged, &of_test);
    }
    own
}

/// A program with one event of each kind that this test looks at, and these events as the audit file has them.
fn with_events() -> (Portcullis, BTreeMap<String, Value>, Vec<String>) {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let clients = Authority::new("Client CA");
    site.write("clients.pem", clients.pem());
    site.write("do.token", "dop_v1_of_a_test");
    let droplet = json!({ "127.0.0.1": format!("droplet {HOSTILE_NAME}") });
    let answer = json!({ "addresses": droplet, "resolved_at": "2026-11-22T00:00:00Z" });
    keep(&site, &json!({ "names": {}, "cloud": { "tag:backend": answer } }).to_string());
    let listener = Listener::redis(&upstream).trusting(&["tag:backend"]);
    let listener = listener.tls("client_auth = \"optional\"").tls("client_ca = \"clients.pem\"").to_string();
    let config = format!("{STATE}{ADMIN}{ON_SIGHUP}log.audit_file = \"audit.log\"\n{RESOLVER}{listener}");
    let portcullis = Portcullis::start(site, config);
    let mut untrusted = portcullis.client().from("127.0.0.2").dial();
    assert_eq!(wire::read_until_closed(&mut untrusted), b"");
    let mut client = portcullis.client().showing(clients.issue(Request::client(HOSTILE_NAME))).connect();
    client.ask(b"hello", b"hello");
    let session = client.port();
    drop(client);
    portcullis.ending(port(&untrusted));
    portcullis.ending(session);
    let mut reload = executable();
    reload.args(["reload", "--socket"]).arg(portcullis.site.path("admin.sock"));
    run(&mut reload).success();
    // A long list of problems is one line of more than 8 KiB, the usual limit of rsyslog.
    let unknown_keys: String = (0..200).map(|number| format!("unknown_{number} = 1\n")).collect();
    let rejected = portcullis.reconfigure(format!("{unknown_keys}{ADMIN}{RESOLVER}{listener}"));
    assert!(rejected.is("reload.rejected") && rejected.0.to_string().len() > 9_000, "{}", rejected.0);
    let lines = audit_lines(&portcullis);
    let events = lines.iter().map(|line| Event(serde_json::from_str(line).unwrap()));
    let by_name = events.map(|event| (event.text("event").to_owned(), event.0)).collect();
    (portcullis, by_name, lines)
}

/// The lines of the audit file, once the last event is among them.
fn audit_lines(portcullis: &Portcullis) -> Vec<String> {
    eventually("the audit file is complete", || {
        let text = fs::read_to_string(portcullis.site.path("audit.log")).ok()?;
        let is_complete = text.contains("reload.rejected") && text.ends_with('\n');
        is_complete.then(|| text.lines().map(str::to_owned).collect())
    })
}

/// Splits an RFC 5424 message into its header fields, its structured data and the rest.
fn parsed(message: &str) -> (Vec<&str>, BTreeMap<String, String>, &str) {
    let (header, rest) = message.split_once(" [portcullis@32473").expect("structured data");
    let mut fields = BTreeMap::new();
    let mut rest = rest;
    while let Some(field) = rest.strip_prefix(' ') {
        let (name, quoted) = field.split_once("=\"").expect("a name and a value");
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        rest = loop {
            match characters.next().expect("a quote at the end") {
                (at, '"') => break &quoted[at + 1..],
                (_, ']') => panic!("] is not escaped: {message}"),
                (_, '\\') => value.extend(characters.next().map(|(_, character)| character)),
                (_, character) => value.push(character),
            }
        };
        fields.insert(name.to_owned(), value);
    }
    (header.split(' ').collect(), fields, rest.strip_prefix("] ").expect("the end of the data"))
}

#[test]
fn rsyslog_forwards_each_event_with_structured_data_and_as_json() {
    let (portcullis, events, lines) = with_events();
    let mut rsyslog = Rsyslog::forwarding(&portcullis, "rsyslog-rfc5424.conf");
    let messages = rsyslog.messages(lines.len());
    for (message, line) in messages.iter().zip(&lines) {
        let (header, data, json) = parsed(message);
        assert_eq!(json, line);
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (header[1], header[3], header[5]),
            (event["ts"].as_str().unwrap(), "portcullis", event["event"].as_str().unwrap())
        );
        for (name, value) in data {
            let expected = event[&name].as_str().map_or_else(|| event[&name].to_string(), str::to_owned);
            assert_eq!(value, expected, "{name} of {line}");
        }
    }
    let of = |name: &str| {
        let message = messages.iter().find(|message| message.contains(&format!(" - {name} ["))).expect(name);
        let (header, data, _) = parsed(message);
        (header[0].to_owned(), data.into_keys().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(of("connection.denied"), ("<108>1".to_owned(), "listener reason source source_port".to_owned()));
    assert_eq!(
        of("connection.closed").1,
        "client_sha256 client_subject listener object reason rule session sni source source_port upstream"
    );
    assert_eq!(of("admin.action"), ("<110>1".to_owned(), "action actor request_id role".to_owned()));
    assert_eq!(of("reload.rejected").0, "<107>1");
    let subject = events["connection.closed"]["client_subject"].as_str().unwrap();
    assert!(['"', ']', '=', '\\', '|'].iter().all(|character| subject.contains(*character)), "{subject}");
}

#[test]
fn rsyslog_forwards_each_event_as_cef() {
    let (portcullis, events, lines) = with_events();
    let mut rsyslog = Rsyslog::forwarding(&portcullis, "rsyslog-cef.conf");
    let messages = rsyslog.messages(lines.len());
    let of = |name: &str| {
        let version = env!("CARGO_PKG_VERSION");
        let head = format!(" CEF:0|Portcullis|Portcullis|{version}|{name}|{name}|");
        let message = messages.iter().find_map(|message| message.split_once(&head)).expect(name);
        message.1.split_once('|').map(|(severity, extension)| (severity.to_owned(), format!(" {extension} "))).unwrap()
    };
    let (severity, denied) = of("connection.denied");
    assert_eq!(severity, "6");
    let port = events["connection.denied"]["source_port"].to_string();
    for field in ["src=127.0.0.2", &format!("spt={port}"), "reason=untrusted_source", "cs1Label=listener cs1=main"] {
        assert!(denied.contains(&format!(" {field} ")), "no {field} in {denied}");
    }
    let closed = of("connection.closed").1;
    let subject = events["connection.closed"]["client_subject"].as_str().unwrap();
    let subject = subject.replace('\\', "\\\\").replace('=', "\\=");
    let object = events["connection.closed"]["object"].as_str().unwrap();
    assert_eq!(object, format!("droplet {HOSTILE_NAME}"));
    let object = object.replace('\\', "\\\\").replace('=', "\\=");
    for field in
        [&format!("suser={subject}"), &format!("shost={object}"), "in=5 out=5", "cs4Label=tlsVersion cs4=TLSv1.3"]
    {
        assert!(closed.contains(&format!(" {field} ")), "no {field} in {closed}");
    }
    let action = of("admin.action").1;
    let request_id = events["admin.action"]["request_id"].as_str().unwrap();
    assert!(action.ends_with(&format!(" suser=unix spriv=owner act=reload externalId={request_id} ")), "{action}");
    let (severity, rejected) = of("reload.rejected");
    let last_problem = events["reload.rejected"]["error"].as_str().unwrap().lines().next_back().unwrap();
    assert!(severity == "8" && rejected.contains(&format!("\\n{last_problem} ")), "{rejected}");
    assert!(messages.iter().all(|message| !message.contains('\n')), "a message is one line");
    let rt = denied.trim_start().strip_prefix("rt=").and_then(|rest| rest.split_once(' ')).unwrap().0;
    let milliseconds = &events["connection.denied"]["ts"].as_str().unwrap()[20..23];
    assert!(rt.len() == 13 && rt.ends_with(milliseconds), "{rt}");
}

/// The names in code font in the first column of the tables of a section.
fn names(document: &str, section: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new("docs").join(document)).unwrap();
    let (_, after) = text.split_once(section).expect(section);
    let section = after.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let first = rows.filter_map(|row| row.split(" | ").next());
    first
        .flat_map(|cell| cell.split('`').filter(|part| part.starts_with(|c: char| c.is_ascii_lowercase())))
        .map(str::to_owned)
        .collect()
}

#[test]
fn mapping_covers_every_event_and_field_of_the_audit() {
    for (section, least) in [("\n## Events\n", 18), ("\n## Fields\n", 40)] {
        let documented = names("AUDIT.md", section);
        assert!(documented.len() >= least, "{documented:?}");
        let mapped = names("SIEM.md", section);
        let missing: Vec<_> = documented.iter().filter(|name| !mapped.contains(name)).collect();
        assert!(missing.is_empty(), "docs/SIEM.md, {section}: no row for {missing:?}");
        let unknown: Vec<_> = mapped.iter().filter(|name| !documented.contains(name)).collect();
        assert!(unknown.is_empty(), "docs/SIEM.md, {section}: rows of no event or field: {unknown:?}");
    }
}
