//! The limits of CancelRequests that reach the database.

use std::io::{Read, Write, copy};
use std::net::{Shutdown, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crate::cancel::{session, wait_for_the_query};
use crate::harness::client::port;
use crate::harness::portcullis::ADMIN;
use crate::harness::program::Running;
use crate::harness::wire::{cancel, read_until_closed};
use crate::harness::{Client, Event, Listener, Portcullis, Postgres, Request, TestDir, Upstream, eventually};
use crate::postgres::{conninfo, psql};

/// The burst of cancel requests without a known session that one source may send, and its rate per second.
const OF_A_SOURCE: u64 = 128;
const EACH_SECOND: u64 = 10;

/// Sends a cancel request for an unknown session, and waits until it is closed.
fn cancel_nothing(client: &Client) -> u16 {
    let mut stream = client.dial();
    // It may be closed already.
    let _ = stream.write_all(&cancel(77, &[1, 2, 3, 4]));
    assert_eq!(read_until_closed(&mut stream), b"");
    port(&stream)
}

/// Several requests at once: one after the other they may be slower than [`EACH_SECOND`].
fn burst(request: impl Fn() + Sync) {
    thread::scope(|scope| (0..20).for_each(|_| drop(scope.spawn(&request))));
}

fn is_limited(portcullis: &Portcullis) -> bool {
    portcullis.events().iter().any(|event| event.is("connection.denied") && event.reason() == "rate_limited")
}

/// The numbers of cancel requests in the audit: logged, and summed up.
fn audited(portcullis: &Portcullis, source: &str) -> (u64, u64) {
    let events = portcullis.events();
    let of_source = |event: &&Event| event.0["source"] == source;
    let logged = events.iter().filter(of_source).filter(|event| event.is("cancel.forwarded")).count();
    let summaries = events.iter().filter(of_source).filter(|event| event.is("cancels.suppressed"));
    (logged as u64, summaries.map(|event| event.number("suppressed")).sum())
}

/// A relay to a server that counts cancel requests.
fn counting(postgres: &Postgres) -> (Upstream, Arc<AtomicU64>) {
    let cancels = Arc::new(AtomicU64::new(0));
    let (counted, address) = (Arc::clone(&cancels), postgres.to_string());
    let upstream = Upstream::new(move |mut near| {
        let mut first = [0; 8];
        if near.read_exact(&mut first).is_err() {
            return;
        }
        if first[4..] == cancel(0, &[])[4..8] {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        let mut far = TcpStream::connect(&address).expect("the server is up");
        far.write_all(&first).expect("it can be sent");
        let (mut back, mut answers) = (near.try_clone().expect("a socket"), far.try_clone().expect("a socket"));
        let answering = thread::spawn(move || {
            let _ = copy(&mut answers, &mut back);
            let _ = back.shutdown(Shutdown::Both);
        });
        let _ = copy(&mut near, &mut far);
        let _ = far.shutdown(Shutdown::Write);
        let _ = answering.join();
    });
    (upstream, cancels)
}

#[test]
fn flood_of_plaintext_cancels_is_limited_and_another_source_still_cancels() {
    let postgres = Postgres::start();
    let (upstream, cancels) = counting(&postgres);
    let site = TestDir::new();
    site.install("client", &site.ca.issue(Request::client("app")));
    let listener = Listener::postgres(&upstream).trusting(&["127.0.0.0/8"]);
    let listener = listener.tls("client_auth = \"required\"").tls("client_ca = \"ca.crt\"");
    let portcullis = Portcullis::start(site, listener.limit("max_connections_per_source = 2"));
    let path = |name| portcullis.site.path(name).display().to_string();
    let with = format!("{} sslcert={} sslkey={}", conninfo(&portcullis), path("client.crt"), path("client.key"));
    let mut psql = psql(&with);
    psql.args(["-c", "select pg_sleep(1000)"]).stderr(Stdio::piped());
    let mut psql = Running::start(&mut psql);
    wait_for_the_query(&postgres);

    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..4 {
            let client = portcullis.client().from("127.0.0.2");
            scope.spawn(move || {
                for _ in 0..1_250 {
                    cancel_nothing(&client);
                }
            });
        }
        eventually("the flood is limited", || is_limited(&portcullis).then_some(()));
        psql.signal("INT");
        psql.exit_code();
    });
    let seconds = begun.elapsed().as_secs() + 1;

    let output = std::io::read_to_string(psql.0.stderr.take().unwrap()).unwrap();
    assert!(output.contains("canceling statement due to user request"), "{output}");
    let flooded = cancels.load(Ordering::SeqCst) - 1;
    assert!((OF_A_SOURCE..=OF_A_SOURCE + EACH_SECOND * seconds).contains(&flooded), "{flooded} in {seconds} s");
    // Every one of them is logged or summed up.
    let (logged, _) = eventually("the flood is summed up", || {
        let (logged, suppressed) = audited(&portcullis, "127.0.0.2");
        (logged + suppressed == flooded).then_some((logged, suppressed))
    });
    assert!((100..=100 + seconds).contains(&logged), "{logged} lines in {seconds} s");
    portcullis.event("the other source", |event| event.is("cancel.forwarded") && event.0["source"] == "127.0.0.1");
    assert_eq!(audited(&portcullis, "127.0.0.1"), (1, 0));
    let denied = portcullis.event("a refusal", |event| event.is("connection.denied"));
    assert_eq!((denied.text("source"), denied.reason()), ("127.0.0.2", "rate_limited"));
    assert!(denied.text("detail").contains("with unknown keys from this source"), "{}", denied.0);
}

