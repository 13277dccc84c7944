//! Keeps a flood of refused connections, or of CancelRequests, from filling the disk: of those of one source so many are
//! told, of the others only how many they were.
//!
//! What is suppressed is counted under its source and told of by `denials.suppressed` or `cancels.suppressed`, when the
//! flood is over or has lasted for a while. Where there are more sources than can be told apart, or named, the rest is told
//! of as one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::event::{Event, Facts};
use crate::addr::SourceKey;
use crate::outcome::Reason;
use crate::policy::{Account, Accounts, Allowance, Bucket};

/// Events of one kind, and how many of them are told.
#[derive(Debug)]
pub(super) struct Kind {
    /// The event that sums up the rest.
    summary: &'static str,
    of_a_source: Allowance,
    of_all: Allowance,
}

/// What was told and what was not.
#[derive(Debug)]
pub(super) struct Floods {
    kind: &'static Kind,
    /// The moment its time is counted from.
    since: Instant,
    sources: Accounts<Quota>,
    together: Mutex<Together>,
}

/// What is still told of one source.
#[derive(Debug, Default)]
struct Quota {
    bucket: Bucket,
    flood: Option<Box<Flood>>,
}

/// What was not told of one source since it was last said how much that was.
#[derive(Debug)]
struct Flood {
    suppressed: u64,
    first: Duration,
    last: Duration,
    /// Of the last.
    listener: Arc<str>,
    reason: Option<Reason>,
}

/// All sources together.
#[derive(Debug, Default)]
struct Together {
    told: Bucket,
    reports: Bucket,
    /// What was not told, of whomever.
    suppressed: u64,
    /// When that was last said.
    said: Duration,
}

impl Account for Quota {
    fn weight(&self) -> u64 {
        self.bucket.full_at()
    }
}

impl Quota {
    fn take(&mut self, allowance: Allowance, facts: &Facts, reason: Option<Reason>, now: Duration) -> bool {
        if self.bucket.take(allowance, now) {
            return true;
        }
        let fresh =
            || Box::new(Flood { suppressed: 0, first: now, last: now, listener: Arc::clone(&facts.listener), reason });
        let flood = self.flood.get_or_insert_with(fresh);
        flood.suppressed += 1;
        flood.last = now;
        flood.reason = reason;
        if !Arc::ptr_eq(&flood.listener, &facts.listener) {
            flood.listener = Arc::clone(&facts.listener);
        }
        false
    }

    /// What has to be said now.
    fn take_due(&mut self, now: Duration) -> Option<Flood> {
        let over = |flood: &Flood| now >= flood.last + OVER_AFTER || now >= flood.first + AT_LATEST;
        self.flood.take_if(|flood| over(flood)).map(|flood| *flood)
    }
}

impl Floods {
    pub(super) fn new(kind: &'static Kind) -> Self {
        Self { kind, since: Instant::now(), sources: Accounts::default(), together: Mutex::default() }
    }

    /// Whether a connection is to be told by itself. If not, it has been counted.
    pub(super) fn let_through(&self, facts: &Facts, reason: Option<Reason>) -> bool {
        self.let_through_at(self.since.elapsed(), facts, reason)
    }

    /// What is to be said of the others by now; of all of them, if `at_once`.
    pub(super) fn reports(&self, at_once: bool) -> Vec<Event> {
        let now = self.since.elapsed();
        self.reports_at(now, if at_once { now + AT_LATEST } else { now })
    }

    fn let_through_at(&self, now: Duration, facts: &Facts, reason: Option<Reason>) -> bool {
        let take = |quota: &mut Quota| quota.take(self.kind.of_a_source, facts, reason, now);
        let (told, forgotten) = self.sources.of(facts.client.source_key(), take);
        let forgotten = forgotten.and_then(|quota| quota.flood).map_or(0, |flood| flood.suppressed);
        if !told && forgotten == 0 {
            return false;
        }
        let mut together = self.together();
        together.suppressed += forgotten;
        let too_many = told && !together.told.take(self.kind.of_all, now);
        together.suppressed += u64::from(too_many);
        told && !too_many
    }

