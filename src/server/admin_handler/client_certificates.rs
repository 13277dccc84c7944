//! Pins and issues client certificates.

use std::path::Path;
use std::sync::Arc;

use hyper::body::Bytes;
use time::OffsetDateTime;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::audit::admin::AdminActionKind;
use crate::config::rule_cache::RuleCache;
use crate::control::error::ErrorKind;
use crate::control::request::{ChangePins, IssueCertificate, PinRequest};
use crate::control::response::AdminResponse;
use crate::dns::HostCache;
use crate::issuing::IssuingError;
use crate::issuing::authority::{Authority, certificate_pem};
use crate::issuing::bundle::build_bundle;
use crate::issuing::client_request::ClientRequest;
use crate::issuing::server_ca::find_anchors;
use crate::policy::{ListenerPolicy, Snapshot};
use crate::server::admin_handler::changes::find_listener;
use crate::server::admin_handler::{AdminHandler, Origin};
use crate::server::pins;
use crate::server::pins::PinChange;
use crate::server::reload::change::{ChangeResult, ChangedFile, Edit, Edited, FileChange, conflict, unknown_listener};
use crate::server::report;
use crate::server::report::client_certificates::PlannedChange;
use crate::session::registry::ConnectionRegistry;
use crate::timestamp::seconds;
use crate::x509::certificate::Certificate;
use crate::x509::fingerprint::CertificateFingerprint;

impl AdminHandler {
    pub(super) fn change_pins(
        &mut self,
        request: ChangePins,
        origin: Origin,
        current: &Arc<Snapshot>,
        reply: oneshot::Sender<AdminResponse>,
    ) {
        let ChangePins { listener, change, if_match, plan } = request;
        let name = match find_listener(current, &listener) {
            Ok(policy) => policy.name.to_string(),
            Err(response) => return drop(reply.send(response)),
        };
        let (kind, sha256, subject) = match &change {
            PinRequest::Pin(client) => {
                (AdminActionKind::CertsPin, client.certificate.sha256.clone(), Some(client.certificate.subject.clone()))
            }
            PinRequest::Unpin { sha256 } => (AdminActionKind::CertsUnpin, sha256.clone(), None),
        };
        let action = origin.action(kind, Some(format!("{name}/{sha256}")), subject);
        let requires_known_text = if_match.is_some();
        let pin_change = match &change {
            PinRequest::Pin(_) => PinChange::Pin { sha256: sha256.clone() },
            PinRequest::Unpin { .. } => PinChange::Unpin { sha256: sha256.clone() },
        };
        let form = change.clone();
        let edit = edit(name.clone(), sha256.clone(), change, if_match);
        let file = ChangedFile::Pin { listener: name.clone(), change: pin_change };
        let (registry, before) = (Arc::clone(&self.registry), Arc::clone(current));
        let file_change = FileChange { file, edit, requires_known_text, plan, action };
        self.send_change(file_change, reply, move |result| {
            let gone = || unknown_listener(&name, &before);
            match (result, form) {
                (ChangeResult::Planned(built), form) => {
                    let (Some(old), Some(new)) = (before.named(&name), built.snapshot.named(&name)) else {
                        return gone();
                    };
                    let planned = PlannedChange { snapshot: &built.snapshot, before: old, after: new, sha256: &sha256 };
                    let client = match &form {
                        PinRequest::Pin(client) => Some(&**client),
                        PinRequest::Unpin { .. } => None,
                    };
                    AdminResponse::ok(report::client_certificates::plan(&planned, client, &registry))
                }
                (ChangeResult::Applied { snapshot, .. }, PinRequest::Pin(_)) => {
                    let Some(policy) = snapshot.named(&name) else { return gone() };
                    match report::client_certificates::one(policy, &sha256, &registry) {
                        Some(body) => {
                            AdminResponse::created(body).with_etag(&report::client_certificates::etag(policy))
                        }
                        // A later change has removed it already.
                        None => conflict("the certificate was pinned and has been removed since"),
                    }
                }
                (ChangeResult::Applied { snapshot, .. }, PinRequest::Unpin { .. }) => {
                    let Some(policy) = snapshot.named(&name) else { return gone() };
                    AdminResponse::no_content().with_etag(&report::client_certificates::etag(policy))
                }
            }
        });
    }

    pub(super) fn issue_certificate(
        &mut self,
        request: IssueCertificate,
        origin: Origin,
        current: &Snapshot,
        reply: oneshot::Sender<AdminResponse>,
    ) {
        let IssueCertificate { listener, request } = request;
        let policy = match find_listener(current, &listener) {
            Ok(policy) => Arc::clone(policy),
            Err(response) => return drop(reply.send(response)),
        };
        let audit = self.audit.clone();
        self.handle_in_background(reply, move || match issue(&policy, &request) {
            Ok(Issued { archive, sha256 }) => {
                let target = format!("{}/{sha256}", policy.name);
                let subject = format!("CN={}", request.name());
                origin.action(AdminActionKind::CertsIssue, Some(target), Some(subject)).write(&audit);
                AdminResponse::file(Bytes::from_owner(archive), "application/zip", &format!("{}.zip", request.name()))
            }
            Err(response) => response,
        });
    }
}

