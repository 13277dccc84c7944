//! What `/v1/explain` is asked: by parameters, or by a body where there is a certificate.

use crate::x509::pem;
use hyper::Method;
use rustls::pki_types::CertificateDer;
use serde_json::{Map, Value};

use crate::addr::ClientAddr;
use crate::control::response::AdminResponse;
use crate::control::route::invalid;
use crate::control::{AdminRequest, parameters};

/// Reads the question.
///
/// # Errors
/// The answer that says what is wrong with it.
pub(crate) fn read(method: &Method, query: &str, body: &[u8]) -> Result<AdminRequest, AdminResponse> {
    if *method == Method::POST {
        parameters::parse(query, &[])?;
        return from_body(body);
    }
    if !body.trim_ascii().is_empty() {
        return Err(invalid("GET /v1/explain takes no body; POST does"));
    }
    let values = parameters::parse(query, &[LISTENER, SOURCE])?;
    ask(values.get(LISTENER).cloned(), values.get(SOURCE).map(String::as_str), Vec::new())
}

fn from_body(body: &[u8]) -> Result<AdminRequest, AdminResponse> {
    let fields: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| invalid(&format!("the body is not a JSON object: {error}")))?;
    if let Some(key) = fields.keys().find(|key| ![LISTENER, SOURCE, CERTIFICATE].contains(&key.as_str())) {
        return Err(invalid(&format!("the body has {key:?}; it may have {LISTENER}, {SOURCE} and {CERTIFICATE}")));
    }
    let text = |key: &str| match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(invalid(&format!("{key} has to be a text"))),
    };
    let chain = match text(CERTIFICATE)? {
        Some(pem) => pem::certificates(pem.as_bytes()).map_err(|error| invalid(&format!("{CERTIFICATE}: {error}")))?,
        None => Vec::new(),
    };
    ask(text(LISTENER)?.map(str::to_owned), text(SOURCE)?, chain)
}

fn ask(
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
            .map_err(|_| invalid("source is no IP address; \"unix\" stands for a program at a Unix socket"))?,
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
    fn question_is_read_from_parameters_and_from_a_body() {
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
    fn incomplete_or_misspelt_question_is_refused() {
        for (query, word) in [
            ("listener=db", "source is missing"),
            ("source=10.0.0.1", "listener is missing"),
            ("listener=db&source=10.0.0", "no IP address"),
            ("listener=db&sauce=10.0.0.1", "\"sauce\" is no parameter"),
        ] {
            let message = message(read(&Method::GET, query, b""));
            assert!(message.contains(word), "{query}: {message}");
        }
        for (body, word) in [
            ("[]", "JSON object"),
            (r#"{"listener": "db", "source": "10.0.0.1", "cert": "x"}"#, "\"cert\""),
            (r#"{"listener": "db", "source": "10.0.0.1", "client_certificate": "x"}"#, "client_certificate: "),
            (r#"{"listener": 7, "source": "10.0.0.1"}"#, "listener has to be a text"),
        ] {
            let message = message(read(&Method::POST, "", body.as_bytes()));
            assert!(message.contains(word), "{body}: {message}");
        }
        assert!(message(read(&Method::GET, "listener=db&source=10.0.0.1", b"{}")).contains("POST"));
    }
}