#[test]
fn flood_of_cancels_from_many_sources_writes_a_bounded_log() {
    const SOURCES: u8 = 50;
    const OF_EACH: u64 = 70;
    let upstream = Upstream::brief();
    let portcullis = Portcullis::before(Listener::postgres(&upstream).trusting(&["127.0.0.0/8"]));
    let begun = Instant::now();
    thread::scope(|scope| {
        for source in 0..SOURCES {
            let client = portcullis.client().from(&format!("127.0.1.{source}"));
            scope.spawn(move || {
                for _ in 0..OF_EACH {
                    cancel_nothing(&client);
                }
            });
        }
    });
    let is_cancel = |event: &&Event| event.is("cancel.forwarded") || event.is("connection.denied");
    let is_sum = |event: &&Event| event.is("cancels.suppressed") || event.is("denials.suppressed");
    let events = eventually("all are written or summed up", || {
        let events = portcullis.events();
        let written = events.iter().filter(is_cancel).count() as u64;
        let suppressed: u64 = events.iter().filter(is_sum).map(|event| event.number("suppressed")).sum();
        (written + suppressed == u64::from(SOURCES) * OF_EACH).then_some(events)
    });
    let seconds = begun.elapsed().as_secs() + 1;
    let denied: Vec<_> = events.iter().filter(|event| event.is("connection.denied")).collect();
    assert!(denied.iter().all(|event| event.text("detail").contains("CancelRequests")), "{}", denied[0].0);
    assert!(denied.len() as u64 <= 1_000 + 10 * seconds, "{} denials in {seconds} s", denied.len());
    let bytes: usize = events.iter().filter(is_cancel).map(|event| event.0.to_string().len()).sum();
    assert!(bytes as u64 <= (2_000 + 20 * seconds) << 10, "{bytes} bytes in {seconds} s");
}

