//! Pins and issues client certificates.

use std::path::Path;
use std::sync::Arc;

use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use time::OffsetDateTime;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::audit::admin::AdminActionKind;
use crate::config::rule_cache::RuleCache;
use crate::control::error::ErrorKind;
use crate::control::parameters::invalid;
use crate::control::request::{ChangePins, IssueCertificate, PinChange};
use crate::control::response::AdminResponse;
use crate::issuing::IssuingError;
use crate::issuing::authority::Authority;
use crate::issuing::bundle::{NOT_AFTER_HEADER, build_bundle};
use crate::issuing::client_request::ClientRequest;
use crate::issuing::server_ca::find_anchors;
use crate::policy::{ListenerPolicy, Snapshot};
use crate::resolution::cache::ResolutionCache;
use crate::server::admin_handler::action::Action;
use crate::server::admin_handler::changes::find_listener;
use crate::server::admin_handler::{AdminHandler, Origin};
use crate::server::pins;
use crate::server::pins::place::find_writable;
use crate::server::reload::change::{Affected, ChangeResult, ChangedFile, Edit, Edited, FileChange};
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
        let policy = match find_listener(current, &listener) {
            Ok(policy) => policy,
            Err(response) => return drop(reply.send(response)),
        };
        let listener = policy.name.to_string();
        let file_change = FileChange {
            requires_list_in_force: if_match.is_some(),
            edit: edit(listener.clone(), change.clone(), if_match),
            plan,
            action: Some(action_of(&change, policy, origin)),
            file: ChangedFile::Pin { listener: listener.clone(), change: change.clone() },
        };
        let (registry, before) = (Arc::clone(&self.registry), Arc::clone(current));
        self.send_change(file_change, reply, move |result| {
            let response = match result {
                ChangeResult::Planned { built, listeners, .. } => {
                    let find = |snapshot| find_listener(snapshot, &listener).map(|policy| &**policy);
                    let (snapshot, listeners) = (&built.snapshot, listeners.as_slice());
                    find(&before).and_then(|before| {
                        let after = find(snapshot)?;
                        let planned = PlannedChange { snapshot, before, after, change: &change, listeners };
                        Ok(AdminResponse::ok(report::client_certificates::plan(&planned, &registry)))
                    })
                }
                ChangeResult::Applied { snapshot, listeners, .. } => {
                    applied(&snapshot, &listener, &change, &listeners, &registry)
                }
            };
            response.unwrap_or_else(|error| error)
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
            Ok(Issued { archive, sha256, not_after }) => {
                let target = format!("{}/{sha256}", policy.name);
                let subject = format!("CN={}", request.name());
                origin.action(AdminActionKind::CertsIssue, Some(target), Some(subject)).write(&audit);
                let name = format!("{}.zip", request.name());
                let response = AdminResponse::file(Bytes::from_owner(archive), "application/zip", &name);
                match HeaderValue::from_str(&seconds(not_after)) {
                    Ok(end) => response.with_header(HeaderName::from_static(NOT_AFTER_HEADER), end),
                    Err(_) => response,
                }
            }
            Err(response) => response,
        });
    }
}

fn action_of(change: &PinChange, policy: &ListenerPolicy, origin: Origin) -> Action {
    let (kind, certificate) = match change {
        PinChange::Pin(client) => (AdminActionKind::CertsPin, Some(&client.certificate)),
        PinChange::Unpin(sha256) => {
            (AdminActionKind::CertsUnpin, policy.pins.of(sha256).next().map(|pin| &pin.certificate))
        }
    };
    let subject = certificate.map(|certificate| certificate.subject.clone());
    origin.action(kind, Some(format!("{}/{}", policy.name, change.sha256())), subject)
}

