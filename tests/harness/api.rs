//! A client of the admin API that sends hand-written requests over the Unix socket or over TCP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::Value;

use super::WAIT_TIMEOUT;

/// A caller of the API.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    place: Place,
    /// Sent as `Authorization: Bearer`.
    token: Option<String>,
}

#[derive(Clone, Debug)]
enum Place {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// A response.
#[derive(Debug)]
pub(crate) struct ApiReply {
    pub(crate) status: u16,
    /// In lower case.
    head: String,
    /// `null` without a body, and for a body that is not JSON.
    pub(crate) body: Value,
}

/// A connection, whichever way it was made.
pub(crate) trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

impl Api {
    pub(crate) fn at_socket(path: PathBuf) -> Self {
        Self { place: Place::Unix(path), token: None }
    }

    pub(crate) fn at(address: SocketAddr) -> Self {
        Self { place: Place::Tcp(address), token: None }
    }

    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { place: self.place.clone(), token: Some(token.to_owned()) }
    }

    pub(crate) fn connect(&self) -> Box<dyn Stream> {
        match &self.place {
            Place::Unix(path) => {
                let stream = UnixStream::connect(path).expect("the admin socket is open");
                stream.set_read_timeout(Some(WAIT_TIMEOUT)).expect("a valid timeout");
                Box::new(stream)
            }
            Place::Tcp(address) => {
                let stream = TcpStream::connect(address).expect("the admin address is open");
                stream.set_read_timeout(Some(WAIT_TIMEOUT)).expect("a valid timeout");
                Box::new(stream)
            }
        }
    }

    /// Sends bytes as they are, and reads to the end.
    pub(crate) fn raw(&self, request: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(request);
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        reply
    }

    pub(crate) fn request(&self, method: &str, target: &str, headers: &str, body: &[u8]) -> ApiReply {
        let mut request = self.head(method, target, headers, body.len()).into_bytes();
        request.extend_from_slice(body);
        ApiReply::parse(&self.raw(&request))
    }

    /// The head of a request whose body has this length.
    pub(crate) fn head(&self, method: &str, target: &str, headers: &str, length: usize) -> String {
        let token = self.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{token}{headers}Content-Length: {length}\r\n\r\n")
    }

    pub(crate) fn get(&self, target: &str) -> ApiReply {
        self.request("GET", target, "", b"")
    }

    pub(crate) fn delete(&self, target: &str) -> ApiReply {
        self.request("DELETE", target, "", b"")
    }

    pub(crate) fn post(&self, target: &str, body: &Value) -> ApiReply {
        self.request("POST", target, "", body.to_string().as_bytes())
    }

    pub(crate) fn put(&self, target: &str, body: &Value) -> ApiReply {
        self.request("PUT", target, "", body.to_string().as_bytes())
    }
}

impl ApiReply {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text:?}"));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        Self { status, head: head.to_lowercase(), body: serde_json::from_str(body).unwrap_or_default() }
    }

    /// The value of a header, in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.head.lines().find_map(|line| line.strip_prefix(prefix.as_str()))
    }

    /// Returns the body of a response with this status.
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    /// Checks an error, and that it can be found in the log by its ID.
    pub(crate) fn expect_error(self, status: u16, id: &str) -> String {
        assert_eq!((self.status, self.body["id"].as_str()), (status, Some(id)), "{}", self.body);
        assert_eq!(self.header("x-request-id"), self.body["request_id"].as_str(), "{}", self.head);
        self.body["message"].as_str().expect("a message").to_owned()
    }
}
