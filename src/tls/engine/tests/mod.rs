//! The engine with valid and invalid input.

pub(crate) mod client_role;
pub(crate) mod conversation;
pub(crate) mod crafted_records;
pub(crate) mod equivalence;
pub(crate) mod malformed_input;

use crate::tls::engine::cipher_name;
use crate::x509::crypto::provider;

#[test]
fn every_suite_has_its_iana_name() {
    for suite in &provider().cipher_suites {
        let name = cipher_name(*suite);
        assert!(name.starts_with("TLS_"), "{name}");
    }
}
