//! `trusted_clients`: which clients with a verified certificate are admitted, by the names in the certificate.
//!
//! A pattern matches only names of its own type. Otherwise a URI that looks like a host name, or a common name that looks like
//! either, could match by mistake (as in CVE-2021-43824).

use std::fmt;
use std::str::FromStr;

use crate::x509::fingerprint::{CertificateFingerprint, FingerprintError};
use crate::x509::subject_name::SubjectName;

/// A client must match one of the patterns. Without patterns, every client with a verified certificate is admitted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedClients(Vec<ClientPattern>);

impl TrustedClients {
    /// In the order of the configuration.
    pub fn patterns(&self) -> &[ClientPattern] {
        &self.0
    }

    /// Whether a client with these names is admitted.
    pub fn trust<'a>(&self, names: impl IntoIterator<Item = SubjectName<'a>>) -> bool {
        self.0.is_empty() || self.pattern_of(names).is_some()
    }

    /// The first pattern that matches one of the names.
    pub fn pattern_of<'a>(&self, names: impl IntoIterator<Item = SubjectName<'a>>) -> Option<&ClientPattern> {
        names.into_iter().find_map(|name| self.0.iter().find(|pattern| pattern.matches(name)))
    }
}

impl FromIterator<ClientPattern> for TrustedClients {
    fn from_iter<I: IntoIterator<Item = ClientPattern>>(patterns: I) -> Self {
        Self(patterns.into_iter().collect())
    }
}

/// One entry of `trusted_clients`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClientPattern {
    /// `cn:app`
    Common(String),
    /// `dns:app.internal`, lower case.
    Dns(String),
    /// `dns:*.app.internal`: one label more than this domain, lower case.
    DnsBelow(String),
    /// `email:app@example.com`. The domain is in lower case; the local part is case-sensitive.
    Email(String),
    /// `sha256:…`
    Sha256(CertificateFingerprint),
    /// `uri:spiffe://prod/app`, compared byte by byte.
    Uri(String),
    /// `uri:spiffe://prod/*`: every URI below this path, which ends in a slash.
    UriBelow(String),
}

impl ClientPattern {
    /// The pattern that matches this name only.
    pub(crate) fn of_name(name: SubjectName<'_>) -> Option<Self> {
        match name {
            SubjectName::Common(name) => Some(Self::Common(name.to_owned())),
            SubjectName::Dns(name) => Some(Self::Dns(name.to_ascii_lowercase())),
            SubjectName::Email(name) => Some(Self::Email(with_domain_in_lower_case(name))),
            SubjectName::Sha256(digits) => digits.parse().map(Self::Sha256).ok(),
            SubjectName::Uri(name) => Some(Self::Uri(name.to_owned())),
        }
    }

    /// This pattern, and every wider one that may include it. A path of a wider one has at most `longest_path` bytes.
    pub(crate) fn and_wider(&self, longest_path: usize) -> Vec<Self> {
        let mut all = vec![self.clone()];
        match self {
            Self::Dns(name) => all.extend(name.split_once('.').map(|(_, rest)| Self::DnsBelow(rest.to_owned()))),
            Self::Uri(name) | Self::UriBelow(name) => {
                let paths = name.match_indices('/').filter_map(|(slash, _)| name.get(..=slash));
                let paths = paths.take_while(|path| path.len() <= longest_path);
                all.extend(paths.map(|path| Self::UriBelow(path.to_owned())).filter(|wider| wider != self));
            }
            Self::Common(_) | Self::DnsBelow(_) | Self::Email(_) | Self::Sha256(_) => {}
        }
        all
    }

    /// Whether every client that matches `other` matches this pattern too.
    pub fn includes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::DnsBelow(domain), Self::Dns(name)) => is_one_label_above(domain, name),
            (Self::UriBelow(path), Self::Uri(name)) => is_below(path, name),
            (Self::UriBelow(path), Self::UriBelow(below)) => below.starts_with(path),
            _ => self == other,
        }
    }

    pub(crate) fn matches(&self, name: SubjectName<'_>) -> bool {
        match (self, name) {
            (Self::Common(pattern), SubjectName::Common(name)) | (Self::Uri(pattern), SubjectName::Uri(name)) => {
                pattern == name
            }
            (Self::Dns(pattern), SubjectName::Dns(name)) => pattern.eq_ignore_ascii_case(name),
            (Self::DnsBelow(domain), SubjectName::Dns(name)) => is_one_label_above(domain, name),
            (Self::Email(pattern), SubjectName::Email(name)) => *pattern == with_domain_in_lower_case(name),
            (Self::Sha256(pattern), SubjectName::Sha256(name)) => pattern.as_str() == name,
            (Self::UriBelow(path), SubjectName::Uri(name)) => is_below(path, name),
            _ => false,
        }
    }
}

