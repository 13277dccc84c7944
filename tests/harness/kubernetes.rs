//! A Kubernetes API server for the tests, over TLS: lists with pages, watches with bookmarks, label selectors, a token, and the
//! faults of real servers. It answers as kube-apiserver 1.33 does, for nodes, pods and EndpointSlices; and for namespaces,
//! ConfigMaps, Secrets and Leases, which can be created, replaced and deleted.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::TestDir;

/// The server. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct KubernetesApi {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The version of the newest change.
    version: u64,
    /// By collection, such as `/api/v1/nodes`, and name.
    objects: BTreeMap<(String, String), Value>,
    history: Vec<Change>,
    /// Changes up to this version are forgotten.
    compacted: u64,
    token: Option<String>,
    /// An answer in the place of each list, or watch.
    lists: Option<Answer>,
    watches: Option<Answer>,
    /// An answer in the place of each list of a collection, and none of a single object.
    collections: Option<Answer>,
    /// An answer in the place of each write, which is not performed.
    writes: Option<Answer>,
    /// Open watches send nothing.
    is_frozen: bool,
    /// A watch from a later version than the newest is an error, else it waits.
    rejects_future_versions: bool,
    /// Watches that began before a change of this number are cut.
    epoch: u64,
    requests: Vec<Seen>,
    has_ended: bool,
}

#[derive(Debug, Clone)]
struct Change {
    version: u64,
    collection: String,
    before: Option<Value>,
    /// `None` if it was deleted.
    after: Option<Value>,
}

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) authorization: Option<String>,
    pub(crate) body: String,
}

impl Seen {
    /// Whether one object is read, or any is written.
    fn is_single(&self) -> bool {
        self.method != "GET" || kind(&self.path).is_none()
    }

    fn is_write(&self) -> bool {
        self.method != "GET"
    }

    pub(crate) fn is_watch(&self) -> bool {
        self.query.get("watch").is_some_and(|watch| watch == "true" || watch == "1")
    }
}

/// An answer that the server would not give by itself.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    status: u16,
    headers: String,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    Whole(String),
    /// This text again and again.
    Endless(String),
    /// Nothing follows, and the connection stays open.
    Silence,
    /// No answer at all, and the connection stays open.
    NoAnswer,
}

impl Answer {
    /// A `Status` with this code.
    pub(crate) fn error(code: u16, message: &str) -> Self {
        let body = status(code, "Failure", message).to_string();
        Self { status: code, headers: String::new(), body: Body::Whole(body) }
    }

    /// A body with the status 200.
    pub(crate) fn text(body: &str) -> Self {
        Self { status: 200, headers: String::new(), body: Body::Whole(body.to_owned()) }
    }

    /// A body that never ends.
    pub(crate) fn endless(unit: &str) -> Self {
        Self { status: 200, headers: String::new(), body: Body::Endless(unit.to_owned()) }
    }

    /// The head of an answer, then silence.
    pub(crate) fn silence() -> Self {
        Self { status: 200, headers: String::new(), body: Body::Silence }
    }

    /// The request is read and not answered.
    pub(crate) fn none() -> Self {
        Self { status: 0, headers: String::new(), body: Body::NoAnswer }
    }

    pub(crate) fn with(mut self, status: u16, headers: &str) -> Self {
        (self.status, self.headers) = (status, headers.to_owned());
        self
    }
}

/// All objects and versions at a time, as in a backup of etcd.
#[derive(Debug, Clone)]
pub(crate) struct Backup {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
}

impl KubernetesApi {
    /// Starts a server with a certificate of the test's authority.
    pub(crate) fn start(site: &TestDir) -> Self {
        let leaf = site.server();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has all versions")
            .with_no_client_auth()
            .with_single_cert(leaf.path(), leaf.key_der())
            .expect("the certificate fits its key");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("a listening socket has an address");
        let shared = Arc::new(Shared::default());
        shared.lock().version = 1000;
        let (accepting, config) = (Arc::clone(&shared), Arc::new(config));
        thread::spawn(move || {
            for socket in listener.incoming() {
                if accepting.lock().has_ended {
                    return;
                }
                let Ok(socket) = socket else { continue };
                let (shared, config) = (Arc::clone(&accepting), Arc::clone(&config));
                // An error means that the client has gone.
                thread::spawn(move || serve(&shared, socket, config).ok());
            }
        });
        Self { address, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.shared.lock());
        self.shared.changed.notify_all();
        changed
    }