    fn reports_at(&self, now: Duration, due_by: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        self.sources.each(|source, quota| {
            let Some(flood) = quota.take_due(due_by) else { return };
            let mut together = self.together();
            if together.reports.take(NAMED, now) {
                events.push(flood.event(self.kind.summary, source));
            } else {
                together.suppressed += flood.suppressed;
            }
        });
        let mut together = self.together();
        if together.suppressed > 0 && due_by >= together.said + AT_LATEST {
            together.said = now;
            events.push(of_many(self.kind.summary, std::mem::take(&mut together.suppressed)));
        }
        events
    }

    fn together(&self) -> MutexGuard<'_, Together> {
        self.together.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flood {
    fn event(&self, summary: &'static str, source: Option<SourceKey>) -> Event {
        let Self { suppressed, listener, reason, .. } = self;
        let of_the_last = if reason.is_some() { "the listener and the reason are" } else { "the listener is" };
        Event::new(summary)
            .with("listener", &**listener)
            .with("source", source.map_or_else(|| "unix".to_owned(), |source| source.to_string()))
            .with_some("reason", reason.map(Reason::code))
            .with("suppressed", *suppressed)
            .with("detail", format!("{suppressed} more suppressed; {of_the_last} of the last one"))
    }
}

fn of_many(summary: &'static str, suppressed: u64) -> Event {
    let detail = format!("{suppressed} more suppressed, of more sources than can be named");
    Event::new(summary).with("suppressed", suppressed).with("detail", detail)
}

/// Refused connections. Of one source enough are told to see who it is and what it wants; of all, 100 a second are some
/// 2 GB of lines a day.
pub(super) static DENIALS: Kind = Kind {
    summary: "denials.suppressed",
    of_a_source: Allowance { burst: 500, interval: Duration::from_secs(1) },
    of_all: Allowance { burst: 10_000, interval: Duration::from_millis(10) },
};

/// CancelRequests that were passed on. A pool that cancels a hundred queries has a line for each.
pub(super) static CANCELS: Kind = Kind {
    summary: "cancels.suppressed",
    of_a_source: Allowance { burst: 100, interval: Duration::from_secs(1) },
    of_all: Allowance { burst: 1_000, interval: Duration::from_millis(100) },
};

/// Sources named by the summaries.
const NAMED: Allowance = Allowance { burst: 1_000, interval: Duration::from_millis(100) };

/// A flood that has paused for so long is over, and one that has not is told of after so long.
const OVER_AFTER: Duration = Duration::from_secs(2);
const AT_LATEST: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::addr::ClientAddr;

    fn facts(client: ClientAddr) -> Facts {
        Facts::new(None, "main".into(), client)
    }

