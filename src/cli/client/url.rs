//! The URL of an admin API on TCP.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use hyper::Uri;

/// Scheme, host and port of an admin API. Plain HTTP is limited to loopback addresses: the token would be readable elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AdminUrl {
    pub(crate) scheme: Scheme,
    /// A host name or an address, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Only for loopback addresses.
    Http,
    Https,
}

impl AdminUrl {
    /// The value of the `Host` header.
    pub(crate) fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl fmt::Display for AdminUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(f, "{scheme}://{}", self.authority())
    }
}

impl FromStr for AdminUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let uri: Uri = text.parse().map_err(|_| UrlError::Syntax)?;
        let (scheme, default_port) = match uri.scheme_str() {
            Some("https") => (Scheme::Https, 443),
            Some("http") => (Scheme::Http, 80),
            _ => return Err(UrlError::Syntax),
        };
        let authority = uri.authority().ok_or(UrlError::Syntax)?;
        if authority.as_str().contains('@') {
            return Err(UrlError::User);
        }
        if uri.path_and_query().is_some_and(|target| !matches!(target.as_str(), "" | "/")) {
            return Err(UrlError::Path);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        // The parser of the URI ignores a port that is not a number below 65536.
        let port = match authority.as_str().strip_prefix(authority.host()).unwrap_or_default() {
            "" => default_port,
            port => port.strip_prefix(':').and_then(|port| port.parse().ok()).ok_or(UrlError::Syntax)?,
        };
        let is_loopback = host == LOCALHOST || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if host.is_empty() {
            return Err(UrlError::Syntax);
        }
        if scheme == Scheme::Http && !is_loopback {
            return Err(UrlError::NotLoopback);
        }
        Ok(Self { scheme, host, port })
    }
}

/// Why a text is not the URL of an admin API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UrlError {
    #[error("http:// would send the token unencrypted; use https://, or http:// with 127.0.0.1, [::1] or localhost")]
    NotLoopback,
    #[error("a path is not supported; write scheme, host and port only, such as https://host:9642")]
    Path,
    #[error("expected scheme, host and port, such as https://host:9642")]
    Syntax,
    #[error("a user or password is not supported; set the token in $PORTCULLIS_TOKEN or --token-file")]
    User,
}

const LOCALHOST: &str = "localhost";

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, UrlError> {
        text.parse::<AdminUrl>().map(|url| url.to_string())
    }

    #[test]
    fn url_has_scheme_host_and_port() {
        for text in ["https://host:9642", "https://[2001:db8::1]:9642", "http://127.0.0.1:1", "http://[::1]:9642"] {
            assert_eq!(shown(text).as_deref(), Ok(text));
        }
        assert_eq!(shown("https://host/").as_deref(), Ok("https://host:443"));
        assert_eq!(shown("http://localhost").as_deref(), Ok("http://localhost:80"));
    }

    #[test]
    fn plain_http_is_for_loopback_only() {
        for text in ["http://10.0.0.1:9642", "http://host", "http://localhost.example.com", "http://[2001:db8::1]:1"] {
            assert_eq!(shown(text), Err(UrlError::NotLoopback), "{text}");
        }
    }

    #[test]
    fn other_urls_are_rejected() {
        assert_eq!(shown("https://host:9642/v1"), Err(UrlError::Path));
        assert_eq!(shown("https://host/?x"), Err(UrlError::Path));
        assert_eq!(shown("https://user:secret@host"), Err(UrlError::User));
        for text in ["", "host:9642", "ftp://host", "https://", "https://host:99999", "https://host:", "unix:/run/x"] {
            assert_eq!(shown(text), Err(UrlError::Syntax), "{text}");
        }
    }
}