    /// Requires a token from now on.
    pub(crate) fn require_token(&self, token: &str) {
        self.change(|state| state.token = Some(token.to_owned()));
    }

    /// Creates or replaces an object.
    pub(crate) fn put(&self, object: &Value) {
        let mut object = object.clone();
        self.change(|state| {
            state.version += 1;
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            let (collection, name) = key(&object);
            let before = state.objects.insert((collection.clone(), name), object.clone());
            state.history.push(Change { version: state.version, collection, before, after: Some(object) });
        });
    }

    pub(crate) fn delete(&self, object: &Value) {
        let (collection, name) = key(object);
        self.change(|state| {
            state.version += 1;
            let before = state.objects.remove(&(collection.clone(), name)).expect("the object exists");
            state.history.push(Change { version: state.version, collection, before: Some(before), after: None });
        });
    }

    /// Forgets the history, and cuts the open watches, so that they have to begin at a forgotten version.
    pub(crate) fn compact(&self) {
        self.change(|state| {
            state.version += 10;
            (state.compacted, state.epoch) = (state.version, state.epoch + 1);
            state.history.clear();
        });
    }

    /// Cuts all open watches.
    pub(crate) fn cut_watches(&self) {
        self.change(|state| state.epoch += 1);
    }

    pub(crate) fn answer_lists(&self, answer: Option<Answer>) {
        self.change(|state| state.lists = answer);
    }

    /// Answers lists of collections, and no reads of single objects.
    pub(crate) fn answer_collections(&self, answer: Option<Answer>) {
        self.change(|state| state.collections = answer);
    }

    /// Answers writes, and does not perform them.
    pub(crate) fn answer_writes(&self, answer: Option<Answer>) {
        self.change(|state| state.writes = answer);
    }

    /// Answers new watches, and cuts the open ones.
    pub(crate) fn answer_watches(&self, answer: Option<Answer>) {
        self.change(|state| (state.watches, state.epoch) = (answer, state.epoch + 1));
    }

    /// The network is partitioned: connections stay open, and nothing is answered.
    pub(crate) fn partition(&self, is_frozen: bool) {
        let answer = is_frozen.then(Answer::none);
        self.change(|state| (state.is_frozen, state.lists, state.watches) = (is_frozen, answer.clone(), answer));
    }

    /// All objects of a kind.
    pub(crate) fn objects(&self, plural: &str) -> Vec<Value> {
        let state = self.shared.lock();
        let of_kind = state.objects.iter().filter(|((collection, _), _)| collection.ends_with(plural));
        of_kind.map(|(_, object)| object.clone()).collect()
    }

    pub(crate) fn backup(&self) -> Backup {
        let state = self.shared.lock();
        Backup { version: state.version, objects: state.objects.clone() }
    }

    /// Restores a backup. Watches from later versions are rejected, or wait and get bookmarks of earlier versions
    /// (kubernetes #107457).
    pub(crate) fn restore(&self, backup: Backup, rejects_future_versions: bool) {
        self.change(|state| {
            (state.version, state.objects) = (backup.version, backup.objects);
            state.history.retain(|change| change.version <= state.version);
            (state.rejects_future_versions, state.epoch) = (rejects_future_versions, state.epoch + 1);
        });
    }

    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.shared.lock().requests.clone()
    }
}

impl Drop for KubernetesApi {
    fn drop(&mut self) {
        self.change(|state| state.has_ended = true);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panicked")
    }

    /// Waits until the server ends.
    fn keep_open(&self) {
        let mut state = self.lock();
        while !state.has_ended {
            state = self.changed.wait(state).expect("no thread panicked");
        }
    }
}

/// The collection and the name of an object.
fn key(object: &Value) -> (String, String) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).expect("the object is complete");
    let collection = match text("/kind") {
        "Node" => "/api/v1/nodes".to_owned(),
        "Pod" => format!("/api/v1/namespaces/{}/pods", text("/metadata/namespace")),
        "Namespace" => "/api/v1/namespaces".to_owned(),
        "ConfigMap" => format!("/api/v1/namespaces/{}/configmaps", text("/metadata/namespace")),
        "Secret" => format!("/api/v1/namespaces/{}/secrets", text("/metadata/namespace")),
        "Lease" => format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", text("/metadata/namespace")),
        "EndpointSlice" => {
            format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", text("/metadata/namespace"))
        }
        kind => panic!("{kind} is not supported"),
    };
    (collection, text("/metadata/name").to_owned())
}

