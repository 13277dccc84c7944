//! Lists the shared keys and watches them.
//!
//! A lost connection is followed by a new listing, never by a watch from a remembered revision: etcd before 3.4.25 can confirm a
//! revision whose events it has not sent yet. For the same reason only a listing and the events themselves move the revision.

use std::time::Duration;

use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use tokio::time::{Instant, sleep_until, timeout};

use crate::agent::store::engine::RELIST;
use crate::agent::store::etcd::EtcdEngine;
use crate::agent::store::etcd::connection::{Connected, MAX_RECEIVED};
use crate::agent::store::etcd::failure::{Failure, Kind};
use crate::agent::store::etcd::range::{Range, invalid};
use crate::agent::store::limits::MAX_SHARED;
use crate::agent::store::news::News;
use crate::fleet::store::SHARED;

/// Where a watch is.
#[derive(Debug)]
struct Position {
    cluster: u64,
    /// Everything up to this revision has been reported.
    revision: i64,
}

impl EtcdEngine {
    /// Lists and watches by this connection until that fails.
    pub(super) async fn follow_by(&self, connected: &Connected, news: &mut News) -> Failure {
        loop {
            if let Err(failure) = self.list_and_watch(connected, news).await {
                return failure;
            }
        }
    }

    /// Returns without an error when it is time to list again.
    async fn list_and_watch(&self, connected: &Connected, news: &mut News) -> Result<(), Failure> {
        let shared = Range { prefix: SHARED, keys_only: false, limit: MAX_SHARED };
        let listing = timeout(LIST_TIMEOUT, self.range(connected, shared)).await;
        let listing = listing.unwrap_or_else(|_| Err(no_answer()))?;
        let relist_at = Instant::now() + RELIST;
        let cluster = format!("{:x}", listing.cluster);
        news.listing().await;
        for entry in listing.entries {
            news.changed(entry.key, Some(entry.value.as_bytes()), entry.version).await;
        }
        news.synced(&cluster, unsigned(listing.revision)).await;
        let mut position = Position { cluster: listing.cluster, revision: listing.revision };
        let mut stream = self.open(connected, listing.revision.saturating_add(1)).await?;
        let mut silence = Silence::new();
        loop {
            tokio::select! {
                message = stream.message() => {
                    silence = Silence::new();
                    let message = message.map_err(Failure::from)?;
                    let message = message.ok_or_else(|| Failure::new(Kind::Unavailable, "it ended the watch"))?;
                    self.report(&message, &mut position, news).await?;
                }
                () = sleep_until(silence.deadline()) => silence.ask(&mut stream, false).await?,
                () = self.suspected.notified() => silence.ask(&mut stream, true).await?,
                () = self.denied.notified() => {
                    return Err(Failure::new(Kind::Denied, "the credentials are no longer valid"));
                }
                () = sleep_until(relist_at) => return Ok(()),
            }
        }
    }

    async fn open(&self, connected: &Connected, revision: i64) -> Result<WatchStream, Failure> {
        let options = WatchOptions::new().with_prefix().with_start_revision(revision).with_progress_notify();
        let mut client = connected.client.watch_client().max_decoding_message_size(MAX_RECEIVED);
        let opened = timeout(OPEN_TIMEOUT, client.watch(self.root.full(SHARED), Some(options))).await;
        Ok(opened.map_err(|_| no_answer())??)
    }

    /// Reports the events of a message.
    async fn report(&self, message: &WatchResponse, at: &mut Position, news: &mut News) -> Result<(), Failure> {
        let header = message.header().ok_or_else(|| invalid("an event has no header"))?;
        if message.compact_revision() > 0 {
            return Err(Failure::new(Kind::Compacted, "the revision of the watch has been compacted"));
        }
        if message.canceled() {
            let error = format_args!("it ended the watch: {}", message.cancel_reason());
            return Err(Failure::new(Kind::Unavailable, error));
        }
        if header.cluster_id() != at.cluster || header.revision() < at.revision {
            return Err(Failure::new(Kind::Unavailable, "it has another cluster or an older revision than before"));
        }
        let mut newest = at.revision;
        for event in message.events() {
            let found = event.kv().ok_or_else(|| invalid("an event has no key"))?;
            if found.mod_revision() <= at.revision {
                return Err(invalid("an event has an older revision than the one before"));
            }
            newest = newest.max(found.mod_revision());
            let Some(key) = self.root.own(found.key()) else { continue };
            // A deleted key has no version.
            let value = (found.version() > 0).then(|| found.value());
            news.changed(key.to_owned(), value, found.mod_revision().to_string()).await;
        }
        if newest > at.revision {
            at.revision = newest;
            news.synced(&format!("{:x}", at.cluster), unsigned(newest)).await;
        }
        Ok(())
    }
}

/// How long a watch has been silent.
struct Silence {
    since: Instant,
    /// When it was asked for a sign of life.
    asked_at: Option<Instant>,
}

impl Silence {
    fn new() -> Self {
        Self { since: Instant::now(), asked_at: None }
    }

    fn deadline(&self) -> Instant {
        self.asked_at.map_or(self.since + MAX_SILENCE, |asked_at| asked_at + ASK_TIMEOUT)
    }

    /// Asks for the progress of the watch, at its deadline or because it is `suspected`.
    ///
    /// # Errors
    /// If it was asked before and has not answered.
    async fn ask(&mut self, stream: &mut WatchStream, is_suspected: bool) -> Result<(), Failure> {
        match self.asked_at {
            None => {
                self.asked_at = Some(Instant::now());
                let sent = timeout(ASK_TIMEOUT, stream.request_progress()).await;
                Ok(sent.map_err(|_| silent())??)
            }
            Some(_) if is_suspected => Ok(()),
            Some(_) => Err(silent()),
        }
    }
}

fn silent() -> Failure {
    Failure::new(Kind::Unavailable, "the watch is silent")
}

fn no_answer() -> Failure {
    Failure::new(Kind::Unavailable, "no answer to a listing or a watch")
}

fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or_default()
}

/// All pages of the shared keys.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

const OPEN_TIMEOUT: Duration = Duration::from_secs(4);

/// After this time a watch is asked for a sign of life, which etcd then sends at once.
const MAX_SILENCE: Duration = Duration::from_secs(10);
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