/// Rejects a label with `*` (a wildcard certificate is not one host) or with characters that are invalid in host names.
fn is_one_label_above(domain: &str, name: &str) -> bool {
    name.split_once('.').is_some_and(|(label, rest)| is_label(label) && rest.eq_ignore_ascii_case(domain))
}

fn is_label(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// Rejects `.` and `..` segments, and characters that could encode them.
fn is_below(path: &str, name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"%\\".contains(&byte);
    name.strip_prefix(path).is_some_and(|rest| {
        !rest.is_empty()
            && rest.bytes().all(plain)
            && !rest.split(['/', '?', '#']).any(|step| step == "." || step == "..")
    })
}

fn with_domain_in_lower_case(email: &str) -> String {
    match email.rsplit_once('@') {
        Some((local, domain)) => format!("{local}@{}", domain.to_ascii_lowercase()),
        None => email.to_owned(),
    }
}

/// The syntax in the configuration.
impl fmt::Display for ClientPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Common(name) => write!(f, "cn:{name}"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::DnsBelow(domain) => write!(f, "dns:*.{domain}"),
            Self::Email(name) => write!(f, "email:{name}"),
            Self::Sha256(name) => write!(f, "sha256:{name}"),
            Self::Uri(name) => write!(f, "uri:{name}"),
            Self::UriBelow(path) => write!(f, "uri:{path}*"),
        }
    }
}

/// Why a pattern is invalid. The texts follow "expected".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientPatternError {
    /// Contains control characters.
    #[error("a name without control characters")]
    Control,
    /// Not a host name, with or without a leading `*.`.
    #[error("a host name such as \"dns:app.internal\", or a wildcard for one label such as \"dns:*.app.internal\"")]
    Dns,
    /// Not of the form `local@domain`.
    #[error("an email address such as \"email:app@example.com\"")]
    Email,
    /// Nothing after the colon.
    #[error("a name after the colon")]
    Empty,
    /// An unknown type.
    #[error("\"cn:…\", \"dns:…\", \"uri:…\", \"email:…\" or \"sha256:…\"")]
    Kind,
    /// Not 64 hexadecimal digits.
    #[error("the 64 hexadecimal digits of a certificate's SHA-256; print it with portcullis certs inspect FILE")]
    Sha256,
    /// Not a URI, or a `*` in another place than after the last slash.
    #[error("a URI such as \"uri:spiffe://prod/app\", or every URI below a path such as \"uri:spiffe://prod/*\"")]
    Uri,
}

impl FromStr for ClientPattern {
    type Err = ClientPatternError;

    fn from_str(text: &str) -> Result<Self, ClientPatternError> {
        let (kind, name) = text.split_once(':').ok_or(ClientPatternError::Kind)?;
        if !["cn", "dns", "email", "sha256", "uri"].contains(&kind) {
            return Err(ClientPatternError::Kind);
        }
        if name.is_empty() {
            return Err(ClientPatternError::Empty);
        }
        if name.chars().any(char::is_control) {
            return Err(ClientPatternError::Control);
        }
        match kind {
            "cn" => Ok(Self::Common(name.to_owned())),
            "dns" => dns(name),
            "email" => email(name),
            "sha256" => name.parse().map(ClientPattern::Sha256).map_err(|FingerprintError| ClientPatternError::Sha256),
            _ => uri(name),
        }
    }
}

fn dns(name: &str) -> Result<ClientPattern, ClientPatternError> {
    let (below, host) = match name.strip_prefix("*.") {
        Some(domain) => (true, domain),
        None => (false, name),
    };
    if !host.split('.').all(is_label) {
        return Err(ClientPatternError::Dns);
    }
    let host = host.to_ascii_lowercase();
    Ok(if below { ClientPattern::DnsBelow(host) } else { ClientPattern::Dns(host) })
}

fn email(name: &str) -> Result<ClientPattern, ClientPatternError> {
    match name.rsplit_once('@') {
        Some((local, domain)) if !local.is_empty() && !domain.is_empty() && !name.contains('*') => {
            Ok(ClientPattern::Email(with_domain_in_lower_case(name)))
        }
        Some(_) | None => Err(ClientPatternError::Email),
    }
}

