//! The control panel over HTTP: signing in, sessions, and requests that other pages cause.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::{OPERATOR, OWNER, Operated, VIEWER};
use crate::harness::WAIT_TIMEOUT;
use crate::harness::api::ApiReply;
use crate::harness::client::dial_from;
use crate::harness::log::Event;

/// A browser that has opened the panel at `localhost`.
#[derive(Clone)]
struct Browser {
    address: SocketAddr,
    /// From where it connects.
    source: &'static str,
    /// What it shows as the address of the page.
    host: String,
    cookie: Option<String>,
}

/// How long a client may take for the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Headers of the panel's own requests.
const OWN: &str = "Sec-Fetch-Site: same-origin\r\n";
const JSON: &str = "Content-Type: application/json\r\n";

impl Browser {
    fn new(operated: &Operated) -> Self {
        let host = format!("localhost:{}", operated.address.port());
        Self { address: operated.address, source: "127.0.0.1", host, cookie: None }
    }

    /// Signs in with this token. Returns what the server says of the session.
    fn sign_in(&mut self, token: &str) -> Value {
        let reply = self.send("POST", "/ui/session", &format!("{OWN}{JSON}"), &json!({ "token": token }).to_string());
        self.cookie = Some(cookie_in(&reply).split(';').next().unwrap().to_owned());
        ApiReply::parse(reply.as_bytes()).expect(200)
    }

    fn signed_in(operated: &Operated, token: &str) -> Self {
        let mut browser = Self::new(operated);
        browser.sign_in(token);
        browser
    }

    /// The same browser that has opened the panel under this name.
    fn named(&self, host: impl Into<String>) -> Self {
        Self { host: host.into(), ..self.clone() }
    }

    fn send(&self, method: &str, target: &str, headers: &str, body: &str) -> String {
        let mut stream = dial(self.source, self.address);
        let cookie = self.cookie.as_ref().map(|cookie| format!("Cookie: other=1; {cookie}\r\n")).unwrap_or_default();
        let (host, length) = (&self.host, body.len());
        let head =
            format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{cookie}{headers}Content-Length: {length}\r\n\r\n");
        let _ = stream.write_all(format!("{head}{body}").as_bytes());
        let mut reply = String::new();
        let _ = stream.read_to_string(&mut reply);
        reply
    }

    fn status(&self, method: &str, target: &str, headers: &str, body: &str) -> u16 {
        ApiReply::parse(self.send(method, target, headers, body).as_bytes()).status
    }

    fn is_signed_in(&self) -> bool {
        self.status("GET", "/v1/status", OWN, "") == 200
    }
}

fn dial(source: &str, address: SocketAddr) -> TcpStream {
    let stream = dial_from(Some(source.parse().unwrap()), address, None).unwrap();
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    stream
}

/// Waits for the audit event of a request that was denied for this reason.
fn denial(operated: &Operated, reason: &str) -> Event {
    operated.portcullis.event(reason, |event| event.is("admin.denied") && event.reason() == reason)
}

fn is_reload(event: &Event) -> bool {
    event.is("admin.action") && event.text("action") == "reload"
}

fn cookie_in(reply: &str) -> &str {
    reply.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap_or_else(|| panic!("no cookie: {reply}"))
}

