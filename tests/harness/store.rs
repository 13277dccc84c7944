//! An agent with a store, driven by the tests in the place of `portcullis run`.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::WAIT_TIMEOUT;
use super::agent::{Agent, receive, send};
use super::log::Log;
use super::program::Running;

/// The agent. What it reports of the store is kept until a test asks for it.
#[derive(Debug)]
pub(crate) struct StoreAgent {
    pub(crate) process: Running,
    pub(crate) errors: Log,
    stream: UnixStream,
    messages: mpsc::Receiver<Value>,
    events: VecDeque<Value>,
    number: u64,
}

/// A complete listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) keys: BTreeMap<String, String>,
    pub(crate) cluster: String,
    pub(crate) revision: u64,
}

impl StoreAgent {
    pub(crate) fn start(store: &Value) -> Self {
        let Agent { process, stream: mut messages, errors, .. } = Agent::start();
        messages.set_read_timeout(None).unwrap();
        let stream = messages.try_clone().unwrap();
        let (sender, received) = mpsc::channel();
        thread::spawn(move || {
            while let Some(message) = receive(&mut messages) {
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut agent = Self { process, errors, stream, messages: received, events: VecDeque::new(), number: 0 };
        agent.use_store(store);
        agent
    }

    pub(crate) fn use_store(&mut self, store: &Value) {
        let task = json!({ "digitalocean": null, "kubernetes": null, "sources": [], "store": store });
        send(&mut self.stream, &json!({ "task": task }));
    }

    /// Performs an operation. It has to be answered before the program would give up.
    pub(crate) fn perform(&mut self, operation: &Value) -> Value {
        let number = self.request(operation);
        let asked = Instant::now();
        let outcome = self.reply(number);
        assert!(asked.elapsed() < OPERATION_LIMIT, "{operation}: {:?}", asked.elapsed());
        outcome
    }

    /// Sends an operation, and returns its number.
    pub(crate) fn request(&mut self, operation: &Value) -> u64 {
        self.number += 1;
        send(&mut self.stream, &json!({ "store": { "number": self.number, "operation": operation } }));
        self.number
    }

    /// The answer to the oldest operation that has none.
    pub(crate) fn reply(&mut self, number: u64) -> Value {
        loop {
            let mut message = self.messages.recv_timeout(WAIT_TIMEOUT).expect("the agent answers");
            if let Some(event) = message.get_mut("store_news") {
                self.events.push_back(event.take());
            } else {
                assert_eq!(message["store_reply"]["number"], number, "{message}");
                return message["store_reply"]["outcome"].take();
            }
        }
    }

    /// The next event.
    pub(crate) fn event(&mut self) -> Value {
        self.event_within(WAIT_TIMEOUT).expect("an event comes")
    }

    pub(crate) fn event_within(&mut self, time: Duration) -> Option<Value> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        let mut message = self.messages.recv_timeout(time).ok()?;
        Some(message.get_mut("store_news").unwrap_or_else(|| panic!("an answer that nobody waits for")).take())
    }

    /// The next complete listing. What comes before is left out.
    pub(crate) fn listed(&mut self) -> Listed {
        while self.event() != "listing" {}
        self.rest_of_listing()
    }

    fn rest_of_listing(&mut self) -> Listed {
        let mut keys = BTreeMap::new();
        loop {
            let event = self.event();
            if let Some(changed) = event.get("changed") {
                let text = |name: &str| changed[name].as_str().expect("a listing has values").to_owned();
                assert_eq!(keys.insert(text("key"), text("value")), None, "{changed} twice");
            } else if event == "listing" {
                keys.clear();
            } else {
                let synced = event.get("synced").unwrap_or_else(|| panic!("{event} in a listing"));
                let cluster = synced["cluster"].as_str().unwrap().to_owned();
                return Listed { keys, cluster, revision: synced["revision"].as_u64().unwrap() };
            }
        }
    }

    /// Waits until the store has been reported as down, and returns the error.
    pub(crate) fn down(&mut self) -> String {
        loop {
            if let Some(down) = self.event().get("down") {
                return down["error"].as_str().unwrap().to_owned();
            }
        }
    }

    /// Waits until a key has this value, and returns all events until then.
    pub(crate) fn until(&mut self, key: &str, value: Option<&str>) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let event = self.event();
            let found = event["changed"]["key"] == key && event["changed"]["value"] == json!(value);
            events.push(event);
            if found {
                return events;
            }
        }
    }

    /// The next event, which has to be the change of a key to this value. Returns its version.
    pub(crate) fn changed(&mut self, key: &str, value: Option<&str>) -> String {
        loop {
            let event = self.event();
            if event.get("synced").is_none() {
                assert_eq!(
                    (&event["changed"]["key"], &event["changed"]["value"]),
                    (&json!(key), &json!(value)),
                    "{event}"
                );
                return event["changed"]["version"].as_str().unwrap().to_owned();
            }
        }
    }

    pub(crate) fn put(&mut self, key: &str, value: &str, expected: &Value) -> Value {
        self.perform(&json!({ "put": { "key": key, "value": value, "expected": expected, "seconds": null } }))
    }

    pub(crate) fn put_for(&mut self, key: &str, value: &str, seconds: u32) -> Value {
        self.perform(&json!({ "put": { "key": key, "value": value, "expected": "any", "seconds": seconds } }))
    }

    pub(crate) fn hold(&mut self, key: &str, value: &str, seconds: u32) -> Value {
        self.perform(&json!({ "hold": { "key": key, "value": value, "seconds": seconds } }))
    }

    pub(crate) fn delete(&mut self, key: &str, expected: &Value) -> Value {
        self.perform(&json!({ "delete": { "key": key, "expected": expected } }))
    }

    /// The values of keys, in the order of the answer.
    pub(crate) fn get(&mut self, keys: &[&str]) -> BTreeMap<String, String> {
        entries(&self.perform(&json!({ "get": { "keys": keys } })))
    }

    pub(crate) fn list(&mut self, prefix: &str) -> BTreeMap<String, String> {
        entries(&self.perform(&json!({ "list": { "prefix": prefix } })))
    }
}

/// The entries of an answer.
pub(crate) fn entries(outcome: &Value) -> BTreeMap<String, String> {
    let entries = outcome["entries"].as_array().unwrap_or_else(|| panic!("{outcome}")).iter();
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
    entries.map(|entry| (text(entry, "key"), text(entry, "value"))).collect()
}

/// The version of an operation that was done.
pub(crate) fn version(outcome: &Value) -> String {
    outcome["done"]["version"].as_str().unwrap_or_else(|| panic!("{outcome}")).to_owned()
}

/// The error of an operation that failed.
pub(crate) fn failure(outcome: &Value) -> String {
    outcome["failed"]["error"].as_str().unwrap_or_else(|| panic!("{outcome}")).to_owned()
}

/// Keys with their values.
pub(crate) fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// The program waits for 5 seconds.
const OPERATION_LIMIT: Duration = Duration::from_secs(5);
