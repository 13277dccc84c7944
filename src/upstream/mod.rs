//! One listener's upstream: its endpoints, their health and roles, and the dial of an endpoint.

pub(crate) mod cancel_keys;
pub(crate) mod connect;
pub(crate) mod dial;
pub(crate) mod endpoint;
pub(crate) mod health_check;
pub(crate) mod login;
pub(crate) mod probe;
pub(crate) mod proxy_header;
pub(crate) mod record;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::addr::UpstreamAddr;
use crate::config;
use crate::credential::credentials::Credentials;
use crate::credential::upstream_passwords::UpstreamPasswords;
use crate::protocol::{Protocol, Target};
use crate::tls::upstream::{UpstreamTls, UpstreamTlsSettings};
use crate::upstream::cancel_keys::CancelKeys;
use crate::upstream::endpoint::Endpoints;
use crate::upstream::login::DatabaseUser;

/// The upstream of one listener.
#[derive(Clone, Debug)]
pub struct Upstream {
    pub listener: Arc<str>,
    pub protocol: Protocol,
    pub settings: config::Upstream,
    /// TLS to the upstream and its settings. `None` for plaintext.
    pub(crate) tls: Option<(Arc<UpstreamTls>, UpstreamTlsSettings)>,
    /// The configured addresses, separated by commas, for audit events.
    pub name: Arc<str>,
    pub endpoints: Arc<Endpoints>,
    pub cancel_keys: Arc<CancelKeys>,
    /// How long the upstream may leave sent data unacknowledged.
    pub dead_peer_timeout: Duration,
    /// Bounds the concurrent name lookups.
    pub resolving: Arc<Semaphore>,
    /// The user of health checks. `None` without `[listener.credentials]`, and if every client acts as its own user.
    pub(crate) user: Option<UpstreamUser>,
}

/// A user of the database with its passwords.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamUser {
    name: String,
    passwords: UpstreamPasswords,
}

impl UpstreamUser {
    pub(crate) fn borrowed(&self) -> DatabaseUser<'_> {
        DatabaseUser { name: &self.name, passwords: &self.passwords }
    }
}

impl Upstream {
    /// Builds the upstream of a listener. Endpoint status and cancel keys are taken from `before`, the previous generation.
    pub(crate) fn new(
        listener: &config::Listener,
        tls: Option<(Arc<UpstreamTls>, UpstreamTlsSettings)>,
        credentials: Option<&Credentials>,
        before: Option<&Self>,
    ) -> Self {
        let user = credentials.and_then(|credentials| {
            let (name, passwords) = (credentials.upstream_user.clone()?, credentials.upstream_passwords.clone());
            Some(UpstreamUser { name, passwords })
        });
        let settings = listener.upstream.clone();
        Self {
            listener: listener.name.as_str().into(),
            protocol: listener.protocol,
            tls,
            name: name(&settings.addresses),
            endpoints: Arc::new(Endpoints::after(before.map(|before| &*before.endpoints), &settings.addresses)),
            cancel_keys: before.map_or_else(Arc::default, |before| Arc::clone(&before.cancel_keys)),
            dead_peer_timeout: listener.limits.dead_peer_timeout,
            resolving: before
                .map_or_else(|| Arc::new(Semaphore::new(MAX_LOOKUPS)), |before| Arc::clone(&before.resolving)),
            settings,
            user,
        }
    }

    /// `None` for plaintext.
    pub fn tls(&self) -> Option<&Arc<UpstreamTls>> {
        self.tls.as_ref().map(|(tls, _)| tls)
    }

    /// Whether sessions need an endpoint that accepts writes.
    pub fn needs_primary(&self) -> bool {
        self.settings.target == Target::Primary
    }
}

fn name(addresses: &[UpstreamAddr]) -> Arc<str> {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    addresses.join(",").into()
}

/// Concurrent name lookups of one listener. With a resolver that takes 10 ms, they serve 3,200 new sessions per second. A
/// resolver that hangs blocks at most this many of the 512 blocking threads that a worker has for all listeners.
const MAX_LOOKUPS: usize = 32;