/// The list of the pinned certificates of a listener.
pub(super) fn list(
    policy: &ListenerPolicy,
    registry: &ConnectionRegistry,
    _: &HostCache,
) -> Result<AdminResponse, AdminResponse> {
    let body = report::client_certificates::list(policy, registry);
    Ok(AdminResponse::ok(body).with_etag(&report::client_certificates::etag(policy)))
}

fn edit(listener: String, sha256: CertificateFingerprint, change: PinRequest, if_match: Option<String>) -> Box<Edit> {
    Box::new(move |path: &Path, content: Option<&[u8]>, current: &Snapshot, _: &mut RuleCache| {
        let policy = current.named(&listener).ok_or_else(|| unknown_listener(&listener, current))?;
        if let Some(wanted) = if_match
            && wanted != report::client_certificates::etag(policy)
        {
            let message = "the client certificates have changed since they were read (ETag); read them again";
            return Err(AdminResponse::error(ErrorKind::PreconditionFailed, message));
        }
        let content = match change {
            PinRequest::Pin(client) => match content {
                None => Some(certificate_pem(&client.der).into_bytes()),
                Some(content) if policy.pins.contain(&sha256) => Some(content.to_vec()),
                Some(_) => {
                    return Err(conflict(format_args!(
                        "{} exists and does not hold this certificate; remove the file, or reload if it was edited",
                        path.display()
                    )));
                }
            },
            PinRequest::Unpin { .. } => {
                let pin = policy.pins.of(&sha256).next();
                let (Some(pin), Some(content)) = (pin, content) else {
                    return Err(conflict(format_args!("{} no longer exists; reload", path.display())));
                };
                pins::without(policy, pin, content)?
            }
        };
        Ok(Edited { content, affected: Vec::new() })
    })
}

/// A new client certificate with its key, and its fingerprint.
struct Issued {
    archive: Zeroizing<Vec<u8>>,
    sha256: CertificateFingerprint,
}

fn issue(policy: &ListenerPolicy, request: &ClientRequest) -> Result<Issued, AdminResponse> {
    let name = &policy.name;
    let Some(issuing) = &policy.issuing else {
        return Err(conflict(format_args!(
            "listener {name} has no issuing_ca; set issuing_ca = {{ cert = \"ca.crt\", key = \"ca.key\" }} in [listener.tls] and \
             reload, or issue with portcullis certs issue --ca where the key of the CA is"
        )));
    };
    let authority = &issuing.authority;
    check_dates(authority.facts(), OffsetDateTime::now_utc())?;
    let server_ca = find_server_ca(policy, authority)?;
    let failed = |error: IssuingError| AdminResponse::error(ErrorKind::ServerError, error);
    let signed = request.issue(authority).map_err(failed)?;
    let protocol = policy.protocol.to_string();
    let archive = build_bundle(&signed, &authority.intermediates_pem(), &protocol, &server_ca).map_err(failed)?;
    Ok(Issued { archive, sha256: CertificateFingerprint::from_der(signed.der()) })
}

fn check_dates(ca: &Certificate, now: OffsetDateTime) -> Result<(), AdminResponse> {
    let Certificate { subject, not_before, not_after, .. } = ca;
    if now < *not_before {
        return Err(conflict(format_args!(
            "the issuing CA {subject} is not valid before {}; check the clock, or set issuing_ca to a valid one and reload",
            seconds(*not_before)
        )));
    }
    if now > *not_after {
        return Err(conflict(format_args!(
            "the issuing CA {subject} expired at {}; set issuing_ca to a valid one and reload",
            seconds(*not_after)
        )));
    }
    Ok(())
}

/// Finds what clients of the listener verify it with: its `ca_bundle`, or the CA of each of its certificates.
fn find_server_ca(policy: &ListenerPolicy, authority: &Authority) -> Result<Arc<[u8]>, AdminResponse> {
    if let Some(bundle) = &policy.ca_bundle {
        return Ok(Arc::clone(bundle));
    }
    let anchors = find_anchors(policy.server_chains(), authority.bundle()).map_err(|_| {
        conflict(format_args!(
            "cannot find the CA of listener {}: a server certificate has no self-signed certificate in its chain and is not \
             issued by {}; set ca_bundle to the file that clients should trust, and reload",
            policy.name,
            authority.facts().subject
        ))
    })?;
    Ok(anchors.into_bytes().into())
}
