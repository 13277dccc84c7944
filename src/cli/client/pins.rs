//! `portcullis certs pin` and `certs unpin`: client certificates that a listener admits without a CA.

use std::collections::BTreeSet;
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
use crate::x509::fingerprint::{CertificateFingerprint, DIGITS};
use crate::x509::pinned::select_pinned;

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
    let wanted = Wanted::from_argument(certificate)?;
    let client = place.client()?;
    // The name of the listener is checked separately: 404 also means a certificate that is not pinned.
    let listed = client.call(Call::get(&path(place)))?.into_listener_body()?;
    let sha256 = wanted.find(&listed, &place.listener)?;
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

/// How an argument names a pinned certificate.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Fingerprint(CertificateFingerprint),
    /// The first hexadecimal digits of a fingerprint.
    Prefix(String),
}

impl Wanted {
    /// Reads a fingerprint, its first digits, or the only client certificate of a file. A file is preferred to a prefix.
    fn from_argument(argument: &Path) -> Result<Self, Failure> {
        let text = argument.to_str().unwrap_or_default();
        if let Ok(written) = text.parse() {
            return Ok(Self::Fingerprint(written));
        }
        let digits = text.replace(':', "").to_ascii_lowercase();
        let is_prefix = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if is_prefix && !argument.exists() {
            return match digits.len() {
                SHORT_FINGERPRINT..=DIGITS => Ok(Self::Prefix(digits)),
                _ => Err(Failure::Usage(format!(
                    "{text:?} is neither a file nor {SHORT_FINGERPRINT} to {DIGITS} digits of a fingerprint; see portcullis certs list"
                ))),
            };
        }
        let failed = |error| Failure::file(argument, error);
        let pinned = select_pinned(read_certificates(argument)?).map_err(failed)?;
        match pinned.as_slice() {
            [(_, certificate)] => Ok(Self::Fingerprint(certificate.sha256.clone())),
            several => Err(Failure::file(
                argument,
                format_args!("holds {} client certificates; name one by its fingerprint", several.len()),
            )),
        }
    }

    /// Finds the certificate in the list of the listener.
    fn find(self, listed: &Value, listener: &str) -> Result<CertificateFingerprint, Failure> {
        let prefix = match self {
            Self::Fingerprint(sha256) => return Ok(sha256),
            Self::Prefix(prefix) => prefix,
        };
        let pinned: BTreeSet<String> =
            JsonView(listed).list("certificates").filter_map(|certificate| certificate.text("sha256")).collect();
        let found: Vec<&String> = pinned.iter().filter(|sha256| sha256.starts_with(&prefix)).collect();
        let why = match found.as_slice() {
            [one] => match one.parse() {
                Ok(sha256) => return Ok(sha256),
                Err(error) => format!("the program lists {one:?}, which {error}"),
            },
            [] => format!(
                "listener {listener} has no pinned client certificate {prefix}\u{2026}; list them with: portcullis certs list"
            ),
            several => format!(
                "{} pinned client certificates of listener {listener} begin with {prefix}; give more digits",
                several.len()
            ),
        };
        Err(Failure::Failed(why))
    }
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
    fn unique_prefix_of_a_fingerprint_finds_the_certificate() {
        let (one, two) = ("ab".repeat(32), format!("abababab{}", "cd".repeat(28)));
        let listed = json!({ "certificates": [{ "sha256": one }, { "sha256": two }, { "sha256": two }] });
        let find = |text: &str| Wanted::from_argument(Path::new(text))?.find(&listed, "cache");
        assert_eq!(find("ababababab").unwrap().as_str(), one);
        assert_eq!(find("AB:AB:AB:AB:CD").unwrap().as_str(), two, "two files hold it");
        for (text, words) in [("abababab", "2 pinned client certificates"), ("00000000", "portcullis certs list")] {
            let failure = find(text).unwrap_err();
            assert!(matches!(&failure, Failure::Failed(why) if why.contains(words)), "{failure:?}");
        }
        assert!(matches!(find("abababa").unwrap_err(), Failure::Usage(_)));
    }

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
