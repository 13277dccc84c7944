//! Which of a listener's certificates a client is shown: by the name it asks for, then by what it can verify.

use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The certificates of one listener, in the order of the configuration.
#[derive(Debug)]
pub(super) struct Chooser {
    choices: Vec<Choice>,
}

/// One certificate with its key.
#[derive(Debug)]
pub(super) struct Choice {
    /// The chain and the key that signs for it.
    pub(super) key: Arc<CertifiedKey>,
    /// Host names it is valid for, lower case.
    pub(super) names: Vec<String>,
}

impl Chooser {
    pub(super) fn new(choices: Vec<Choice>) -> Self {
        Self { choices }
    }

    /// The index of the certificate for this client: named and verifiable, else verifiable, else the first.
    pub(super) fn choose(&self, hello: &ClientHello<'_>) -> usize {
        let verifiable = |choice: &Choice| choice.key.key.choose_scheme(hello.signature_schemes()).is_some();
        let wanted = hello.server_name().map(str::to_ascii_lowercase);
        let named = |choice: &Choice| wanted.as_deref().is_some_and(|name| choice.is_for(name));
        let first = |test: &dyn Fn(&Choice) -> bool| self.choices.iter().position(test);
        first(&|choice| named(choice) && verifiable(choice)).or_else(|| first(&verifiable)).unwrap_or(0)
    }
}

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choices.get(self.choose(&hello)).map(|choice| Arc::clone(&choice.key))
    }
}

impl Choice {
    fn is_for(&self, host: &str) -> bool {
        self.names.iter().any(|pattern| matches(pattern, host))
    }
}

/// Matches as RFC 6125 §6.4.3 does: `*` is the whole leftmost label and stands for exactly one.
fn matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == domain),
        None => pattern == host,
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_wildcard_stands_for_exactly_one_label() {
        assert!(matches("db.example", "db.example"));
        assert!(matches("*.example", "db.example"));
        assert!(!matches("*.example", "a.db.example"));
        assert!(!matches("*.example", "example"));
        assert!(!matches("db.example", "cache.example"));
    }
}
