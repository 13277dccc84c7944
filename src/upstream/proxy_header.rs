//! What the upstream is told of a client by the PROXY protocol.

use crate::protocol::proxy_header::write;
use std::net::SocketAddr;

use crate::audit::event::ConnectionFields;
use crate::identity::verified::Credential;
use crate::protocol::proxy_header;
use crate::protocol::proxy_header::write::{Addresses, Announcement, Certificate, Shown, Tls};
use crate::transport::{ClientLeg, Leg};
use crate::upstream::Upstream;

/// The header for a client that has been identified; empty where the upstream is told nothing.
pub(crate) fn of_client(
    client: &ClientLeg,
    credential: Option<&Credential>,
    upstream: &Upstream,
    fields: &ConnectionFields,
) -> Vec<u8> {
    let certificate = || {
        let common_name = credential?.certificate.common_name.as_deref();
        let shown = match client {
            Leg::Tls(stream) if stream.records().is_resumed() => Shown::Before,
            Leg::Tls(_) | Leg::Plain(_) => Shown::Now,
        };
        Some(Certificate { common_name, shown })
    };
    let tls = fields.tls_version.zip(fields.cipher);
    let tls = tls.map(|(version, cipher)| Tls { version, cipher, certificate: certificate() });
    let alpn = match client {
        Leg::Tls(stream) => stream.records().alpn(),
        Leg::Plain(_) => None,
    };
    // A system call that most need not make.
    let local = upstream.settings.announce.and_then(|_| client.local_addr());
    header(upstream, fields, local, &Announcement { alpn, tls, ..Announcement::default() })
}

/// The header for a client of which only the address is known.
pub(crate) fn of_address(local: Option<SocketAddr>, upstream: &Upstream, fields: &ConnectionFields) -> Vec<u8> {
    header(upstream, fields, local, &Announcement::default())
}

/// The header for a connection of our own.
pub(crate) fn own(upstream: &Upstream) -> Vec<u8> {
    upstream.settings.announce.map(write::own).unwrap_or_default()
}

fn header(
    upstream: &Upstream,
    fields: &ConnectionFields,
    local: Option<SocketAddr>,
    known: &Announcement<'_>,
) -> Vec<u8> {
    let Some(version) = upstream.settings.announce else { return Vec::new() };
    let destination = fields.destination.or(local);
    let addresses =
        fields.client.socket().zip(destination).map(|(source, destination)| Addresses { source, destination });
    let session = fields.session.map(|session| session.to_string());
    let session = session.as_deref().map(str::as_bytes);
    Announcement { addresses, session, server_name: fields.sni.as_deref(), ..*known }.header(version)
}
