//! Routing of requests. Unknown parameters are rejected: a misspelt `plan` must not cause a reload.

use std::path::PathBuf;

use hyper::{Method, Uri};
use serde_json::{Map, Value, json};

use crate::control::response::{AdminResponse, Status};
use crate::control::{AdminRequest, parameters, request};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The list of paths.
    Paths,
    /// A request to the owner of the state.
    Request(AdminRequest),
    /// The sessions of one listener.
    SessionsOf(String),
}

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

/// Routes a request.
///
/// # Errors
/// The error response, with status 404, 405, 414 or 422.
pub(crate) fn route(method: &Method, target: &Uri, body: &[u8]) -> Result<Route, AdminResponse> {
    let length = target.path_and_query().map_or(0, |target| target.as_str().len());
    if length > MAX_TARGET {
        let message = format_args!("the target has {length} bytes; the limit is {MAX_TARGET}");
        return Err(AdminResponse::error(Status::TargetTooLong, "target_too_long", message));
    }
    let path = target.path();
    let resource = Resource::find(path).ok_or_else(|| {
        AdminResponse::error(
            Status::NotFound,
            "path_not_found",
            format_args!("unknown path {path}; GET / lists all paths"),
        )
    })?;
    if !resource.methods().contains(method) {
        let message = format_args!("{path} supports {}, not {method}", join_methods(resource.methods(), " or "));
        return Err(AdminResponse::error(Status::MethodNotAllowed, "method_not_allowed", message));
    }
    resource.route(method, target.query().unwrap_or(""), body)
}

/// The methods of a path, in the form of the `Allow` header.
pub(crate) fn allowed_methods(path: &str) -> Option<String> {
    Resource::find(path).map(|resource| join_methods(resource.methods(), ", "))
}

fn join_methods(methods: &[Method], separator: &str) -> String {
    methods.iter().map(Method::as_str).collect::<Vec<_>>().join(separator)
}

/// The response to `GET /`.
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

    fn route(self, method: &Method, query: &str, body: &[u8]) -> Result<Route, AdminResponse> {
        let known: &[&str] = match self {
            Self::Sessions => &["listener"],
            Self::Reload => &["plan"],
            Self::Paths | Self::Status | Self::Rotation | Self::Session(_) => &[],
            Self::Explain => return request::read(method, query, body).map(Route::Request),
        };
        let parameter = parameters::parse(query, known)?.into_values().next();
        let parameter = parameter.as_deref();
        match self {
            Self::Paths | Self::Explain => Ok(Route::Paths),
            Self::Status => Ok(Route::Request(AdminRequest::Status)),
            Self::Rotation => Ok(Route::Request(AdminRequest::Rotation)),
            Self::Sessions => {
                Ok(parameter.map_or(Route::Request(AdminRequest::Sessions), |name| Route::SessionsOf(name.to_owned())))
            }
            Self::Session(id) => Ok(Route::Request(AdminRequest::CloseSession(id))),
            Self::Reload => reload(parameter, body).map(Route::Request),
        }
    }
}

fn reload(plan: Option<&str>, body: &[u8]) -> Result<AdminRequest, AdminResponse> {
    let file = file_of(body)?;
    match (plan, file) {
        (Some("true"), file) => Ok(AdminRequest::Plan { file }),
        (None | Some("false"), None) => Ok(AdminRequest::Reload),
        (None | Some("false"), Some(_)) => {
            Err(invalid("a reload always applies the running configuration; \"file\" requires ?plan=true"))
        }
        (Some(other), _) => Err(invalid(&format!("plan is {other:?}; it must be true or false"))),
    }
}

