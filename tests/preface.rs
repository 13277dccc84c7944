//! The bytes before TLS: SSLRequest, GSSENCRequest, direct TLS, plaintext, garbage.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustls::AlertDescription;

use crate::harness::client::{alert, port};
use crate::harness::wire::{
    GSSENC_REQUEST, PROTOCOL_3_0, SSL_REQUEST, error_response, packet, read_exactly, read_until_closed, startup,
};
use crate::harness::{Client, Listener, Portcullis, Upstream};

/// A PostgreSQL listener whose upstream must not receive anything.
fn postgres() -> (Upstream, Portcullis) {
    let upstream = Upstream::silent();
    let portcullis = Portcullis::before(Listener::postgres(&upstream));
    (upstream, portcullis)
}

/// Sends bytes in one piece. Returns the source port and all that comes back.
fn exchange(client: &Client, bytes: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = client.dial();
    stream.write_all(bytes).unwrap();
    (port(&stream), read_until_closed(&mut stream))
}

#[test]
fn ssl_request_is_answered_with_one_s() {
    let (upstream, portcullis) = postgres();
    let mut stream = portcullis.client().dial();
    stream.write_all(&SSL_REQUEST).unwrap();
    assert_eq!(read_exactly(&mut stream, 1), b"S");
    // Nothing follows: the next byte on the wire belongs to the handshake that the client starts.
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    let connection = portcullis.client().secure(stream).unwrap();
    assert_eq!(connection.tls().alpn_protocol(), None);
    upstream.assert_untouched();
}

#[test]
fn gssenc_request_is_declined_and_ssl_request_then_accepted() {
    let (_upstream, portcullis) = postgres();
    let mut stream = portcullis.client().dial();
    stream.write_all(&GSSENC_REQUEST).unwrap();
    assert_eq!(read_exactly(&mut stream, 1), b"N");
    portcullis.client().with_ssl_request().secure(stream).unwrap();
}

#[test]
fn second_gssenc_request_is_a_protocol_violation() {
    let (upstream, portcullis) = postgres();
    let mut stream = portcullis.client().dial();
    stream.write_all(&GSSENC_REQUEST).unwrap();
    assert_eq!(read_exactly(&mut stream, 1), b"N");
    stream.write_all(&GSSENC_REQUEST).unwrap();
    assert!(!read_until_closed(&mut stream).starts_with(b"N"));
    assert_eq!(portcullis.refusal(port(&stream)), "protocol_violation");
    upstream.assert_untouched();
}

#[test]
fn second_ssl_request_fails_the_handshake() {
    let (upstream, portcullis) = postgres();
    let mut stream = portcullis.client().dial();
    stream.write_all(&SSL_REQUEST).unwrap();
    assert_eq!(read_exactly(&mut stream, 1), b"S");
    stream.write_all(&SSL_REQUEST).unwrap();
    assert!(!read_until_closed(&mut stream).starts_with(b"S"));
    let reason = portcullis.refusal(port(&stream));
    assert!(matches!(reason.as_str(), "protocol_violation" | "handshake_failed"), "{reason}");
    upstream.assert_untouched();
}

#[test]
fn bytes_sent_before_the_answer_to_an_ssl_request_never_reach_upstream() {
    let (upstream, portcullis) = postgres();
    let client = portcullis.client();
    let injected = startup(PROTOCOL_3_0, &[("user", "mallory")]);
    let mut hello = Vec::new();
    client.tls().write_tls(&mut hello).unwrap();
    for early in [&injected, &hello, &SSL_REQUEST.to_vec(), &b"\0".to_vec()] {
        for request in [SSL_REQUEST, GSSENC_REQUEST] {
            let (port, words) = exchange(&client, &[&request, early.as_slice()].concat());
            assert!(!words.starts_with(b"S") && !words.starts_with(b"N"), "{}", words.escape_ascii());
            assert_eq!(portcullis.refusal(port), "protocol_violation");
        }
    }
    upstream.assert_untouched();
}

#[test]
fn direct_tls_is_accepted_with_the_alpn_of_postgresql() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::postgres(&upstream));
    let mut connection = portcullis.client().alpn(&["postgresql"]).connect();
    assert_eq!(connection.tls().alpn_protocol(), Some(&b"postgresql"[..]));
    let hello = startup(PROTOCOL_3_0, &[("user", "app")]);
    connection.ask(&hello, &hello);
}

#[test]
fn direct_tls_without_alpn_is_refused() {
    let (upstream, portcullis) = postgres();
    let client = portcullis.client();
    let stream = client.dial();
    let port = port(&stream);
    let words = client.secure(stream).and_then(|mut connection| connection.rest());
    assert!(words.map_or(true, |words| words.is_empty()));
    assert_eq!(portcullis.refusal(port), "protocol_violation");
    upstream.assert_untouched();
}

