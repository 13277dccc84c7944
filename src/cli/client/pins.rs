//! `portcullis certs pin` and `certs unpin`: client certificates that a listener admits without a CA.

use std::fmt::Write as _;
use std::path::Path;

use hyper::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::cli::certs::inspect::read_certificates;
use crate::cli::client::certificates::expiry;
use crate::cli::client::http::{Call, encoded};
use crate::cli::client::json_view::{DASH, JsonView};
use crate::cli::client::sources::{Place, Plan};
use crate::cli::difference::{count, sessions};
use crate::cli::{Failure, print, print_json};
use crate::issuing::authority::certificate_pem;
use crate::x509::fingerprint::CertificateFingerprint;

pub(crate) fn pin(place: &Place, file: &Path, options: Plan) -> Result<(), Failure> {
    // Only certificates are sent, never a key in the same file.
    let certificate: String = read_certificates(file)?.iter().map(certificate_pem).collect();
    let target = with_plan(path(place), options);
    let body = place.client()?.send(Method::POST, &target, Some(&json!({ "certificate": certificate })))?;
    let body = body.into_listener_body()?;
    if place.json {
        return print_json(&body);
    }
    let now = OffsetDateTime::now_utc();
    if options.plan {
        return print(&plan_text(&body, &place.listener, Change::Pin, now));
    }
    let also = also_changed(JsonView(&body), &place.listener).map(|names| format!("also admitted by: {names}\n"));
    print(&format!("{}: admits {}\n{}", place.listener, named(JsonView(&body), now), also.unwrap_or_default()))
}

/// With `--json`, a success prints nothing: the reply has no body.
pub(crate) fn unpin(place: &Place, certificate: &Path, options: Plan) -> Result<(), Failure> {
    let sha256 = read_fingerprint(certificate)?;
    let client = place.client()?;
    // The name of the listener is checked separately: 404 also means a certificate that is not pinned.
    client.call(Call::get(&path(place)))?.into_listener_body()?;
    let target = with_plan(format!("{}/{sha256}", path(place)), options);
    let body = client.send(Method::DELETE, &target, None)?.into_body()?;
    match (options.plan, place.json) {
        (true, true) => print_json(&body),
        (true, false) => print(&plan_text(&body, &place.listener, Change::Unpin, OffsetDateTime::now_utc())),
        (false, true) => Ok(()),
        (false, false) => print(&format!("{}: no longer admits {sha256}\n", place.listener)),
    }
}

fn path(place: &Place) -> String {
    format!("/v1/listeners/{}/client-certificates", encoded(&place.listener))
}

fn with_plan(target: String, Plan { plan }: Plan) -> String {
    if plan { format!("{target}?plan=true") } else { target }
}

/// The fingerprint that is written, or that of the first certificate of a file.
fn read_fingerprint(certificate: &Path) -> Result<CertificateFingerprint, Failure> {
    if let Some(Ok(written)) = certificate.to_str().map(str::parse) {
        return Ok(written);
    }
    let certificates = read_certificates(certificate)?;
    let first = certificates.first().ok_or_else(|| Failure::file(certificate, "holds no certificate"))?;
    Ok(CertificateFingerprint::from_der(first))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Pin,
    Unpin,
}

fn plan_text(body: &Value, listener: &str, change: Change, now: OffsetDateTime) -> String {
    let plan = JsonView(body);
    let certificate = plan.object("certificate").map_or(DASH.to_owned(), |certificate| named(certificate, now));
    let mut out = match change {
        Change::Pin if plan.flag("is_new") == Some(false) => format!("{listener}: already admits {certificate}\n"),
        Change::Pin => format!("{listener}: this would change:\n  + {certificate}\n"),
        Change::Unpin => format!("{listener}: this would change:\n  - {certificate}\n"),
    };
    let ended = match count(plan, "sessions_ended") {
        0 => "no session would end".to_owned(),
        1 => "1 session would end".to_owned(),
        ended => format!("{ended} sessions would end"),
    };
    if let Some(names) = also_changed(plan, listener) {
        let _ = writeln!(out, "this would also change: {names}");
    }
    let closed = plan.texts("listeners_admitting_nobody").join(", ");
    let nobody = match plan.flag("admits_nobody") {
        Some(true) if closed.is_empty() || closed == listener => "no one can connect after this; ".to_owned(),
        Some(true) => format!("no one can connect to {closed} after this; "),
        Some(false) | None => String::new(),
    };
    let _ = writeln!(out, "{nobody}{ended}");
    if plan.list("sessions_ended").next().is_some() {
        out.push_str(&sessions(plan));
    }
    for warning in plan.texts("warnings") {
        let _ = writeln!(out, "warning: {warning}");
    }
    out
}

/// The other listeners whose accepted certificates change, because they name the same directory or pattern.
fn also_changed(body: JsonView<'_>, listener: &str) -> Option<String> {
    let others: Vec<_> = body.texts("listeners").into_iter().filter(|name| name != listener).collect();
    (!others.is_empty()).then(|| others.join(", "))
}

/// `CN=app, sha256 3fa9c1d2…, until 2027-01-31 (60 d)`.
fn named(certificate: JsonView<'_>, now: OffsetDateTime) -> String {
    let sha256: String = certificate.text_or_dash("sha256").chars().take(SHORT_FINGERPRINT).collect();
    let end = certificate.time("not_after").map_or(DASH.to_owned(), |end| expiry(end, now));
    format!("{}, sha256 {sha256}\u{2026}, until {end}", certificate.text_or_dash("subject"))
}

/// Hexadecimal digits, enough to distinguish the certificates of a listener.
const SHORT_FINGERPRINT: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_names_the_certificate_and_its_sessions() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let plan = json!({
            "certificate": { "subject": "CN=app", "sha256": "3fa9c1d2e0", "not_after": "1970-03-02T00:00:00Z" },
            "is_new": true, "sessions_ended": [], "sessions_ended_count": 2, "admits_nobody": true, "warnings": ["x"],
        });
        let expected = "\
cache: this would change:
  - CN=app, sha256 3fa9c1d2…, until 1970-03-02 (60 d)
no one can connect after this; 2 sessions would end
warning: x
";
        assert_eq!(plan_text(&plan, "cache", Change::Unpin, now), expected);
        let known = json!({ "certificate": plan["certificate"], "is_new": false });
        let text = plan_text(&known, "cache", Change::Pin, now);
        assert!(text.starts_with("cache: already admits CN=app") && text.ends_with("no session would end\n"), "{text}");
    }
}