#[test]
fn person_signs_in_with_a_token_and_signs_out() {
    let operated = Operated::start();
    let mut browser = Browser::new(&operated);
    assert_eq!(browser.status("GET", "/ui/session", OWN, ""), 401);
    assert!(!browser.is_signed_in());
    assert_eq!(denial(&operated, "missing_token").text("path"), "/v1/status", "the question of the page is no denial");
    for token in ["", "no-token", &"x".repeat(10_000)] {
        let body = json!({ "token": token }).to_string();
        assert_eq!(browser.status("POST", "/ui/session", &format!("{OWN}{JSON}"), &body), 401, "{token}");
    }

    let session = browser.sign_in(OPERATOR);
    let fields = ["name", "role", "source", "idle_timeout_seconds"].map(|field| session[field].clone());
    assert_eq!(fields, [json!("operator"), json!("operator"), json!("127.0.0.1"), json!(1800)]);
    assert!(session["ends_at"].is_string());
    let shown = ApiReply::parse(browser.send("GET", "/ui/session", OWN, "").as_bytes()).expect(200);
    assert_eq!(shown["role"], "operator");
    let rule = json!({ "rules": [{ "type": "ip_addr", "value": "192.0.2.1" }] }).to_string();
    let append = |headers: &str| browser.status("POST", "/v1/listeners/main/sources", headers, &rule);
    assert_eq!(append(&format!("{OWN}{JSON}")), 201);
    assert_eq!(browser.status("GET", "/v1/tokens", OWN, ""), 403, "the role of the token counts");

    let bearer = format!("Authorization: Bearer {VIEWER}\r\n");
    let by_header = Browser::new(&operated).send("POST", "/ui/session", &bearer, "");
    assert!(cookie_in(&by_header).starts_with("portcullis-"), "{by_header}");
    assert_eq!(browser.status("DELETE", "/ui/session", OWN, ""), 204);
    assert!(!browser.is_signed_in());
    let is_own = |event: &&Event| event.is("admin.action") && event.text("actor") == "token:operator";
    operated.portcullis.assert_count("the actions of the person", 3, |event| is_own(&event));
    let events = operated.portcullis.events();
    let actions = events.iter().filter(is_own);
    let of_panel: Vec<_> = actions.map(|event| (event.text("action"), event.text("actor"))).collect();
    assert_eq!(
        of_panel,
        [
            ("panel.sign_in", "token:operator"),
            ("sources.append", "token:operator"),
            ("panel.sign_out", "token:operator")
        ]
    );
    let secret = browser.cookie.unwrap();
    let secret = secret.split_once('=').unwrap().1;
    assert!(!format!("{events:?}").contains(secret), "the log has the cookie");
}

#[test]
fn cookie_belongs_to_one_site_and_no_script_reads_it() {
    let operated = Operated::start();
    let browser = Browser::new(&operated);
    let body = json!({ "token": VIEWER }).to_string();
    let reply = browser.send("POST", "/ui/session", &format!("{OWN}{JSON}"), &body);
    let (pair, attributes) = cookie_in(&reply).split_once(';').unwrap();
    assert!(pair.starts_with(&format!("portcullis-{}=", operated.address.port())), "{pair}");
    assert_eq!(attributes, " Path=/; HttpOnly; SameSite=Strict");
}

#[test]
fn request_that_another_page_causes_is_rejected() {
    let operated = Operated::start();
    let browser = Browser::signed_in(&operated, OWNER);
    let port = operated.address.port();
    for headers in [
        format!("Sec-Fetch-Site: cross-site\r\n{JSON}"),
        // A page of another port of this host.
        format!("Sec-Fetch-Site: same-site\r\n{JSON}"),
        format!("Origin: http://localhost:{}\r\n{JSON}", port.wrapping_add(1)),
        format!("Origin: https://localhost:{port}\r\n{JSON}"),
        format!("Origin: null\r\n{JSON}"),
    ] {
        assert_eq!(browser.status("POST", "/v1/reload", &headers, "{}"), 403, "{headers}");
        assert_eq!(browser.status("GET", "/v1/status", &headers, ""), 403, "{headers}");
        assert_eq!(browser.status("POST", "/ui/session", &headers, "{}"), 403, "{headers}");
    }
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        let headers = format!("{OWN}Content-Type: {content_type}\r\n");
        assert_eq!(browser.status("POST", "/v1/reload", &headers, "{}"), 415, "{content_type}");
    }
    let own = format!("Origin: http://localhost:{port}\r\n{JSON}");
    assert_eq!(browser.status("POST", "/v1/reload", &own, "{}"), 200);
    denial(&operated, "cross_origin");
    // A token in a header comes from no other page.
    let bearer = format!("Sec-Fetch-Site: cross-site\r\nAuthorization: Bearer {OWNER}\r\n");
    assert_eq!(browser.status("POST", "/v1/reload", &bearer, "{}"), 200);
    operated.portcullis.assert_count("the reloads of the page and by token", 2, is_reload);
}

