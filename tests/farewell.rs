//! Farewell messages: which client receives one, and where in the stream.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc;

use tokio::runtime::Runtime;
use tokio_postgres::error::SqlState;

use crate::harness::log::Log;
use crate::harness::program::Running;
use crate::harness::wire::{PROTOCOL_3_0, error_response, read_exactly, startup};
use crate::harness::{Connection, Listener, Portcullis, Postgres, Redis, TestDir, Upstream};
use crate::postgres::{connector, conninfo, parameters, psql};

/// The farewell message to PostgreSQL clients when the process stops.
const STOPPING: &str = "terminating connection because the proxy is stopping";

/// A program that closes its sessions soon after SIGTERM.
fn impatient(listeners: impl std::fmt::Display) -> Portcullis {
    Portcullis::start(TestDir::new(), format!("shutdown.drain = \"100ms\"\n{listeners}"))
}

/// A running `psql` with input from the test.
struct InteractiveClient {
    running: Running,
    keyboard: ChildStdin,
    screen: Log,
    errors: Log,
}

impl InteractiveClient {
    fn with(portcullis: &Portcullis) -> Self {
        let mut command = psql(&conninfo(portcullis));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running::start(&mut command);
        let keyboard = running.0.stdin.take().unwrap();
        let screen = Log::of(running.0.stdout.take().unwrap());
        let errors = Log::of(running.0.stderr.take().unwrap());
        Self { running, keyboard, screen, errors }
    }

    fn enter(&mut self, line: &str) {
        self.keyboard.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

#[test]
fn psql_prints_the_reason_of_a_closed_idle_session() {
    let postgres = Postgres::start();
    let mut portcullis = impatient(Listener::postgres(&postgres));
    let mut psql = InteractiveClient::with(&portcullis);
    psql.enter("select 'the answer is ' || 6 * 7;");
    let contains = |words: &'static str| move |line: &crate::harness::Event| line.0.to_string().contains(words);
    psql.screen.after(0, "the answer", contains("the answer is 42"));
    assert_eq!(portcullis.stop().0, Some(0));
    psql.enter("select 1;");
    psql.errors.after(0, "the farewell message", contains(STOPPING));
    let all = psql.errors.to_the_end().into_iter().map(|line| line.0.to_string()).collect::<String>();
    assert!(all.contains("FATAL") && all.contains("Connect again."), "{all}");
    assert_eq!(psql.running.exit_code(), Some(2));
}

#[test]
fn tokio_postgres_receives_sqlstate_57p01() {
    let postgres = Postgres::start();
    let mut portcullis = impatient(Listener::postgres(&postgres));
    Runtime::new().unwrap().block_on(async {
        let (client, connection) = parameters(&portcullis).connect(connector(&portcullis)).await.unwrap();
        let used = async {
            client.batch_execute("select 1").await.unwrap();
            portcullis.process.signal("TERM");
        };
        let (ended, ()) = tokio::join!(connection, used);
        let error = ended.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN), "{error}");
        assert_eq!(error.as_db_error().unwrap().message(), STOPPING);
    });
    assert_eq!(portcullis.process.exit_code(), Some(0));
}

/// A message of so many bytes, header included, none of which looks like another one.
fn message(length: usize) -> Vec<u8> {
    let header = u32::try_from(length - 1).unwrap().to_be_bytes();
    [b"D", &header[..], &vec![0xaa; length - 5]].concat()
}

/// A session whose StartupMessage has this user.
fn session_of(portcullis: &Portcullis, user: &str) -> Connection {
    let mut connection = portcullis.client().with_ssl_request().connect();
    connection.send(&startup(PROTOCOL_3_0, &[("user", user)]));
    connection
}

/// The user of a StartupMessage.
fn user(stream: &mut TcpStream) -> String {
    let length = read_exactly(stream, 4).try_into().unwrap();
    let packet = read_exactly(stream, usize::try_from(u32::from_be_bytes(length)).unwrap() - 4);
    let mut fields = packet[4..].split(|&byte| byte == 0);
    String::from_utf8(fields.nth(1).unwrap().to_vec()).unwrap()
}

fn assert_shutdown_farewell(words: &[u8]) {
    let fields = error_response(words);
    let fields = [&fields[&'S'], &fields[&'V'], &fields[&'C'], &fields[&'M']].map(String::as_str);
    assert_eq!(fields, ["FATAL", "FATAL", "57P01", STOPPING]);
}