/// The apiVersion and the kind of a collection's objects.
fn kind(collection: &str) -> Option<(&'static str, &'static str)> {
    match collection.rsplit('/').next()? {
        "nodes" => Some(("v1", "Node")),
        "pods" => Some(("v1", "Pod")),
        "namespaces" => Some(("v1", "Namespace")),
        "configmaps" => Some(("v1", "ConfigMap")),
        "secrets" => Some(("v1", "Secret")),
        "leases" => Some(("coordination.k8s.io/v1", "Lease")),
        "endpointslices" => Some(("discovery.k8s.io/v1", "EndpointSlice")),
        _ => None,
    }
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": reason, "code": code })
}

type Stream = BufReader<StreamOwned<ServerConnection, TcpStream>>;

fn serve(shared: &Shared, socket: TcpStream, config: Arc<ServerConfig>) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, socket));
    while let Some(seen) = request(&mut stream)? {
        let (answer, is_authorized) = {
            let mut state = shared.lock();
            state.requests.push(seen.clone());
            let is_authorized =
                state.token.as_ref().is_none_or(|token| seen.authorization == Some(format!("Bearer {token}")));
            let answer = match &seen {
                seen if seen.is_watch() => state.watches.clone(),
                seen if seen.is_write() => state.writes.clone().or_else(|| state.lists.clone()),
                seen if seen.is_single() => state.lists.clone(),
                _ => state.collections.clone().or_else(|| state.lists.clone()),
            };
            (answer, is_authorized)
        };
        if let Some(answer) = answer {
            send_answer(shared, &mut stream, answer)?;
        } else if !is_authorized {
            send(&mut stream, 401, "", &status(401, "Unauthorized", "Unauthorized").to_string())?;
        } else if seen.is_single() {
            let (code, body) = single(&mut shared.lock(), &seen);
            shared.changed.notify_all();
            send(&mut stream, code, "", &body.to_string())?;
        } else if seen.is_watch() {
            return watch(shared, &mut stream, &seen);
        } else {
            let (code, body) = list(&shared.lock(), &seen);
            send(&mut stream, code, "", &body.to_string())?;
        }
    }
    Ok(())
}

/// Reads a request. `None` at the end of the connection.
fn request(stream: &mut Stream) -> std::io::Result<Option<Seen>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ').map(ToOwned::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (mut authorization, mut length) = (None, 0);
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => authorization = Some(value.to_owned()),
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().expect("a length is a number");
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let body = String::from_utf8(body).expect("JSON is UTF-8");
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let query = pairs.map(|(name, value)| (name.to_owned(), decoded(value))).collect();
    Ok(Some(Seen { method, path: path.to_owned(), query, authorization, body }))
}

/// Decodes a value of a query.
fn decoded(text: &str) -> String {
    let text = text.replace('+', " ");
    percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
}

fn send(stream: &mut Stream, code: u16, headers: &str, body: &str) -> std::io::Result<()> {
    let stream = stream.get_mut();
    write!(stream, "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\n{headers}")?;
    write!(stream, "Content-Length: {}\r\n\r\n{body}", body.len())?;
    stream.flush()
}

fn send_answer(shared: &Shared, stream: &mut Stream, answer: Answer) -> std::io::Result<()> {
    let Answer { status, headers, body } = answer;
    match body {
        Body::Whole(body) => return send(stream, status, &headers, &body),
        Body::NoAnswer => shared.keep_open(),
        Body::Silence => {
            head(stream, status, &headers)?;
            shared.keep_open();
        }
        Body::Endless(unit) => {
            head(stream, status, &headers)?;
            let unit = unit.repeat((1 << 16) / unit.len());
            while !shared.lock().has_ended {
                chunk(stream, &unit)?;
            }
        }
    }
    Err(std::io::ErrorKind::ConnectionAborted.into())
}

/// The head of an answer in chunks.
fn head(stream: &mut Stream, status: u16, headers: &str) -> std::io::Result<()> {
    let stream = stream.get_mut();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{headers}Transfer-Encoding: chunked\r\n\r\n"
    )?;
    stream.flush()
}

fn chunk(stream: &mut Stream, text: &str) -> std::io::Result<()> {
    let stream = stream.get_mut();
    write!(stream, "{:x}\r\n{text}\r\n", text.len())?;
    stream.flush()
}

