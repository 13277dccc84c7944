//! The state of the agent, for `status` and the metrics.

use time::OffsetDateTime;
use tokio::sync::watch;

use crate::agent::message::Confinement;

/// The state of the agent. Those who show it read it, and may wait for a change.
#[derive(Debug)]
pub(crate) struct AgentState(watch::Sender<AgentStatus>);

/// What is known of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentStatus {
    pub(crate) phase: Phase,
    /// When the phase began.
    pub(crate) since: OffsetDateTime,
    /// How often the agent was started again because it had failed.
    pub(crate) restarts: u64,
    /// Why it last failed, escaped and cut.
    pub(crate) last_error: Option<String>,
}

/// What the agent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The configuration needs no agent.
    NotNeeded,
    /// It is being started, or waits for its next start.
    Down,
    /// It answers.
    Up { process: u32, confinement: Confinement },
}

impl AgentStatus {
    /// Whether the configuration needs an agent.
    pub(crate) fn is_needed(&self) -> bool {
        self.phase != Phase::NotNeeded
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up { .. })
    }
}

impl Default for AgentState {
    fn default() -> Self {
        let since = OffsetDateTime::now_utc();
        Self(watch::Sender::new(AgentStatus { phase: Phase::NotNeeded, since, restarts: 0, last_error: None }))
    }
}

impl AgentState {
    pub(crate) fn status(&self) -> AgentStatus {
        self.0.borrow().clone()
    }

    /// A receiver that is notified of each change.
    #[cfg(test)]
    pub(super) fn subscribe(&self) -> watch::Receiver<AgentStatus> {
        self.0.subscribe()
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|status| {
            let changes = status.phase != phase;
            if changes {
                (status.phase, status.since) = (phase, OffsetDateTime::now_utc());
            }
            changes
        });
    }

    /// Notes that the agent has failed and will be started again.
    pub(super) fn fail(&self, error: String) {
        self.0.send_modify(|status| {
            status.restarts = status.restarts.saturating_add(1);
            status.last_error = Some(error);
        });
        self.enter(Phase::Down);
    }
}