#[test]
fn tls_cancels_are_limited_like_plaintext_cancels() {
    let upstream = Upstream::brief();
    let portcullis = Portcullis::before(Listener::postgres(&upstream));
    let client = portcullis.client().with_ssl_request();
    let begun = Instant::now();
    for number in 0..OF_A_SOURCE {
        if number % 2 == 0 {
            cancel_nothing(&client);
        } else {
            let mut connection = client.connect();
            connection.send(&cancel(77, &[1, 2, 3, 4]));
            assert_eq!(connection.rest().unwrap(), b"");
        }
    }
    eventually("one is refused", || {
        burst(|| {
            let mut connection = portcullis.client().with_ssl_request().connect();
            connection.send(&cancel(77, &[1, 2, 3, 4]));
            assert_eq!(connection.rest().unwrap(), b"");
        });
        is_limited(&portcullis).then_some(())
    });
    let seconds = begun.elapsed().as_secs() + 1;
    let reached = upstream.connections() as u64;
    assert!((OF_A_SOURCE..=OF_A_SOURCE + EACH_SECOND * seconds).contains(&reached), "{reached} in {seconds} s");
}

#[test]
fn pool_cancels_its_queries_during_a_flood_from_its_source() {
    let postgres = Postgres::start();
    let portcullis = Portcullis::before(Listener::postgres(&postgres));
    eventually("the source has sent what it may", || {
        burst(|| {
            cancel_nothing(&portcullis.client());
        });
        is_limited(&portcullis).then_some(())
    });
    let mut pool: Vec<_> = (0..40).map(|_| session(&portcullis)).collect();
    for (session, _) in &mut pool {
        let query = b"select pg_sleep(1000)\0";
        let length = u32::try_from(4 + query.len()).unwrap().to_be_bytes();
        session.send(&[b"Q", &length[..], query].concat());
    }
    let running = || postgres.direct("select count(*) from pg_stat_activity where query like 'select pg_sleep%'");
    eventually("all queries run", || (running() == "40").then_some(()));
    thread::scope(|scope| {
        for (_, key) in &pool {
            scope.spawn(|| {
                let mut stream = portcullis.client().dial();
                stream.write_all(key).unwrap();
                assert_eq!(read_until_closed(&mut stream), b"");
            });
        }
    });
    for (session, _) in &mut pool {
        let answer = session.rest_until(b"Z\0\0\0\x05I");
        let text = answer.escape_ascii().to_string();
        // SQLSTATE query_canceled
        assert!(text.contains("C57014"), "{text}");
    }
}

#[test]
fn unanswered_cancels_are_limited_by_concurrency() {
    let upstream = Upstream::silent();
    let listener = Listener::postgres(&upstream).trusting(&["127.0.0.0/8"]);
    let portcullis = Portcullis::start(TestDir::new(), format!("{ADMIN}{listener}"));
    let send = |client: &Client| {
        let mut stream = client.dial();
        stream.write_all(&cancel(77, &[1, 2, 3, 4])).unwrap();
        stream
    };
    let client = portcullis.client();
    let under_way: Vec<_> = (0..OF_A_SOURCE).map(|_| send(&client)).collect();
    eventually("all are under way", || (upstream.connections() as u64 == OF_A_SOURCE).then_some(()));
    // They no longer count as handshakes.
    assert_eq!(portcullis.status()["handshakes"], 0);
    let port = cancel_nothing(&client);
    assert_eq!(portcullis.refusal(port), "source_connection_limit");
    let _other = send(&portcullis.client().from("127.0.0.2"));
    eventually("that one passes", || (upstream.connections() as u64 == OF_A_SOURCE + 1).then_some(()));
    // Portcullis ends them after ten seconds.
    for mut stream in under_way {
        assert_eq!(read_until_closed(&mut stream), b"");
    }
    let _again = send(&client);
    eventually("one passes again", || (upstream.connections() as u64 == OF_A_SOURCE + 2).then_some(()));
}

#[test]
fn cancel_to_a_hanging_database_times_out() {
    let upstream = Upstream::silent();
    let listener = Listener::postgres(&upstream).upstream("tls = \"require\"").upstream("connect_timeout = \"1h\"");
    let portcullis = Portcullis::before(listener);
    let begun = Instant::now();
    let port = cancel_nothing(&portcullis.client());
    assert_eq!(portcullis.refusal(port), "upstream_unreachable");
    assert!(begun.elapsed().as_secs() >= 9, "it was not waited for");
}
