//! What the operator and the auditor read: audit events, and the log that carries them too.
//!
//! Every event is made here, so that its words and fields stand in one place (docs/AUDIT.md is their reference). Nothing
//! here can fail or wait as far as its callers know: a full disk or an unread pipe costs lines, which are counted, and
//! never traffic.

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
use crate::audit::event::{ConnectionFields, ExpiringCertificate};
use crate::audit::sink::Destination;

use crate::audit::checks::HealthChecks;
use crate::audit::event::{Event, Level};
use crate::audit::sink::Sink;
use crate::audit::suppression::FloodLimiter;
use crate::outcome::{ByteCounts, Outcome, Reason};
use crate::source::host::HostName;
use crate::source::rule::Rule;
use crate::timestamp;

/// How lines of the log look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineFormat {
    /// One JSON object.
    Json,
    /// For reading.
    Text,
}

/// Writes audit events: to the log always, to the audit file where there is one. Cheap to clone.
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

    /// Where log lines go that are not audit events.
    fn log_sink(&self) -> Sink {
        self.log.clone()
    }

    /// Opens the audit file anew, as log rotation needs it, or another one.
    pub(crate) fn reopen(&self, audit_file: Option<Destination>) {
        self.file.switch(audit_file.unwrap_or_else(Destination::nowhere));
    }

    /// Waits until all that was written so far is out, but not for long: nobody may be reading.
    pub(crate) fn flush(&self) {
        self.sum_up(true);
        self.file.flush(FLUSH_PATIENCE);
        self.log.flush(FLUSH_PATIENCE);
    }

    /// A listener is bound. Goes to the log only.
    pub(crate) fn ready(&self, listener: &str, protocol: &str, addresses: &[String]) {
        let event =
            Event::new("ready").with("listener", listener).with("protocol", protocol).with("addresses", addresses);
        self.log_line(&event, Level::Info, "portcullis");
    }

    /// A connection was turned away before it reached the upstream. In a flood nothing is made of it, not even the words.
    pub(crate) fn denied(&self, fields: &ConnectionFields, reason: Reason, detail: impl Display, duration: Duration) {
        if fields.is_health_check(reason) {
            if self.checks.is_first(fields, reason) {
                let ending = Outcome::new(reason, checks::FIRST);
                let event = Event::of_connection("connection.denied", fields).ended(&ending).lasted(duration);
                self.write(&event, Level::Info);
            }
            return;
        }
        let floods = if fields.is_cancel { &self.cancel_denials } else { &self.denials };
        if floods.let_through(fields, Some(reason)) {
            let level = if reason == Reason::ClientClosed { Level::Info } else { Level::Warn };
            let ending = Outcome::new(reason, detail);
            let written =
                self.write(&Event::of_connection("connection.denied", fields).ended(&ending).lasted(duration), level);
            floods.wrote(fields, written);
        }
    }

    /// Says of floods what was not told of them, for as long as this is let run.
    pub(crate) async fn sum_up_floods(self) {
        let mut turns = tokio::time::interval(SUM_UP_EVERY);
        loop {
            turns.tick().await;
            self.sum_up(false);
        }
    }

    fn sum_up(&self, at_once: bool) {
        for event in [&self.denials, &self.cancel_keys, &self.cancel_denials]
            .into_iter()
            .flat_map(|floods| floods.reports(at_once))
        {
            self.write(&event, Level::Warn);
        }
        for event in self.checks.reports(at_once) {
            self.write(&event, Level::Info);
        }
    }

    /// A connection was let in and has reached its upstream. `issuer` is that of its client certificate.
    pub(crate) fn opened(&self, fields: &ConnectionFields, issuer: Option<&str>) {
        let event = Event::of_connection("connection.opened", fields)
            .with_some("client_issuer", issuer)
            .with_some("session", fields.session);
        self.write(&event.would_deny(fields), Level::Info);
    }

    /// The policy ends a session that it would not let in any more.
    pub(crate) fn revoked(&self, fields: &ConnectionFields, ending: &Outcome) {
        let event = Event::of_connection("session.revoked", fields).with_some("session", fields.session).ended(ending);
        self.write(&event, Level::Warn);
    }

    /// A connection that was opened has ended.
    pub(crate) fn closed(&self, fields: &ConnectionFields, ending: &Outcome, carried: ByteCounts, duration: Duration) {
        let event = Event::of_connection("connection.closed", fields)
            .with_some("session", fields.session)
            .ended(ending)
            .with("bytes_in", carried.inbound)
            .with("bytes_out", carried.outbound)
            .lasted(duration);
        self.write(&event, Level::Info);
    }

    /// A PostgreSQL CancelRequest was passed on. In a flood nothing is made of it.
    pub(crate) fn cancel_forwarded(&self, fields: &ConnectionFields, duration: Duration) {
        if self.cancel_keys.let_through(fields, None) {
            let event = Event::of_connection("cancel.forwarded", fields).would_deny(fields);
            let written = self.write(&event.lasted(duration), Level::Info);
            self.cancel_keys.wrote(fields, written);
        }
    }

    /// A new policy is in force. Each difference that weakens protection is an event of its own.
    pub(crate) fn reload_applied(&self, changes: &Changes) {
        self.write(&changes.event(), Level::Info);
        for difference in changes.weakened().take(MAX_DIFFERENCES) {
            self.write(&difference.event(), Level::Warn);
        }
    }

    /// An administrator did something by way of the control channel: `action`, to `object` where there is one.
    pub(crate) fn admin_action(&self, action: &str, object: &str) {
        let object = Some(object).filter(|object| !object.is_empty());
        self.write(&Event::new("admin.action").with("action", action).with_some("object", object), Level::Info);
    }

    /// A new policy was refused as a whole; the old one goes on.
    pub(crate) fn reload_rejected(&self, generation: u64, error: &str) {
        let event = Event::new("reload.rejected").with("generation", generation).with_long("error", error);
        self.write(&event, Level::Error);
    }

    /// The kernel keeps strangers from a listener from now on, by so many rules; `flood` where that is because of one.
    pub(crate) fn shield_on(&self, listener: &str, why: &str, rules: usize, flood: bool) {
        let event = Event::new("shield.on").with("listener", listener).with("detail", why).with("rules", rules);
        self.write(&event, if flood { Level::Warn } else { Level::Info });
    }

    /// It no longer does. `dropped` is how many of their packets it has dropped, where it tells.
    pub(crate) fn shield_off(&self, listener: &str, why: &str, dropped: Option<u64>) {
        let event = Event::new("shield.off").with("listener", listener).with("detail", why);
        self.write(&event.with_some("dropped", dropped), Level::Info);
    }

    /// A certificate in use runs out soon, or has.
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

    /// A rule was added by a reload.
    pub(crate) fn source_added(&self, listener: &str, rule: &Rule) {
        self.write(&Event::of_rule("source.added", listener, rule), Level::Info);
    }

    /// A rule was removed by a reload.
    pub(crate) fn source_removed(&self, listener: &str, rule: &Rule) {
        self.write(&Event::of_rule("source.removed", listener, rule), Level::Info);
    }

    /// A host that a rule trusts has these addresses, too.
    pub(crate) fn addresses_added(&self, listener: &str, name: &HostName, addresses: &[IpAddr]) {
        self.write(&Event::of_addresses("source.added", listener, name, addresses), Level::Info);
    }

    /// A host that a rule trusts, or did, has these addresses no longer.
    pub(crate) fn addresses_removed(&self, listener: &str, name: &HostName, addresses: &[IpAddr]) {
        self.write(&Event::of_addresses("source.removed", listener, name, addresses), Level::Info);
    }

    /// Returns the size of the line in bytes; of two lines, that of the longer one.
    fn write(&self, event: &Event, level: Level) -> usize {
        let mut filed = 0;
        if !self.file.is_idle() {
            let line = event.json(None);
            filed = line.len();
            self.file.write(line.into_bytes());
        }
        self.log_line(event, level, AUDIT_TARGET).max(filed)
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

/// Opens an audit file for appending. While it is a FIFO whose reader is slow, lines are dropped and counted.
///
/// # Errors
/// The file's name, and why.
pub(crate) fn open_audit_file(path: PathBuf) -> Result<Destination, String> {
    match file::open(&path) {
        Ok(file) => Ok(Destination::file(path, file)),
        Err(why) => Err(format!("{} {why}", path.display())),
    }
}

/// The target audit events have in the log.
const AUDIT_TARGET: &str = "audit";

/// How often it is looked for floods that are over.
const SUM_UP_EVERY: Duration = Duration::from_secs(1);

/// Longer than a disk takes, shorter than an operator waits for the process to end.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);
