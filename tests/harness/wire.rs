//! Bytes on the wire.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;

pub(crate) const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
pub(crate) const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];
pub(crate) const PROTOCOL_3_0: u32 = 3 << 16;
pub(crate) const PROTOCOL_3_2: u32 = PROTOCOL_3_0 + 2;
/// A version that does not exist: servers answer with the versions that they support, and a proxy relays it.
pub(crate) const PROTOCOL_GREASE: u32 = PROTOCOL_3_0 + 9999;
const CANCEL_REQUEST: u32 = 80_877_102;

/// A startup-type packet: length, code, body.
pub(crate) fn packet(code: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(8 + body.len()).expect("a test's packets are short");
    [&length.to_be_bytes(), &code.to_be_bytes(), body].concat()
}

pub(crate) fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in parameters {
        body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    body.push(0);
    packet(version, &body)
}

pub(crate) fn cancel(process: u32, key: &[u8]) -> Vec<u8> {
    packet(CANCEL_REQUEST, &[&process.to_be_bytes(), key].concat())
}

/// The fields of an ErrorResponse, which must be the only message.
pub(crate) fn error_response(bytes: &[u8]) -> BTreeMap<char, String> {
    assert_eq!(bytes.first(), Some(&b'E'), "no ErrorResponse: {}", bytes.escape_ascii());
    let length = u32::from_be_bytes(bytes[1..5].try_into().expect("four bytes"));
    assert_eq!(usize::try_from(length).expect("a length"), bytes.len() - 1, "one message, whole");
    let fields = bytes[5..].strip_suffix(b"\0\0").expect("the last field and the list both end");
    let fields = fields.split(|&byte| byte == 0).map(|field| {
        let text = String::from_utf8(field[1..].to_vec()).expect("UTF-8");
        (char::from(field[0]), text)
    });
    fields.collect()
}

/// All bytes until the other side closes or resets the connection.
pub(crate) fn read_until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return bytes,
            Ok(count) => bytes.extend(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return bytes,
            // A process that was stopped and continued gets this error on a socket with a timeout.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("not closed: {error}"),
        }
    }
}

/// Exactly this many bytes.
pub(crate) fn read_exactly(stream: &mut impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).expect("that many bytes come");
    bytes
}
