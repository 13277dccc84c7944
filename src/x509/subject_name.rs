//! The names in a certificate that `trusted_clients` can match.

use std::fmt;

/// One name of a certificate's holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubjectName<'a> {
    /// The most specific common name of the subject.
    Common(&'a str),
    /// subjectAltName dNSName.
    Dns(&'a str),
    /// subjectAltName rfc822Name.
    Email(&'a str),
    /// The SHA-256 of the certificate, in lower-case hex.
    Sha256(&'a str),
    /// subjectAltName uniformResourceIdentifier.
    Uri(&'a str),
}

/// The syntax of patterns in `trusted_clients`.
impl fmt::Display for SubjectName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = match self {
            Self::Common(name) => ("cn", name),
            Self::Dns(name) => ("dns", name),
            Self::Email(name) => ("email", name),
            Self::Sha256(name) => ("sha256", name),
            Self::Uri(name) => ("uri", name),
        };
        write!(f, "{kind}:{name}")
    }
}
