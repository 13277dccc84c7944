//! Conversations with the engine, legal ones and others.

mod calling;
mod conversation;
mod forgery;
mod hostile;
mod likeness;

use super::cipher_name;
use crate::tls::provider;

#[test]
fn every_suite_has_its_iana_name() {
    for suite in &provider().cipher_suites {
        let name = cipher_name(*suite);
        assert!(name.starts_with("TLS_"), "{name}");
    }
}
