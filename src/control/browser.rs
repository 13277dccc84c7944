//! Requests of browsers: from where they come, and to which session of the control panel they belong.

use hyper::header::{CONTENT_TYPE, COOKIE, HOST, HeaderName, ORIGIN};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method};

use crate::audit::admin::AdminDenialReason;
use crate::control::error::ErrorKind;
use crate::control::rejected::Rejected;
use crate::control::response::AdminResponse;
use crate::panel::cookie::CookieName;
use crate::panel::sessions::{Activity, SessionKey};
use crate::panel::site::{HostNames, HostPort, RequestOrigin, is_cross_origin};

/// The head of a request that a browser may have sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BrowserRequest<'a> {
    head: &'a Parts,
    is_tls: bool,
}

impl<'a> BrowserRequest<'a> {
    pub(crate) fn new(head: &'a Parts, is_tls: bool) -> Self {
        Self { head, is_tls }
    }

    /// The site that the browser shows. `None` if its host name is missing, malformed or given twice.
    fn site(self) -> Option<HostPort> {
        let site = HostPort::parse(single(&self.head.headers, HOST)?)?;
        // A target in absolute form has precedence over Host (RFC 9112 §3.2.2), so both have to agree.
        let target = self.head.uri.authority().map(|authority| HostPort::parse(authority.as_str()));
        target.is_none_or(|target| target.as_ref() == Some(&site)).then_some(site)
    }

    /// The cookie of this site.
    pub(crate) fn cookie_name(self) -> Option<CookieName> {
        let default_port = if self.is_tls { 443 } else { 80 };
        Some(CookieName { is_tls: self.is_tls, port: self.site()?.port.unwrap_or(default_port) })
    }

    /// The sessions whose cookies came with the request, of which at most one is expected to be open.
    pub(crate) fn sessions(self) -> Vec<SessionKey> {
        let header = single(&self.head.headers, COOKIE);
        let values = self.cookie_name().zip(header).map(|(name, header)| name.values_in(header).map(SessionKey::of));
        values.into_iter().flatten().collect()
    }

    pub(crate) fn activity(self) -> Activity {
        match self.head.headers.get(BACKGROUND).map(|value| value.as_bytes()) {
            Some(b"true") => Activity::Background,
            _ => Activity::Person,
        }
    }

    /// Rejects a host name that is not one of the panel (DNS rebinding).
    ///
    /// # Errors
    /// A response with status 421.
    pub(crate) fn check_host(self, hosts: &HostNames) -> Result<(), Box<Rejected>> {
        if self.site().is_some_and(|site| hosts.has(&site)) {
            return Ok(());
        }
        let message = "the panel has no such host name; open it by IP address, localhost or a name in the certificate of \
                       the admin address, or add the name to [admin] hosts";
        Err(rejected(AdminDenialReason::UnknownHost, ErrorKind::MisdirectedRequest, message))
    }

    /// Rejects a request that another page caused (cross-site request forgery).
    ///
    /// # Errors
    /// A response with status 403 or 415.
    pub(crate) fn check_origin(self) -> Result<(), Box<Rejected>> {
        let Parts { headers, method, .. } = self.head;
        let bytes = |name: &str| headers.get(name).map(|value| value.as_bytes());
        let origin = RequestOrigin { fetch_site: bytes("sec-fetch-site"), origin: bytes(ORIGIN.as_str()) };
        if self.site().is_none_or(|site| is_cross_origin(origin, &site, self.is_tls)) {
            let message = "another page than the control panel sent this request; a reverse proxy must forward the Host \
                           header of the browser with its port";
            return Err(rejected(AdminDenialReason::CrossOrigin, ErrorKind::Forbidden, message));
        }
        if *method != Method::GET && has_body(headers) && is_sent_by_forms(headers) {
            let message =
                "a request with a cookie needs a content type that forms cannot send, such as application/json";
            return Err(rejected(AdminDenialReason::CrossOrigin, ErrorKind::UnsupportedMediaType, message));
        }
        Ok(())
    }
}

/// Whether a browser may have sent a request to the Unix socket, which needs no token: from a page that reached a forwarded port.
///
/// With DNS rebinding, a browser sends no header that tells so, but the host name of the page. That is a name with a dot,
/// which no other client has a reason to send.
pub(crate) fn is_from_browser(head: &Parts, hosts: &HostNames) -> bool {
    let Parts { headers, .. } = head;
    let site = single(headers, HOST).and_then(HostPort::parse);
    headers.contains_key(ORIGIN)
        || headers.keys().any(|name| name.as_str().starts_with("sec-fetch-"))
        || site.is_some_and(|site| site.has_dot() && !hosts.has(&site))
}