#[test]
fn foreign_host_name_opens_neither_page_nor_session() {
    let operated = Operated::start();
    let browser = Browser::signed_in(&operated, OWNER);
    let status = |host: &str, target: &str| browser.named(host).status("GET", target, OWN, "");
    let port = operated.address.port();
    let foreign = format!("attacker.example:{port}");
    for target in ["/ui/", "/ui/session", "/v1/status"] {
        assert_eq!(status(&foreign, target), 421, "{target}");
    }
    assert_eq!(status("localhost.attacker.example", "/ui/"), 421);
    let body = json!({ "token": OWNER }).to_string();
    let reply = browser.named(&foreign).send("POST", "/ui/session", JSON, &body);
    ApiReply::parse(reply.as_bytes()).expect_error(421, "misdirected_request");
    for host in [format!("localhost:{port}"), format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        assert_eq!(status(&host, "/ui/"), 200, "{host}");
    }
    // The API by token has no check of host names: clients use any of them.
    let bearer = format!("Authorization: Bearer {OWNER}\r\n");
    assert_eq!(browser.named(&foreign).status("GET", "/v1/status", &bearer, ""), 200);
}

#[test]
fn configured_host_name_opens_the_panel_after_a_reload() {
    let operated = Operated::start();
    let browser = Browser::new(&operated);
    let status = || browser.named("Panel.Example.").status("GET", "/ui/", "", "");
    assert_eq!(status(), 421);
    let file = operated.portcullis.site.path("portcullis.toml");
    let config = std::fs::read_to_string(file).unwrap();
    operated.portcullis.reconfigure(config.replace("[admin]\n", "[admin]\nhosts = \"panel.example\"\n"));
    assert_eq!(status(), 200);
}

#[test]
fn stolen_cookie_is_of_no_use_at_another_address() {
    let operated = Operated::start();
    let browser = Browser::signed_in(&operated, OWNER);
    let thief = Browser { source: "127.0.0.2", ..browser.clone() };
    assert!(!thief.is_signed_in());
    assert!(browser.is_signed_in(), "the person stays signed in");
    assert_eq!(denial(&operated, "session_ended").text("source"), "127.0.0.2");
}

#[test]
fn session_and_its_stream_end_with_the_token() {
    let operated = Operated::start();
    let created = operated.unix().post("/v1/tokens", &json!({ "name": "temp", "role": "owner" })).expect(201);
    let browser = Browser::signed_in(&operated, created["token"].as_str().unwrap());
    let other = Browser::signed_in(&operated, OWNER);
    let follow = |browser: &Browser| {
        let mut stream = dial("127.0.0.1", browser.address);
        let (port, cookie) = (browser.address.port(), browser.cookie.as_ref().unwrap());
        let head = format!("GET /v1/events HTTP/1.1\r\nHost: localhost:{port}\r\nCookie: {cookie}\r\n{OWN}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut first = [0; 15];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK");
        stream
    };
    let (mut ends, mut goes) = (follow(&browser), follow(&other));
    operated.unix().delete("/v1/tokens/temp").expect(204);
    assert!(!browser.is_signed_in());
    // Returns once the server has closed the connection.
    ends.read_to_end(&mut Vec::new()).unwrap();
    assert!(other.is_signed_in());
    assert_eq!(other.status("DELETE", "/ui/session", OWN, ""), 204);
    goes.read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn number_of_sessions_of_a_token_is_limited() {
    let operated = Operated::start();
    let first = Browser::signed_in(&operated, VIEWER);
    for _ in 0..16 {
        Browser::signed_in(&operated, VIEWER);
    }
    assert!(!first.is_signed_in(), "the least recently active session ended");
}

#[test]
fn every_answer_tells_a_browser_how_to_treat_it() {
    let operated = Operated::start();
    let browser = Browser::new(&operated);
    for target in ["/", "/ui/", "/ui/session", "/v1/status", "/no-such-path"] {
        let reply = browser.send("GET", target, "", "").to_lowercase();
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
            "referrer-policy: no-referrer",
            "cross-origin-opener-policy: same-origin",
            "cross-origin-resource-policy: same-origin",
            "cache-control: no-store",
        ] {
            assert!(reply.contains(header), "{target} lacks {header}: {reply}");
        }
        assert!(!reply.contains("access-control-"), "{reply}");
    }
    let page = browser.send("GET", "/ui/", "", "").to_lowercase();
    assert!(page.contains("content-type: text/html; charset=utf-8") && page.contains("<!doctype html>"), "{page}");
}

