//! Audit events, and the log, which also contains them.
//!
//! All audit events are built here, so their names and fields are defined in one place (docs/AUDIT.md is the reference).
//! Writing never fails or blocks for a caller: with a full disk or an unread pipe, lines are dropped and counted, and traffic
//! continues.

pub(crate) mod admin;
pub(crate) mod changes;
pub(crate) mod checks;
pub(crate) mod denials;
pub(crate) mod event;
pub(crate) mod file;
pub(crate) mod fleet;
pub(crate) mod line;
pub(crate) mod log;
pub(crate) mod recent;
pub(crate) mod sink;
pub(crate) mod suppression;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::audit::admin::{AdminAction, AdminDenial};
use crate::audit::changes::{Changes, MAX_DIFFERENCES};
use crate::audit::checks::HealthChecks;
use crate::audit::denials::Denials;
use crate::audit::event::{ConnectionFields, Event, ExpiringCertificate, Level};
use crate::audit::recent::RecentEvents;
use crate::audit::sink::{Destination, Sink};
use crate::audit::suppression::{FloodEvent, FloodLimiter};
use crate::outcome::{ByteCounts, Outcome, Reason};
use crate::source::cloud::CloudSource;
use crate::source::group::RuleOwner;
use crate::source::host::HostName;
use crate::source::rule::Rule;
use crate::timestamp;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineFormat {
    /// One JSON object a line.
    Json,
    /// Text for a terminal.
    Text,
}

/// Writes audit events to the log and, if configured, to the audit file. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Audit {
    log: Sink,
    format: LineFormat,
    file: Sink,
    denials: Arc<FloodLimiter>,
    cancel_keys: Arc<FloodLimiter>,
    cancel_denials: Arc<FloodLimiter>,
    failed_logins: Arc<FloodLimiter>,
    admin_denials: Arc<FloodLimiter>,
    checks: Arc<HealthChecks>,
    history: Arc<History>,
}

/// What the admin API shows of the past. Only kept while there is an admin API.
#[derive(Debug, Default)]
struct History {
    is_kept: AtomicBool,
    events: Arc<RecentEvents>,
    denials: Denials,
}

impl Audit {
    /// Starts the two writers: one for the log on standard output, one for the audit file.
    pub(crate) fn start(format: LineFormat, audit_file: Option<Destination>) -> Self {
        let log = Sink::start("log", Destination::standard_output());
        let file = Sink::start("audit", audit_file.unwrap_or_else(Destination::nowhere));
        let limiter = |kind| Arc::new(FloodLimiter::new(kind));
        Self {
            log,
            format,
            file,
            denials: limiter(&suppression::DENIALS),
            cancel_keys: limiter(&suppression::CANCELS),
            cancel_denials: limiter(&suppression::CANCEL_DENIALS),
            failed_logins: limiter(&suppression::FAILED_LOGINS),
            admin_denials: limiter(&suppression::ADMIN_DENIALS),
            checks: Arc::default(),
            history: Arc::default(),
        }
    }

    /// Sets whether recent events and denials are kept in memory for the admin API. Without it, they cost nothing.
    pub(crate) fn record_recent(&self, is_kept: bool) {
        let was_kept = self.history.is_kept.swap(is_kept, Ordering::Relaxed);
        if was_kept && !is_kept {
            self.history.events.clear();
            self.history.denials.clear();
        }
    }

    /// The sink for log lines that are not audit events.
    fn log_sink(&self) -> Sink {
        self.log.clone()
    }

    /// Switches to a reopened or another audit file.
    pub(crate) fn reopen(&self, audit_file: Option<Destination>) {
        self.file.switch(audit_file.unwrap_or_else(Destination::nowhere));
    }

    /// Waits until all lines are written, at most [`FLUSH_TIMEOUT`] for each destination, because a pipe may have no reader.
    pub(crate) fn flush(&self) {
        self.write_due_summaries(true);
        self.file.flush(FLUSH_TIMEOUT);
        self.log.flush(FLUSH_TIMEOUT);
    }

    /// A listener is bound. This event is only in the log.
    pub(crate) fn ready(&self, listener: &str, protocol: &str, addresses: &[String]) {
        let event =
            Event::new("ready").with("listener", listener).with("protocol", protocol).with("addresses", addresses);
        self.log_line(&event, Level::Info, "portcullis");
    }

    /// A connection was denied before it reached the upstream. A suppressed event does not format its detail.
    pub(crate) fn denied(&self, fields: &ConnectionFields, reason: Reason, detail: impl Display, duration: Duration) {
        if fields.is_health_check(reason) {
            if self.checks.count(fields, reason) {
                let outcome = Outcome::new(reason, checks::FIRST);
                let event = Event::of_connection("connection.denied", fields).ended(&outcome).lasted(duration);
                self.write(&event, Level::Info);
            }
            return;
        }
        if self.history.is_kept() {
            self.history.denials.count(fields, reason);
        }
        let floods = if fields.is_cancel { &self.cancel_denials } else { &self.denials };
        let flood_event = FloodEvent::of_connection(fields, Some(reason));
        if floods.allow(flood_event) {
            let level = if reason == Reason::ClientClosed { Level::Info } else { Level::Warn };
            let outcome = Outcome::new(reason, detail);
            if self.history.is_kept() && !outcome.detail.is_empty() {
                self.history.denials.describe(fields, reason, &outcome.detail);
            }
            let written =
                self.write(&Event::of_connection("connection.denied", fields).ended(&outcome).lasted(duration), level);
            floods.count_line(flood_event, written);
        }
    }