fn uri(name: &str) -> Result<ClientPattern, ClientPatternError> {
    let (below, path) = match name.strip_suffix('*') {
        Some(path) => (true, path),
        None => (false, name),
    };
    // `spiffe://*` would match every trust domain.
    let authority = path.split_once("://").map(|(_, rest)| rest);
    let has_path = authority.is_some_and(|rest| rest.find('/').is_some_and(|slash| slash > 0));
    if !path.contains(':') || path.contains('*') || (below && !(path.ends_with('/') && has_path)) {
        return Err(ClientPatternError::Uri);
    }
    Ok(if below { ClientPattern::UriBelow(path.to_owned()) } else { ClientPattern::Uri(path.to_owned()) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trusts(pattern: &str, name: SubjectName<'_>) -> bool {
        TrustedClients::from_iter([pattern.parse().unwrap()]).trust([name])
    }

    #[test]
    fn pattern_matches_only_names_of_its_type() {
        use SubjectName::{Common, Dns, Email, Sha256, Uri};
        let print = "ab".repeat(32);
        let upper_case = format!("sha256:{}", ["AB"; 32].join(":"));
        let cases = [
            ("cn:app", Common("app"), true),
            ("cn:app", Common("App"), false),
            ("cn:app", Common("app\0"), false),
            ("cn:app", Common("application"), false),
            ("dns:App.internal", Dns("app.INTERNAL"), true),
            ("dns:app.internal", Dns("app.internal.evil"), false),
            ("dns:*.app.internal", Dns("a.app.internal"), true),
            ("dns:*.app.internal", Dns("A.App.Internal"), true),
            ("dns:*.app.internal", Dns("app.internal"), false),
            ("dns:*.app.internal", Dns("a.b.app.internal"), false),
            ("dns:*.app.internal", Dns("*.app.internal"), false),
            ("dns:*.app.internal", Dns(".app.internal"), false),
            ("dns:*.app.internal", Dns("a\0.app.internal"), false),
            ("dns:*.app.internal", Dns("a b.app.internal"), false),
            ("uri:spiffe://prod/app", Uri("spiffe://prod/app"), true),
            ("uri:spiffe://prod/app", Uri("spiffe://prod/app/"), false),
            ("uri:spiffe://prod/app", Uri("spiffe://PROD/app"), false),
            ("uri:spiffe://prod/*", Uri("spiffe://prod/app"), true),
            ("uri:spiffe://prod/*", Uri("spiffe://prod/ns/a/sa/b"), true),
            ("uri:spiffe://prod/*", Uri("spiffe://prod/"), false),
            ("uri:spiffe://prod/*", Uri("spiffe://prod"), false),
            ("uri:spiffe://prod/*", Uri("spiffe://production/app"), false),
            ("uri:spiffe://prod/a/*", Uri("spiffe://prod/a/../b"), false),
            ("uri:spiffe://prod/a/*", Uri("spiffe://prod/a/%2e%2e/b"), false),
            ("uri:spiffe://prod/a/*", Uri("spiffe://prod/a/..\\b"), false),
            ("uri:spiffe://prod/a/*", Uri("spiffe://prod/a/b\0"), false),
            ("uri:spiffe://prod/a/*", Uri("spiffe://prod/a/b\nc"), false),
            ("email:app@Example.com", Email("app@example.COM"), true),
            ("email:app@example.com", Email("App@example.com"), false),
            (&upper_case, Sha256(&print), true),
            ("cn:app.internal", Dns("app.internal"), false),
            ("dns:app.internal", Common("app.internal"), false),
            ("dns:app.internal", Uri("app.internal"), false),
            ("uri:a:b", Common("a:b"), false),
            ("email:a@b", Uri("a@b"), false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(trusts(pattern, name), expected, "{pattern} and {name:?}");
        }
    }

    #[test]
    fn client_with_one_matching_name_is_trusted_and_without_patterns_every_client_is() {
        let names = [SubjectName::Common("app"), SubjectName::Dns("app.internal")];
        assert!(TrustedClients::default().trust(names));
        assert!(TrustedClients::default().trust([]));
        let two: TrustedClients = ["cn:other", "dns:app.internal"].iter().map(|text| text.parse().unwrap()).collect();
        assert!(two.trust(names));
        assert!(!two.trust([SubjectName::Common("app")]));
        assert!(!two.trust([]));
    }

    #[test]
    fn ambiguous_pattern_is_rejected() {
        use ClientPatternError::{Control, Dns, Email, Empty, Kind, Sha256, Uri};
        let cases = [
            ("app", Kind),
            ("ip:10.0.0.1", Kind),
            ("CN:app", Kind),
            ("cn:", Empty),
            ("cn:a\u{0}b", Control),
            ("dns:*", Dns),
            ("dns:a.*.b", Dns),
            ("dns:**.b", Dns),
            ("dns:*.", Dns),
            ("dns:a..b", Dns),
            ("dns:a b", Dns),
            ("uri:prod/app", Uri),
            ("uri:spiffe://prod*", Uri),
            ("uri:spiffe://*", Uri),
            ("uri:spiffe:///*", Uri),
            ("uri:spiffe://*/app", Uri),
            ("email:app", Email),
            ("email:*@example.com", Email),
            ("sha256:abcd", Sha256),
            ("sha256:zz", Sha256),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<ClientPattern>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn displayed_pattern_parses_to_the_same_pattern(text in "(cn|dns|uri|email|sha256):[a-zA-Z0-9@:/.*-]{1,20}") {
            if let Ok(pattern) = text.parse::<ClientPattern>() {
                prop_assert_eq!(pattern.to_string().parse::<ClientPattern>(), Ok(pattern));
            }
        }
    }
}
