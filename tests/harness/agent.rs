//! The agent, driven by the tests in the place of `portcullis run`: they send its messages themselves.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use serde_json::{Value, json};

use super::WAIT_TIMEOUT;
use super::log::Log;
use super::portcullis::executable;
use super::program::Running;

/// A part of every token of the tests, which no message may contain.
pub(crate) const SECRET: &str = "5f0d2c9a";

/// A running agent, and the connection that it has to `portcullis run`.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) process: Running,
    pub(crate) stream: UnixStream,
    pub(crate) errors: Log,
    pub(crate) hello: Value,
}

impl Agent {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts it with variables in its environment.
    pub(crate) fn start_with(environment: &[(&str, &str)]) -> Self {
        let (stream, far) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        let mut command = executable();
        command.arg("agent").envs(environment.iter().copied());
        command.stdin(Stdio::from(OwnedFd::from(far))).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Running::start(&mut command);
        drop(command);
        let errors = Log::of(process.0.stderr.take().unwrap());
        let mut agent = Self { process, stream, errors, hello: Value::Null };
        agent.hello = agent.receive().expect("it greets");
        agent
    }

    pub(crate) fn send(&mut self, message: &Value) {
        send(&mut self.stream, message);
    }

    /// The next message; `None` at the end.
    pub(crate) fn receive(&mut self) -> Option<Value> {
        receive(&mut self.stream)
    }

    pub(crate) fn resolve(&mut self, settings: &Value, sources: &[&str]) {
        self.send(&json!({ "task": { "digitalocean": settings, "kubernetes": null, "sources": sources } }));
    }

    /// The next observation.
    pub(crate) fn observed(&mut self) -> (String, Value) {
        let message = self.receive().expect("the agent runs");
        let observed = message.get("observed").unwrap_or_else(|| panic!("{message}"));
        (observed["source"].as_str().unwrap().to_owned(), observed["observation"].clone())
    }

    /// The next observation of this source that matches.
    pub(crate) fn until(&mut self, source: &str, matches: impl Fn(&Value) -> bool) -> Value {
        loop {
            let (of, observation) = self.observed();
            if of == source && matches(&observation) {
                return observation;
            }
        }
    }

    /// Waits for the addresses of a source, as `IP OBJECT`, and checks that they are these.
    pub(crate) fn assert_addresses(&mut self, source: &str, expected: &[&str]) {
        let observation = self.until(source, |observation| observation.get("addresses").is_some());
        assert_eq!(addresses(&observation), expected, "{source}");
        assert_eq!(observation["addresses"]["evidence"], "list");
    }

    /// Waits until a source has these addresses.
    pub(crate) fn await_addresses(&mut self, source: &str, expected: &[&str]) {
        self.until(source, |observation| observation.get("addresses").is_some() && addresses(observation) == expected);
    }

    /// The error of the next failure of a source.
    pub(crate) fn failure(&mut self, source: &str) -> String {
        let observation = self.until(source, |observation| observation.get("failed").is_some());
        observation["failed"]["error"].as_str().unwrap().to_owned()
    }

    /// A line of /proc/PID/FILE that begins with this.
    pub(crate) fn proc(&self, file: &str, begin: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.process.0.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(begin)).unwrap_or_else(|| panic!("{begin}: {text}"));
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

pub(crate) fn addresses(observation: &Value) -> Vec<String> {
    let list = observation["addresses"]["addresses"].as_array().unwrap().iter();
    list.map(|one| format!("{} {}", one["ip"].as_str().unwrap(), one["object"].as_str().unwrap())).collect()
}

/// Sends a message to an agent.
pub(crate) fn send(stream: &mut UnixStream, message: &Value) {
    let body = message.to_string();
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    stream.write_all(&[&length, body.as_bytes()].concat()).expect("the agent reads");
}

/// The next message of an agent; `None` at its end.
pub(crate) fn receive(stream: &mut UnixStream) -> Option<Value> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut body = vec![0; u32::from_be_bytes(length).try_into().expect("it fits")];
    stream.read_exact(&mut body).ok()?;
    let text = String::from_utf8(body).expect("messages are UTF-8");
    assert!(!text.contains(SECRET), "a token is in {text}");
    Some(serde_json::from_str(&text).expect("messages are JSON"))
}