/// Reads, creates, replaces or deletes one object.
fn single(state: &mut State, seen: &Seen) -> (u16, Value) {
    let (collection, name) = match seen.method.as_str() {
        "POST" => (seen.path.clone(), String::new()),
        _ => seen.path.rsplit_once('/').map(|(path, name)| (path.to_owned(), name.to_owned())).expect("a path"),
    };
    let Some((api_version, kind)) = kind(&collection) else {
        return (404, status(404, "NotFound", "the server could not find the requested resource"));
    };
    let plural = collection.rsplit('/').next().unwrap_or_default().to_owned();
    let not_found = || (404, status(404, "NotFound", &format!("{plural} \"{name}\" not found")));
    let current = state.objects.get(&(collection.clone(), name.clone())).cloned();
    match (seen.method.as_str(), current) {
        ("GET", Some(current)) => (200, current),
        ("POST", _) => create(state, &collection, sent(seen, api_version, kind)),
        (_, None) => not_found(),
        ("PUT", Some(current)) => {
            let mut object = sent(seen, api_version, kind);
            let version = &object["metadata"]["resourceVersion"];
            if *version != current["metadata"]["resourceVersion"] {
                let message = format!(
                    "Operation cannot be fulfilled on {plural} \"{name}\": the object has been modified; please apply your \
                     changes to the latest version and try again"
                );
                return (409, status(409, "Conflict", &message));
            }
            object["metadata"]["uid"] = current["metadata"]["uid"].clone();
            object["metadata"]["creationTimestamp"] = current["metadata"]["creationTimestamp"].clone();
            if object == current {
                // The API server writes nothing, and the object keeps its version.
                return (200, object);
            }
            (200, store(state, collection, name, Some(object)))
        }
        ("DELETE", Some(current)) => {
            let options: Value = serde_json::from_str(&seen.body).unwrap_or_default();
            for field in ["resourceVersion", "uid"] {
                let expected = &options["preconditions"][field];
                if !expected.is_null() && *expected != current["metadata"][field] {
                    let message = format!("Precondition failed: {field} in precondition: {expected}");
                    return (409, status(409, "Conflict", &message));
                }
            }
            store(state, collection, name, None);
            (200, json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" }))
        }
        (method, _) => panic!("{method} is not supported"),
    }
}

/// The object in the body of a request.
fn sent(seen: &Seen, api_version: &str, kind: &str) -> Value {
    let object: Value = serde_json::from_str(&seen.body).expect("the body is JSON");
    assert_eq!((object["apiVersion"].as_str(), object["kind"].as_str()), (Some(api_version), Some(kind)));
    object
}

fn create(state: &mut State, collection: &str, mut object: Value) -> (u16, Value) {
    let name = object["metadata"]["name"].as_str().expect("an object has a name").to_owned();
    let is_valid = |sign: char| sign.is_ascii_lowercase() || sign.is_ascii_digit() || matches!(sign, '-' | '.');
    if name.len() > 253 || !name.chars().all(is_valid) {
        return (422, status(422, "Invalid", &format!("metadata.name: Invalid value: \"{name}\"")));
    }
    if !object["metadata"]["resourceVersion"].is_null() {
        return (400, status(400, "BadRequest", "resourceVersion should not be set on objects to be created"));
    }
    if state.objects.contains_key(&(collection.to_owned(), name.clone())) {
        return (409, status(409, "AlreadyExists", &format!("\"{name}\" already exists")));
    }
    object["metadata"]["uid"] = json!(format!("uid-{}", state.version));
    object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    (201, store(state, collection.to_owned(), name, Some(object)))
}

/// Writes or deletes an object, which watches then report.
fn store(state: &mut State, collection: String, name: String, after: Option<Value>) -> Value {
    state.version += 1;
    let version = state.version;
    let place = (collection.clone(), name);
    let after = after.map(|mut object| {
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        object
    });
    let before = match &after {
        Some(object) => state.objects.insert(place, object.clone()),
        None => state.objects.remove(&place),
    };
    state.history.push(Change { version, collection, before, after: after.clone() });
    after.unwrap_or_default()
}

/// The page of a list. The continue token names the version of the first page and the last object.
fn list(state: &State, seen: &Seen) -> (u16, Value) {
    let Some((api_version, kind)) = kind(&seen.path) else {
        return (404, status(404, "NotFound", "the server could not find the requested resource"));
    };
    let (mut version, mut after) = (state.version, String::new());
    if let Some(token) = seen.query.get("continue") {
        let (of, name) = token.split_once('/').expect("a token of this server");
        (version, after) = (of.parse().expect("a token of this server"), name.to_owned());
        if version < state.compacted {
            return (410, status(410, "Expired", "The provided continue parameter is too old"));
        }
    }
    let selector = seen.query.get("labelSelector").map_or("", String::as_str);
    let in_collection = state.objects.iter().filter(|((collection, _), _)| *collection == seen.path);
    let mut matching = in_collection.filter(|((_, name), object)| *name > after && matches(selector, object));
    let limit = seen.query.get("limit").map_or(usize::MAX, |limit| limit.parse().expect("a limit is a number"));
    let page: Vec<_> = matching.by_ref().take(limit).map(|((_, name), object)| (name, object)).collect();
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if let (remaining @ 1.., Some((last, _))) = (matching.count(), page.last()) {
        metadata["continue"] = json!(format!("{version}/{last}"));
        metadata["remainingItemCount"] = json!(remaining);
    }
    let items: Vec<_> = page.into_iter().map(|(_, object)| object).collect();
    (200, json!({ "kind": format!("{kind}List"), "apiVersion": api_version, "metadata": metadata, "items": items }))
}

/// Sends events until the time of the request is over or the watch is cut.
fn watch(shared: &Shared, stream: &mut Stream, seen: &Seen) -> std::io::Result<()> {
    let number = |name: &str| seen.query.get(name).and_then(|value| value.parse::<u64>().ok());
    let mut version = number("resourceVersion").expect("a watch begins at a version");
    let end = Instant::now() + Duration::from_secs(number("timeoutSeconds").unwrap_or(1800));
    let has_bookmarks = seen.query.get("allowWatchBookmarks").is_some_and(|value| value == "true");
    let Some((api_version, kind)) = kind(&seen.path) else {
        return send(stream, 404, "", &status(404, "NotFound", "the server could not find the resource").to_string());
    };
    let (epoch, compacted, newest, rejects) = {
        let state = shared.lock();
        (state.epoch, state.compacted, state.version, state.rejects_future_versions)
    };
    if version > newest && rejects {
        let message = format!("Too large resource version: {version}, current: {newest}");
        let mut body = status(504, "Timeout", &message);
        let cause = json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" });
        body["details"] = json!({ "causes": [cause], "retryAfterSeconds": 1 });
        return send(stream, 504, "", &body.to_string());
    }
    head(stream, 200, "")?;
    if version < compacted {
        let error = status(410, "Expired", &format!("too old resource version: {version} ({compacted})"));
        chunk(stream, &format!("{}\n", json!({ "type": "ERROR", "object": error })))?;
        return chunk(stream, "");
    }
    let selector = seen.query.get("labelSelector").map_or("", String::as_str);
    let mut bookmark_at = Instant::now() + BOOKMARK_INTERVAL;
    loop {
        let mut state = shared.lock();
        if state.has_ended || state.epoch != epoch {
            return Ok(());
        }
        let now = Instant::now();
        if now >= end {
            drop(state);
            return chunk(stream, "");
        }
        let next = state
            .history
            .iter()
            .filter(|change| change.collection == seen.path)
            .find(|change| change.version > version);
        let text = match next.filter(|_| !state.is_frozen) {
            Some(change) => {
                version = change.version;
                event(change, selector)
            }
            None if has_bookmarks && now >= bookmark_at && !state.is_frozen => {
                bookmark_at = now + BOOKMARK_INTERVAL;
                // A watch from a future version gets the version of now.
                let metadata = json!({ "resourceVersion": state.version.to_string(), "creationTimestamp": null });
                let object = json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata });
                Some(json!({ "type": "BOOKMARK", "object": object }))
            }
            None => {
                let wait = (if has_bookmarks && !state.is_frozen { bookmark_at.min(end) } else { end }) - now;
                state = shared.changed.wait_timeout(state, wait).expect("no thread panicked").0;
                drop(state);
                continue;
            }
        };
        drop(state);
        if let Some(text) = text {
            chunk(stream, &format!("{text}\n"))?;
        }
    }
}