/// The configuration file in the body of a plan.
fn file_of(body: &[u8]) -> Result<Option<PathBuf>, AdminResponse> {
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    let fields: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| invalid(&format!("the body is not a JSON object: {error}")))?;
    if let Some(key) = fields.keys().find(|key| *key != "file") {
        return Err(invalid(&format!("unknown field {key:?}; allowed: \"file\"")));
    }
    match fields.get("file") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(path)) if path.starts_with('/') => Ok(Some(path.into())),
        Some(other) => Err(invalid(&format!("file is {other}; it must be an absolute path"))),
    }
}

pub(crate) fn invalid(message: &str) -> AdminResponse {
    AdminResponse::error(Status::Unprocessable, "request_invalid", message)
}

const PATHS: [(&str, &str, &str); 10] = [
    ("GET", "/", "this list"),
    ("GET", "/v1/status", "the state of the program, its listeners and its last reload"),
    ("GET", "/v1/rotation", "certificates, CAs and sources with their use"),
    ("GET", "/v1/sessions", "the sessions"),
    ("GET", "/v1/sessions?listener=NAME", "the sessions of one listener"),
    ("DELETE", "/v1/sessions/{id}", "closes a session"),
    ("POST", "/v1/reload", "reloads the configuration, completely or not at all"),
    (
        "POST",
        "/v1/reload?plan=true",
        "shows what a reload would change; {\"file\": \"/path\"} selects another configuration",
    ),
    ("GET", "/v1/explain?listener=NAME&source=IP", "explains step by step whether a connection would be admitted"),
    ("POST", "/v1/explain", "the same for {\"listener\", \"source\", \"client_certificate\"}; the certificate is PEM"),
];

/// Bytes; longer than any valid target.
const MAX_TARGET: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(method: Method, target: &str, body: &str) -> Result<Route, (u16, String)> {
        let routed = route(&method, &target.parse().unwrap(), body.as_bytes());
        routed.map_err(|error| (error.status.code(), error.body["message"].as_str().unwrap().to_owned()))
    }

    #[test]
    fn each_path_is_routed_to_its_request() {
        let request = |request| Ok(Route::Request(request));
        assert_eq!(routed(Method::GET, "/", ""), Ok(Route::Paths));
        assert_eq!(routed(Method::GET, "/v1/status", ""), request(AdminRequest::Status));
        assert_eq!(routed(Method::GET, "/v1/rotation", ""), request(AdminRequest::Rotation));
        assert_eq!(routed(Method::GET, "/v1/sessions", ""), request(AdminRequest::Sessions));
        assert_eq!(routed(Method::GET, "/v1/sessions?listener=db", ""), Ok(Route::SessionsOf("db".to_owned())));
        assert_eq!(routed(Method::DELETE, "/v1/sessions/7", ""), request(AdminRequest::CloseSession(7)));
        for (target, body) in [("/v1/reload", ""), ("/v1/reload?plan=false", " \n"), ("/v1/reload", "{}")] {
            assert_eq!(routed(Method::POST, target, body), request(AdminRequest::Reload), "{target} {body}");
        }
        let plan = |file: Option<&str>| request(AdminRequest::Plan { file: file.map(PathBuf::from) });
        assert_eq!(routed(Method::POST, "/v1/reload?plan=true", ""), plan(None));
        assert_eq!(routed(Method::POST, "/v1/reload?plan=true", r#"{"file": null}"#), plan(None));
        assert_eq!(routed(Method::POST, "/v1/reload?plan=true", r#"{"file": "/a b"}"#), plan(Some("/a b")));
    }

    #[test]
    fn invalid_request_is_rejected() {
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
            let (code, message) = routed(method, target, body).unwrap_err();
            assert_eq!(code, status, "{target}: {message}");
            assert!(message.contains(word), "{target}: {message}");
        }
    }

    #[test]
    fn listed_paths_exist() {
        for (method, path, _) in PATHS {
            let path = path.replace("{id}", "1").replace("NAME", "db");
            let (path, _) = path.split_once('?').unwrap_or((&path, ""));
            assert!(allowed_methods(path).unwrap().split(", ").any(|allowed| allowed == method), "{path}");
        }
    }
}