    /// Writes the summaries of suppressed events. Never returns.
    pub(crate) async fn write_summaries(self) {
        let mut ticks = tokio::time::interval(SUMMARY_INTERVAL);
        loop {
            ticks.tick().await;
            self.write_due_summaries(false);
        }
    }

    fn write_due_summaries(&self, at_once: bool) {
        let floods = [&self.denials, &self.cancel_keys, &self.cancel_denials, &self.failed_logins, &self.admin_denials];
        for event in floods.into_iter().flat_map(|floods| floods.summaries(at_once)) {
            self.write(&event, Level::Warn);
        }
        for event in self.checks.summaries(at_once) {
            self.write(&event, Level::Info);
        }
    }

    /// A connection was admitted and has reached its upstream. `issuer` is the issuer of its client certificate.
    pub(crate) fn opened(&self, fields: &ConnectionFields, issuer: Option<&str>) {
        let event = Event::of_connection("connection.opened", fields)
            .with_some("client_issuer", issuer)
            .with_some("session", fields.session);
        self.write(&event.would_deny(fields), Level::Info);
    }

    /// The policy no longer admits a session, which ends.
    pub(crate) fn revoked(&self, fields: &ConnectionFields, outcome: &Outcome) {
        let event = Event::of_connection("session.revoked", fields).with_some("session", fields.session).ended(outcome);
        self.write(&event, Level::Warn);
    }

    /// An opened connection has ended.
    pub(crate) fn closed(&self, fields: &ConnectionFields, outcome: &Outcome, bytes: ByteCounts, duration: Duration) {
        let event = Event::of_connection("connection.closed", fields)
            .with_some("session", fields.session)
            .ended(outcome)
            .with("bytes_in", bytes.inbound)
            .with("bytes_out", bytes.outbound)
            .lasted(duration);
        self.write(&event, Level::Info);
    }

    /// A client did not prove its password. In a flood, the event is suppressed.
    pub(crate) fn authentication_failed(&self, fields: &ConnectionFields, detail: impl Display) {
        let flood_event = FloodEvent::of_connection(fields, Some(Reason::AuthenticationFailed));
        if self.failed_logins.allow(flood_event) {
            let outcome = Outcome::new(Reason::AuthenticationFailed, detail);
            let event = Event::of_connection("authentication.failed", fields).with_some("session", fields.session);
            let written = self.write(&event.ended(&outcome), Level::Warn);
            self.failed_logins.count_line(flood_event, written);
        }
    }

    /// A PostgreSQL CancelRequest was forwarded. In a flood, the event is suppressed.
    pub(crate) fn cancel_forwarded(&self, fields: &ConnectionFields, duration: Duration) {
        let flood_event = FloodEvent::of_connection(fields, None);
        if self.cancel_keys.allow(flood_event) {
            let event = Event::of_connection("cancel.forwarded", fields).would_deny(fields);
            let written = self.write(&event.lasted(duration), Level::Info);
            self.cancel_keys.count_line(flood_event, written);
        }
    }

    /// A new policy is in force. Each difference that weakens protection is a separate event.
    pub(crate) fn reload_applied(&self, changes: &Changes) {
        self.write(&changes.event(), Level::Info);
        for difference in changes.weakened().take(MAX_DIFFERENCES) {
            self.write(&difference.event(), Level::Warn);
        }
    }

    /// A caller of the admin API requested a change.
    pub(crate) fn admin_action(&self, action: &AdminAction<'_>) {
        self.write(&action.event(), Level::Info);
    }

    /// A reload was rejected. The policy in force stays.
    pub(crate) fn reload_rejected(&self, generation: u64, error: &str) {
        let event = Event::new("reload.rejected").with("generation", generation).with_long("error", error);
        self.write(&event, Level::Error);
    }

    /// The kernel now drops untrusted sources at a listener. `rules` is the number of trusted sources, `flood` whether a flood
    /// is the cause.
    pub(crate) fn shield_on(&self, listener: &str, why: &str, rules: usize, flood: bool) {
        let event = Event::new("shield.on").with("listener", listener).with("detail", why).with("rules", rules);
        self.write(&event, if flood { Level::Warn } else { Level::Info });
    }