fn edit(listener: String, change: PinChange, if_match: Option<String>) -> Box<Edit> {
    Box::new(move |path: &Path, content: Option<&[u8]>, current: &Snapshot, _: &mut RuleCache| {
        let policy = find_listener(current, &listener)?;
        if let Some(wanted) = if_match
            && wanted != report::client_certificates::etag(policy)
        {
            let message = "the client certificates have changed since they were read (ETag); read them again";
            return Err(AdminResponse::error(ErrorKind::PreconditionFailed, message));
        }
        Ok(Edited { content: pins::edit_file(policy, &change, path, content)?, affected: Affected::Nothing })
    })
}

fn applied(
    snapshot: &Snapshot,
    listener: &str,
    change: &PinChange,
    listeners: &[String],
    registry: &ConnectionRegistry,
) -> Result<AdminResponse, AdminResponse> {
    let policy = find_listener(snapshot, listener)?;
    let response = match change {
        PinChange::Pin(_) => {
            // A later change may have removed it already.
            let removed = || AdminResponse::conflict("the certificate was pinned and has been removed since");
            let body = report::client_certificates::pinned_with_listeners(policy, change.sha256(), listeners, registry);
            AdminResponse::created(body.ok_or_else(removed)?)
        }
        PinChange::Unpin(_) => AdminResponse::no_content(),
    };
    Ok(response.with_etag(&report::client_certificates::etag(policy)))
}

/// The list of the pinned certificates of a listener.
pub(super) fn list(
    policy: &ListenerPolicy,
    registry: &ConnectionRegistry,
    _: &ResolutionCache,
) -> Result<AdminResponse, AdminResponse> {
    let body = report::client_certificates::list(policy, find_writable(policy).as_ref(), registry);
    Ok(AdminResponse::ok(body).with_etag(&report::client_certificates::etag(policy)))
}

/// A new client certificate with its key, its fingerprint and its end.
struct Issued {
    archive: Zeroizing<Vec<u8>>,
    sha256: CertificateFingerprint,
    not_after: OffsetDateTime,
}

fn issue(policy: &ListenerPolicy, request: &ClientRequest) -> Result<Issued, AdminResponse> {
    let name = &policy.name;
    let Some(issuing) = &policy.issuing else {
        return Err(AdminResponse::conflict(format_args!(
            "listener {name} has no issuing_ca; set issuing_ca = {{ cert = \"ca.crt\", key = \"ca.key\" }} in [listener.tls] and \
             reload, or issue with portcullis certs issue --ca where the key of the CA is"
        )));
    };
    let authority = &issuing.authority;
    let now = OffsetDateTime::now_utc();
    check_dates(authority.facts(), now)?;
    request.check_validity(authority.facts().not_after, now).map_err(invalid)?;
    let server_ca = find_server_ca(policy, authority)?;
    let failed = |error: IssuingError| AdminResponse::error(ErrorKind::ServerError, error);
    let signed = request.issue(authority).map_err(failed)?;
    let protocol = policy.protocol.to_string();
    let archive = build_bundle(&signed, &authority.intermediates_pem(), &protocol, &server_ca).map_err(failed)?;
    let Certificate { sha256, not_after, .. } =
        Certificate::parse(signed.der()).map_err(|error| failed(IssuingError::certificate(error)))?;
    Ok(Issued { archive, sha256, not_after })
}

fn check_dates(ca: &Certificate, now: OffsetDateTime) -> Result<(), AdminResponse> {
    let Certificate { subject, not_before, not_after, .. } = ca;
    if now < *not_before {
        return Err(AdminResponse::conflict(format_args!(
            "the issuing CA {subject} is not valid before {}; check the clock, or set issuing_ca to a valid one and reload",
            seconds(*not_before)
        )));
    }
    if now > *not_after {
        return Err(AdminResponse::conflict(format_args!(
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
        AdminResponse::conflict(format_args!(
            "cannot find the CA of listener {}: a server certificate has no self-signed certificate in its chain and is not \
             issued by {}; set ca_bundle to the file that clients should trust, and reload",
            policy.name,
            authority.facts().subject
        ))
    })?;
    Ok(anchors.into_bytes().into())
}
