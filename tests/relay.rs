//! The relay: both directions, half-close, back-pressure, timeouts, resets.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use rustls::StreamOwned;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::harness::client::reset;
use crate::harness::portcullis::EXECUTABLE;
use crate::harness::program::command;
use crate::harness::{Connection, Listener, Portcullis, TestDir, Upstream, WAIT_TIMEOUT, eventually, wire};

const MIB: usize = 1024 * 1024;

/// Bytes without a short period.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|place| place.to_le_bytes()[place % 3] ^ 0x5a).collect()
}

fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn half_closed_client_receives_the_whole_answer() {
    let upstream = Upstream::new(|mut stream| {
        // Answers only after the end of the question.
        assert_eq!(read_all(&mut stream), b"question");
        stream.write_all(&pattern(8 * MIB)).unwrap();
    });
    let portcullis = Portcullis::before(Listener::tcp(&upstream));
    for version in [&TLS12, &TLS13] {
        let mut client = portcullis.client().speaking(version).connect();
        client.send(b"question");
        client.finish_sending();
        assert!(client.rest().unwrap() == pattern(8 * MIB), "the answer is not what was sent");
        let closed = portcullis.ending(client.port());
        assert!(matches!(closed.reason(), "client_closed" | "upstream_closed"), "{}", closed.0);
        assert_eq!((closed.number("bytes_in"), closed.number("bytes_out")), (8, 8 * 1024 * 1024));
    }
}

#[test]
fn half_closed_upstream_receives_all_client_bytes() {
    let (sender, receiver) = mpsc::channel();
    let upstream = Upstream::new(move |mut stream| {
        stream.write_all(b"that is all").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        sender.send(read_all(&mut stream)).unwrap();
    });
    let portcullis = Portcullis::before(Listener::tcp(&upstream));
    let mut client = portcullis.client().connect();
    assert_eq!(client.rest().unwrap(), b"that is all");
    client.send(&pattern(4 * MIB));
    client.finish_sending();
    assert!(receiver.recv_timeout(WAIT_TIMEOUT).unwrap() == pattern(4 * MIB), "not what was sent");
    let closed = portcullis.ending(client.port());
    assert_eq!((closed.number("bytes_in"), closed.number("bytes_out")), (4 * 1024 * 1024, 11));
}

#[test]
fn both_directions_flow_simultaneously() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::tcp(&upstream));
    let mut client = portcullis.client().connect();
    let sent = pattern(4 * MIB);
    let mut back = Vec::new();
    // Each side writes much before it reads, so one direction must not wait for the other.
    for piece in sent.chunks(64 * 1024) {
        client.send(piece);
        if back.len() < sent.len() / 2 {
            back.extend(client.receive(32 * 1024));
        }
    }
    client.finish_sending();
    back.extend(client.rest().unwrap());
    assert!(back == sent, "what came back is not what was sent");
}