    /// The kernel no longer drops untrusted sources at a listener. `dropped` is the number of dropped packets, if the kernel
    /// reports it.
    pub(crate) fn shield_off(&self, listener: &str, why: &str, dropped: Option<u64>) {
        let event = Event::new("shield.off").with("listener", listener).with("detail", why);
        self.write(&event.with_some("dropped", dropped), Level::Info);
    }

    /// A certificate in use expires soon or has expired.
    pub(crate) fn certificate_expiring(&self, listener: Option<&str>, certificate: &ExpiringCertificate<'_>) {
        let ExpiringCertificate { role, subject, sha256, not_after, days_left } = certificate;
        let event = Event::new("certificate.expiring")
            .with_some("listener", listener)
            .with("role", *role)
            .with("subject", *subject)
            .with("sha256", *sha256)
            .with("not_after", timestamp::seconds(*not_after))
            .with("days_left", *days_left);
        self.write(&event, Level::Warn);
    }

    pub(crate) fn source_added(&self, owner: RuleOwner<'_>, rule: &Rule) {
        self.write(&Event::of_rule("source.added", owner, rule), Level::Info);
    }

    pub(crate) fn source_removed(&self, owner: RuleOwner<'_>, rule: &Rule) {
        self.write(&Event::of_rule("source.removed", owner, rule), Level::Info);
    }

    /// A trusted host has resolved to new addresses.
    pub(crate) fn addresses_added(&self, owner: RuleOwner<'_>, name: &HostName, addresses: &[IpAddr]) {
        self.write(&Event::of_addresses("source.added", owner, name, addresses), Level::Info);
    }

    /// A host that is or was trusted no longer has these addresses.
    pub(crate) fn addresses_removed(&self, owner: RuleOwner<'_>, name: &HostName, addresses: &[IpAddr]) {
        self.write(&Event::of_addresses("source.removed", owner, name, addresses), Level::Info);
    }

    /// The addresses of a cloud source have changed: the numbers of added, removed and all addresses.
    pub(crate) fn source_resolved(
        &self,
        owner: RuleOwner<'_>,
        source: &CloudSource,
        [added, removed, all]: [usize; 3],
    ) {
        let event = Event::of_source("source.resolved", owner, source.to_string());
        self.write(&event.with("added", added).with("removed", removed).with("addresses", all), Level::Info);
    }

    /// There is no newer answer about a cloud source, and its last good addresses stay in force.
    pub(crate) fn source_stale(&self, owner: RuleOwner<'_>, source: &CloudSource, error: &str) {
        let event = Event::of_source("source.stale", owner, source.to_string());
        self.write(&event.with("error", error), Level::Warn);
    }

    /// Returns the size of the longer line in bytes: that of the file or that of the log.
    fn write(&self, event: &Event, level: Level) -> usize {
        let (has_file, is_kept) = (!self.file.is_idle(), self.history.is_kept());
        let mut file_line = 0;
        if has_file || is_kept {
            let line = event.json(None);
            file_line = line.len();
            if is_kept {
                self.history.events.push(event, &line);
            }
            if has_file {
                self.file.write(line.into_bytes());
            }
        }
        self.log_line(event, level, AUDIT_TARGET).max(file_line)
    }

    fn log_line(&self, event: &Event, level: Level, target: &str) -> usize {
        let line = match self.format {
            LineFormat::Json => event.json(Some((level, target))),
            LineFormat::Text => event.text(level),
        };
        let length = line.len();
        self.log.write(line.into_bytes());
        length
    }
}

/// For the admin API and the metrics.
impl Audit {
    pub(crate) fn recent_events(&self) -> &Arc<RecentEvents> {
        &self.history.events
    }

    /// Denied connections, without health checks, and also those whose events are suppressed.
    pub(crate) fn denials(&self) -> &Denials {
        &self.history.denials
    }

    /// Lines of the log and the audit file that were dropped since the start. An event that both lack counts twice.
    pub(crate) fn dropped(&self) -> u64 {
        self.log.dropped().saturating_add(self.file.dropped())
    }

    /// A request to the admin API was denied. In a flood, the event is suppressed.
    pub(crate) fn admin_denied(&self, denial: &AdminDenial<'_>) {
        let flood_event = denial.flood_event();
        if self.admin_denials.allow(flood_event) {
            let written = self.write(&denial.event(), Level::Warn);
            self.admin_denials.count_line(flood_event, written);
        }
    }
}

impl History {
    fn is_kept(&self) -> bool {
        self.is_kept.load(Ordering::Relaxed)
    }
}

/// Opens an audit file for appending. If it is a FIFO with a slow reader, lines are dropped and counted.
///
/// # Errors
/// The file name and the reason.
pub(crate) fn open_audit_file(path: PathBuf) -> Result<Destination, String> {
    match file::open(&path) {
        Ok(file) => Ok(Destination::file(path, file)),
        Err(why) => Err(format!("{} {why}", path.display())),
    }
}

/// The target of audit events in the log.
const AUDIT_TARGET: &str = "audit";

/// The interval between checks for floods that have ended.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(1);

/// Longer than a disk needs, shorter than an operator waits for the process to stop.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
