//! The admin API over real sockets, with hand-written requests.

use std::fs;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::control::error::ErrorKind;
use crate::control::http::HEAD_TIMEOUT;
use crate::control::route::BodyLimit;
use crate::token::{Role, TokenDigest, TokenOrigin};

/// A directory for sockets, and the receiver of all requests.
struct Fixture {
    directory: TempDir,
    requests: mpsc::Sender<PendingRequest>,
    received: mpsc::Receiver<PendingRequest>,
}

impl Fixture {
    fn new() -> Self {
        let (requests, received) = mpsc::channel(1);
        Self { directory: tempfile::tempdir().unwrap(), requests, received }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, name: &str) -> io::Result<AdminServer> {
        AdminServer::start(&self.path(name), self.requests.clone())
    }

    fn start_error(&self, name: &str) -> String {
        let error = self.start(name).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        error
    }

    /// Replies to the next request.
    async fn reply(&mut self, expected: AdminRequest, response: AdminResponse) {
        let request = self.received.recv().await.unwrap();
        assert_eq!(request.request, expected);
        request.reply.send(response).unwrap();
    }

    /// Whether a server replies at this socket.
    async fn is_served(&self, name: &str) -> bool {
        let Ok(mut stream) = UnixStream::connect(self.path(name)).await else { return false };
        write(&mut stream, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        read_reply(stream).await.status == 200
    }
}

struct Reply {
    status: u16,
    head: String,
    body: Value,
}

async fn call(socket: &Path, request: &str) -> Reply {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    write(&mut stream, request).await;
    read_reply(stream).await
}

async fn write(stream: &mut UnixStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

async fn read_reply(mut stream: UnixStream) -> Reply {
    let mut text = String::new();
    // The unread rest of an oversized body resets the connection after the response.
    let _ = stream.read_to_string(&mut text).await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { status, head: head.to_lowercase(), body: serde_json::from_str(body).unwrap() }
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n")
}

fn post(target: &str, body: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

fn settings(path: &Path) -> Admin {
    Admin::at_socket(path)
}

fn owner_token(text: &str) -> Token {
    Token {
        name: "owner".to_owned(),
        role: Role::Owner,
        digest: TokenDigest::of(text.as_bytes()),
        created_at: None,
        expires_at: None,
        sources: Vec::new(),
        origin: TokenOrigin::Configuration,
    }
}

#[tokio::test]
async fn request_reaches_the_owner_and_the_response_returns() {
    let mut fixture = Fixture::new();
    let _admin = fixture.start("a.sock").unwrap();
    let path = fixture.path("a.sock");
    let plan = post("/v1/reload?plan=true", r#"{"file": "/etc/new.toml"}"#);
    let rejected = AdminResponse::error(ErrorKind::ReloadRejected, "line 1\nline 2");
    let expected = AdminRequest::Plan { file: Some("/etc/new.toml".into()) };
    let (reply, ()) = tokio::join!(call(&path, &plan), fixture.reply(expected, rejected));
    assert_eq!(reply.status, 422);
    assert_eq!((&reply.body["id"], &reply.body["message"]), (&json!("reload_rejected"), &json!("line 1\nline 2")));
    let request_id = reply.body["request_id"].as_str().unwrap();
    assert!(reply.head.contains(&format!("x-request-id: {request_id}")), "{}", reply.head);
    assert!(reply.head.contains("content-type: application/json"), "{}", reply.head);
    assert!(reply.head.contains("connection: close"), "{}", reply.head);
}

#[tokio::test]
async fn socket_has_mode_0600_and_is_removed_at_the_end() {
    let fixture = Fixture::new();
    let mut admin = fixture.start("a.sock").unwrap();
    assert_eq!(mode(&fixture.path("a.sock")), 0o600);
    assert!(fixture.is_served("a.sock").await);
    admin.close().await;
    assert!(!fixture.path("a.sock").exists());

    drop(fixture.start("a.sock").unwrap());
    assert!(!fixture.path("a.sock").exists());
}

#[tokio::test]
async fn stale_socket_is_replaced() {
    let fixture = Fixture::new();
    drop(StdListener::bind(fixture.path("a.sock")).unwrap());
    assert!(fixture.path("a.sock").exists());
    let _admin = fixture.start("a.sock").unwrap();
    assert!(fixture.is_served("a.sock").await);
    assert_eq!(mode(&fixture.path("a.sock")), 0o600);
}

#[tokio::test]
async fn live_socket_is_kept() {
    let fixture = Fixture::new();
    let live = StdListener::bind(fixture.path("a.sock")).unwrap();
    let inode = fs::metadata(fixture.path("a.sock")).unwrap().ino();
    assert!(fixture.start_error("a.sock").contains("running program"));
    assert_eq!(fs::metadata(fixture.path("a.sock")).unwrap().ino(), inode);
    live.accept().unwrap();
    std::os::unix::net::UnixStream::connect(fixture.path("a.sock")).unwrap();
}

#[tokio::test]
async fn other_file_types_are_not_touched() {
    let fixture = Fixture::new();
    fs::write(fixture.path("file"), "precious").unwrap();
    fs::create_dir(fixture.path("directory")).unwrap();
    drop(StdListener::bind(fixture.path("stale")).unwrap());
    symlink(fixture.path("stale"), fixture.path("link")).unwrap();
    for name in ["file", "directory", "link"] {
        assert!(fixture.start_error(name).contains("not a socket"), "{name}");
    }
    assert_eq!(fs::read_to_string(fixture.path("file")).unwrap(), "precious");
    assert!(fixture.path("directory").is_dir());
    assert!(fs::symlink_metadata(fixture.path("link")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(fixture.path("stale")).unwrap().file_type().is_socket());
}

#[tokio::test]
async fn missing_directory_is_named() {
    let fixture = Fixture::new();
    let error = fixture.start_error("run/a.sock");
    assert!(error.contains(&format!("directory {} does not exist", fixture.path("run").display())), "{error}");
}

#[tokio::test]
async fn replaced_socket_file_is_not_removed() {
    let fixture = Fixture::new();
    let admin = fixture.start("a.sock").unwrap();
    fs::remove_file(fixture.path("a.sock")).unwrap();
    let _other = StdListener::bind(fixture.path("a.sock")).unwrap();
    drop(admin);
    assert!(fixture.path("a.sock").exists());
}

#[tokio::test]
async fn reload_keeps_moves_and_closes_the_socket() {
    let fixture = Fixture::new();
    let mut admin = AdminServer::new(fixture.requests.clone(), Audit::start(LineFormat::Text, None), Arc::default());
    let [here, there] = ["here.sock", "there.sock"].map(|name| fixture.path(name));
    let prepared = admin.prepare(Some(&settings(&here)), None, Vec::new()).unwrap();
    admin.commit(prepared);
    let inode = fs::metadata(&here).unwrap().ino();

    let prepared = admin.prepare(Some(&settings(&here)), None, Vec::new()).unwrap();
    admin.commit(prepared);
    assert_eq!(fs::metadata(&here).unwrap().ino(), inode, "the same socket stays open");

    drop(admin.prepare(Some(&settings(&there)), None, Vec::new()).unwrap());
    assert!(!there.exists(), "a dropped change leaves no socket");
    let _taken = StdListener::bind(fixture.path("taken.sock")).unwrap();
    admin.prepare(Some(&settings(&fixture.path("taken.sock"))), None, Vec::new()).unwrap_err();
    assert!(fixture.is_served("here.sock").await, "a failed change has no effect");

    let prepared = admin.prepare(Some(&settings(&there)), None, Vec::new()).unwrap();
    assert!(fixture.is_served("here.sock").await, "a prepared change has no effect before commit");
    admin.commit(prepared);
    assert!(!here.exists());
    assert!(fixture.is_served("there.sock").await);

    fs::remove_file(&there).unwrap();
    let prepared = admin.prepare(Some(&settings(&there)), None, Vec::new()).unwrap();
    admin.commit(prepared);
    assert!(fixture.is_served("there.sock").await, "a removed socket file is created again");

    let prepared = admin.prepare(None, None, Vec::new()).unwrap();
    admin.commit(prepared);
    assert!(!there.exists());
}

#[tokio::test]
async fn removed_address_is_free_while_its_client_waits_for_a_response() {
    let mut fixture = Fixture::new();
    let mut admin = fixture.start("a.sock").unwrap();
    let address = StdTcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unix_only = settings(&fixture.path("a.sock"));
    let mut both = unix_only.clone();
    both.listen.push(ListenAddr::Tcp(TcpListenAddr { socket: address, ipv6_only: false }));
    both.tokens = Arc::new(vec![owner_token("secret")]);
    let prepared = admin.prepare(Some(&both), None, Vec::new()).unwrap();
    admin.commit(prepared);
    let mut client = TcpStream::connect(address).await.unwrap();
    let request = b"GET /v1/status HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer secret\r\n\r\n";
    client.write_all(request).await.unwrap();
    let waiting = fixture.received.recv().await.unwrap();

    let prepared = admin.prepare(Some(&unix_only), None, Vec::new()).unwrap();
    admin.commit(prepared);
    let closed = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(HEAD_TIMEOUT / 2, closed).await.expect("the address closes before its client leaves");
    waiting.reply.send(AdminResponse::ok(json!({ "pid": 1 }))).unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
}

#[tokio::test]
async fn client_whose_reload_moves_the_socket_receives_the_response() {
    let mut fixture = Fixture::new();
    let mut admin = fixture.start("here.sock").unwrap();
    let (here, there) = (fixture.path("here.sock"), fixture.path("there.sock"));
    let reload = post("/v1/reload", "");
    let owner = async {
        let request = fixture.received.recv().await.unwrap();
        let prepared = admin.prepare(Some(&settings(&there)), None, Vec::new()).unwrap();
        admin.commit(prepared);
        request.reply.send(AdminResponse::ok(json!({ "result": "applied" }))).unwrap();
    };
    let (reply, ()) = tokio::join!(call(&here, &reload), owner);
    assert_eq!((reply.status, reply.body), (200, json!({ "result": "applied" })));
}

#[tokio::test]
async fn request_errors_are_json() {
    let fixture = Fixture::new();
    let _admin = fixture.start("a.sock").unwrap();
    let large = "x".repeat(BodyLimit::Small.bytes() + 1);
    let chunked = format!(
        "POST /v1/reload HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    let cases = [
        (get("/v1/stauts"), 404, "path_not_found"),
        (get("/v1/reload"), 405, "method_not_allowed"),
        (post("/v1/reload", &large), 413, "payload_too_large"),
        (chunked, 413, "payload_too_large"),
        (get(&format!("/{}", "x".repeat(2000))), 414, "uri_too_long"),
        (post("/v1/reload?plan=true", "[]"), 422, "unprocessable_entity"),
    ];
    for (request, status, id) in cases {
        let reply = call(&fixture.path("a.sock"), &request).await;
        assert_eq!((reply.status, &reply.body["id"]), (status, &json!(id)), "{}", reply.body);
        assert!(reply.body["message"].is_string(), "{}", reply.body);
        assert_eq!(reply.head.contains("allow: post"), status == 405, "{}", reply.head);
    }
    let list = call(&fixture.path("a.sock"), &get("/")).await;
    assert!(list.body["paths"].as_array().unwrap().iter().any(|path| path["path"] == "/v1/status"), "{}", list.body);
}

#[tokio::test(start_paused = true)]
async fn missing_response_is_an_error() {
    let mut fixture = Fixture::new();
    let _admin = fixture.start("a.sock").unwrap();
    let path = fixture.path("a.sock");
    let request = get("/v1/status");
    let slow = async { fixture.received.recv().await.unwrap() };
    let (reply, unanswered) = tokio::join!(call(&path, &request), slow);
    assert_eq!((reply.status, &reply.body["id"]), (500, &json!("server_error")));
    assert!(unanswered.reply.is_closed(), "the owner can detect that no client waits");

    let failing = async { drop(fixture.received.recv().await.unwrap()) };
    let (reply, ()) = tokio::join!(call(&path, &request), failing);
    assert_eq!((reply.status, &reply.body["id"]), (500, &json!("server_error")));
}

#[tokio::test(start_paused = true)]
async fn slow_client_is_disconnected() {
    let fixture = Fixture::new();
    let _admin = fixture.start("a.sock").unwrap();
    for begun in ["", "GET /v1/status HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = UnixStream::connect(fixture.path("a.sock")).await.unwrap();
        write(&mut stream, begun).await;
        let mut rest = Vec::new();
        let cut = timeout(HEAD_TIMEOUT * 2, stream.read_to_end(&mut rest)).await;
        assert!(cut.is_ok(), "after {begun:?}");
    }
    let unfinished = "POST /v1/reload HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n{";
    let reply = timeout(HEAD_TIMEOUT * 2, call(&fixture.path("a.sock"), unfinished)).await.unwrap();
    assert_eq!((reply.status, &reply.body["id"]), (408, &json!("request_timeout")));
}

#[tokio::test(start_paused = true)]
async fn client_above_the_limit_waits() {
    let fixture = Fixture::new();
    let _admin = fixture.start("a.sock").unwrap();
    let mut idle = Vec::new();
    for _ in 0..accept::MAX_UNIX_CLIENTS {
        idle.push(UnixStream::connect(fixture.path("a.sock")).await.unwrap());
    }
    let mut late = UnixStream::connect(fixture.path("a.sock")).await.unwrap();
    write(&mut late, &get("/")).await;
    timeout(HEAD_TIMEOUT / 2, late.readable()).await.unwrap_err();
    drop(idle.pop());
    assert_eq!(read_reply(late).await.status, 200);
}

#[tokio::test]
async fn socket_answers_after_its_accept_loop_panicked() {
    let fixture = Fixture::new();
    let admin = fixture.start("admin.sock").unwrap();
    for _ in 0..2 {
        crate::fault::injection::inject(PART);
        assert!(fixture.is_served("admin.sock").await);
    }
    drop(admin);
}
