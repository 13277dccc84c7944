//! The JSON of the pinned client certificates of a listener.

use aws_lc_rs::digest::{Context, SHA256};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::control::request::PinChange;
use crate::digest::hex;
use crate::identity::settings::ClientAuth;
use crate::policy::pins::PinnedCertificate;
use crate::policy::usage::Item;
use crate::policy::{ListenerPolicy, Snapshot};
use crate::server::pins::place::{NotWritable, WritablePlace};
use crate::server::report::{ActiveUse, EndedSessions, certificates, sources};
use crate::session::registry::ConnectionRegistry;
use crate::timestamp::seconds;
use crate::x509::certificate::Certificate;
use crate::x509::fingerprint::CertificateFingerprint;

/// The pinned certificates with their use, and what the API can do with them. `place` is where it writes a new one.
pub(crate) fn list(
    policy: &ListenerPolicy,
    place: Result<&WritablePlace, &NotWritable>,
    registry: &ConnectionRegistry,
) -> Value {
    let active_use = ActiveUse::from_registry(registry);
    let pins: Vec<_> = policy.pins.certificates.iter().map(|pin| pinned(policy, pin, &active_use)).collect();
    let issuing = policy.issuing.as_ref().map(|issuing| {
        let Certificate { subject, not_after, sha256, .. } = issuing.authority.facts();
        json!({ "subject": subject, "not_after": seconds(*not_after), "sha256": sha256 })
    });
    json!({
        "client_auth": policy.client_auth().to_string(),
        "writable": place.is_ok(),
        "reason": place.err().map(ToString::to_string),
        "location": place.ok().map(|place| place.path().display().to_string()),
        "issuing_ca": issuing,
        "ca_bundle": policy.ca_bundle.is_some(),
        "certificates": pins,
    })
}

/// One pinned certificate; `None` if it is not pinned.
pub(crate) fn one(
    policy: &ListenerPolicy,
    sha256: &CertificateFingerprint,
    registry: &ConnectionRegistry,
) -> Option<Value> {
    let pin = policy.pins.of(sha256).next()?;
    Some(pinned(policy, pin, &ActiveUse::from_registry(registry)))
}

/// The same with the listeners whose pinned certificates its pin has changed.
pub(crate) fn pinned_with_listeners(
    policy: &ListenerPolicy,
    sha256: &CertificateFingerprint,
    listeners: &[String],
    registry: &ConnectionRegistry,
) -> Option<Value> {
    let mut body = one(policy, sha256, registry)?;
    if let Some(fields) = body.as_object_mut() {
        fields.insert("listeners".to_owned(), json!(listeners));
    }
    Some(body)
}

fn pinned(policy: &ListenerPolicy, pin: &PinnedCertificate, active_use: &ActiveUse) -> Value {
    let PinnedCertificate { certificate, file, .. } = pin;
    let item = Item::Certificate(certificate.sha256.as_str().into());
    let last_used = policy.usage.of(&item).map(|used| seconds(used.last));
    let mut body = certificates::facts(certificate, Some(active_use.sessions(policy, item)), last_used);
    if let Some(fields) = body.as_object_mut() {
        fields.insert("file".to_owned(), json!(file.display().to_string()));
    }
    body
}

/// The entity tag of the pinned certificates: it changes with each of them and its file.
pub(crate) fn etag(policy: &ListenerPolicy) -> String {
    let mut context = Context::new(&SHA256);
    for PinnedCertificate { certificate, file, .. } in &policy.pins.certificates {
        let file = file.as_os_str().as_encoded_bytes();
        context.update(certificate.sha256.as_str().as_bytes());
        // With its length, a path cannot be mistaken for the next certificate.
        context.update(&file.len().to_be_bytes());
        context.update(file);
    }
    let digest = context.finish();
    hex(digest.as_ref().get(..ETAG_BYTES).unwrap_or_default())
}

/// A change of the pinned certificates of a listener that is not in force.
pub(crate) struct PlannedChange<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) before: &'a ListenerPolicy,
    pub(crate) after: &'a ListenerPolicy,
    pub(crate) change: &'a PinChange,
    /// The listeners whose pinned certificates change. Several may name one directory.
    pub(crate) listeners: &'a [String],
}

impl PlannedChange<'_> {
    /// The policies of the listener that the caller named and of all others that change.
    fn policies(&self) -> impl Iterator<Item = &ListenerPolicy> {
        let is_other = |policy: &&ListenerPolicy| policy.name != self.after.name;
        let others = self.listeners.iter().filter_map(|name| self.snapshot.named(name)).map(|policy| &**policy);
        std::iter::once(self.after).chain(others.filter(is_other))
    }
}

/// What a change does.
pub(crate) fn plan(planned: &PlannedChange<'_>, registry: &ConnectionRegistry) -> Value {
    let PlannedChange { snapshot, before, after, change, listeners } = *planned;
    let sha256 = change.sha256();
    let (holder, is_new, warnings) = match change {
        PinChange::Pin(client) => (after, !before.pins.contain(sha256), warnings(&client.certificate, planned)),
        PinChange::Unpin(_) => (before, false, Vec::new()),
    };
    let ended = EndedSessions::from_registry(snapshot, registry);
    let closed: Vec<&str> =
        planned.policies().filter(|policy| admits_nobody(policy)).map(|policy| &*policy.name).collect();
    json!({
        "certificate": one(holder, sha256, registry),
        "is_new": is_new,
        "listeners": listeners,
        "sessions_ended": ended.listed(),
        "sessions_ended_count": ended.0.len(),
        "admits_nobody": !closed.is_empty(),
        "listeners_admitting_nobody": closed,
        "warnings": warnings,
    })
}

fn admits_nobody(policy: &ListenerPolicy) -> bool {
    let requires = policy.client_auth() == ClientAuth::Required;
    sources::admits_nobody(policy) || requires && policy.pins.certificates.is_empty() && policy.anchors.is_empty()
}

/// Why the holder of a pinned certificate may still be rejected, or why it may be the wrong certificate.
fn warnings(certificate: &Certificate, planned: &PlannedChange<'_>) -> Vec<String> {
    let Certificate { subject, not_before, not_after, ca, .. } = certificate;
    let (now, mut warnings) = (OffsetDateTime::now_utc(), Vec::new());
    if now > *not_after {
        warnings.push(format!("{subject} expired at {}, so it is rejected; pin a valid one", seconds(*not_after)));
    } else if now < *not_before {
        warnings.push(format!("{subject} is not valid before {}, so it is rejected until then", seconds(*not_before)));
    }
    if *ca {
        warnings.push(format!(
            "{subject} is marked as a CA (basicConstraints CA:TRUE); only its holder is admitted, not the clients that it issues \
             certificates to"
        ));
    }
    let rejects =
        |policy: &&ListenerPolicy| policy.trusted_clients().is_some_and(|clients| !clients.trust(certificate.names()));
    warnings.extend(planned.policies().filter(rejects).map(|policy| {
        format!(
            "{subject} matches no pattern of trusted_clients of listener {}, so it is rejected there; add one, and reload",
            policy.name
        )
    }));
    warnings
}

/// Bytes of the digest that an entity tag shows.
const ETAG_BYTES: usize = 16;
