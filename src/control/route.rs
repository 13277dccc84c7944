//! What a request asks for. Nothing in it is ignored: a misspelt parameter must not turn a plan into a reload.

use std::path::PathBuf;

use hyper::{Method, Uri};
use serde_json::{Map, Value, json};

use crate::control::response::{AdminResponse, Status};
use crate::control::{AdminRequest, parameters, request};

/// A request that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The list of paths.
    Paths,
    /// Something that the owner of the state answers.
    Ask(AdminRequest),
    /// The sessions of one listener.
    SessionsOf(String),
}

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Paths,
    Status,
    Rotation,
    Sessions,
    Session(u64),
    Reload,
    Explain,
}

/// Understands a request.
///
/// # Errors
/// The answer that says what is wrong with it.
pub(crate) fn route(method: &Method, target: &Uri, body: &[u8]) -> Result<Wanted, AdminResponse> {
    let length = target.path_and_query().map_or(0, |target| target.as_str().len());
    if length > MAX_TARGET {
        let message = format_args!("the target has {length} bytes, and may have {MAX_TARGET}");
        return Err(AdminResponse::error(Status::TargetTooLong, "target_too_long", message));
    }
    let path = target.path();
    let resource = Resource::find(path).ok_or_else(|| {
        AdminResponse::error(
            Status::NotFound,
            "path_not_found",
            format_args!("there is no {path}; GET / lists what there is"),
        )
    })?;
    if !resource.methods().contains(method) {
        let message = format_args!("{path} takes {}, not {method}", listed(resource.methods(), " or "));
        return Err(AdminResponse::error(Status::MethodNotAllowed, "method_not_allowed", message));
    }
    resource.wanted(method, target.query().unwrap_or(""), body)
}

/// With which methods a path is asked for, as the header `Allow` has them.
pub(crate) fn allowed(path: &str) -> Option<String> {
    Resource::find(path).map(|resource| listed(resource.methods(), ", "))
}

fn listed(methods: &[Method], separator: &str) -> String {
    methods.iter().map(Method::as_str).collect::<Vec<_>>().join(separator)
}

/// The answer to `GET /`.
pub(crate) fn paths() -> Value {
    let path = |(method, path, does): &(&str, &str, &str)| json!({ "method": method, "path": path, "does": does });
    json!({ "paths": PATHS.iter().map(path).collect::<Vec<_>>() })
}

impl Resource {
    fn find(path: &str) -> Option<Self> {
        match path {
            "/" => Some(Self::Paths),
            "/v1/status" => Some(Self::Status),
            "/v1/rotation" => Some(Self::Rotation),
            "/v1/sessions" => Some(Self::Sessions),
            "/v1/reload" => Some(Self::Reload),
            "/v1/explain" => Some(Self::Explain),
            _ => path.strip_prefix("/v1/sessions/").and_then(|id| id.parse().ok()).map(Self::Session),
        }
    }

    const fn methods(self) -> &'static [Method] {
        match self {
            Self::Paths | Self::Status | Self::Rotation | Self::Sessions => &[Method::GET],
            Self::Session(_) => &[Method::DELETE],
            Self::Reload => &[Method::POST],
            Self::Explain => &[Method::GET, Method::POST],
        }
    }

    fn wanted(self, method: &Method, query: &str, body: &[u8]) -> Result<Wanted, AdminResponse> {
        let known: &[&str] = match self {
            Self::Sessions => &["listener"],
            Self::Reload => &["plan"],
            Self::Paths | Self::Status | Self::Rotation | Self::Session(_) => &[],
            Self::Explain => return request::read(method, query, body).map(Wanted::Ask),
        };
        let parameter = parameters::parse(query, known)?.into_values().next();
        let parameter = parameter.as_deref();
        match self {
            Self::Paths | Self::Explain => Ok(Wanted::Paths),
            Self::Status => Ok(Wanted::Ask(AdminRequest::Status)),
            Self::Rotation => Ok(Wanted::Ask(AdminRequest::Rotation)),
            Self::Sessions => {
                Ok(parameter.map_or(Wanted::Ask(AdminRequest::Sessions), |name| Wanted::SessionsOf(name.to_owned())))
            }
            Self::Session(id) => Ok(Wanted::Ask(AdminRequest::CloseSession(id))),
            Self::Reload => reload(parameter, body).map(Wanted::Ask),
        }
    }
}

fn reload(plan: Option<&str>, body: &[u8]) -> Result<AdminRequest, AdminResponse> {
    let file = file_of(body)?;
    match (plan, file) {
        (Some("true"), file) => Ok(AdminRequest::Plan { file }),
        (None | Some("false"), None) => Ok(AdminRequest::Reload),
        (None | Some("false"), Some(_)) => {
            Err(invalid("a reload applies the program's own configuration; \"file\" goes with ?plan=true only"))
        }
        (Some(other), _) => Err(invalid(&format!("plan is {other:?}; it may be true or false"))),
    }
}

/// The configuration that the body of a plan names.
fn file_of(body: &[u8]) -> Result<Option<PathBuf>, AdminResponse> {
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    let fields: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| invalid(&format!("the body is not a JSON object: {error}")))?;
    if let Some(key) = fields.keys().find(|key| *key != "file") {
        return Err(invalid(&format!("the body has {key:?}; it may have \"file\" only")));
    }
    match fields.get("file") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(path)) if path.starts_with('/') => Ok(Some(path.into())),
        Some(other) => Err(invalid(&format!("file is {other}; it has to be an absolute path"))),
    }
}

