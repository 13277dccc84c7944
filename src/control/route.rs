//! The form of a route, and how a request finds it. [`ROUTES`] has all of them.

use hyper::header::IF_MATCH;
use hyper::{HeaderMap, Method};

use crate::control::AdminRequest;
use crate::control::error::ErrorKind;
use crate::control::parameters::{Parameters, decode};
use crate::control::response::AdminResponse;
use crate::control::routes::ROUTES;
use crate::panel::files::PanelFile;
use crate::token::Role;

/// A path and a method, with everything that is decided before the request is handled.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) method: Verb,
    /// Segments in braces match any text.
    pub(crate) path: &'static str,
    pub(crate) access: RouteAccess,
    pub(crate) body: BodyLimit,
    pub(crate) query: &'static [Parameter],
    /// What the route does, for the OpenAPI description.
    pub(crate) summary: &'static str,
    pub(crate) success: Success,
    pub(crate) parse: Parse,
}

/// Reads what a request asks for, or returns the response to an invalid one.
pub(crate) type Parse = fn(&Call<'_>) -> Result<Operation, AdminResponse>;

/// A method of HTTP that a route supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verb {
    Get,
    Post,
    Put,
    Delete,
}

impl Verb {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }
}

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteAccess {
    /// Everyone who reaches the address.
    Public,
    /// Everyone whose browser has opened the panel: its files, and signing in.
    Browser,
    /// Callers with this role or a higher one.
    Role(Role),
}

/// How large a body may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyLimit {
    Small,
    /// A list of sources.
    Sources,
}

impl BodyLimit {
    /// Bytes.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::Small => 64 << 10,
            Self::Sources => 32 << 20,
        }
    }
}

/// A parameter of the query.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
}

/// The response of a success.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Success {
    pub(crate) status: u16,
    pub(crate) content: SuccessContent,
}

/// What a success contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SuccessContent {
    Empty,
    /// A JSON object with these fields.
    Object(&'static [&'static str]),
    Events,
    /// A file of the panel, which is no part of the API.
    Page,
    /// Bytes of this type, which clients save as a file.
    File(&'static str),
}

/// A request whose route is known, and whose caller may use it.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    /// The values of the segments in braces, in order.
    pub(crate) path: Vec<String>,
    pub(crate) query: Parameters,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: &'a [u8],
}

impl Call<'_> {
    /// The value of the segment in braces with this index.
    pub(crate) fn segment(&self, index: usize) -> String {
        self.path.get(index).cloned().unwrap_or_default()
    }

    /// The tag in `If-Match`, without quotes; `None` if there is none or any matches.
    ///
    /// # Errors
    /// A 412 response for a tag of another form, which matches nothing.
    pub(crate) fn if_match(&self) -> Result<Option<String>, AdminResponse> {
        self.headers.get(IF_MATCH).map_or(Ok(None), |value| entity_tag(value.as_bytes()))
    }
}

/// The tag in `If-Match` (RFC 9110 §13.1.1); `None` for `*`.
fn entity_tag(value: &[u8]) -> Result<Option<String>, AdminResponse> {
    let text = value.trim_ascii();
    if text == b"*" {
        return Ok(None);
    }
    let tag = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\""));
    let tag = tag.filter(|tag| tag.iter().all(u8::is_ascii_alphanumeric)).and_then(|tag| std::str::from_utf8(tag).ok());
    // A tag of another form matches nothing.
    tag.map(|tag| Some(tag.to_owned()))
        .ok_or_else(|| AdminResponse::error(ErrorKind::PreconditionFailed, "If-Match must be one ETag from the list"))
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// The list of paths.
    Paths,
    /// The OpenAPI description.
    OpenApi,
    /// Leads a browser to the page of the panel.
    OpenPanel,
    PanelFile(&'static PanelFile),
    /// Opens a session of the panel for the holder of this token.
    SignIn(String),
    PanelSession(PanelSessionOperation),
    /// A request to the owner of the state.
    Request(AdminRequest),
}

/// A request about the panel session of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PanelSessionOperation {
    Show,
    SignOut,
}

/// The route of a request.
#[derive(Debug)]
pub(crate) struct FoundRoute {
    pub(crate) route: &'static Route,
    /// The values of the segments in braces, in order.
    pub(crate) path: Vec<String>,
}

/// The response to a request that is not handled.
#[derive(Debug)]
pub(crate) struct Unhandled {
    pub(crate) response: AdminResponse,
    /// For status 405, the methods of the path as in the `Allow` header.
    pub(crate) allowed: Option<String>,
}

impl From<AdminResponse> for Unhandled {
    fn from(response: AdminResponse) -> Self {
        Self { response, allowed: None }
    }
}

/// Finds the route of a request.
///
/// # Errors
/// A response with status 404 or 405.
pub(crate) fn find(method: &Method, path: &str) -> Result<FoundRoute, Unhandled> {
    let mut other_methods = Vec::new();
    for route in ROUTES {
        let Some(values) = matches(route.path, path) else { continue };
        if route.method.as_str() == method.as_str() {
            return Ok(FoundRoute { route, path: values });
        }
        other_methods.push(route.method.as_str());
    }
    if other_methods.is_empty() {
        let message = format_args!("unknown path {path}; GET / lists all paths");
        return Err(AdminResponse::error(ErrorKind::PathNotFound, message).into());
    }
    let message = format_args!("{path} supports {}, not {method}", other_methods.join(" or "));
    let response = AdminResponse::error(ErrorKind::MethodNotAllowed, message);
    Err(Unhandled { response, allowed: Some(other_methods.join(", ")) })
}

/// The segment for the files of the panel, of which the page has an empty name.
const PAGE_FILE: &str = "{file}";

/// The values of the segments in braces, if the path has the form of `pattern`.
fn matches(pattern: &str, path: &str) -> Option<Vec<String>> {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    let mut values = Vec::new();
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return Some(values),
            (Some(wanted), Some(given)) if wanted.starts_with('{') => {
                // The path of a page ends with a slash.
                let may_be_empty = wanted == PAGE_FILE;
                values.push(decode(given).filter(|value| may_be_empty || !value.is_empty())?);
            }
            (Some(wanted), Some(given)) if wanted == given => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_route_is_found_by_its_path_and_method() {
        let mut known = HashSet::new();
        for route in ROUTES {
            assert!(known.insert((route.method, route.path)), "{} is listed twice", route.path);
            let path = route.path.replace(['{', '}'], "");
            let FoundRoute { route: found, path: values } =
                find(&route.method.as_str().parse().unwrap(), &path).unwrap();
            assert_eq!((found.path, found.method), (route.path, route.method));
            assert_eq!(values.len(), route.path.matches('{').count(), "{path}");
        }
    }

    #[test]
    fn unknown_path_and_method_are_rejected() {
        for path in ["/v2/status", "/v1/status/", "//v1/status", "/v1/sessions/", "/v1/listeners/a/sources/b/c", ""] {
            let Unhandled { response, allowed } = find(&Method::GET, path).unwrap_err();
            assert_eq!((response.status.as_u16(), allowed), (404, None), "{path}");
        }
        let Unhandled { response, allowed } = find(&Method::PATCH, "/v1/listeners/a/sources").unwrap_err();
        assert_eq!((response.status.as_u16(), allowed.as_deref()), (405, Some("GET, POST, PUT")));
    }

    #[test]
    fn values_of_a_path_are_decoded() {
        let found = find(&Method::GET, "/v1/listeners/a%2Fb/sources").unwrap();
        assert_eq!(found.path, ["a/b"]);
        assert!(find(&Method::GET, "/v1/listeners/%ff/sources").is_err());
    }
}
