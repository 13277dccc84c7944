//! TLS records as clients may send them: small, large, padded, fragmented, with key updates.

use std::io::{Read, Write};

use rustls::version::{TLS12, TLS13};
use rustls::{ClientConnection, StreamOwned};

use crate::harness::openssl::InteractiveClient;
use crate::harness::pki::sha256;
use crate::harness::program::run;
use crate::harness::{Authority, Connection, Listener, Portcullis, Redis, Request, TestDir, Upstream};

/// A Redis that has a value of so many bytes under `big`, and what its answer to `GET big` is.
fn redis_with_big(length: usize) -> (Redis, Vec<u8>) {
    let redis = Redis::start();
    let script = format!("redis.call('SET', 'big', string.rep('0123456789abcdef', {}))", length / 16);
    run(redis.cli().args(["EVAL", &script, "0"])).success();
    let value = b"0123456789abcdef".repeat(length / 16);
    let answer = [format!("${length}\r\n").as_bytes(), &value, b"\r\n"].concat();
    (redis, answer)
}

fn assert_gets_big(client: &mut Connection, answer: &[u8]) {
    client.send(b"GET big\r\n");
    let received = client.receive(answer.len());
    assert_eq!(sha256(&received), sha256(answer));
}

#[test]
fn openssl_key_update_within_a_session_is_accepted() {
    let redis = Redis::start();
    let portcullis = Portcullis::before(Listener::redis(&redis));
    for suite in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"] {
        let mut client = InteractiveClient::with(&portcullis, &["-tls1_3", "-ciphersuites", suite]);
        client.ask("PING", "+PONG");
        // `K` asks the server to do the same, `k` does not.
        for letter in ["K", "k", "k", "K", "K"] {
            client.order(letter, "KEYUPDATE");
            client.ask("ECHO with-new-keys", "with-new-keys");
        }
        for _ in 0..5 {
            client.order("K", "KEYUPDATE");
        }
        client.ask("PING", "+PONG");
    }
}

#[test]
fn openssl_padded_and_small_records_are_accepted() {
    let redis = Redis::start();
    let portcullis = Portcullis::before(Listener::redis(&redis));
    let long = "x".repeat(4000);
    for options in [
        &["-tls1_3", "-record_padding", "16384"][..],
        &["-tls1_3", "-record_padding", "1000", "-max_send_frag", "512"],
        &["-tls1_3", "-max_send_frag", "512"],
        &["-tls1_2", "-max_send_frag", "512"],
        &["-tls1_2", "-split_send_frag", "512"],
    ] {
        let mut client = InteractiveClient::with(&portcullis, options);
        client.ask("PING", "+PONG");
        client.ask(&format!("ECHO {long}"), &long);
    }
}

#[test]
fn fragmented_certificate_of_openssl_is_accepted() {
    let redis = Redis::start();
    let site = TestDir::new();
    let mut middle = site.ca.intermediate("0");
    for number in 1..6 {
        middle = middle.intermediate(&number.to_string());
    }
    site.install("client", &middle.issue(Request::client("app")));
    let listener = Listener::redis(&redis).tls("client_auth = \"required\"").tls("client_ca = \"ca.crt\"");
    let portcullis = Portcullis::start(site, listener);
    for version in ["-tls1_2", "-tls1_3"] {
        let shown = ["-cert", "client.crt", "-key", "client.key", "-cert_chain", "client.crt"];
        let mut client =
            InteractiveClient::with(&portcullis, &[&[version, "-max_send_frag", "512"], &shown[..]].concat());
        client.ask("PING", "+PONG");
    }
}

#[test]
fn longest_rsa_4096_chain_is_accepted_in_records_of_any_size() {
    let redis = Redis::start();
    let site = TestDir::new();
    let root = Authority::rsa_4096("root");
    let mut middle = root.rsa_4096_intermediate("0");
    for number in 1..6 {
        middle = middle.rsa_4096_intermediate(&number.to_string());
    }
    let leaf = middle.issue(Request::client("app").rsa_4096());
    let size: usize = leaf.path().iter().map(|certificate| certificate.len()).sum();
    assert!(size > 8 << 10, "{size} bytes");
    site.write("root.crt", root.pem());
    site.install("client", &leaf);
    let listener = Listener::redis(&redis).tls("client_auth = \"required\"").tls("client_ca = \"root.crt\"");
    let portcullis = Portcullis::start(site, listener);
    for version in ["-tls1_2", "-tls1_3"] {
        for fragment in ["512", "16384"] {
            let shown = ["-cert", "client.crt", "-key", "client.key", "-cert_chain", "client.crt"];
            let options = [&[version, "-max_send_frag", fragment], &shown[..]].concat();
            InteractiveClient::with(&portcullis, &options).ask("PING", "+PONG");
        }
    }
}

