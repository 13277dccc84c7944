//! Parses requests to `/v1/explain`: parameters of a GET, or the body of a POST, which may contain a certificate.

use hyper::Method;
use rustls::pki_types::CertificateDer;
use serde_json::{Map, Value};

use crate::addr::ClientAddr;
use crate::control::response::AdminResponse;
use crate::control::route::invalid;
use crate::control::{AdminRequest, parameters};
use crate::x509::pem;

/// Parses the request.
///
/// # Errors
/// A 422 response that names the invalid part.
pub(crate) fn read(method: &Method, query: &str, body: &[u8]) -> Result<AdminRequest, AdminResponse> {
    if *method == Method::POST {
        parameters::parse(query, &[])?;
        return from_body(body);
    }
    if !body.trim_ascii().is_empty() {
        return Err(invalid("GET /v1/explain takes no body; use POST"));
    }
    let values = parameters::parse(query, &[LISTENER, SOURCE])?;
    explain(values.get(LISTENER).cloned(), values.get(SOURCE).map(String::as_str), Vec::new())
}

fn from_body(body: &[u8]) -> Result<AdminRequest, AdminResponse> {
    let fields: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| invalid(&format!("the body is not a JSON object: {error}")))?;
    if let Some(key) = fields.keys().find(|key| ![LISTENER, SOURCE, CERTIFICATE].contains(&key.as_str())) {
        return Err(invalid(&format!("unknown field {key:?}; allowed: {LISTENER}, {SOURCE} and {CERTIFICATE}")));
    }
    let text = |key: &str| match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(invalid(&format!("{key} must be a string"))),
    };
    let chain = match text(CERTIFICATE)? {
        Some(pem) => pem::certificates(pem.as_bytes()).map_err(|error| invalid(&format!("{CERTIFICATE}: {error}")))?,
        None => Vec::new(),
    };
    explain(text(LISTENER)?.map(str::to_owned), text(SOURCE)?, chain)
}

fn explain(
    listener: Option<String>,
    source: Option<&str>,
    chain: Vec<CertificateDer<'static>>,
) -> Result<AdminRequest, AdminResponse> {
    let missing = |key: &str| invalid(&format!("{key} is missing"));
    let listener = listener.ok_or_else(|| missing(LISTENER))?;
    let source = match source.ok_or_else(|| missing(SOURCE))? {
        "unix" => ClientAddr::UNIX,
        text => text
            .parse()
            .map(ClientAddr::from_ip)
            .map_err(|_| invalid("source is not an IP address; use \"unix\" for a client of a Unix socket"))?,
    };
    Ok(AdminRequest::Explain { listener, source, chain })
}

const LISTENER: &str = "listener";
const SOURCE: &str = "source";
const CERTIFICATE: &str = "client_certificate";

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: Result<AdminRequest, AdminResponse>) -> String {
        result.unwrap_err().body["message"].as_str().unwrap().to_owned()
    }

    #[test]
    fn request_is_read_from_parameters_and_from_a_body() {
        let expected = AdminRequest::Explain {
            listener: "db".to_owned(),
            source: ClientAddr::from_ip("2001:db8::1".parse().unwrap()),
            chain: Vec::new(),
        };
        assert_eq!(read(&Method::GET, "listener=db&source=2001:db8::1", b"").unwrap(), expected);
        let body = br#"{"listener": "db", "source": "2001:db8::1", "client_certificate": null}"#;
        assert_eq!(read(&Method::POST, "", body).unwrap(), expected);
        let unix = read(&Method::GET, "listener=db&source=unix", b"").unwrap();
        assert!(matches!(unix, AdminRequest::Explain { source: ClientAddr::UNIX, .. }), "{unix:?}");
    }

    #[test]
    fn incomplete_or_misspelt_request_is_rejected() {
        for (query, word) in [
            ("listener=db", "source is missing"),
            ("source=10.0.0.1", "listener is missing"),
            ("listener=db&source=10.0.0", "not an IP address"),
            ("listener=db&sauce=10.0.0.1", "unknown parameter \"sauce\""),
        ] {
            let message = message(read(&Method::GET, query, b""));
            assert!(message.contains(word), "{query}: {message}");
        }
        for (body, word) in [
            ("[]", "JSON object"),
            (r#"{"listener": "db", "source": "10.0.0.1", "cert": "x"}"#, "\"cert\""),
            (r#"{"listener": "db", "source": "10.0.0.1", "client_certificate": "x"}"#, "client_certificate: "),
            (r#"{"listener": 7, "source": "10.0.0.1"}"#, "listener must be a string"),
        ] {
            let message = message(read(&Method::POST, "", body.as_bytes()));
            assert!(message.contains(word), "{body}: {message}");
        }
        assert!(message(read(&Method::GET, "listener=db&source=10.0.0.1", b"{}")).contains("POST"));
    }
}