/// The event of a change for a watch with a selector, which an object can begin and cease to match.
fn event(change: &Change, selector: &str) -> Option<Value> {
    let fits = |object: &Option<Value>| object.as_ref().is_some_and(|object| matches(selector, object));
    let (kind, object) = match (fits(&change.before), fits(&change.after)) {
        (false, true) => ("ADDED", &change.after),
        (true, true) => ("MODIFIED", &change.after),
        (true, false) => ("DELETED", &change.before),
        (false, false) => return None,
    };
    let mut object = object.clone()?;
    object["metadata"]["resourceVersion"] = json!(change.version.to_string());
    Some(json!({ "type": kind, "object": object }))
}

/// Whether the labels of an object match a selector: `a=b`, `a==b`, `a!=b`, `a`, `!a`, `a in (b, c)`, `a notin (b, c)`.
fn matches(selector: &str, object: &Value) -> bool {
    let label = |name: &str| object["metadata"]["labels"].get(name.trim()).and_then(Value::as_str);
    let mut depth = 0_i32;
    let requirements = selector.split(|sign: char| {
        depth += i32::from(sign == '(') - i32::from(sign == ')');
        sign == ',' && depth == 0
    });
    requirements.filter(|requirement| !requirement.trim().is_empty()).all(|requirement| {
        let within = |name: &str, values: &str| {
            let mut values = values.trim().trim_matches(['(', ')']).split(',');
            label(name).is_some_and(|label| values.any(|value| value.trim() == label))
        };
        if let Some((name, values)) = requirement.split_once(" notin ") {
            !within(name, values)
        } else if let Some((name, values)) = requirement.split_once(" in ") {
            within(name, values)
        } else if let Some((name, value)) = requirement.split_once("!=") {
            label(name) != Some(value.trim())
        } else if let Some((name, value)) = requirement.split_once('=') {
            label(name) == Some(value.trim_start_matches('=').trim())
        } else if let Some(name) = requirement.trim().strip_prefix('!') {
            label(name).is_none()
        } else {
            label(requirement).is_some()
        }
    })
}

