//! Lists the shared keys and watches them: ConfigMaps and Secrets, by two watches.

use std::pin::pin;
use std::time::Duration;

use kube::core::WatchEvent;
use tokio::time::{Instant, interval_at, sleep_until};

use crate::agent::kubernetes::collection::{Collection, Events, advance};
use crate::agent::kubernetes::failure::Failure;
use crate::agent::store::engine::RELIST;
use crate::agent::store::kubernetes::KubernetesEngine;
use crate::agent::store::kubernetes::expiry::{EXPIRY_INTERVAL, Limited};
use crate::agent::store::kubernetes::object::{Kind, Object, Part, Place, shared_selector};
use crate::agent::store::kubernetes::request::Requests;
use crate::agent::store::limits::MAX_SHARED;
use crate::agent::store::news::News;
use crate::fleet::store::{MAX_VALUE, SHARED};

/// One kind of objects that is followed.
struct Followed {
    kind: Kind,
    collection: Collection<Object>,
    version: String,
    events: Option<Events<Object>>,
    /// When the last watch began.
    opened_at: Option<Instant>,
}

impl KubernetesEngine {
    /// Returns without an error when it is time to list again.
    pub(super) async fn list_and_watch(&self, news: &mut News) -> Result<(), Failure> {
        let cluster = self.cluster().await?;
        let (mut maps, found) = self.followed(Kind::ConfigMap).await?;
        let (mut secrets, tickets) = self.followed(Kind::Secret).await?;
        let relist_at = Instant::now() + RELIST;
        let mut revision = revision(&maps.version)?.max(revision(&secrets.version)?);
        let mut limited = Limited::default();
        news.listing().await;
        for (kind, objects) in [(Kind::ConfigMap, found), (Kind::Secret, tickets)] {
            for object in objects {
                self.report(news, kind, &object, true).await;
                limited.note(object);
            }
        }
        news.synced(&cluster, revision).await;
        let mut expiry = interval_at(Instant::now() + EXPIRY_INTERVAL, EXPIRY_INTERVAL);
        let mut removal = pin!(self.remove_unwatched());
        loop {
            let (followed, event) = tokio::select! {
                event = maps.next(self) => (&mut maps, event?),
                event = secrets.next(self) => (&mut secrets, event?),
                _ = expiry.tick() => {
                    limited.remove_expired(&self.requests(Kind::ConfigMap).await?).await?;
                    continue;
                }
                never = &mut removal => match never {},
                // A new listing shows whether the server answers.
                () = self.suspected.notified() => return Ok(()),
                () = sleep_until(relist_at) => return Ok(()),
            };
            let Some(event) = event else { return Ok(()) };
            advance(&mut followed.version, &event)?;
            let is_there = match &event {
                WatchEvent::Added(_) | WatchEvent::Modified(_) => true,
                WatchEvent::Deleted(_) => false,
                WatchEvent::Bookmark(_) | WatchEvent::Error(_) => continue,
            };
            if let WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) = event {
                self.report(news, followed.kind, &object, is_there).await;
                limited.forget(&object);
                if is_there {
                    limited.note(object);
                }
            }
            // The other watch may be behind, so an event alone does not move the revision back.
            let newest = self::revision(&followed.version)?;
            if newest > revision {
                revision = newest;
            }
            news.synced(&cluster, revision).await;
        }
    }

    /// The UID of the namespace, which another cluster does not have.
    async fn cluster(&self) -> Result<String, Failure> {
        let name = self.namespace().await?;
        let connection = std::sync::Arc::clone(&self.connection);
        let namespaces = Requests { connection, path: "/api/v1/namespaces".to_owned() };
        let found = namespaces.get(name).await.map_err(|failure| failure.while_doing("get the namespace"))?;
        let uid = found.and_then(|namespace| namespace.metadata.uid).filter(|uid| (1..=128).contains(&uid.len()));
        uid.ok_or_else(|| {
            Failure::invalid(format_args!("the namespace {name} does not exist; check namespace of [fleet.kubernetes]"))
        })
    }

    async fn followed(&self, kind: Kind) -> Result<(Followed, Vec<Object>), Failure> {
        let collection = self.collection(kind, shared_selector(&self.fleet)).await?;
        let (mut objects, mut size) = (Vec::new(), 0_usize);
        let version = collection
            .list(&self.connection, |object| {
                size =
                    size.saturating_add(object.value(kind, Part::Data).map_or(0, |value| value.len().min(MAX_VALUE)));
                if size > MAX_SHARED {
                    let error = format_args!("the shared keys have more than {} MiB", MAX_SHARED >> 20);
                    return Err(Failure::unavailable(error));
                }
                objects.push(object);
                Ok(())
            })
            .await?;
        Ok((Followed { kind, collection, version, events: None, opened_at: None }, objects))
    }

    /// Reports an object, if it holds a shared key of this fleet.
    async fn report(&self, news: &News, kind: Kind, object: &Object, is_there: bool) {
        let Some(key) = object.subject(&self.fleet).filter(|key| key.starts_with(SHARED)) else { return };
        let Some(place) = Place::of(&self.fleet, key) else { return };
        // A copy with another name is not the key.
        if place.kind == kind && object.metadata.name.as_deref() == Some(&place.name) {
            let value = object.value(kind, Part::Data).filter(|_| is_there);
            let version = object.metadata.resource_version.clone().unwrap_or_default();
            news.changed(key.to_owned(), value.as_deref(), version).await;
        }
    }
}

impl Followed {
    /// The next event; `None` if the watch was cut. One that has ended in its time is opened again. Dropping the future loses
    /// nothing.
    async fn next(&mut self, engine: &KubernetesEngine) -> Result<Option<WatchEvent<Object>>, Failure> {
        loop {
            let events = match &mut self.events {
                Some(events) => events,
                None => {
                    // A server that ends each watch at once is asked at most this often.
                    if let Some(opened_at) = self.opened_at {
                        sleep_until(opened_at + MIN_WATCH).await;
                    }
                    let opened = self.collection.watch(&engine.connection, &self.version, WATCH_SECONDS).await;
                    let what = format!("watch {}", self.collection.objects);
                    let opened = opened.map_err(|failure| failure.while_doing(&what))?;
                    // An attempt that was dropped is repeated at once.
                    self.opened_at = Some(Instant::now());
                    self.events.insert(opened)
                }
            };
            if let Some(event) = events.next().await? {
                return Ok(Some(event));
            }
            self.events = None;
            // A server that was restored ends all watches, and soon has a version that is known here, with other objects. Only
            // a list shows that.
            if self.opened_at.is_some_and(|opened_at| opened_at.elapsed() < FULL_WATCH) {
                return Ok(None);
            }
        }
    }
}

/// The number in a resourceVersion.
fn revision(version: &str) -> Result<u64, Failure> {
    version.parse().map_err(|_| Failure::invalid("the resourceVersion is not a number"))
}

/// How long the server keeps a watch open. A server that does not answer is found after little more.
const WATCH_SECONDS: u32 = 15;

/// A watch that ends earlier was cut.
const FULL_WATCH: Duration = Duration::from_secs(14);

const MIN_WATCH: Duration = Duration::from_millis(500);
