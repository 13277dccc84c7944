//! What an engine reports to the program.

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::agent::message::FromAgent;
use crate::agent::store::limits::text;
use crate::fleet::store::StoreEvent;
use crate::printable;

/// Sends the events of a store. A closed channel ends the store soon.
#[derive(Debug)]
pub(super) struct News {
    messages: mpsc::Sender<FromAgent>,
    /// When the first listing was complete since the last call of [`Self::take_synced_at`].
    synced_at: Option<Instant>,
    /// The error that was reported since the last listing.
    down: Option<String>,
}

impl News {
    pub(super) const fn new(messages: mpsc::Sender<FromAgent>) -> Self {
        Self { messages, synced_at: None, down: None }
    }

    pub(super) async fn listing(&mut self) {
        self.down = None;
        self.send(StoreEvent::Listing).await;
    }

    /// A shared key has this value. A value that cannot be one is reported as empty, which is valid for no key.
    pub(super) async fn changed(&self, key: String, value: Option<&[u8]>, version: String) {
        self.send(StoreEvent::Changed { key, value: value.map(text), version }).await;
    }

    pub(super) async fn synced(&mut self, cluster: &str, revision: u64) {
        self.synced_at.get_or_insert_with(Instant::now);
        self.send(StoreEvent::Synced { cluster: cluster.to_owned(), revision }).await;
    }

    /// When the first listing was complete since the last call; `None` if none was.
    pub(super) const fn take_synced_at(&mut self) -> Option<Instant> {
        self.synced_at.take()
    }

    /// The store is of no use. Attempts that fail alike are reported once.
    pub(super) async fn down(&mut self, error: String) {
        let error = printable::field(error);
        if self.down.as_ref() != Some(&error) {
            self.down = Some(error.clone());
            self.send(StoreEvent::Down { error }).await;
        }
    }

    async fn send(&self, event: StoreEvent) {
        let _ = self.messages.send(FromAgent::StoreNews(event)).await;
    }
}