#[test]
fn another_alpn_is_refused_with_an_alert() {
    let (upstream, portcullis) = postgres();
    for client in [portcullis.client(), portcullis.client().with_ssl_request()] {
        let client = client.alpn(&["h2"]);
        let stream = client.dial();
        let port = port(&stream);
        let error = client.secure(stream).unwrap_err();
        assert_eq!(alert(&error), Some(AlertDescription::NoApplicationProtocol), "{error}");
        assert_eq!(portcullis.refusal(port), "handshake_failed");
    }
    upstream.assert_untouched();
}

#[test]
fn alpn_after_an_ssl_request_is_confirmed() {
    let (_upstream, portcullis) = postgres();
    let connection = portcullis.client().with_ssl_request().alpn(&["postgresql"]).connect();
    assert_eq!(connection.tls().alpn_protocol(), Some(&b"postgresql"[..]));
}

#[test]
fn plaintext_startup_message_gets_an_error_that_names_sslmode() {
    let (upstream, portcullis) = postgres();
    let (port, words) = exchange(&portcullis.client(), &startup(PROTOCOL_3_0, &[("user", "app")]));
    let fields = error_response(&words);
    assert_eq!(fields[&'S'], "FATAL");
    assert_eq!(fields[&'V'], "FATAL");
    assert_eq!(fields[&'C'], "28000");
    let all: String = fields.values().cloned().collect();
    assert!(all.contains("sslmode"), "{fields:?}");
    assert_eq!(portcullis.refusal(port), "plaintext_refused");
    assert!(portcullis.ending(port).text("detail").contains("sslmode=require"));
    upstream.assert_untouched();
}

#[test]
fn plaintext_startup_message_after_gssenc_gets_the_same_error() {
    let (upstream, portcullis) = postgres();
    let mut stream = portcullis.client().dial();
    stream.write_all(&GSSENC_REQUEST).unwrap();
    assert_eq!(read_exactly(&mut stream, 1), b"N");
    stream.write_all(&startup(PROTOCOL_3_0, &[("user", "app")])).unwrap();
    assert_eq!(error_response(&read_until_closed(&mut stream))[&'C'], "28000");
    assert_eq!(portcullis.refusal(port(&stream)), "plaintext_refused");
    upstream.assert_untouched();
}

#[test]
fn packet_of_impossible_length_is_a_protocol_violation() {
    let (upstream, portcullis) = postgres();
    let code = PROTOCOL_3_0.to_be_bytes();
    for length in [0, 4, 7, 10_005, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff_u32] {
        let bytes = [length.to_be_bytes(), code].concat();
        let (port, words) = exchange(&portcullis.client(), &bytes);
        assert!(!words.starts_with(b"S"), "length {length}");
        assert_eq!(portcullis.refusal(port), "protocol_violation", "length {length}");
    }
    upstream.assert_untouched();
}

#[test]
fn unknown_packet_is_a_protocol_violation() {
    let (upstream, portcullis) = postgres();
    let garbage: [&[u8]; 5] = [
        &packet(2 << 16, b"user\0app\0\0"),
        &packet(0xffff_ffff, b""),
        // An SSLRequest that is longer than one.
        &packet(80_877_103, b"\0\0\0\0"),
        // A CancelRequest without a key, and one with a key longer than any.
        &packet(80_877_102, b"\0\0\0\x01"),
        &packet(80_877_102, &[1; 4 + 257]),
    ];
    for bytes in garbage {
        let (port, words) = exchange(&portcullis.client(), bytes);
        assert!(!words.starts_with(b"S"), "{}", bytes.escape_ascii());
        assert_eq!(portcullis.refusal(port), "protocol_violation", "{}", bytes.escape_ascii());
    }
    upstream.assert_untouched();
}

#[test]
fn ssl_request_inside_tls_gets_no_s() {
    let upstream = Upstream::sending(b"S");
    let portcullis = Portcullis::before(Listener::postgres(&upstream));
    let mut connection = portcullis.client().with_ssl_request().connect();
    connection.send(&SSL_REQUEST);
    let words = connection.rest().unwrap_or_default();
    assert!(!words.contains(&b'S') || words.starts_with(b"E"), "{}", words.escape_ascii());
    assert_eq!(portcullis.refusal(connection.port()), "protocol_violation");
}

/// Sends a byte whenever nothing has come for a while. Returns how many it could send before it was closed.
pub(crate) fn trickle(stream: &mut TcpStream, bytes: &[u8]) -> usize {
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    for (sent, byte) in bytes.iter().enumerate() {
        if stream.write_all(&[*byte]).is_err() {
            return sent;
        }
        match stream.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            ended => {
                assert!(!matches!(ended, Ok(1..)), "it was answered");
                return sent;
            }
        }
    }
    bytes.len()
}