fn rejected(reason: AdminDenialReason, kind: ErrorKind, message: &str) -> Box<Rejected> {
    Rejected::denied(reason, AdminResponse::error(kind, message))
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(hyper::header::TRANSFER_ENCODING)
        || headers.get(hyper::header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0")
}

/// Whether the content type is one that a page can send to another site without asking (Fetch, "CORS-safelisted").
fn is_sent_by_forms(headers: &HeaderMap) -> bool {
    let Some(content_type) = single(headers, CONTENT_TYPE) else { return true };
    let essence = content_type.split(';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain", ""].contains(&essence.as_str())
}

/// The text of a header that is there once.
fn single(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (Some(one), None) => one.to_str().ok(),
        _ => None,
    }
}

/// Sent with requests that no person has caused.
const BACKGROUND: &str = "x-portcullis-background";

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn head(method: &str, target: &str, headers: &[(&str, &str)]) -> Parts {
        let request = headers.iter().fold(Request::builder().method(method).uri(target), |request, (name, value)| {
            request.header(*name, *value)
        });
        request.body(()).unwrap().into_parts().0
    }

    fn is_host_known(target: &str, headers: &[(&str, &str)]) -> bool {
        BrowserRequest::new(&head("GET", target, headers), false).check_host(&HostNames::default()).is_ok()
    }

    #[test]
    fn host_of_the_target_and_of_the_header_have_to_be_ours() {
        assert!(is_host_known("/ui/", &[("host", "localhost:9642")]));
        assert!(is_host_known("http://localhost:9642/ui/", &[("host", "localhost:9642")]));
        for (target, headers) in [
            ("/ui/", &[][..]),
            ("/ui/", &[("host", "attacker.example")]),
            ("/ui/", &[("host", "localhost"), ("host", "attacker.example")]),
            ("http://attacker.example/ui/", &[("host", "localhost:9642")]),
            ("http://localhost:9642/ui/", &[("host", "attacker.example")]),
        ] {
            assert!(!is_host_known(target, headers), "{target} {headers:?}");
        }
    }

    fn status(method: &str, headers: &[(&str, &str)]) -> u16 {
        let head = head(method, "/v1/reload", &[&[("host", "localhost:9642")], headers].concat());
        match BrowserRequest::new(&head, false).check_origin() {
            Ok(()) => 200,
            Err(rejected) => rejected.response.status.as_u16(),
        }
    }

    #[test]
    fn request_of_another_page_is_rejected_and_forms_as_well() {
        let (json, length) = (("content-type", "application/json"), ("content-length", "2"));
        let own = ("sec-fetch-site", "same-origin");
        assert_eq!(status("POST", &[own, json, length]), 200);
        assert_eq!(status("POST", &[own, ("content-length", "0")]), 200);
        assert_eq!(status("DELETE", &[own]), 200);
        assert_eq!(status("POST", &[("sec-fetch-site", "same-site"), json, length]), 403);
        assert_eq!(status("GET", &[("sec-fetch-site", "cross-site")]), 403);
        assert_eq!(status("POST", &[("origin", "http://localhost:9643"), json, length]), 403);
        assert_eq!(status("POST", &[("origin", "null"), json, length]), 403);
        for content_type in ["text/plain", "Text/Plain; charset=utf-8", "multipart/form-data; boundary=x", ""] {
            assert_eq!(status("POST", &[own, ("content-type", content_type), length]), 415, "{content_type}");
        }
        assert_eq!(status("POST", &[own, length]), 415);
        assert_eq!(status("POST", &[own, ("transfer-encoding", "chunked")]), 415);
    }

    #[test]
    fn cookie_of_the_port_in_the_host_is_the_session() {
        let key = |host: &str, cookie: &str| {
            let head = head("GET", "/v1/status", &[("host", host), ("cookie", cookie)]);
            BrowserRequest::new(&head, false).sessions()
        };
        assert_eq!(key("localhost:9642", "portcullis-9642=abc"), [SessionKey::of("abc")]);
        assert_eq!(key("localhost", "portcullis-80=abc"), [SessionKey::of("abc")]);
        assert_eq!(key("localhost:9642", "portcullis-9643=abc"), []);
    }

    #[test]
    fn browsers_are_recognized_by_their_headers() {
        let is_browser = |host: &str, name: &str| {
            is_from_browser(&head("GET", "/", &[("host", host), (name, "x")]), &HostNames::default())
        };
        let by_header = |name: &str| is_browser("a", name);
        assert!(by_header("origin") && by_header("sec-fetch-site") && by_header("Sec-Fetch-Mode"));
        assert!(!by_header("user-agent") && !by_header("accept"));
        let by_host = |host: &str| is_browser(host, "accept");
        assert!(by_host("attacker.example") && by_host("attacker.example:8080") && by_host("a.localhost"));
        for host in ["localhost", "localhost:80", "portcullis", "127.0.0.1", "[::1]:80", "%2Frun%2Fadmin.sock", ""] {
            assert!(!by_host(host), "{host}");
        }
    }
}
