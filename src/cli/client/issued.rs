//! `portcullis certs issue` by the running program.

use std::path::Path;

use hyper::Method;
use serde_json::json;

use crate::cli::client::args::Running;
use crate::cli::client::http::{Call, encoded};
use crate::cli::client::{AdminClient, Download};
use crate::cli::output::{Output, join_paths, refuse_existing, write_all};
use crate::cli::{Failure, print, print_json};
use crate::issuing::client_request::ClientRequest;
use crate::printable;

/// The certificate to issue.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) listener: &'a str,
    pub(crate) name: &'a str,
    pub(crate) dns: &'a [String],
    pub(crate) days: Option<u32>,
}

/// Asks the program for the certificate and writes `NAME.zip`.
pub(crate) fn issue(running: &Running, request: &Request<'_>, out: &Path, as_json: bool) -> Result<(), Failure> {
    let Request { listener, name, dns, days } = request;
    // The program checks it again. Its name becomes a file name here.
    ClientRequest::new((*name).to_owned(), days.map(u64::from), dns.to_vec())
        .map_err(|error| Failure::Usage(format!("--{error}")))?;
    let file = format!("{name}.zip");
    // The program shows the key once, so a file in the way is found before.
    refuse_existing(&[out.join(&file)])?;
    let client = AdminClient::find(running)?;
    let target = format!("/v1/listeners/{}/client-certificates/issue", encoded(listener));
    let body = json!({ "name": name, "days": days, "dns": dns });
    let call = Call { method: Method::POST, target: &target, body: Some(&body), if_match: None };
    let Download { bytes, not_after } = client.download(call, "application/zip")?;
    let paths = write_all(out, &[Output::secret(&file, bytes)])?;
    if as_json {
        return print_json(&json!({ "file": paths.first(), "not_after": not_after }));
    }
    let validity = not_after.map(|end| format!(", valid until {}", printable::field(end))).unwrap_or_default();
    print(&format!("{listener}: issued a certificate for {name}{validity}\nCreated {}\n", join_paths(&paths)))
}