#[test]
fn slow_bytes_do_not_extend_the_handshake_timeout() {
    let upstream = Upstream::silent();
    let short = |listener: Listener| listener.limit("handshake_timeout = \"300ms\"");
    let postgres = Portcullis::before(short(Listener::postgres(&upstream)));
    let redis = Portcullis::before(short(Listener::redis(&upstream)));
    let mut hello = Vec::new();
    redis.client().tls().write_tls(&mut hello).unwrap();
    let padded = startup(PROTOCOL_3_0, &[("user", "a-rather-long-name")]);
    let slow: [(&Portcullis, &[u8]); 4] =
        [(&postgres, &SSL_REQUEST), (&postgres, &padded), (&postgres, &hello), (&redis, &hello)];
    for (portcullis, bytes) in slow {
        let mut stream = portcullis.client().dial();
        assert!(trickle(&mut stream, bytes) < bytes.len(), "it could send everything");
        assert_eq!(portcullis.refusal(port(&stream)), "handshake_timeout");
    }
    upstream.assert_untouched();
}

#[test]
fn silent_client_is_closed_at_the_handshake_timeout() {
    let upstream = Upstream::silent();
    for listener in [Listener::redis(&upstream), Listener::postgres(&upstream), Listener::tcp(&upstream)] {
        let portcullis = Portcullis::before(listener.limit("handshake_timeout = \"200ms\""));
        let mut stream = portcullis.client().dial();
        assert_eq!(read_until_closed(&mut stream), b"");
        assert_eq!(portcullis.refusal(port(&stream)), "handshake_timeout");
    }
    upstream.assert_untouched();
}

#[test]
fn client_silent_after_ssl_request_is_closed_at_the_handshake_timeout() {
    let upstream = Upstream::silent();
    let listener = Listener::postgres(&upstream).limit("handshake_timeout = \"2s\"");
    let portcullis = Portcullis::before(listener);
    let (port, words) = exchange(&portcullis.client(), &SSL_REQUEST);
    assert_eq!(words, b"S");
    assert_eq!(portcullis.refusal(port), "handshake_timeout");
    upstream.assert_untouched();
}

#[test]
fn client_that_only_connects_does_not_reach_the_upstream() {
    let upstream = Upstream::silent();
    for listener in [Listener::redis(&upstream), Listener::postgres(&upstream), Listener::tcp(&upstream)] {
        let portcullis = Portcullis::before(listener);
        let stream = portcullis.client().dial();
        let port = port(&stream);
        drop(stream);
        assert_eq!(portcullis.refusal(port), "client_closed");
    }
    upstream.assert_untouched();
}

#[test]
fn plaintext_redis_client_gets_an_error_that_names_tls() {
    let upstream = Upstream::silent();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    // More than Portcullis reads: the discarded bytes must not prevent the answer.
    let much = [&b"SET key "[..], &[b'x'; 16 * 1024], b"\r\n"].concat();
    for command in [&b"PING\r\n"[..], b"*1\r\n$4\r\nPING\r\n", &much] {
        let (port, words) = exchange(&portcullis.client(), command);
        let words = String::from_utf8(words).unwrap();
        assert!(words.starts_with("-ERR this port speaks TLS only"), "{words:?}");
        assert!(words.ends_with("\r\n") && words.lines().count() == 1, "{words:?}");
        assert_eq!(portcullis.refusal(port), "plaintext_refused");
        assert!(portcullis.ending(port).text("detail").contains("rediss://"));
    }
    upstream.assert_untouched();
}

#[test]
fn plaintext_tcp_client_is_closed_without_an_answer() {
    let upstream = Upstream::silent();
    let portcullis = Portcullis::before(Listener::tcp(&upstream));
    let (port, words) = exchange(&portcullis.client(), b"GET / HTTP/1.0\r\n\r\n");
    assert_eq!(words, b"");
    assert_eq!(portcullis.refusal(port), "plaintext_refused");
    assert!(portcullis.ending(port).text("detail").contains("did not start TLS"));
    upstream.assert_untouched();
}

#[test]
fn record_that_only_resembles_tls_fails_the_handshake() {
    let upstream = Upstream::silent();
    for listener in [Listener::redis(&upstream), Listener::postgres(&upstream)] {
        let portcullis = Portcullis::before(listener);
        let (port, _alert) = exchange(&portcullis.client(), b"\x16\x03\x01\x00\x05hello");
        assert_eq!(portcullis.refusal(port), "handshake_failed");
    }
    upstream.assert_untouched();
}