#[test]
fn slow_reader_uses_little_memory_and_stalls_no_other_session() {
    const SIZE: usize = 1024 * MIB;
    /// In KiB. What the session holds is one reading of 64 KiB, sealed; the rest is for the allocator and the log.
    const MAX_GROWTH: u64 = 256;
    let (sender, receiver) = mpsc::channel();
    let upstream = Upstream::new(move |mut stream| match wire::read_exactly(&mut stream, 1)[0] {
        b'?' => {
            let piece = pattern(3 * MIB);
            stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            let mut written = 0;
            while written < SIZE {
                let rest = &piece[written % piece.len()..];
                match stream.write(&rest[..rest.len().min(SIZE - written)]) {
                    Ok(count) => written += count,
                    // The reader has stopped: this is the moment to measure the memory.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => sender.send(written).unwrap(),
                    // The client has closed.
                    Err(_) => return,
                }
            }
        }
        _ => drop(std::io::copy(&mut stream.try_clone().unwrap(), &mut stream)),
    });
    // One core and so one worker: a session that stalls it stalls all.
    let mut pinned = command("taskset");
    pinned.args(["-c", first_core().as_str(), EXECUTABLE]);
    let portcullis = Portcullis::start_by(pinned, TestDir::new(), Listener::tcp(&upstream));
    let mut neighbour = portcullis.client().connect();
    neighbour.send(b"!");
    // An earlier client has read such an answer, so that code and buffers are already loaded.
    let mut earlier = portcullis.client().connect();
    earlier.send(b"?");
    earlier.receive(8 * MIB);
    let port = earlier.port();
    earlier.reset();
    portcullis.ending(port);
    neighbour.ask(b"hello", b"hello");
    let undisturbed = usual_latency(&mut neighbour);
    let before = portcullis.anonymous_memory();

    let mut client = portcullis.client().connect();
    client.send(b"?");
    let stalled_at = receiver.recv_timeout(WAIT_TIMEOUT).unwrap();
    assert!(stalled_at < SIZE / 8, "{stalled_at} bytes were read from the upstream");
    let grown = portcullis.anonymous_memory().saturating_sub(before);
    assert!(grown <= MAX_GROWTH, "{grown} KiB more while {stalled_at} bytes wait");
    // Measured again while other work disturbs the measurement. A neighbour that is stalled stays so.
    eventually("the neighbour is served as fast as before", || {
        (usual_latency(&mut neighbour) < 5 * undisturbed + Duration::from_millis(2)).then_some(())
    });

    // It continues where it stopped, and the neighbour is served at the same time.
    let expected = pattern(3 * MIB);
    let (mut taken, mut buffer) = (0, vec![0; 3 * MIB]);
    while taken < SIZE / 4 {
        client.stream.read_exact(&mut buffer).unwrap();
        assert!(buffer == expected, "not what was sent, behind {taken} bytes");
        taken += buffer.len();
        neighbour.ask(b"hello", b"hello");
    }
    let grown = portcullis.anonymous_memory().saturating_sub(before);
    assert!(grown <= MAX_GROWTH, "{grown} KiB more after {taken} bytes");
}

/// The median round-trip time. Other tests may use the cores for a while.
fn usual_latency(client: &mut Connection) -> Duration {
    let mut times: Vec<Duration> = (0..201)
        .map(|_| {
            let start = Instant::now();
            client.ask(b"hello", b"hello");
            start.elapsed()
        })
        .collect();
    times.sort();
    times[100]
}

/// A core that this test may run on.
fn first_core() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    cores.split([',', '-']).next().unwrap().to_owned()
}

#[test]
fn silent_session_ends_at_the_idle_timeout() {
    let upstream = Upstream::silent();
    let listener = Listener::tcp(&upstream).limit("idle_timeout = \"2s\"");
    let portcullis = Portcullis::before(listener);
    let mut client = portcullis.client().connect();
    client.send(b"hello");
    let _ = client.rest();
    let closed = portcullis.ending(client.port());
    assert_eq!(closed.reason(), "idle_timeout");
    assert_eq!(closed.number("bytes_in"), 5);
    assert!(closed.number("duration_ms") >= 2_000, "{}", closed.0);
}

#[test]
fn byte_in_either_direction_restarts_the_idle_timeout() {
    let upstream = Upstream::echo();
    let listener = Listener::tcp(&upstream).limit("idle_timeout = \"5s\"");
    let portcullis = Portcullis::before(listener);
    let mut client = portcullis.client().connect();
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        client.ask(b"still here", b"still here");
        std::thread::sleep(Duration::from_millis(200));
    }
    client.ask(b"the end", b"the end");
}

