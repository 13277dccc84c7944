//! Broken input, overload, a full disk, and missing file descriptors.

use std::io::Write;
use std::net::TcpStream;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::descriptors::tight;
use crate::harness::client::port;
use crate::harness::portcullis::{EXECUTABLE, executable};
use crate::harness::program::{Running, allow_many_files, command, free_address};
use crate::harness::{Client, Event, Listener, Portcullis, TestDir, Upstream, eventually, wire};

#[test]
fn exhausted_file_descriptors_pause_the_listener_without_spinning() {
    let upstream = Upstream::echo();
    let mut limited = command("prlimit");
    limited.arg(format!("--nofile={}", tight(7))).args(["--", EXECUTABLE]);
    let portcullis = Portcullis::start_by(limited, TestDir::new(), Listener::redis(&upstream));
    let client = portcullis.client();
    let mut inside = client.connect();
    inside.ask(b"hello", b"hello");
    let crowd: Vec<TcpStream> = (0..100).map(|_| client.dial()).collect();
    let paused = |event: &Event| event.0["message"].as_str().is_some_and(|it| it.starts_with("accepting paused"));
    portcullis.event("it has no file left for clients", paused);
    // Waiting uses far less CPU than the one second of a busy loop.
    let before = portcullis.cpu_ticks();
    thread::sleep(Duration::from_secs(1));
    let spent = portcullis.cpu_ticks() - before;
    assert!(spent < 25, "{spent} ticks of 10 ms in a second of doing nothing");
    inside.ask(b"hello", b"hello");
    drop(crowd);
    client.connect().ask(b"hello", b"hello");
}

#[test]
fn garbage_ends_only_the_connection_that_sends_it() {
    let upstream = Upstream::silent();
    let config = format!(
        "{}{}{}",
        Listener::redis(&upstream).named("redis"),
        Listener::postgres(&upstream).named("postgres"),
        Listener::tcp(&upstream).named("tcp"),
    );
    let portcullis = Portcullis::start(TestDir::new(), config);
    // Numbers that look random and are the same every time.
    let mut state = 0x2545_f491_u32;
    let mut noise = |length: usize| -> Vec<u8> {
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        (0..length).map(|_| byte()).collect()
    };
    for listener in ["redis", "postgres", "tcp"] {
        let client = portcullis.client_of(listener);
        for beginning in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x80\x2e\x01"] {
            for length in [1, 7, 100, 2000] {
                let mut stream = client.dial();
                let bytes = [beginning, &noise(length)].concat();
                // It may be closed before it has sent everything.
                let _ = stream.write_all(&bytes);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                wire::read_until_closed(&mut stream);
                let ended = portcullis.ending(port(&stream));
                assert!(ended.is("connection.denied"), "{}", ended.0);
            }
        }
    }
    upstream.assert_untouched();
}

#[test]
fn endless_client_hello_is_rejected() {
    let upstream = Upstream::silent();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    let client = portcullis.client();
    client.connect();
    let before = portcullis.resident();
    let mut stream = client.dial();
    // A handshake message of 16 MB, in records of 16 KiB.
    let record = [&b"\x16\x03\x01\x40\x00"[..], &[0; 0x4000]].concat();
    let mut first = record.clone();
    first[5..9].copy_from_slice(b"\x01\xff\xff\xff");
    let _ = stream.write_all(&first);
    let sent = (1..1024).take_while(|_| stream.write_all(&record).is_ok()).count();
    assert!(sent < 1023, "it took 16 MB of a hello");
    assert!(portcullis.resident() < before + 16 * 1024);
    assert_eq!(portcullis.refusal(port(&stream)), "handshake_failed");
}

#[test]
fn half_open_handshakes_do_not_block_other_clients() {
    allow_many_files();
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    let client = portcullis.client();
    let mut hello = Vec::new();
    client.tls().write_tls(&mut hello).unwrap();
    let half = &hello[..hello.len() / 2];
    let crowd: Vec<TcpStream> = (0..500)
        .map(|number| {
            let mut stream = client.dial();
            if number % 2 == 0 {
                stream.write_all(half).unwrap();
            }
            stream
        })
        .collect();
    for _ in 0..10 {
        client.connect().ask(b"hello", b"hello");
    }
    drop(crowd);
    client.connect().ask(b"hello", b"hello");
}

#[test]
fn full_audit_disk_does_not_stop_traffic() {
    let upstream = Upstream::echo();
    let config = format!("log.audit_file = \"/dev/full\"\n{}", Listener::redis(&upstream));
    let portcullis = Portcullis::start(TestDir::new(), config);
    for _ in 0..50 {
        portcullis.client().connect().ask(b"hello", b"hello");
    }
    // The log still has the audit events.
    let (port, connection) = portcullis.client().attempt();
    drop(connection.unwrap());
    assert!(portcullis.ending(port).is("connection.closed"));
}

