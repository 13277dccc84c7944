//! Denied connections grouped by listener, source and reason, so that an operator finds the one that should be admitted.
//!
//! The table has a fixed size, and attackers have many sources. Each denial extends the time for which its group is worth
//! keeping, so a group that repeats outlasts those that came once, and one of a trusted source outlasts all others.

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::addr::SourceKey;
use crate::audit::event::ConnectionFields;
use crate::limit::table::{BoundedTable, TableEntry};
use crate::outcome::Reason;
use crate::printable;
use crate::source::trusted::SourceMatch;

/// The groups of all listeners: at most 4,096.
#[derive(Debug)]
pub(crate) struct Denials {
    /// The zero of the times in the table.
    start: Instant,
    groups: BoundedTable<GroupKey, Group, 8>,
    replaced: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct GroupKey {
    listener: Arc<str>,
    /// `None` for clients of Unix sockets.
    source: Option<SourceKey>,
    reason: Reason,
}

impl GroupKey {
    fn of(fields: &ConnectionFields, reason: Reason) -> Self {
        Self { listener: Arc::clone(&fields.listener), source: fields.client.source_key(), reason }
    }
}

/// The state of a group. The default is that of an unknown one.
#[derive(Debug, Default)]
struct Group {
    seen: Option<Seen>,
    /// What the audit says of the last one that was written.
    detail: Option<Box<str>>,
    /// The end of the time for which the group is worth keeping, in milliseconds.
    kept_until: u64,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    count: u64,
    first: OffsetDateTime,
    last: OffsetDateTime,
    /// The same as `last` by a clock that nobody sets.
    last_tick: Duration,
    last_address: Option<IpAddr>,
}

/// The denied connections of one source at one listener for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeniedGroup {
    pub listener: Arc<str>,
    /// An IPv4 address or the /64 of IPv6 addresses; `None` for clients of Unix sockets.
    pub source: Option<SourceKey>,
    pub reason: Reason,
    pub count: u64,
    pub first: OffsetDateTime,
    pub last: OffsetDateTime,
    /// The address of the last one; `None` for a client of a Unix socket.
    pub last_address: Option<IpAddr>,
    /// What the audit says of the last one that was written to it, at most [`MAX_DETAIL`] bytes.
    pub detail: Option<Box<str>>,
}

impl Default for Denials {
    fn default() -> Self {
        Self { start: Instant::now(), groups: BoundedTable::default(), replaced: AtomicU64::new(0) }
    }
}

impl TableEntry for Group {
    fn score(&self) -> u64 {
        self.kept_until
    }
}

impl Group {
    /// Returns the state if the group is not too old to be listed.
    fn seen(&self, tick: Duration) -> Option<Seen> {
        self.seen.filter(|seen| tick.saturating_sub(seen.last_tick) < MAX_AGE)
    }

    fn count(&mut self, address: Option<IpAddr>, is_trusted: bool, tick: Duration, now: OffsetDateTime) {
        let fresh = Seen { count: 0, first: now, last: now, last_tick: tick, last_address: address };
        let seen = self.seen(tick).unwrap_or(fresh);
        let count = seen.count.saturating_add(1);
        self.seen = Some(Seen { count, last: now, last_tick: tick, last_address: address, ..seen });
        let base = milliseconds(tick).saturating_add(if is_trusted { milliseconds(TRUSTED_BONUS) } else { 0 });
        let longest = base.saturating_add(milliseconds(MAX_BONUS));
        self.kept_until = self.kept_until.max(base).saturating_add(milliseconds(BONUS)).min(longest);
    }
}

impl Denials {
    /// Counts a denied connection.
    pub(crate) fn count(&self, fields: &ConnectionFields, reason: Reason) {
        self.count_at(self.start.elapsed(), OffsetDateTime::now_utc(), fields, reason);
    }

    /// Keeps what the audit says of a denied connection that was counted.
    pub(crate) fn describe(&self, fields: &ConnectionFields, reason: Reason, detail: &str) {
        let detail = printable::cut(detail, MAX_DETAIL);
        self.groups.of(GroupKey::of(fields, reason), |group| group.detail = Some(detail.into()));
    }

    /// The groups of one listener or of all that had a denial since then, newest first. Groups without a denial for
    /// [`MAX_AGE`] are not listed.
    pub(crate) fn list(&self, listener: Option<&str>, since: Option<OffsetDateTime>) -> Vec<DeniedGroup> {
        self.list_at(self.start.elapsed(), listener, since)
    }

    /// How many groups made room for newer ones. If it grows, the list is incomplete.
    pub(crate) fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Forgets all groups.
    pub(crate) fn clear(&self) {
        self.groups.clear();
        self.replaced.store(0, Ordering::Relaxed);
    }

    fn count_at(&self, tick: Duration, now: OffsetDateTime, fields: &ConnectionFields, reason: Reason) {
        let client = fields.client;
        let is_trusted = matches!(fields.source_match, Some(SourceMatch::Rule(_) | SourceMatch::SocketFile));
        let ((), former) =
            self.groups.of(GroupKey::of(fields, reason), |group| group.count(client.ip(), is_trusted, tick, now));
        if former.is_some_and(|group| group.seen(tick).is_some()) {
            self.replaced.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn list_at(&self, tick: Duration, listener: Option<&str>, since: Option<OffsetDateTime>) -> Vec<DeniedGroup> {
        let mut groups = Vec::new();
        self.groups.each(|key, group| {
            let Some(seen) = group.seen(tick) else { return };
            let is_wanted = listener.is_none_or(|listener| listener == &*key.listener);
            if is_wanted && since.is_none_or(|since| seen.last >= since) {
                groups.push(DeniedGroup::of(key, seen, group.detail.clone()));
            }
        });
        groups.sort_by(|one, other| other.last.cmp(&one.last).then(other.count.cmp(&one.count)));
        groups
    }
}

impl DeniedGroup {
    fn of(key: &GroupKey, seen: Seen, detail: Option<Box<str>>) -> Self {
        let GroupKey { listener, source, reason } = key;
        let Seen { count, first, last, last_address, .. } = seen;
        let (listener, source, reason) = (Arc::clone(listener), *source, *reason);
        Self { listener, source, reason, count, first, last, last_address, detail }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Bytes of a detail. 4,096 of them are a megabyte.
const MAX_DETAIL: usize = 256;

/// A group without a denial for this long is forgotten.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// How much longer each further denial keeps a group, compared with others.
const BONUS: Duration = Duration::from_secs(60);

/// Maximum of these together, so that the sources of a past flood make room.
const MAX_BONUS: Duration = Duration::from_secs(3600);

/// How much longer a group of a trusted source is kept. It is longer than [`MAX_BONUS`], so that untrusted sources do not
/// replace it.
const TRUSTED_BONUS: Duration = MAX_AGE;