#[test]
fn farewell_follows_complete_messages_only() {
    let answer = [message(5), message(6), message(70_000), message(5)].concat();
    let whole = [0, 5, 11, 70_011, 70_016];
    let output = answer.clone();
    let upstream = Upstream::new(move |mut stream| {
        let cut: usize = user(&mut stream).parse().unwrap();
        stream.write_all(&output[..cut]).unwrap();
        // Until the session is over.
        let _ = stream.read(&mut [0]);
    });
    let mut portcullis = impatient(Listener::postgres(&upstream));
    let cuts = (0..=18).chain([65_536, 70_010]).chain(70_011..=70_016);
    let sessions = cuts.map(|cut| {
        let mut session = session_of(&portcullis, &cut.to_string());
        assert!(session.receive(cut) == answer[..cut]);
        // Also without a byte of the upstream it is a session.
        portcullis.opened(session.port());
        (cut, session)
    });
    let sessions: Vec<_> = sessions.collect();
    assert_eq!(portcullis.stop().0, Some(0));
    for (cut, mut session) in sessions {
        let words = session.rest().unwrap();
        if whole.contains(&cut) {
            assert_shutdown_farewell(&words);
        } else {
            assert_eq!(words.escape_ascii().to_string(), "", "behind {cut} bytes of {answer:?}", answer = whole);
        }
    }
}

#[test]
fn farewell_is_never_inserted_into_a_large_result() {
    let upstream = Upstream::new(|mut stream| {
        let row = message(user(&mut stream).parse().unwrap());
        let many = row.repeat(100_000 / row.len() + 1);
        // Until the client stops reading.
        while stream.write_all(&many).is_ok() {}
    });
    let mut portcullis = impatient(Listener::postgres(&upstream));
    portcullis.address("main");
    let (begun, have_begun) = mpsc::channel();
    std::thread::scope(|scope| {
        for length in [5, 23, 64, 64, 1000, 8192, 300_000] {
            let (begun, portcullis) = (begun.clone(), &portcullis);
            let mut session = session_of(portcullis, &length.to_string());
            scope.spawn(move || {
                let mut received = session.receive(1_000_000);
                begun.send(()).unwrap();
                received.extend(session.rest().unwrap());
                let row = message(length);
                let whole = received.chunks(length).take_while(|chunk| **chunk == row).count();
                let rest = &received[whole * length..];
                // Either the stream ends in the middle of a row, or the farewell message is between two rows.
                if !row.starts_with(rest) || rest.is_empty() {
                    assert_shutdown_farewell(rest);
                }
            });
        }
        for _ in 0..7 {
            have_begun.recv().unwrap();
        }
        portcullis.process.signal("TERM");
    });
    assert_eq!(portcullis.process.exit_code(), Some(0));
}

#[test]
fn redis_client_receives_close_notify_only() {
    let redis = Redis::start();
    let mut portcullis = impatient(Listener::redis(&redis));
    let mut idle = portcullis.client().connect();
    idle.ask(b"PING\r\n", b"+PONG\r\n");
    let mut waiting = portcullis.client().connect();
    waiting.ask(b"PING\r\n", b"+PONG\r\n");
    waiting.send(b"BLPOP queue 0\r\n");
    assert_eq!(portcullis.stop().0, Some(0));
    for mut session in [idle, waiting] {
        assert_eq!(session.rest().unwrap(), b"");
        assert_eq!(portcullis.ending(session.port()).reason(), "shutdown");
    }
}

#[test]
fn idle_timeout_is_reported_to_tokio_postgres_and_psql() {
    let words = "terminating connection because it was idle for too long (idle_timeout)";
    let postgres = Postgres::start();
    let portcullis = Portcullis::before(Listener::postgres(&postgres).limit("idle_timeout = \"1s\""));
    Runtime::new().unwrap().block_on(async {
        let (client, connection) = parameters(&portcullis).connect(connector(&portcullis)).await.unwrap();
        let (ended, used) = tokio::join!(connection, client.batch_execute("select 1"));
        used.unwrap();
        let error = ended.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN), "{error}");
        assert_eq!(error.as_db_error().unwrap().message(), words);
    });
    let mut psql = InteractiveClient::with(&portcullis);
    psql.enter("select 'the answer is ' || 6 * 7;");
    let contains = |words: &'static str| move |line: &crate::harness::Event| line.0.to_string().contains(words);
    psql.screen.after(0, "the answer", contains("the answer is 42"));
    let closed = |event: &crate::harness::Event| event.is("connection.closed");
    portcullis.event("the end of the first session", closed);
    let seen = portcullis.events().iter().position(closed).unwrap() + 1;
    assert_eq!(portcullis.event_after(seen, "the end of psql's session", closed).reason(), "idle_timeout");
    psql.enter("select 1;");
    psql.errors.after(0, "the farewell message", contains(words));
    assert_eq!(psql.running.exit_code(), Some(2));
}

#[test]
fn idle_redis_client_receives_close_notify_only() {
    let redis = Redis::start();
    let portcullis = Portcullis::before(Listener::redis(&redis).limit("idle_timeout = \"2s\""));
    let mut idle = portcullis.client().connect();
    idle.ask(b"PING\r\n", b"+PONG\r\n");
    assert_eq!(idle.rest().unwrap(), b"");
    assert_eq!(portcullis.ending(idle.port()).reason(), "idle_timeout");
}
