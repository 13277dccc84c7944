//! The whole of it over real sockets, with callers that write their bytes by hand.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener as StdListener;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::*;
use crate::control::http::{HEAD, MAX_BODY};
use crate::control::response::Status;

/// A directory for sockets, and the owner of the state whom everything is asked.
struct World {
    directory: TempDir,
    requests: mpsc::Sender<Request>,
    asked: mpsc::Receiver<Request>,
}

impl World {
    fn new() -> Self {
        let (requests, asked) = mpsc::channel(1);
        Self { directory: tempfile::tempdir().unwrap(), requests, asked }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, name: &str) -> io::Result<Admin> {
        Admin::start(&self.path(name), self.requests.clone())
    }

    fn refusal(&self, name: &str) -> String {
        let error = self.start(name).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        error
    }

    /// Answers the next question.
    async fn owner(&mut self, expected: AdminRequest, answer: AdminResponse) {
        let request = self.asked.recv().await.unwrap();
        assert_eq!(request.ask, expected);
        request.answer.send(answer).unwrap();
    }

    /// Whether a program answers at this socket.
    async fn answers(&self, name: &str) -> bool {
        let Ok(mut stream) = UnixStream::connect(self.path(name)).await else { return false };
        say(&mut stream, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        reply(stream).await.status == 200
    }
}

/// What a caller got.
struct Reply {
    status: u16,
    head: String,
    body: Value,
}

async fn call(socket: &Path, request: &str) -> Reply {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    say(&mut stream, request).await;
    reply(stream).await
}

async fn say(stream: &mut UnixStream, words: &str) {
    stream.write_all(words.as_bytes()).await.unwrap();
}

async fn reply(mut stream: UnixStream) -> Reply {
    let mut text = String::new();
    // What was not read of a body that is too large resets the connection, behind the answer.
    let _ = stream.read_to_string(&mut text).await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
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

fn at(path: &Path) -> config::Admin {
    config::Admin { socket: path.to_owned() }
}

#[tokio::test]
async fn a_question_goes_to_the_owner_and_the_answer_comes_back() {
    let mut world = World::new();
    let _admin = world.start("a.sock").unwrap();
    let path = world.path("a.sock");
    let plan = post("/v1/reload?plan=true", r#"{"file": "/etc/new.toml"}"#);
    let refused = AdminResponse::error(Status::Unprocessable, "configuration_invalid", "line 1\nline 2");
    let expected = AdminRequest::Plan { file: Some("/etc/new.toml".into()) };
    let (reply, ()) = tokio::join!(call(&path, &plan), world.owner(expected, refused));
    assert_eq!(reply.status, 422);
    assert_eq!(reply.body, json!({ "id": "configuration_invalid", "message": "line 1\nline 2" }));
    assert!(reply.head.contains("content-type: application/json"), "{}", reply.head);
    assert!(reply.head.contains("connection: close"), "{}", reply.head);
}

#[tokio::test]
async fn the_sessions_of_one_listener_are_picked_out() {
    let mut world = World::new();
    let _admin = world.start("a.sock").unwrap();
    let path = world.path("a.sock");
    let all = json!({ "sessions": [{ "session": 1, "listener": "db" }, { "session": 2, "listener": "cache" }, {}] });
    let (request, answer) = (get("/v1/sessions?listener=cache"), AdminResponse::done(all));
    let (reply, ()) = tokio::join!(call(&path, &request), world.owner(AdminRequest::Sessions, answer));
    assert_eq!(reply.body, json!({ "sessions": [{ "session": 2, "listener": "cache" }] }));
}

#[tokio::test]
async fn the_socket_is_nobody_elses_from_the_start_and_gone_at_the_end() {
    let world = World::new();
    let mut admin = world.start("a.sock").unwrap();
    assert_eq!(mode(&world.path("a.sock")), 0o600);
    assert!(world.answers("a.sock").await);
    admin.close().await;
    assert!(!world.path("a.sock").exists());

    drop(world.start("a.sock").unwrap());
    assert!(!world.path("a.sock").exists());
}

#[tokio::test]
async fn a_socket_that_nobody_listens_at_is_replaced() {
    let world = World::new();
    drop(StdListener::bind(world.path("a.sock")).unwrap());
    assert!(world.path("a.sock").exists());
    let _admin = world.start("a.sock").unwrap();
    assert!(world.answers("a.sock").await);
    assert_eq!(mode(&world.path("a.sock")), 0o600);
}

#[tokio::test]
async fn a_socket_that_a_program_listens_at_is_left_alone() {
    let world = World::new();
    let live = StdListener::bind(world.path("a.sock")).unwrap();
    let inode = fs::metadata(world.path("a.sock")).unwrap().ino();
    assert!(world.refusal("a.sock").contains("running program"));
    assert_eq!(fs::metadata(world.path("a.sock")).unwrap().ino(), inode);
    live.accept().unwrap();
    std::os::unix::net::UnixStream::connect(world.path("a.sock")).unwrap();
}

#[tokio::test]
async fn what_is_no_socket_is_not_touched() {
    let world = World::new();
    fs::write(world.path("file"), "precious").unwrap();
    fs::create_dir(world.path("directory")).unwrap();
    drop(StdListener::bind(world.path("stale")).unwrap());
    symlink(world.path("stale"), world.path("link")).unwrap();
    for name in ["file", "directory", "link"] {
        assert!(world.refusal(name).contains("not a socket"), "{name}");
    }
    assert_eq!(fs::read_to_string(world.path("file")).unwrap(), "precious");
    assert!(world.path("directory").is_dir());
    assert!(fs::symlink_metadata(world.path("link")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(world.path("stale")).unwrap().file_type().is_socket());
}

#[tokio::test]
async fn a_missing_directory_is_named() {
    let world = World::new();
    let error = world.refusal("run/a.sock");
    assert!(error.contains(&format!("directory {} does not exist", world.path("run").display())), "{error}");
}

#[tokio::test]
async fn what_has_come_into_its_place_is_not_removed() {
    let world = World::new();
    let admin = world.start("a.sock").unwrap();
    fs::remove_file(world.path("a.sock")).unwrap();
    let _other = StdListener::bind(world.path("a.sock")).unwrap();
    drop(admin);
    assert!(world.path("a.sock").exists());
}

#[tokio::test]
async fn it_stays_moves_and_ends_as_a_reload_says() {
    let world = World::new();
    let mut admin = Admin::new(world.requests.clone());
    let [here, there] = ["here.sock", "there.sock"].map(|name| world.path(name));
    let prepared = admin.prepare(Some(&at(&here))).unwrap();
    admin.commit(prepared);
    let inode = fs::metadata(&here).unwrap().ino();

    let prepared = admin.prepare(Some(&at(&here))).unwrap();
    admin.commit(prepared);
    assert_eq!(fs::metadata(&here).unwrap().ino(), inode, "the same socket goes on");

    drop(admin.prepare(Some(&at(&there))).unwrap());
    assert!(!there.exists(), "what was prepared and not committed leaves nothing behind");
    let _taken = StdListener::bind(world.path("taken.sock")).unwrap();
    admin.prepare(Some(&at(&world.path("taken.sock")))).unwrap_err();
    assert!(world.answers("here.sock").await, "what cannot be prepared changes nothing");

    let prepared = admin.prepare(Some(&at(&there))).unwrap();
    assert!(world.answers("here.sock").await, "what is prepared has changed nothing yet");
    admin.commit(prepared);
    assert!(!here.exists());
    assert!(world.answers("there.sock").await);

    fs::remove_file(&there).unwrap();
    let prepared = admin.prepare(Some(&at(&there))).unwrap();
    admin.commit(prepared);
    assert!(world.answers("there.sock").await, "what somebody tidied away is there again");

    let prepared = admin.prepare(None).unwrap();
    admin.commit(prepared);
    assert!(!there.exists());
}

#[tokio::test]
async fn who_moves_the_socket_by_a_reload_is_still_answered() {
    let mut world = World::new();
    let mut admin = world.start("here.sock").unwrap();
    let (here, there) = (world.path("here.sock"), world.path("there.sock"));
    let reload = post("/v1/reload", "");
    let owner = async {
        let request = world.asked.recv().await.unwrap();
        let prepared = admin.prepare(Some(&at(&there))).unwrap();
        admin.commit(prepared);
        request.answer.send(AdminResponse::done(json!({ "result": "applied" }))).unwrap();
    };
    let (reply, ()) = tokio::join!(call(&here, &reload), owner);
    assert_eq!((reply.status, reply.body), (200, json!({ "result": "applied" })));
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_in_json() {
    let world = World::new();
    let _admin = world.start("a.sock").unwrap();
    let large = "x".repeat(MAX_BODY + 1);
    let chunked = format!(
        "POST /v1/reload HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    let cases = [
        (get("/v1/stauts"), 404, "path_not_found"),
        (get("/v1/reload"), 405, "method_not_allowed"),
        (post("/v1/reload", &large), 413, "content_too_large"),
        (chunked, 413, "content_too_large"),
        (get(&format!("/{}", "x".repeat(2000))), 414, "target_too_long"),
        (post("/v1/reload?plan=true", "[]"), 422, "request_invalid"),
    ];
    for (request, status, id) in cases {
        let reply = call(&world.path("a.sock"), &request).await;
        assert_eq!((reply.status, &reply.body["id"]), (status, &json!(id)), "{}", reply.body);
        assert!(reply.body["message"].is_string(), "{}", reply.body);
        assert_eq!(reply.head.contains("allow: post"), status == 405, "{}", reply.head);
    }
    let list = call(&world.path("a.sock"), &get("/")).await;
    assert!(list.body["paths"].as_array().unwrap().iter().any(|path| path["path"] == "/v1/status"), "{}", list.body);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_is_told_of() {
    let mut world = World::new();
    let _admin = world.start("a.sock").unwrap();
    let path = world.path("a.sock");
    let request = get("/v1/status");
    let slow = async { world.asked.recv().await.unwrap() };
    let (reply, unanswered) = tokio::join!(call(&path, &request), slow);
    assert_eq!((reply.status, &reply.body["id"]), (500, &json!("no_answer_in_time")));
    assert!(unanswered.answer.is_closed(), "the owner can tell that nobody waits any more");

    let failing = async { drop(world.asked.recv().await.unwrap()) };
    let (reply, ()) = tokio::join!(call(&path, &request), failing);
    assert_eq!((reply.status, &reply.body["id"]), (500, &json!("not_answered")));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_slow_is_cut() {
    let world = World::new();
    let _admin = world.start("a.sock").unwrap();
    for begun in ["", "GET /v1/status HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = UnixStream::connect(world.path("a.sock")).await.unwrap();
        say(&mut stream, begun).await;
        let mut rest = Vec::new();
        let cut = timeout(HEAD * 2, stream.read_to_end(&mut rest)).await;
        assert!(cut.is_ok(), "after {begun:?}");
    }
    let unfinished = "POST /v1/reload HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n{";
    let reply = timeout(HEAD * 2, call(&world.path("a.sock"), unfinished)).await.unwrap();
    assert_eq!((reply.status, &reply.body["id"]), (408, &json!("request_timeout")));
}

#[tokio::test(start_paused = true)]
async fn the_seventeenth_waits_for_its_turn() {
    let world = World::new();
    let _admin = world.start("a.sock").unwrap();
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(UnixStream::connect(world.path("a.sock")).await.unwrap());
    }
    let mut late = UnixStream::connect(world.path("a.sock")).await.unwrap();
    say(&mut late, &get("/")).await;
    timeout(HEAD / 2, late.readable()).await.unwrap_err();
    drop(silent.pop());
    assert_eq!(reply(late).await.status, 200);
}

#[tokio::test]
async fn socket_answers_after_its_accept_loop_panicked() {
    let world = World::new();
    let admin = world.start("admin.sock").unwrap();
    for _ in 0..2 {
        crate::fault::injection::inject(PART);
        assert!(world.answers("admin.sock").await);
    }
    drop(admin);
}
