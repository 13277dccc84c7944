//! Audit events, and the log, which also contains them.
//!
//! All audit events are built here, so their names and fields are defined in one place (docs/AUDIT.md is the reference).
//! Writing never fails or blocks for a caller: with a full disk or an unread pipe, lines are dropped and counted, and traffic
//! continues.

pub(crate) mod changes;
pub(crate) mod checks;
pub(crate) mod event;
pub(crate) mod file;
pub(crate) mod line;
pub(crate) mod log;
pub(crate) mod sink;
pub(crate) mod suppression;

use std::fmt::Display;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::changes::{Changes, MAX_DIFFERENCES};

use crate::audit::checks::HealthChecks;
use crate::audit::event::{ConnectionFields, Event, ExpiringCertificate, Level};
use crate::audit::sink::{Destination, Sink};
use crate::audit::suppression::FloodLimiter;
use crate::outcome::{ByteCounts, Outcome, Reason};
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
    checks: Arc<HealthChecks>,
}

impl Audit {
    /// Starts the two writers: one for the log on standard output, one for the audit file.
    pub(crate) fn start(format: LineFormat, audit_file: Option<Destination>) -> Self {
        let log = Sink::start("log", Destination::standard_output());
        let file = Sink::start("audit", audit_file.unwrap_or_else(Destination::nowhere));
        let kinds = [&suppression::DENIALS, &suppression::CANCELS, &suppression::CANCEL_DENIALS];
        let [denials, cancel_keys, cancel_denials] = kinds.map(|kind| Arc::new(FloodLimiter::new(kind)));
        Self { log, format, file, denials, cancel_keys, cancel_denials, checks: Arc::default() }
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
        let floods = if fields.is_cancel { &self.cancel_denials } else { &self.denials };
        if floods.allow(fields, Some(reason)) {
            let level = if reason == Reason::ClientClosed { Level::Info } else { Level::Warn };
            let outcome = Outcome::new(reason, detail);
            let written =
                self.write(&Event::of_connection("connection.denied", fields).ended(&outcome).lasted(duration), level);
            floods.count_line(fields, written);
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
        for event in [&self.denials, &self.cancel_keys, &self.cancel_denials]
            .into_iter()
            .flat_map(|floods| floods.summaries(at_once))
        {
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

    /// A PostgreSQL CancelRequest was forwarded. In a flood, the event is suppressed.
    pub(crate) fn cancel_forwarded(&self, fields: &ConnectionFields, duration: Duration) {
        if self.cancel_keys.allow(fields, None) {
            let event = Event::of_connection("cancel.forwarded", fields).would_deny(fields);
            let written = self.write(&event.lasted(duration), Level::Info);
            self.cancel_keys.count_line(fields, written);
        }
    }

    /// A new policy is in force. Each difference that weakens protection is a separate event.
    pub(crate) fn reload_applied(&self, changes: &Changes) {
        self.write(&changes.event(), Level::Info);
        for difference in changes.weakened().take(MAX_DIFFERENCES) {
            self.write(&difference.event(), Level::Warn);
        }
    }

    /// An administrator did `action` to `object` through the control channel. `object` may be empty.
    pub(crate) fn admin_action(&self, action: &str, object: &str) {
        let object = Some(object).filter(|object| !object.is_empty());
        self.write(&Event::new("admin.action").with("action", action).with_some("object", object), Level::Info);
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
    pub(crate) fn certificate_expiring(&self, listener: &str, certificate: &ExpiringCertificate<'_>) {
        let ExpiringCertificate { role, subject, sha256, not_after, days_left } = certificate;
        let event = Event::new("certificate.expiring")
            .with("listener", listener)
            .with("role", *role)
            .with("subject", *subject)
            .with("sha256", *sha256)
            .with("not_after", timestamp::seconds(*not_after))
            .with("days_left", *days_left);
        self.write(&event, Level::Warn);
    }

    pub(crate) fn source_added(&self, listener: &str, rule: &Rule) {
        self.write(&Event::of_rule("source.added", listener, rule), Level::Info);
    }

    pub(crate) fn source_removed(&self, listener: &str, rule: &Rule) {
        self.write(&Event::of_rule("source.removed", listener, rule), Level::Info);
    }

    /// A trusted host has resolved to new addresses.
    pub(crate) fn addresses_added(&self, listener: &str, name: &HostName, addresses: &[IpAddr]) {
        self.write(&Event::of_addresses("source.added", listener, name, addresses), Level::Info);
    }

    /// A host that is or was trusted no longer has these addresses.
    pub(crate) fn addresses_removed(&self, listener: &str, name: &HostName, addresses: &[IpAddr]) {
        self.write(&Event::of_addresses("source.removed", listener, name, addresses), Level::Info);
    }

    /// Returns the size of the longer line in bytes: that of the file or that of the log.
    fn write(&self, event: &Event, level: Level) -> usize {
        let mut file_line = 0;
        if !self.file.is_idle() {
            let line = event.json(None);
            file_line = line.len();
            self.file.write(line.into_bytes());
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
