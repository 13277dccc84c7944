//! What a scrape reads, and the answers on `[admin] metrics`.
//!
//! A scrape reads shared state only, so it never waits for the loop of the server.

pub(crate) mod answer;
pub(crate) mod catalog;
pub(crate) mod endpoint;
pub(crate) mod families;
pub(crate) mod format;
pub(crate) mod listeners;
pub(crate) mod own_process;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use prometheus_client::registry::Registry;

use crate::agent::state::AgentState;
use crate::metrics::exposition::catalog::{
    ADMIN_AUTH_FAILURES, ADMIN_REQUESTS, AGENT_UP, AUDIT_DROPPED, BUILD_INFO, CONFIG_HASH, FLEET_MEMBERS,
    FLEET_REVISION, RELOAD_SUCCESSFUL, RELOADS,
};
use crate::metrics::exposition::families::Families;
use crate::metrics::exposition::format::Format;
use crate::metrics::process::{AdminMetrics, ProcessMetrics, ReloadMetrics};
use crate::policy::{Current, Snapshot};
use crate::resolution::cache::ResolutionCache;
use crate::session::registry::ConnectionRegistry;

/// Everything that a scrape reads.
pub(crate) struct Sources {
    pub(crate) current: Current,
    pub(crate) registry: Arc<ConnectionRegistry>,
    pub(crate) resolutions: Arc<ResolutionCache>,
    pub(crate) agent: Arc<AgentState>,
    /// Returns the figures of the fleet; `None` without one.
    pub(crate) fleet: Box<dyn Fn() -> Option<FleetFigures> + Send + Sync>,
    pub(crate) process: Arc<ProcessMetrics>,
    /// Returns the number of lines that log and audit file have lost.
    pub(crate) audit_dropped: Box<dyn Fn() -> u64 + Send + Sync>,
}

/// What is known of the fleet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FleetFigures {
    /// The numbers of members that are live and unknown.
    pub(crate) members: (usize, usize),
    /// How far the store has come; `None` before the first contact.
    pub(crate) revision: Option<u64>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sources").field("process", &self.process).finish_non_exhaustive()
    }
}

/// Renders all series in the format that `accept` prefers. Returns the content type and the body.
///
/// # Errors
/// The encoder failed, which is a fault of the program.
pub(crate) fn render(sources: &Sources, accept: Option<&str>) -> Result<(&'static str, String), fmt::Error> {
    let format = Format::accepted(accept);
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collect(sources)));
    Ok((format.content_type(), format.encode(&registry)?))
}

fn collect(sources: &Sources) -> Families {
    let Sources { current, registry, resolutions, agent, fleet, process, audit_dropped } = sources;
    let snapshot = Arc::clone(&current.borrow());
    let mut families = Families::default();
    listeners::collect(&snapshot, registry, resolutions, &mut families);
    collect_configuration(&snapshot, &process.reloads, &mut families);
    families.set(&AUDIT_DROPPED, [], audit_dropped());
    let agent = agent.status();
    if agent.is_needed() {
        families.set(&AGENT_UP, [], agent.is_up());
    }
    if let Some(FleetFigures { members: (live, unknown), revision }) = fleet() {
        for (state, count) in [("live", live), ("unknown", unknown)] {
            families.set(&FLEET_MEMBERS, [state], u64::try_from(count).unwrap_or(u64::MAX));
        }
        if let Some(revision) = revision {
            families.set(&FLEET_REVISION, [], revision);
        }
    }
    if snapshot.config.admin.is_some() {
        collect_admin(&process.admin, &mut families);
    }
    families.set(&BUILD_INFO, [env!("CARGO_PKG_VERSION")], 1_u64);
    own_process::collect(&mut families);
    families
}

fn collect_configuration(snapshot: &Snapshot, reloads: &ReloadMetrics, families: &mut Families) {
    families.set(&RELOADS, ["applied"], reloads.applied());
    families.set(&RELOADS, ["rejected"], reloads.rejected());
    families.set(&RELOAD_SUCCESSFUL, [], reloads.was_applied());
    families.set(&CONFIG_HASH, [snapshot.config_hash()], 1_u64);
}

fn collect_admin(admin: &AdminMetrics, families: &mut Families) {
    for ((role, status), count) in admin.requests() {
        families.set(&ADMIN_REQUESTS, [role, &status.to_string()], count);
    }
    families.set(&ADMIN_AUTH_FAILURES, [], admin.auth_failures());
}