#[test]
fn unread_log_does_not_stop_traffic() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let address = free_address();
    site.write("portcullis.toml", Listener::redis(&upstream).on(&[&address.to_string()]));
    let mut run = executable();
    run.args(["run", "-c"]).arg(site.path("portcullis.toml"));
    // No process reads these pipes; each holds 64 KiB.
    let _running = Running::start(run.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let client = Client::new(address, &site.ca);
    let mut inside = eventually("it listens", || client.try_connect().ok());
    for _ in 0..2000 {
        let mut untrusted = Client::new(address, &site.ca).from("127.0.0.2").dial();
        assert_eq!(wire::read_until_closed(&mut untrusted), b"");
    }
    inside.ask(b"hello", b"hello");
    client.connect().ask(b"hello", b"hello");
}

#[test]
fn closed_log_pipe_does_not_stop_traffic() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let address = free_address();
    site.write("portcullis.toml", Listener::redis(&upstream).on(&[&address.to_string()]));
    let mut run = executable();
    run.args(["run", "-c"]).arg(site.path("portcullis.toml"));
    let mut running = Running::start(run.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let client = Client::new(address, &site.ca);
    eventually("it listens", || client.try_connect().ok());
    drop((running.0.stdout.take(), running.0.stderr.take()));
    for _ in 0..20 {
        client.connect().ask(b"hello", b"hello");
    }
    running.signal("TERM");
    assert_eq!(running.exit_code(), Some(0));
}

#[test]
fn broken_tls_record_ends_only_its_session() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    let mut bystander = portcullis.client().connect();
    let mut broken = portcullis.client().connect();
    broken.ask(b"hello", b"hello");
    broken.stream.sock.write_all(b"\x17\x03\x03\x00\x20no key has encrypted these bytes").unwrap();
    wire::read_until_closed(&mut broken.stream.sock);
    let closed = portcullis.ending(broken.port());
    assert!(closed.is("connection.closed"), "{}", closed.0);
    assert_eq!(closed.reason(), "protocol_violation");
    assert_eq!(closed.number("bytes_in"), 5);
    bystander.ask(b"hello", b"hello");
}

#[test]
fn ended_connections_free_descriptors_and_memory() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    let client = portcullis.client();
    client.connect().ask(b"hello", b"hello");
    let before = eventually("the first one is gone", || {
        let all = portcullis.events();
        all.iter().any(|event| event.is("connection.closed")).then(|| portcullis.open_files())
    });
    let memory = portcullis.resident();
    for _ in 0..100 {
        client.connect().ask(b"hello", b"hello");
        let mut abrupt = client.connect();
        abrupt.send(b"hello");
        abrupt.reset();
        drop(client.dial());
        let mut plain = client.dial();
        plain.write_all(b"PING\r\n").unwrap();
        wire::read_until_closed(&mut plain);
    }
    eventually("every file is closed", || (portcullis.open_files() <= before).then_some(()));
    assert!(portcullis.resident() < memory + 8 * 1024, "{memory} KiB became {}", portcullis.resident());
}

#[test]
fn idle_sessions_use_little_memory_and_no_cpu() {
    allow_many_files();
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    let client = portcullis.client();
    let exchange = || {
        let mut session = client.connect();
        session.ask(b"hello", b"hello");
        session
    };
    let first = exchange();
    let memory = portcullis.anonymous_memory();
    let sessions: Vec<_> = (0..200).map(|_| exchange()).collect();
    let each = (portcullis.anonymous_memory() - memory) / 200;
    // About 6 KiB. One buffer for each session would be at least 16 KiB.
    assert!(each < 12, "{each} KiB for a session that does nothing");
    let before = portcullis.cpu_ticks();
    thread::sleep(Duration::from_secs(1));
    let spent = portcullis.cpu_ticks() - before;
    assert!(spent < 10, "{spent} ticks of 10 ms in a second of doing nothing");
    drop((first, sessions));
}

#[test]
fn client_that_never_reads_its_denial_is_closed_after_the_handshake_timeout() {
    let upstream = Upstream::silent();
    let listener = Listener::redis(&upstream).limit("handshake_timeout = \"3s\"");
    let portcullis = Portcullis::before(listener);
    let mut crowd = Vec::new();
    for _ in 0..50 {
        let mut stream = portcullis.client().dial();
        stream.write_all(b"PING\r\n").unwrap();
        crowd.push(stream);
    }
    for stream in &crowd {
        assert_eq!(portcullis.refusal(port(stream)), "plaintext_refused");
    }
    // The sockets are closed although the clients stay connected.
    eventually("the sockets are closed", || (portcullis.open_files() < 40).then_some(()));
}
