//! URLs of services.

use hyper::Uri;

/// Whether a URL may have a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UrlPath {
    Forbidden,
    Allowed,
}

/// A URL of one of these schemes, without user information, query and fragment. Returned without a slash at its end.
pub(crate) fn parse_url(text: &str, schemes: &[&str], path: UrlPath) -> Option<String> {
    let uri: Uri = text.parse().ok()?;
    let scheme = uri.scheme_str().filter(|scheme| schemes.contains(scheme))?;
    let authority = uri.authority()?;
    // The parser ignores a port that is not a number below 65536.
    let is_port = match authority.as_str().strip_prefix(authority.host())? {
        "" => true,
        port => port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)),
    };
    let is_plain = !text.contains(['@', '#', '?']) && !authority.host().is_empty() && is_port;
    let rest = uri.path().trim_end_matches('/');
    (is_plain && (rest.is_empty() || path == UrlPath::Allowed)).then(|| format!("{scheme}://{authority}{rest}"))
}