#[test]
fn silent_half_closed_session_ends_at_the_half_close_timeout() {
    let (_release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let silent = Upstream::new(move |mut stream| {
        read_all(&mut stream);
        // Ends when the test does.
        let _ = held.lock().unwrap().recv();
    });
    let listener = Listener::tcp(&silent).limit("half_close_timeout = \"300ms\"");
    let portcullis = Portcullis::before(listener);
    let mut client = portcullis.client().connect();
    client.finish_sending();
    let _ = client.rest();
    assert_eq!(portcullis.ending(client.port()).reason(), "half_close_timeout");

    let ending = Upstream::new(|mut stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        read_all(&mut stream);
    });
    let listener = Listener::tcp(&ending).limit("half_close_timeout = \"300ms\"");
    let portcullis = Portcullis::before(listener);
    let mut client = portcullis.client().connect();
    assert_eq!(client.rest().unwrap(), b"");
    assert_eq!(portcullis.ending(client.port()).reason(), "half_close_timeout");
}

#[test]
fn byte_restarts_the_half_close_timeout() {
    let upstream = Upstream::new(|mut stream| {
        read_all(&mut stream);
        for _ in 0..30 {
            std::thread::sleep(Duration::from_millis(200));
            stream.write_all(b"more").unwrap();
        }
    });
    let listener = Listener::tcp(&upstream).limit("half_close_timeout = \"5s\"");
    let portcullis = Portcullis::before(listener);
    let mut client = portcullis.client().connect();
    client.finish_sending();
    assert_eq!(client.rest().unwrap(), b"more".repeat(30));
    assert_ne!(portcullis.ending(client.port()).reason(), "half_close_timeout");
}

#[test]
fn half_close_timeout_starts_at_the_half_close() {
    let upstream = Upstream::new(|mut stream| {
        let question = read_all(&mut stream);
        std::thread::sleep(Duration::from_millis(300));
        stream.write_all(&question).unwrap();
    });
    let listener = Listener::tcp(&upstream).limit("half_close_timeout = \"3s\"");
    let portcullis = Portcullis::before(listener);
    let mut client = portcullis.client().connect();
    client.send(b"question");
    // A session older than the timer, and silent for longer than that.
    std::thread::sleep(Duration::from_secs(4));
    client.finish_sending();
    assert_eq!(client.rest().unwrap(), b"question");
    assert_ne!(portcullis.ending(client.port()).reason(), "half_close_timeout");
}

#[test]
fn client_that_closes_tcp_without_close_notify_is_client_closed() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::tcp(&upstream));
    for version in [&TLS12, &TLS13] {
        let mut client = portcullis.client().speaking(version).connect();
        client.ask(b"hello", b"hello");
        client.hang_up();
        assert_eq!(portcullis.ending(client.port()).reason(), "client_closed");
    }
}

#[test]
fn reset_connection_does_not_affect_other_sessions() {
    let upstream = Upstream::new(|mut stream| {
        let mut word = [0; 5];
        while stream.read_exact(&mut word).is_ok() {
            if &word == b"reset" {
                return reset(stream);
            }
            stream.write_all(&word).unwrap();
        }
    });
    let portcullis = Portcullis::before(Listener::tcp(&upstream));
    let mut bystander = portcullis.client().connect();
    for _ in 0..20 {
        let mut first = portcullis.client().connect();
        first.ask(b"hello", b"hello");
        let port = first.port();
        first.reset();
        let closed = portcullis.ending(port);
        assert!(matches!(closed.reason(), "client_closed" | "io_error"), "{}", closed.0);

        let mut second = portcullis.client().connect();
        second.send(b"reset");
        let _ = second.rest();
        let closed = portcullis.ending(second.port());
        assert!(matches!(closed.reason(), "upstream_closed" | "io_error"), "{}", closed.0);
        bystander.ask(b"hello", b"hello");
    }
}

