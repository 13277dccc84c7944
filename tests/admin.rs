//! The commands that talk to the running program, and their answers to a stand-in for it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use portcullis::internals::{AdminRequest, AdminResponse, AdminServer, ErrorKind};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::program::{Outcome, run};
use crate::harness::{Listener, TestDir};

/// Answers at the site's `admin.sock` until it is dropped.
struct StandIn {
    asked: Receiver<AdminRequest>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    fn answering(site: &TestDir, answer: impl Fn(&AdminRequest) -> AdminResponse + Send + 'static) -> Self {
        let (asking, asked) = channel();
        let (stop, mut stopped) = oneshot::channel();
        let (up, is_up) = channel();
        let path = site.path("admin.sock");
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (requests, mut queue) = mpsc::channel(1);
                let _admin = AdminServer::start(&path, requests).unwrap();
                up.send(()).unwrap();
                loop {
                    let request = tokio::select! {
                        _ = &mut stopped => return,
                        request = queue.recv() => request.unwrap(),
                    };
                    let answer = answer(&request.request);
                    asking.send(request.request).unwrap();
                    request.reply.send(answer).unwrap();
                }
            });
        });
        is_up.recv().expect("the stand-in comes up");
        Self { asked, stop: Some(stop), thread: Some(thread) }
    }

    fn asked(&self) -> Vec<AdminRequest> {
        self.asked.try_iter().collect()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A site whose configuration names the socket `admin.sock`.
fn site() -> TestDir {
    let site = TestDir::new();
    site.write("portcullis.toml", format!("{ADMIN}{}", Listener::redis("127.0.0.1:6379")));
    site
}

/// From another directory than the configuration's, so that its relative path has to be understood.
fn portcullis(site: &TestDir, arguments: &[&str]) -> Outcome {
    let mut command = executable();
    command.args(arguments).env("PORTCULLIS_CONFIG", site.path("portcullis.toml")).current_dir("/");
    run(&mut command)
}

fn status() -> Value {
    json!({ "version": "0.1.0", "pid": 42, "generation": 3, "listeners": [{ "name": "cache" }, { "name": "db" }] })
}

const COMMANDS: [&[&str]; 6] = [
    &["status"],
    &["status", "--rotation"],
    &["reload"],
    &["reload", "--plan"],
    &["sessions", "list"],
    &["sessions", "close", "1"],
];

#[test]
fn commands_without_a_running_program_fail_with_a_message() {
    let site = site();
    drop(std::os::unix::net::UnixListener::bind(site.path("stale.sock")).unwrap());
    for command in COMMANDS {
        let outcome = portcullis(&site, command);
        assert_eq!(outcome.code, Some(1), "{command:?}: {}", outcome.stderr);
        for word in ["no running program", site.path("admin.sock").to_str().unwrap(), "[admin]", "--socket"] {
            assert!(outcome.stderr.contains(word), "{command:?}: no {word} in {}", outcome.stderr);
        }
        let stale = site.path("stale.sock");
        let outcome = portcullis(&site, &[command, &["--socket", stale.to_str().unwrap()]].concat());
        assert_eq!(outcome.code, Some(1), "{command:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("has stopped"), "{command:?}: {}", outcome.stderr);
    }
}

#[test]
fn commands_without_an_admin_section_name_the_missing_keys() {
    let site = TestDir::new();
    site.write("portcullis.toml", Listener::redis("127.0.0.1:6379"));
    for command in COMMANDS {
        let outcome = portcullis(&site, command);
        assert_eq!(outcome.code, Some(1), "{command:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("no [admin]") && outcome.stderr.contains("listen = "), "{}", outcome.stderr);
    }
    let outcome = portcullis(&site, &["status", "-c", "/nowhere.toml"]);
    assert_eq!(outcome.code, Some(78), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("/nowhere.toml") && outcome.stderr.contains("--socket"), "{}", outcome.stderr);
    for command in
        [&["check", "-c", "/nowhere.toml"][..], &["run", "-c", "/nowhere.toml"], &["status", "-c", "/nowhere.toml"]]
    {
        let outcome = portcullis(&site, command);
        assert_eq!(outcome.code, Some(78), "{}", outcome.stderr);
        for words in
            ["configuration file /nowhere.toml does not exist", "portcullis.toml.example", "$PORTCULLIS_CONFIG"]
        {
            assert!(outcome.stderr.contains(words), "no {words} in {}", outcome.stderr);
        }
    }
}

#[test]
fn admin_address_is_read_from_an_otherwise_invalid_configuration() {
    let site = site();
    site.write("portcullis.toml", format!("{ADMIN}[[listener]]\nname = 7\n"));
    let _running = StandIn::answering(&site, |_| AdminResponse::ok(status()));
    assert!(portcullis(&site, &["status"]).success().contains("process 42"));
}

#[test]
fn status_prints_a_table_and_json() {
    let site = site();
    let rotation = json!({ "generation": 3, "items": [
        { "listener": "cache", "kind": "client_ca", "name": "CN=Old CA", "sha256": "3fa9c1d2", "sessions": 2,
          "clients": [{ "subject": "CN=app", "source": "10.0.0.5", "sessions": 2 }] },
    ]});
    let theirs = rotation.clone();
    let running = StandIn::answering(&site, move |ask| match ask {
        AdminRequest::Rotation => AdminResponse::ok(theirs.clone()),
        _ => AdminResponse::ok(status()),
    });
    let words = portcullis(&site, &["status"]).success();
    assert!(words.contains("Portcullis 0.1.0, process 42") && words.contains("cache"), "{words}");
    let words = portcullis(&site, &["status", "--rotation"]).success();
    assert!(words.contains("CN=Old CA [3fa9c1d2]") && words.contains("in use by 2 sessions"), "{words}");
    for (command, expected) in [(&["status", "--json"][..], status()), (&["status", "--rotation", "--json"], rotation)]
    {
        let output = portcullis(&site, command).success();
        assert_eq!(serde_json::from_str::<Value>(&output).expect("JSON and nothing else"), expected);
    }
    let mut asked = running.asked();
    // The table also has the recent denials.
    asked.retain(|asked| matches!(asked, AdminRequest::Status | AdminRequest::Rotation));
    assert_eq!(asked, [AdminRequest::Status, AdminRequest::Rotation, AdminRequest::Status, AdminRequest::Rotation]);
}

#[test]
fn reload_prints_the_result() {
    let site = site();
    let running = StandIn::answering(&site, |_| AdminResponse::ok(json!({ "result": "applied", "generation": 4 })));
    assert!(portcullis(&site, &["reload"]).success().contains("generation 4"));
    assert_eq!(running.asked(), [AdminRequest::Reload]);
    drop(running);

    let errors = "portcullis.toml:1:1: one\nportcullis.toml:2:1: two";
    let _running = StandIn::answering(&site, move |_| AdminResponse::error(ErrorKind::ReloadRejected, errors));
    let outcome = portcullis(&site, &["reload"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("rejected") && outcome.stderr.contains(errors), "{}", outcome.stderr);
    assert_eq!(outcome.text(), "");
    let outcome = portcullis(&site, &["reload", "--plan"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(errors), "{}", outcome.stderr);
}

#[test]
fn reload_plan_prints_differences_and_changes_nothing() {
    let site = site();
    let plan = json!({ "sources_removed": [{ "listener": "db", "rule": "ip_addr:192.0.2.1" }], "sessions_kept": 5 });
    let theirs = plan.clone();
    let running = StandIn::answering(&site, move |_| AdminResponse::ok(theirs.clone()));
    let words = portcullis(&site, &["reload", "--plan"]).success();
    assert!(words.contains("- source       db  ip_addr:192.0.2.1") && words.contains("5 would stay"), "{words}");
    let output = portcullis(&site, &["reload", "--plan", "--json"]).success();
    assert_eq!(serde_json::from_str::<Value>(&output).unwrap(), plan);
    assert_eq!(running.asked(), [AdminRequest::Plan { file: None }, AdminRequest::Plan { file: None }]);
}

#[test]
fn check_diff_sends_the_absolute_path_of_the_file() {
    let site = site();
    let running = StandIn::answering(&site, |_| AdminResponse::ok(json!({ "sessions_kept": 5 })));
    site.write("new.toml", format!("{ADMIN}{}", Listener::redis("127.0.0.1:6379").named("fresh")));
    let check = |arguments: &[&str]| {
        let mut command = executable();
        run(command.args(["check", "-c", "new.toml", "--diff"]).args(arguments).current_dir(site.directory()))
    };
    let words = check(&[]).success();
    assert!(words.contains("listener fresh") && words.contains("nothing would change"), "{words}");
    let output: Value = serde_json::from_str(&check(&["--json"]).success()).expect("JSON and nothing else");
    assert_eq!((&output["valid"], &output["plan"]["sessions_kept"]), (&json!(true), &json!(5)));
    let expected = AdminRequest::Plan { file: Some(site.path("new.toml")) };
    assert_eq!(running.asked(), [expected.clone(), expected]);

    // An invalid configuration is not sent to the running program.
    site.write("new.toml", format!("{ADMIN}{}", Listener::redis("127.0.0.1:6379").trusting(&["10.1.2.3/8"])));
    assert_eq!(check(&[]).code, Some(78));
    assert_eq!(running.asked(), []);
    assert_eq!(portcullis(&site, &["check", "--socket", "/x"]).code, Some(2), "--socket is for --diff");
}

#[test]
fn sessions_are_listed_and_closed() {
    let site = site();
    let running = StandIn::answering(&site, |ask| match ask {
        AdminRequest::Status => AdminResponse::ok(status()),
        AdminRequest::Sessions(filter) => {
            let mut sessions = vec![
                json!({ "session": 7, "listener": "cache", "source": "10.0.0.5", "source_port": 4242 }),
                json!({ "session": 8, "listener": "db", "source": "10.0.0.6", "source_port": 4243 }),
            ];
            sessions
                .retain(|session| filter.listener.as_ref().is_none_or(|listener| session["listener"] == **listener));
            AdminResponse::ok(json!({ "sessions": sessions }))
        }
        AdminRequest::CloseSession(7..=8) => AdminResponse::no_content(),
        _ => AdminResponse::error(ErrorKind::NotFound, "there is no such session"),
    });
    let words = portcullis(&site, &["sessions", "list"]).success();
    assert!(words.contains("10.0.0.5:4242") && words.contains("10.0.0.6:4243"), "{words}");
    let words = portcullis(&site, &["sessions", "list", "db"]).success();
    assert!(!words.contains("10.0.0.5:4242") && words.contains("10.0.0.6:4243"), "{words}");
    let unknown = portcullis(&site, &["sessions", "list", "dv?&"]);
    assert_eq!(unknown.code, Some(2), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("cache, db"), "{}", unknown.stderr);

    running.asked();
    assert!(portcullis(&site, &["sessions", "close", "7", "8"]).success().contains("session 8 is closed"));
    let outcome = portcullis(&site, &["sessions", "close", "9", "7"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("no session 9") && outcome.text().contains("session 7 is closed"));
    assert_eq!(running.asked(), [7, 8, 9, 7].map(AdminRequest::CloseSession));
    assert_eq!(portcullis(&site, &["sessions", "close", "all"]).code, Some(2));
}

#[test]
fn answer_of_another_program_is_rejected() {
    let site = site();
    let listener = std::os::unix::net::UnixListener::bind(site.path("admin.sock")).unwrap();
    let untrusted = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let request = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
        assert!(request.count() > 1, "a request line and headers");
        (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").unwrap();
    });
    let outcome = portcullis(&site, &["status"]);
    untrusted.join().unwrap();
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("not Portcullis"), "{}", outcome.stderr);
    assert!(Path::new(&site.path("admin.sock")).exists(), "a command removes nothing");
}
