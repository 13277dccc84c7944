//! A Prometheus server in a private directory, and requests over HTTP.

use std::net::SocketAddr;

use serde_json::Value;

use super::api::Api;
use super::program::{self, Running};
use super::{TestDir, eventually};

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// Sends a request without a body. `headers` are whole lines.
pub(crate) fn request(address: SocketAddr, method: &str, target: &str, headers: &str) -> Answer {
    let head = format!("{method} {target} HTTP/1.0\r\nhost: {address}\r\n{headers}\r\n");
    let answer = exchange(address, head.as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// Sends bytes and reads to the end.
pub(crate) fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    String::from_utf8(Api::at(address).raw(bytes)).expect("UTF-8")
}

/// A running Prometheus that scrapes the job `portcullis` every second.
pub(crate) struct Prometheus {
    _server: Running,
    address: SocketAddr,
}

impl Prometheus {
    /// Scrapes `target` and evaluates the rules in the file `rules`.
    pub(crate) fn start(site: &TestDir, target: SocketAddr, rules: &str) -> Self {
        site.write(
            "prometheus.yml",
            format!(
                "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{rules:?}]\n\
                 scrape_configs:\n  - job_name: portcullis\n    static_configs:\n      - targets: [\"{target}\"]\n"
            ),
        );
        let (server, port) = program::serve("Server is ready to receive web requests", |port| {
            let mut command = program::command("prometheus");
            command.arg(format!("--config.file={}", site.path("prometheus.yml").display()));
            command.arg(format!("--storage.tsdb.path={}", site.path("tsdb").display()));
            command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
            command
        });
        Self { _server: server, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    /// The result of an instant query; an error is a failure of the test.
    pub(crate) fn query(&self, expression: &str) -> Vec<Value> {
        let answer = self.ask(&format!("/api/v1/query?query={}", encoded(expression)));
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().expect("a list").clone()
    }

    /// The first answer to a query that has a sample.
    pub(crate) fn eventually(&self, expression: &str) -> Vec<Value> {
        eventually(expression, || Some(self.query(expression)).filter(|samples| !samples.is_empty()))
    }

    /// The JSON answer of a path of the API.
    pub(crate) fn ask(&self, target: &str) -> Value {
        let answer = request(self.address, "GET", target, "");
        serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{target}: {error}: {answer:?}"))
    }
}

/// Percent-encodes everything but letters and digits.
fn encoded(text: &str) -> String {
    let encode = |byte: u8| {
        let is_plain = byte.is_ascii_alphanumeric();
        if is_plain { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(encode).collect()
}
