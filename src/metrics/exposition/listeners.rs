//! The series of listeners.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::config::Shield;
use crate::metrics::exposition::catalog::{
    ACTIVE, CERTIFICATE_EXPIRY, CREDENTIAL_SESSIONS, DENIED, HANDSHAKE_SECONDS, HANDSHAKES, LIMIT, OPENED, RELAYED,
    REVOKED, SHIELD_DROPPED, SOURCE_LAST_SUCCESS, SOURCE_STALE, TRUSTED_SOURCES, UPSTREAM_UP,
};
use crate::metrics::exposition::families::Families;
use crate::metrics::listener::ListenerMetrics;
use crate::policy::usage::Item;
use crate::policy::{ListenerPolicy, Snapshot};
use crate::resolution::cache::ResolutionCache;
use crate::session::registry::ConnectionRegistry;
use crate::session::registry::state::SessionState;
use crate::upstream::endpoint::health::UpstreamHealth;
use crate::x509::certificate::Certificate;

/// Adds the series of all listeners, including removed ones that still have sessions.
pub(crate) fn collect(
    snapshot: &Snapshot,
    registry: &ConnectionRegistry,
    resolutions: &ResolutionCache,
    families: &mut Families,
) {
    let sessions = CredentialSessions::from_registry(registry);
    for policy in snapshot.listeners() {
        collect_connections(&policy.name, &policy.metrics, families);
        collect_tls(policy, families);
        collect_certificates(policy, &sessions, families);
        collect_sources(policy, resolutions, families);
        collect_upstreams(policy, families);
        if let Some(limit) = policy.limits.max_connections {
            families.set(&LIMIT, [&policy.name], u64::from(limit.get()));
        }
        if policy.shield != Shield::Off {
            families.set(&SHIELD_DROPPED, [&policy.name], policy.metrics.shield_dropped());
        }
    }
    for (role, certificate) in snapshot.admin_certificates() {
        set_expiry("", role, certificate, families);
    }
    for removed in snapshot.removed_listeners().iter().filter(|removed| removed.metrics.active() > 0) {
        collect_connections(&removed.name, &removed.metrics, families);
    }
}

fn collect_connections(name: &str, metrics: &ListenerMetrics, families: &mut Families) {
    families.set(&OPENED, [name], metrics.opened());
    families.set(&ACTIVE, [name], metrics.active());
    for (reason, count) in metrics.denied() {
        families.set(&DENIED, [name, reason.code()], count);
    }
    for (reason, count) in metrics.revoked() {
        families.set(&REVOKED, [name, reason.code()], count);
    }
    let relayed = metrics.relayed.total();
    families.set(&RELAYED, [name, "in"], relayed.inbound);
    families.set(&RELAYED, [name, "out"], relayed.outbound);
}

fn collect_tls(policy: &ListenerPolicy, families: &mut Families) {
    if policy.tls.is_none() {
        return;
    }
    families.set(&HANDSHAKE_SECONDS, [&policy.name], policy.metrics.handshake_seconds.clone());
    for (version, is_resumed, count) in policy.metrics.handshakes() {
        let resumed = if is_resumed { "true" } else { "false" };
        families.set(&HANDSHAKES, [&policy.name, version, resumed], count);
    }
}

/// Collects the expiry of a certificate; `listener` is empty for those of the admin API.
fn set_expiry(listener: &str, role: &str, certificate: &Certificate, families: &mut Families) {
    let labels = [listener, role, &certificate.subject, certificate.sha256.as_str()];
    #[allow(clippy::cast_precision_loss, reason = "exact for the years of certificates")]
    families.set(&CERTIFICATE_EXPIRY, labels, certificate.not_after.unix_timestamp() as f64);
}

fn collect_certificates(policy: &ListenerPolicy, sessions: &CredentialSessions, families: &mut Families) {
    for (role, certificate) in policy.certificates() {
        set_expiry(&policy.name, role, certificate, families);
    }
    for (role, certificate) in policy.client_facing_certificates() {
        let kind = if role == "server" { "server_certificate" } else { role };
        let count = sessions.count(&policy.name, certificate.sha256.as_str());
        families.set(&CREDENTIAL_SESSIONS, [&policy.name, kind, certificate.sha256.as_str()], count);
    }
}

fn collect_sources(policy: &ListenerPolicy, resolutions: &ResolutionCache, families: &mut Families) {
    let trusted = &policy.sources.trusted;
    families.set(&TRUSTED_SOURCES, [&policy.name], u64::try_from(trusted.count()).unwrap_or(u64::MAX));
    let sources: BTreeSet<_> = trusted.resolvables().collect();
    for source in sources {
        let rule = source.to_string();
        let status = resolutions.status(&source);
        families.set(&SOURCE_STALE, [&policy.name, &rule], status.is_failing);
        if let Some(at) = status.resolved_at {
            #[allow(clippy::cast_precision_loss, reason = "exact for times of this process")]
            families.set(&SOURCE_LAST_SUCCESS, [&policy.name, &rule], at.unix_timestamp() as f64);
        }
    }
}

/// A configured address is up while at least one of its endpoints is healthy.
fn collect_upstreams(policy: &ListenerPolicy, families: &mut Families) {
    for configured in policy.upstream.endpoints.iter() {
        let health: Vec<_> = configured.statuses().into_iter().map(|status| status.health).collect();
        if health.iter().any(|health| *health != UpstreamHealth::Unknown) {
            let address = configured.address().to_string();
            families.set(&UPSTREAM_UP, [&policy.name, &address], health.contains(&UpstreamHealth::Healthy));
        }
    }
}

/// The number of open sessions by listener and certificate.
struct CredentialSessions(HashMap<Arc<str>, HashMap<Arc<str>, u64>>);

impl CredentialSessions {
    fn from_registry(registry: &ConnectionRegistry) -> Self {
        let mut all = HashMap::<_, HashMap<_, u64>>::new();
        for live in registry.all() {
            let Some(listed) = live.listed().filter(|listed| SessionState::is_relaying(listed.state)) else { continue };
            for item in listed.session.authorization.items() {
                let Item::Certificate(sha256) = item else { continue };
                let count = all.entry(Arc::clone(live.listener())).or_default().entry(sha256).or_default();
                *count = count.saturating_add(1);
            }
        }
        Self(all)
    }

    fn count(&self, listener: &str, sha256: &str) -> u64 {
        self.0.get(listener).and_then(|certificates| certificates.get(sha256)).copied().unwrap_or(0)
    }
}
