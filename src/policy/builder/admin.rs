//! TLS of the admin addresses.

use std::sync::Arc;

use crate::config::admin::AdminTls;
use crate::identity::auth_settings::ClientAuthSettings;
use crate::identity::client_verifier::ClientVerifier;
use crate::identity::settings::ClientAuth;
use crate::policy::AdminTlsPolicy;
use crate::policy::builder::reader::Reader;
use crate::protocol::MinTlsVersion;
use crate::tls::server::ServerTls;
use crate::x509::chain::check::ShownTo;
use crate::x509::pem;

/// Builds the TLS of the admin addresses, or records why it cannot be built.
pub(crate) fn tls(tls: &AdminTls, reader: &mut Reader<'_>) -> Option<AdminTlsPolicy> {
    let certificates: Vec<_> =
        tls.certificates.iter().filter_map(|files| reader.certificate(files, ShownTo::Clients)).collect();
    for certificate in &certificates {
        reader.warn_about_dates("certificate", certificate.leaf());
    }
    let mut anchors = Vec::new();
    let mut is_complete = certificates.len() == tls.certificates.len();
    for file in &tls.client_ca {
        match reader.parse(file, pem::certificates).and_then(|ders| reader.anchors(file, ders)) {
            Some(read) => anchors.extend(read),
            None => is_complete = false,
        }
    }
    if !is_complete {
        return None;
    }
    for (_, anchor) in &anchors {
        reader.warn_about_dates("client CA certificate", anchor);
    }
    let (anchors, client_cas) = anchors.into_iter().unzip();
    let auth = if tls.client_ca.is_empty() { ClientAuth::None } else { ClientAuth::Required };
    let settings = ClientAuthSettings { auth, anchors, ..ClientAuthSettings::default() };
    let built = ClientVerifier::new(&settings)
        .and_then(|trust| ServerTls::new(&certificates, trust, MinTlsVersion::Tls12, &[b"http/1.1"], None));
    match (built, tls.certificates.first()) {
        // Every handshake verifies the client certificate anew.
        (Ok(built), _) => Some(AdminTlsPolicy { server: Arc::new(built.without_resumption()), client_cas }),
        (Err(error), Some(files)) => {
            reader.problems.push(files.cert.problem(error));
            None
        }
        // Cannot happen: the configuration has at least one certificate.
        (Err(_), None) => None,
    }
}