#[test]
fn bytes_before_an_upstream_reset_are_delivered() {
    let upstream = Upstream::new(|mut stream| {
        stream.write_all(b"$1000000\r\n").unwrap();
        stream.write_all(&pattern(500_000)).unwrap();
    });
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    let mut client = portcullis.client().connect();
    let expected = [&b"$1000000\r\n"[..], &pattern(500_000)].concat();
    assert!(client.rest().unwrap() == expected, "not everything that came was delivered");
    let port = client.port();
    drop(client);
    let closed = portcullis.ending(port);
    assert_eq!(closed.reason(), "upstream_closed");
    assert_eq!(closed.number("bytes_out"), 500_010);
}

#[test]
fn bytes_sent_with_the_end_of_the_handshake_are_not_lost() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::tcp(&upstream));
    // TLS 1.3 clients may send their Finished and their first bytes in one segment.
    let client = portcullis.client().speaking(&TLS13);
    let (mut stream, mut tls) = (client.dial(), client.tls());
    tls.writer().write_all(b"eager").unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).unwrap();
    }
    let mut segment = Vec::new();
    tls.send_close_notify();
    while tls.wants_write() {
        tls.write_tls(&mut segment).unwrap();
    }
    stream.write_all(&segment).unwrap();
    let mut back = Vec::new();
    StreamOwned::new(tls, stream).read_to_end(&mut back).unwrap();
    assert_eq!(back, b"eager");
}

#[test]
fn busy_direction_does_not_starve_the_other() {
    const EACH: usize = 16 * MIB;
    let upstream = Upstream::new(|mut stream| {
        let mut taking = stream.try_clone().unwrap();
        std::thread::spawn(move || std::io::copy(&mut taking, &mut std::io::sink()));
        let piece = vec![7; 256 * 1024];
        while stream.write_all(&piece).is_ok() {}
    });
    let portcullis = Portcullis::before(Listener::tcp(&upstream));
    let client = portcullis.client();
    let (sent, received) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // Both continue at full speed until both have transferred enough.
    let enough = || sent.load(Ordering::SeqCst) >= EACH && received.load(Ordering::SeqCst) >= EACH;
    let both_ways = async {
        let stream = client.dial();
        stream.set_nonblocking(true).unwrap();
        let stream = tokio::net::TcpStream::from_std(stream).unwrap();
        let connector = TlsConnector::from(Arc::clone(client.config()));
        let tls = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        let (mut reading, mut writing) = tokio::io::split(tls);
        let upload = async {
            let piece = vec![7; 64 * 1024];
            while !enough() {
                writing.write_all(&piece).await.unwrap();
                sent.fetch_add(piece.len(), Ordering::SeqCst);
            }
        };
        let download = async {
            let mut piece = vec![0; 64 * 1024];
            while !enough() {
                received.fetch_add(reading.read(&mut piece).await.unwrap(), Ordering::SeqCst);
            }
        };
        tokio::join!(upload, download);
    };
    let in_time = Runtime::new().unwrap().block_on(async { timeout(WAIT_TIMEOUT, both_ways).await });
    assert!(in_time.is_ok(), "{sent:?} bytes were sent and {received:?} received");
}

#[test]
fn upstream_that_closes_without_a_byte_is_explained_in_the_audit() {
    let upstream = Upstream::new(|mut stream| {
        let (mut received, mut byte) = (Vec::new(), [0]);
        while !received.ends_with(b"PING") {
            stream.read_exact(&mut byte).unwrap();
            received.push(byte[0]);
        }
    });
    let listeners = [
        (Listener::tcp(&upstream), "set upstream.tls"),
        (Listener::tcp(&upstream).upstream("proxy_protocol = \"v1\""), "PROXY header"),
    ];
    for (listener, words) in listeners {
        let portcullis = Portcullis::before(listener);
        let mut client = portcullis.client().connect();
        client.send(b"PING");
        assert_eq!(client.rest().unwrap(), b"");
        let port = client.port();
        drop(client);
        let closed = portcullis.ending(port);
        assert_eq!(closed.reason(), "upstream_closed");
        assert!(closed.text("detail").contains(words), "{}", closed.0);
    }
}
