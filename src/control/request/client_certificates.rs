//! Parses requests about client certificates of a listener.
//!
//! A caller may send a private key by mistake. So no error repeats a part of a body here.

use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::control::AdminRequest;
use crate::control::parameters::invalid;
use crate::control::request::{ChangePins, IssueCertificate, PinChange, json};
use crate::control::response::AdminResponse;
use crate::control::route::{Call, Operation};
use crate::issuing::client_request::ClientRequest;
use crate::x509::fingerprint::FingerprintError;
use crate::x509::pem;
use crate::x509::pinned::{ClientPem, ClientPemError};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PinBody {
    /// PEM.
    certificate: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IssueBody {
    name: String,
    #[serde(default)]
    days: Option<u64>,
    #[serde(default)]
    dns: Option<Vec<String>>,
}

/// `POST …/client-certificates`
///
/// # Errors
/// A response with status 400, 412 or 422.
pub(crate) fn pin(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    let PinBody { certificate } = object(call.body, "the body must be {\"certificate\": \"PEM text\"}")?;
    let certificate =
        ClientPem::parse(certificate.as_bytes()).map_err(|error| invalid(format_args!("certificate: {error}")))?;
    change(call, PinChange::Pin(Arc::new(certificate)))
}

/// `DELETE …/client-certificates/{sha256}`
///
/// # Errors
/// A response with status 412 or 422.
pub(crate) fn unpin(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    let text = call.segment(1);
    let unclear = |error: FingerprintError| invalid(format_args!("{text:?} {error}; take one from the list"));
    change(call, PinChange::Unpin(text.parse().map_err(unclear)?))
}

/// `POST …/client-certificates/issue`
///
/// # Errors
/// A response with status 400 or 422.
pub(crate) fn issue(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    let expected =
        "the body must be {\"name\": \"app\", \"days\": 90, \"dns\": [\"app.internal\"]}; days and dns are optional";
    let IssueBody { name, days, dns } = object(call.body, expected)?;
    let request = ClientRequest::new(name, days, dns.unwrap_or_default()).map_err(invalid)?;
    Ok(Operation::Request(AdminRequest::IssueCertificate(IssueCertificate { listener: call.segment(0), request })))
}

fn change(call: &Call<'_>, change: PinChange) -> Result<Operation, AdminResponse> {
    Ok(Operation::Request(AdminRequest::ChangePins(ChangePins {
        listener: call.segment(0),
        change,
        if_match: call.if_match()?,
        plan: call.query.flag("plan", false)?,
    })))
}

/// Reads a JSON object; `expected` replaces messages that could repeat a part of it.
fn object<T: DeserializeOwned>(body: &[u8], expected: &str) -> Result<T, AdminResponse> {
    if pem::mentions_private_key(body) {
        return Err(invalid(format_args!("the body {}", ClientPemError::PrivateKey)));
    }
    json::confidential(body, expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::response::Content;

    fn message<T: DeserializeOwned>(body: &str) -> String {
        match object::<T>(body.as_bytes(), "expected").map(drop).unwrap_err().content {
            Content::Error { message, .. } => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn error_repeats_no_part_of_the_body() {
        for body in [
            r#""hunter2""#,
            r#"["hunter2"]"#,
            r#"{"certificate": ["hunter2"]}"#,
            r#"{"hunter2": 1}"#,
            r#"{"certificate": 1, "hunter2": 2}"#,
            r#"{"certificate": "hunter2"#,
            r#"{"certificate": "-----BEGIN PRIVATE KEY-----\nhunter2"}"#,
            r#"-----BEGIN RSA PRIVATE KEY----- hunter2"#,
        ] {
            let message = message::<PinBody>(body);
            assert!(!message.contains("hunter2"), "{body}: {message}");
            assert_eq!(message.contains("private key"), body.contains("PRIVATE KEY"), "{body}: {message}");
        }
        for body in [
            r#"{"name": "app", "days": "hunter2"}"#,
            r#"{"name": ["hunter2"]}"#,
            r#"{"name": "app", "dns": "hunter2"}"#,
        ] {
            assert_eq!(message::<IssueBody>(body), "expected", "{body}");
        }
    }
}
