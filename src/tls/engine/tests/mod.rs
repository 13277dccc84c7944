//! Conversations with the engine, legal ones and others.

pub(crate) mod calling;
pub(crate) mod conversation;
pub(crate) mod forgery;
pub(crate) mod hostile;
pub(crate) mod likeness;

use crate::tls::engine::cipher_name;
use crate::x509::crypto::provider;

#[test]
fn every_suite_has_its_iana_name() {
    for suite in &provider().cipher_suites {
        let name = cipher_name(*suite);
        assert!(name.starts_with("TLS_"), "{name}");
    }
}