    fn v4(number: u32) -> Facts {
        facts(ClientAddr::from_ip(Ipv4Addr::from(number).into()))
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn told(floods: &Floods, facts: &Facts, count: u64, at: Duration) -> u64 {
        (0..count).map(|_| u64::from(floods.let_through_at(at, facts, Some(Reason::UntrustedSource)))).sum()
    }

    fn reports(floods: &Floods, at: Duration) -> Vec<Value> {
        floods.reports_at(at, at).iter().map(|event| serde_json::from_str(&event.json(None)).unwrap()).collect()
    }

    fn sum(reports: &[Value]) -> u64 {
        reports.iter().map(|report| report["suppressed"].as_u64().unwrap()).sum()
    }

    #[test]
    fn of_one_source_some_are_told_and_then_one_a_second_and_the_rest_is_summed_up() {
        let floods = Floods::new(&DENIALS);
        let stranger = v4(1);
        assert_eq!(told(&floods, &stranger, 3_000, seconds(0)), 500);
        assert_eq!(told(&floods, &stranger, 50, seconds(1)), 1);
        assert_eq!(told(&floods, &v4(2), 50, seconds(1)), 50, "of another one all are told");
        assert_eq!(reports(&floods, seconds(2)), [0; 0], "it goes on");
        let over = reports(&floods, seconds(3));
        assert_eq!(sum(&over), 2_549);
        assert_eq!(over[0]["event"], "denials.suppressed");
        assert_eq!(over[0]["source"], "0.0.0.1");
        assert_eq!(over[0]["listener"], "main");
        assert_eq!(over[0]["reason"], "untrusted_source");
        assert!(over[0]["detail"].as_str().unwrap().starts_with("2549 more suppressed"));
        assert_eq!(reports(&floods, seconds(30)), [0; 0]);
    }

    #[test]
    fn a_flood_without_end_is_told_of_every_ten_seconds() {
        let floods = Floods::new(&DENIALS);
        let stranger = facts(ClientAddr::from_ip(Ipv6Addr::LOCALHOST.into()));
        let mut lines = 0;
        let mut all = Vec::new();
        for second in 0..60 {
            lines += told(&floods, &stranger, 1_000, seconds(second));
            all.extend(reports(&floods, seconds(second)));
        }
        assert_eq!(lines, 500 + 59);
        assert_eq!(all.len(), 5, "{all:?}");
        assert_eq!(all[0]["source"], "::/64");
        all.extend(reports(&floods, seconds(100)));
        assert_eq!(lines + sum(&all), 60_000);
    }

    #[test]
    fn all_sources_together_are_told_of_within_bounds_and_nothing_is_lost() {
        let floods = Floods::new(&DENIALS);
        let mut lines = 0;
        let mut all = Vec::new();
        // More sources than there are accounts, in a second.
        for number in 0..40_000 {
            lines += told(&floods, &v4(number), 1, seconds(1));
        }
        assert_eq!(lines, 10_000);
        // And then each of many more than it may.
        for number in 0..5_000 {
            lines += told(&floods, &v4(number), 600, seconds(2));
        }
        assert_eq!(lines, 10_100);
        for second in 3..30 {
            all.extend(reports(&floods, seconds(second)));
        }
        assert!(all.len() <= 1_300, "{}", all.len());
        assert!(all.iter().any(|report| report.get("source").is_none()));
        assert_eq!(lines + sum(&all), 40_000 + 3_000_000);
    }

    #[test]
    fn clients_of_unix_sockets_are_one_source() {
        let floods = Floods::new(&DENIALS);
        assert_eq!(told(&floods, &facts(ClientAddr::UNIX), 650, seconds(0)), 500);
        assert_eq!(reports(&floods, seconds(5))[0]["source"], "unix");
    }

    #[test]
    fn cancels_are_summed_up_in_an_event_of_their_own_without_a_reason() {
        let floods = Floods::new(&CANCELS);
        let lines = (0..150).filter(|_| floods.let_through_at(seconds(0), &v4(1), None)).count();
        assert_eq!(lines, 100);
        let over = reports(&floods, seconds(3));
        assert_eq!((&over[0]["event"], &over[0]["suppressed"]), (&"cancels.suppressed".into(), &50.into()));
        assert_eq!(over[0].get("reason"), None);
    }

    proptest! {
        #[test]
        fn told_and_suppressed_are_all_there_were(
            crowd in prop::collection::vec((0_u32..8, 0_u64..900, 0_u64..4), 0..30),
        ) {
            let floods = Floods::new(&DENIALS);
            let (mut now, mut lines, mut count) = (0, 0, 0);
            let mut all = Vec::new();
            for (number, many, pause) in crowd {
                now += pause;
                lines += told(&floods, &v4(number), many, seconds(now));
                count += many;
                all.extend(reports(&floods, seconds(now)));
            }
            all.extend(reports(&floods, seconds(now + 10)));
            prop_assert_eq!(lines + sum(&all), count);
        }
    }
}