#[test]
fn browser_that_opens_the_address_is_led_to_the_panel() {
    let operated = Operated::start();
    let browser = Browser::new(&operated);
    for (target, headers) in [("/", "Accept: text/html,application/xhtml+xml\r\n"), ("/ui", "")] {
        let reply = browser.send("GET", target, headers, "");
        assert!(reply.starts_with("HTTP/1.1 303 ") && reply.contains("location: /ui/\r\n"), "{reply}");
    }
    assert_eq!(browser.status("GET", "/", "Accept: */*\r\n", ""), 200);
    assert_eq!(browser.status("GET", "/ui/no-such.js", "", ""), 404);
}

#[test]
fn unix_socket_serves_no_browser() {
    let operated = Operated::start();
    let unix = operated.unix();
    unix.get("/ui/").expect_error(404, "path_not_found");
    unix.post("/ui/session", &json!({ "token": OWNER })).expect_error(404, "path_not_found");
    // Such as one that reaches the socket through a forwarded port.
    for header in ["Origin: http://localhost:8080\r\n", "Sec-Fetch-Site: cross-site\r\n", "Sec-Fetch-Mode: no-cors\r\n"]
    {
        unix.request("POST", "/v1/reload", header, b"").expect_error(403, "forbidden");
    }
    assert_eq!(denial(&operated, "cross_origin").text("source"), "unix");
    unix.request("POST", "/v1/reload", "", b"").expect(200);
    operated.portcullis.assert_count("the reload without such a header", 1, is_reload);
}

#[test]
fn failed_sign_ins_are_limited_and_a_good_token_is_not() {
    let operated = Operated::start();
    let mut browser = Browser::new(&operated);
    let guess = |number: u32| {
        let body = json!({ "token": format!("guess-{number}") }).to_string();
        browser.status("POST", "/ui/session", &format!("{OWN}{JSON}"), &body)
    };
    let answers: Vec<u16> = (0..100).map(guess).collect();
    assert!(answers.contains(&429), "{answers:?}");
    assert_eq!(browser.sign_in(VIEWER)["role"], "viewer");
    denial(&operated, "rate_limited");
}

#[test]
fn cookie_of_another_page_does_not_lock_a_person_out() {
    let operated = Operated::start();
    let mut browser = Browser::signed_in(&operated, VIEWER);
    let own = browser.cookie.clone().unwrap();
    let name = own.split_once('=').unwrap().0;
    browser.cookie = Some(format!("{name}=planted; {own}"));
    assert!(browser.is_signed_in());
    browser.cookie = Some(format!("{name}=planted"));
    assert!(!browser.is_signed_in());
}

#[test]
fn clients_without_a_token_make_room_for_others() {
    let operated = Operated::start();
    // Each begins a request and does not end it. One source may have 32 connections.
    let stalled: Vec<_> = (0..120)
        .map(|number| {
            let mut stream = dial(["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"][number % 4], operated.address);
            let _ = stream.write_all(b"POST /ui/session HTTP/1.1\r\nHost: localhost\r\n");
            stream
        })
        .collect();
    let start = Instant::now();
    let mut person = Browser { source: "127.0.0.9", ..Browser::new(&operated) };
    person.sign_in(OWNER);
    assert!(person.is_signed_in());
    // Without displacement the person waits for the deadlines of the others.
    assert!(start.elapsed() < HEAD_TIMEOUT, "{:?}", start.elapsed());
    drop(stalled);
}

#[test]
fn name_of_a_page_at_the_unix_socket_is_rejected() {
    let operated = Operated::start();
    let raw = |host: &str| {
        let request = format!("GET /v1/status HTTP/1.1\r\nHost: {host}\r\n\r\n");
        ApiReply::parse(&operated.unix().raw(request.as_bytes())).status
    };
    // A page whose name resolves to a forwarded port sends no other header that tells.
    assert_eq!(raw("attacker.example:28700"), 403);
    for host in ["localhost", "portcullis", "127.0.0.1:28700", "[::1]:28700", ""] {
        assert_eq!(raw(host), 200, "{host}");
    }
}