pub(crate) fn invalid(message: &str) -> AdminResponse {
    AdminResponse::error(Status::Unprocessable, "request_invalid", message)
}

const PATHS: [(&str, &str, &str); 10] = [
    ("GET", "/", "this list"),
    ("GET", "/v1/status", "how the program is, what it serves, and what became of the last reload"),
    ("GET", "/v1/rotation", "which certificates and sources are in use, and by whom"),
    ("GET", "/v1/sessions", "the open sessions"),
    ("GET", "/v1/sessions?listener=NAME", "those of one listener"),
    ("DELETE", "/v1/sessions/{id}", "ends a session"),
    ("POST", "/v1/reload", "reads everything anew and puts it in force, whole or not at all"),
    (
        "POST",
        "/v1/reload?plan=true",
        "says what that would change; {\"file\": \"/path\"} asks about another configuration",
    ),
    ("GET", "/v1/explain?listener=NAME&source=IP", "says step by step whether a connection would be admitted"),
    ("POST", "/v1/explain", "the same for {\"listener\", \"source\", \"client_certificate\"}, the last in PEM"),
];

/// Longer than any that means something.
const MAX_TARGET: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: Method, target: &str, body: &str) -> Result<Wanted, (u16, String)> {
        let wanted = route(&method, &target.parse().unwrap(), body.as_bytes());
        wanted.map_err(|answer| (answer.status.code(), answer.body["message"].as_str().unwrap().to_owned()))
    }

    #[test]
    fn every_path_asks_for_what_it_says() {
        let ask = |ask| Ok(Wanted::Ask(ask));
        assert_eq!(asked(Method::GET, "/", ""), Ok(Wanted::Paths));
        assert_eq!(asked(Method::GET, "/v1/status", ""), ask(AdminRequest::Status));
        assert_eq!(asked(Method::GET, "/v1/rotation", ""), ask(AdminRequest::Rotation));
        assert_eq!(asked(Method::GET, "/v1/sessions", ""), ask(AdminRequest::Sessions));
        assert_eq!(asked(Method::GET, "/v1/sessions?listener=db", ""), Ok(Wanted::SessionsOf("db".to_owned())));
        assert_eq!(asked(Method::DELETE, "/v1/sessions/7", ""), ask(AdminRequest::CloseSession(7)));
        for (target, body) in [("/v1/reload", ""), ("/v1/reload?plan=false", " \n"), ("/v1/reload", "{}")] {
            assert_eq!(asked(Method::POST, target, body), ask(AdminRequest::Reload), "{target} {body}");
        }
        let plan = |file: Option<&str>| ask(AdminRequest::Plan { file: file.map(PathBuf::from) });
        assert_eq!(asked(Method::POST, "/v1/reload?plan=true", ""), plan(None));
        assert_eq!(asked(Method::POST, "/v1/reload?plan=true", r#"{"file": null}"#), plan(None));
        assert_eq!(asked(Method::POST, "/v1/reload?plan=true", r#"{"file": "/a b"}"#), plan(Some("/a b")));
    }

    #[test]
    fn nothing_is_taken_for_something_else() {
        let long = format!("/v1/status?{}", "x".repeat(MAX_TARGET));
        let cases = [
            (Method::GET, "/v2/status", "", 404, "GET /"),
            (Method::GET, "/v1/status/", "", 404, "GET /"),
            (Method::DELETE, "/v1/sessions/x", "", 404, "/v1/sessions/x"),
            (Method::DELETE, "/v1/sessions/-1", "", 404, "/v1/sessions/-1"),
            (Method::GET, "/v1/reload", "", 405, "POST"),
            (Method::POST, "/v1/status", "", 405, "GET"),
            (Method::GET, &long, "", 414, "1024"),
            (Method::GET, "/v1/status?verbose=true", "", 422, "verbose"),
            (Method::GET, "/v1/sessions?listener=a&listener=b", "", 422, "twice"),
            (Method::POST, "/v1/reload?paln=true", "", 422, "\"plan\""),
            (Method::POST, "/v1/reload?plan", "", 422, "true or false"),
            (Method::POST, "/v1/reload?plan=yes", "", 422, "true or false"),
            (Method::POST, "/v1/reload", r#"{"file": "/x"}"#, 422, "plan=true"),
            (Method::POST, "/v1/reload?plan=true", r#"{"file": "x"}"#, 422, "absolute"),
            (Method::POST, "/v1/reload?plan=true", r#"{"path": "/x"}"#, 422, "\"path\""),
            (Method::POST, "/v1/reload?plan=true", "[1]", 422, "JSON object"),
            (Method::POST, "/v1/reload?plan=true", "{", 422, "JSON object"),
        ];
        for (method, target, body, status, word) in cases {
            let (code, message) = asked(method, target, body).unwrap_err();
            assert_eq!(code, status, "{target}: {message}");
            assert!(message.contains(word), "{target}: {message}");
        }
    }

    #[test]
    fn the_list_of_paths_names_what_there_is() {
        for (method, path, _) in PATHS {
            let path = path.replace("{id}", "1").replace("NAME", "db");
            let (path, _) = path.split_once('?').unwrap_or((&path, ""));
            assert!(allowed(path).unwrap().split(", ").any(|allowed| allowed == method), "{path}");
        }
    }
}