#[test]
fn handshake_of_more_than_72_kib_is_rejected() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let leaf = |size: usize| site.ca.issue(Request::client("app").organization(&"x".repeat(size)));
    // The message of both is below 64 KiB. In records of 32 bytes it is at least 6/5 of that.
    let (short, long) = (leaf(15_000), leaf(64_000));
    let listener = Listener::redis(&upstream).tls("client_auth = \"required\"").tls("client_ca = \"ca.crt\"");
    let portcullis = Portcullis::start(site, listener);
    for version in [&TLS12, &TLS13] {
        let client = |leaf| portcullis.client().speaking(version).showing(leaf).in_records_of(32);
        client(&short).attempt().1.unwrap();
        let (port, refused) = client(&long).attempt();
        assert!(refused.is_err());
        let denied = portcullis.ending(port);
        assert_eq!(denied.reason(), "handshake_failed");
        assert!(denied.text("detail").contains("more than 72 KiB"), "{}", denied.0);
    }
}

#[test]
fn smallest_records_are_relayed_both_ways() {
    let (redis, answer) = redis_with_big(4 << 20);
    let portcullis = Portcullis::before(Listener::redis(&redis));
    for version in [&TLS12, &TLS13] {
        let mut client = portcullis.client().speaking(version).in_records_of(32).connect();
        assert_gets_big(&mut client, &answer);
        for _ in 0..100 {
            for byte in b"PING\r\n" {
                client.send(&[*byte]);
            }
        }
        assert_eq!(client.receive(700), b"+PONG\r\n".repeat(100));
        // A value that comes in thousands of records and goes in a few.
        let value = "v".repeat(200_000);
        client.ask(format!("ECHO {}\r\n", &value[..60_000]).as_bytes(), b"$60000\r\n");
        assert_eq!(client.receive(60_002), format!("{}\r\n", &value[..60_000]).as_bytes());
    }
}

#[test]
fn tls_sent_byte_by_byte_is_accepted() {
    let (redis, answer) = redis_with_big(1 << 20);
    let portcullis = Portcullis::before(Listener::redis(&redis));
    for version in [&TLS12, &TLS13] {
        let client = portcullis.client().speaking(version);
        let (mut socket, mut tls) = (client.dial(), client.tls());
        while tls.is_handshaking() || tls.wants_write() {
            dribble(&mut tls, &mut socket);
            if tls.is_handshaking() {
                tls.read_tls(&mut socket).unwrap();
                tls.process_new_packets().unwrap();
            }
        }
        tls.writer().write_all(b"PING\r\nGET big\r\n").unwrap();
        dribble(&mut tls, &mut socket);
        let mut received = vec![0; 7 + answer.len()];
        StreamOwned::new(tls, socket).read_exact(&mut received).unwrap();
        assert_eq!(sha256(&received), sha256(&[b"+PONG\r\n", answer.as_slice()].concat()));
    }
}

/// Sends all bytes, each in a separate segment.
fn dribble(tls: &mut ClientConnection, socket: &mut impl Write) {
    let mut bytes = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut bytes).unwrap();
    }
    for byte in bytes {
        socket.write_all(&[byte]).unwrap();
    }
}

#[test]
fn key_updates_during_a_transfer_lose_no_byte() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::tcp(&upstream));
    let mut client = portcullis.client().speaking(&TLS13).connect();
    let piece: Vec<u8> = (0..50_000_u32).map(|place| place.to_le_bytes()[place as usize % 2]).collect();
    for _ in 0..40 {
        client.send(&piece);
        client.stream.conn.refresh_traffic_keys().unwrap();
        client.send(&piece);
        assert!(client.receive(2 * piece.len()) == piece.repeat(2), "not what was sent");
    }
    client.finish_sending();
    assert_eq!(client.rest().unwrap(), b"");
}
