//! Why a request to etcd failed, in words for an operator.

use std::error::Error as _;

use etcd_client::Error;

use crate::agent::client::chain;
use crate::printable;

/// A request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) error: String,
}

/// How to continue after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The request did not reach etcd, or was refused before it did anything.
    NotPerformed,
    /// The connection or the cluster failed, and the request may have been performed.
    Unavailable,
    /// User, password or token: another endpoint says the same.
    Denied,
    /// The user may not do this, but may be allowed to do other things.
    Forbidden,
    /// The revision is no longer known.
    Compacted,
    /// The answer exceeds the limit.
    TooLong,
    /// Anything else.
    Other,
}

impl Failure {
    pub(super) fn new(kind: Kind, error: impl std::fmt::Display) -> Self {
        Self { kind, error: printable::field(error) }
    }

    /// Adds where it happened.
    pub(super) fn at(self, endpoint: &str) -> Self {
        Self { error: printable::field(format_args!("{endpoint}: {}", self.error)), ..self }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::GRpcStatus(status) => status,
            Error::TransportError(error) => {
                return Self::new(Kind::NotPerformed, with_advice(&chain(error.source().unwrap_or(error))));
            }
            _ => return Self::new(Kind::Other, error),
        };
        // The message of a failed connection only repeats that it failed.
        let text = status.source().map_or_else(|| status.message().to_owned(), chain);
        let is_refused = text.contains("tcp connect error") || text.contains(NO_LEADER) || is_certificate(&text);
        // The code is not of use: etcd has the same for different errors, and other ones in other versions.
        let kind = match () {
            () if text.contains("compacted") => Kind::Compacted,
            () if text.contains("length too large") => Kind::TooLong,
            () if text.contains(FORBIDDEN) => Kind::Forbidden,
            () if DENIALS.iter().any(|(words, _)| text.contains(words)) => Kind::Denied,
            () if is_refused => Kind::NotPerformed,
            () if text.contains("request is too large") => Kind::Other,
            () => Kind::Unavailable,
        };
        Self::new(kind, with_advice(&text))
    }
}

fn is_certificate(text: &str) -> bool {
    text.contains("certificate")
}

/// The text, and what to check.
fn with_advice(text: &str) -> String {
    let text = printable::cut(text, MAX_MESSAGE);
    match DENIALS.iter().find(|(words, _)| text.contains(words)) {
        Some((_, advice)) => format!("{text}; {advice}"),
        None if is_certificate(&text) => format!("{text}; check ca, cert and key of [fleet.etcd]"),
        None => text,
    }
}

const NO_LEADER: &str = "etcdserver: no leader";
const FORBIDDEN: &str = "permission denied";

/// Messages of etcd about who may do what.
const DENIALS: [(&str, &str); 6] = [
    ("authentication failed", "check user and password_file of [fleet.etcd]"),
    ("invalid auth token", "check user and password_file of [fleet.etcd]"),
    ("user name is empty", "set user and password_file of [fleet.etcd]"),
    ("user name not found", "check user of [fleet.etcd]"),
    (FORBIDDEN, "grant the user readwrite of all keys with the prefix of the fleet"),
    ("authentication is not enabled", "remove user of [fleet.etcd], or run etcdctl auth enable"),
];

/// The maximum length of a server's message, which leaves room for the rest of the sentence.
const MAX_MESSAGE: usize = 320;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_the_server_has_what_to_check() {
        let denied = with_advice("etcdserver: authentication failed, invalid user ID or password");
        assert_eq!(
            denied,
            "etcdserver: authentication failed, invalid user ID or password; check user and password_file of [fleet.etcd]"
        );
        assert!(
            with_advice("invalid peer certificate: UnknownIssuer").ends_with("check ca, cert and key of [fleet.etcd]")
        );
        assert_eq!(with_advice("etcdserver: request timed out"), "etcdserver: request timed out");
    }

    #[test]
    fn message_of_a_server_is_printable_and_cut() {
        let failure = Failure::new(Kind::Other, with_advice(&format!("\u{1b}[2J\n{}", "x".repeat(100_000))));
        let failure = failure.at("https://10.0.0.1:2379");
        assert!(failure.error.contains("\\u{1b}[2J\\nxxx") && failure.error.len() <= 512, "{failure:?}");
    }
}