/// A node with an InternalIP.
pub(crate) fn node(name: &str, internal: &str, labels: Value) -> Value {
    json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": name, "uid": name, "labels": labels },
            "spec": { "podCIDR": "10.244.1.0/24" },
            "status": { "addresses": [{ "type": "Hostname", "address": name }, { "type": "InternalIP", "address": internal }],
                        "capacity": { "cpu": "4", "memory": "8148260Ki" } } })
}

/// A namespace.
pub(crate) fn namespace(name: &str, uid: &str) -> Value {
    json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": { "name": name, "uid": uid } })
}

/// A running pod.
pub(crate) fn pod(namespace: &str, name: &str, ip: &str, labels: Value) -> Value {
    json!({ "kind": "Pod", "apiVersion": "v1",
            "metadata": { "name": name, "namespace": namespace, "uid": name, "labels": labels },
            "spec": { "nodeName": "worker-1", "containers": [{ "name": "web", "image": "web:1", "resources": {} }] },
            "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "hostIP": "192.0.2.10" } })
}

/// An EndpointSlice of a service whose endpoints are pods.
pub(crate) fn slice(namespace: &str, service: &str, suffix: &str, endpoints: &[(&str, &str)]) -> Value {
    let endpoint = |(pod, ip): &(&str, &str)| {
        json!({ "addresses": [ip], "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": "worker-1", "targetRef": { "kind": "Pod", "namespace": namespace, "name": pod, "uid": pod } })
    };
    json!({ "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
            "metadata": { "name": format!("{service}-{suffix}"), "namespace": namespace,
                          "labels": { "kubernetes.io/service-name": service } },
            "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": [{ "name": "", "protocol": "TCP", "port": 8080 }] })
}

/// kube-apiserver sends a bookmark about every minute. The tests wait less.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(1);

#[test]
fn selector_of_the_double_matches_like_kubernetes() {
    let object = json!({ "metadata": { "labels": { "app": "web", "tier": "front" } } });
    for selector in ["", "app=web", "app==web,tier!=back", "app", "!gpu", "app in (db, web)", "tier notin (a,b),app"] {
        assert!(matches(selector, &object), "{selector}");
    }
    for selector in ["app=db", "app!=web", "gpu", "!app", "app in (db)", "gpu in (a)", "app notin (web)"] {
        assert!(!matches(selector, &object), "{selector}");
    }
    assert!(matches("gpu!=a,gpu notin (a)", &object), "a missing label is not equal");
}
