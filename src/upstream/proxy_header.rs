//! The PROXY header for the upstream, which announces the client.

use std::net::SocketAddr;

use crate::audit::event::ConnectionFields;
use crate::identity::verified::VerifiedIdentity;
use crate::protocol::proxy_header::write;
use crate::protocol::proxy_header::write::{Addresses, Certificate, ProxyHeader, ShownIn, Tls};
use crate::transport::{ClientStream, Stream};
use crate::upstream::Upstream;

/// The header for an authorized client. Empty if `upstream.proxy_protocol` is off.
pub(crate) fn client_header(
    client: &ClientStream,
    identity: Option<&VerifiedIdentity>,
    upstream: &Upstream,
    fields: &ConnectionFields,
) -> Vec<u8> {
    let certificate = || {
        let common_name = identity?.certificate.common_name.as_deref();
        let shown = match client {
            Stream::Tls(stream) if stream.engine().is_resumed() => ShownIn::Before,
            Stream::Tls(_) | Stream::Plain(_) => ShownIn::Now,
        };
        Some(Certificate { common_name, shown })
    };
    let tls = fields.tls_version.zip(fields.cipher);
    let tls = tls.map(|(version, cipher)| Tls { version, cipher, certificate: certificate() });
    let alpn = match client {
        Stream::Tls(stream) => stream.engine().alpn(),
        Stream::Plain(_) => None,
    };
    // Skips the system call if no header is sent.
    let local = upstream.settings.proxy_header.and_then(|_| client.local_addr());
    header(upstream, fields, local, &ProxyHeader { alpn, tls, ..ProxyHeader::default() })
}

/// The header for a client of which only the address is known, as for a plaintext CancelRequest.
pub(crate) fn address_header(local: Option<SocketAddr>, upstream: &Upstream, fields: &ConnectionFields) -> Vec<u8> {
    header(upstream, fields, local, &ProxyHeader::default())
}

/// The header for a connection of Portcullis itself, such as a probe.
pub(crate) fn own_header(upstream: &Upstream) -> Vec<u8> {
    upstream.settings.proxy_header.map(write::own_header).unwrap_or_default()
}

fn header(
    upstream: &Upstream,
    fields: &ConnectionFields,
    local: Option<SocketAddr>,
    known: &ProxyHeader<'_>,
) -> Vec<u8> {
    let Some(version) = upstream.settings.proxy_header else { return Vec::new() };
    let destination = fields.destination.or(local);
    let addresses =
        fields.client.socket().zip(destination).map(|(source, destination)| Addresses { source, destination });
    let session = fields.session.map(|session| session.to_string());
    let session = session.as_deref().map(str::as_bytes);
    ProxyHeader { addresses, session, server_name: fields.sni.as_deref(), ..*known }.header(version)
}
