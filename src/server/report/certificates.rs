//! The JSON of certificates, and of the bundle that clients should trust.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::control::error::ErrorKind;
use crate::control::response::AdminResponse;
use crate::policy::usage::Item;
use crate::policy::{ListenerPolicy, Snapshot};
use crate::server::report::ActiveUse;
use crate::session::registry::ConnectionRegistry;
use crate::timestamp::seconds;
use crate::x509::certificate::Certificate;

/// Every certificate of every listener and of the admin addresses.
pub(crate) fn list(snapshot: &Snapshot, registry: &ConnectionRegistry) -> Value {
    let active_use = ActiveUse::from_registry(registry);
    let of_listener = |policy: &ListenerPolicy| {
        policy
            .certificates()
            .map(|(role, certificate)| {
                let item = Item::Certificate(certificate.sha256.as_str().into());
                let last_used = policy.usage.of(&item).map(|used| seconds(used.last));
                let sessions = active_use.sessions(policy, item);
                certificate_json(Some(&policy.name), role, certificate, Some(sessions), last_used)
            })
            .collect::<Vec<_>>()
    };
    let mut all: Vec<_> = snapshot.listeners().iter().flat_map(|policy| of_listener(policy)).collect();
    let admin = snapshot.admin_certificates();
    all.extend(admin.map(|(role, certificate)| certificate_json(None, role, certificate, None, None)));
    json!({ "certificates": all })
}

fn certificate_json(
    listener: Option<&str>,
    role: &str,
    certificate: &Certificate,
    sessions: Option<u64>,
    last_used: Option<String>,
) -> Value {
    let mut body = facts(certificate, sessions, last_used);
    if let Some(fields) = body.as_object_mut() {
        fields.insert("listener".to_owned(), json!(listener));
        fields.insert("role".to_owned(), json!(role));
    }
    body
}

/// A certificate with its use.
pub(crate) fn facts(certificate: &Certificate, sessions: Option<u64>, last_used: Option<String>) -> Value {
    let Certificate { subject, issuer, sans, not_before, not_after, sha256, self_signed, .. } = certificate;
    json!({
        "subject": subject,
        "issuer": issuer,
        "self_signed": self_signed,
        "names": sans,
        "not_before": seconds(*not_before),
        "not_after": seconds(*not_after),
        "sha256": sha256,
        "expired": *not_after < OffsetDateTime::now_utc(),
        "sessions": sessions,
        "last_used": last_used,
    })
}

/// The certificate of a listener that expires first.
pub(crate) fn next_expiry(policy: &ListenerPolicy) -> Value {
    let first = policy.certificates().min_by_key(|(_, certificate)| certificate.not_after);
    first.map_or(Value::Null, |(role, certificate)| {
        json!({ "role": role, "subject": certificate.subject, "not_after": seconds(certificate.not_after) })
    })
}

/// The `ca_bundle` of a listener, as DigitalOcean's API returns it.
///
/// # Errors
/// A 404 response without a `ca_bundle`.
pub(crate) fn ca_bundle(policy: &ListenerPolicy) -> Result<Value, AdminResponse> {
    Ok(json!({ "ca": { "certificate": STANDARD.encode(bundle(policy)?) } }))
}

/// The `ca_bundle` of a listener as a file.
///
/// # Errors
/// A 404 response without a `ca_bundle`.
pub(crate) fn ca_bundle_file(policy: &ListenerPolicy) -> Result<AdminResponse, AdminResponse> {
    let name = format!("{}-ca.pem", policy.name);
    Ok(AdminResponse::file(bundle(policy)?.to_vec(), "application/x-pem-file", &name))
}

fn bundle(policy: &ListenerPolicy) -> Result<&[u8], AdminResponse> {
    policy.ca_bundle.as_deref().ok_or_else(|| {
        let message = format_args!(
            "listener {} has no ca_bundle; set ca_bundle to the file that clients should trust",
            policy.name
        );
        AdminResponse::error(ErrorKind::NotFound, message)
    })
}
