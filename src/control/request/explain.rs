//! Parses requests to `/v1/explain`: parameters of a GET, or the body of a POST, which may contain a certificate.

use rustls::pki_types::CertificateDer;
use serde::Deserialize;

use crate::addr::ClientAddr;
use crate::control::AdminRequest;
use crate::control::parameters::invalid;
use crate::control::request::json;
use crate::control::response::AdminResponse;
use crate::control::route::{Call, Operation};
use crate::x509::pem;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    listener: String,
    source: String,
    /// PEM.
    client_certificate: Option<String>,
}

/// # Errors
/// A 422 response that names the invalid part.
pub(crate) fn from_query(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    if !call.body.trim_ascii().is_empty() {
        return Err(invalid("GET /v1/explain takes no body; use POST"));
    }
    let value = |key: &str| call.query.get(key).ok_or_else(|| invalid(format_args!("{key} is missing")));
    explain(value("listener")?.to_owned(), value("source")?, Vec::new())
}

/// # Errors
/// A response with status 400 or 422.
pub(crate) fn from_body(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    let Body { listener, source, client_certificate } = json::object(call.body)?;
    let chain = match client_certificate {
        Some(pem) => {
            pem::certificates(pem.as_bytes()).map_err(|error| invalid(format_args!("client_certificate: {error}")))?
        }
        None => Vec::new(),
    };
    explain(listener, &source, chain)
}

fn explain(listener: String, source: &str, chain: Vec<CertificateDer<'static>>) -> Result<Operation, AdminResponse> {
    let source = match source {
        "unix" => ClientAddr::UNIX,
        text => text
            .parse()
            .map(ClientAddr::from_ip)
            .map_err(|_| invalid("source is not an IP address; use \"unix\" for a client of a Unix socket"))?,
    };
    Ok(Operation::Request(AdminRequest::Explain { listener, source, chain }))
}
