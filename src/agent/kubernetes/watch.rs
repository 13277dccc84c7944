//! The list and the watch of one source.
//!
//! A list is in force at once. If it lacks known addresses, or has none, it is repeated once, because only what is missing
//! twice is removed. The watch then starts at the version of the list. When it ends without an error, the next one starts at
//! the version of the last event. After any error the source is reported as failed and tried again.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use kube::Resource;
use kube::core::WatchEvent;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use crate::agent::kubernetes::collection::{Collection, advance};
use crate::agent::kubernetes::connection::Connection;
use crate::agent::kubernetes::failure::{Failure, FailureKind};
use crate::agent::kubernetes::objects::{Addressed, Objects, lacks_addresses};
use crate::jitter;
use crate::resolution::observation::{Evidence, ObjectAddress, Observation};
use crate::source::cloud::{CloudSource, KubernetesSource, Selector};

/// A kind of object that can be watched.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Addressed + Clone + DeserializeOwned + Send + 'static
{
}

impl<K: Resource<DynamicType = ()> + Addressed + Clone + DeserializeOwned + Send + 'static> Watched for K {}

/// Follows one source.
pub(super) struct SourceWatch<K> {
    source: KubernetesSource,
    collection: Collection<K>,
    connection: Arc<Connection>,
    reports: Reports,
    objects: Objects,
    /// The version that the next watch starts at. `None` means that a list is needed first.
    version: Option<String>,
    /// Failures since the last sign of life of a watch.
    failures: u32,
    /// Consecutive watches that the server ended at once.
    short_watches: u32,
    /// When the source was last listed again without a pause.
    listed_again_at: Option<Instant>,
}

/// What is listed and watched for a source.
fn collection<K: Watched>(source: &KubernetesSource) -> Collection<K> {
    let text = |selector: &Option<Selector>| selector.as_ref().map(|selector| selector.as_str().to_owned());
    let (namespace, selector) = match source {
        KubernetesSource::Nodes { selector } => (None, text(selector)),
        KubernetesSource::Pods { namespace, selector } => (Some(namespace.as_str()), text(selector)),
        KubernetesSource::Service { namespace, name } => {
            (Some(namespace.as_str()), Some(format!("{SERVICE_LABEL}={}", name.as_str())))
        }
    };
    Collection {
        path: K::url_path(&(), namespace),
        list_kind: format!("{}List", K::kind(&())),
        selector,
        objects: K::plural(&()).into_owned(),
        kind: PhantomData,
    }
}

impl<K: Watched> SourceWatch<K> {
    pub(super) fn new(
        source: KubernetesSource,
        connection: Arc<Connection>,
        sender: mpsc::Sender<(CloudSource, Observation)>,
    ) -> Self {
        let collection = collection(&source);
        let reports = Reports::new(source.clone(), sender);
        Self {
            source,
            collection,
            connection,
            reports,
            objects: Objects::default(),
            version: None,
            failures: 0,
            short_watches: 0,
            listed_again_at: None,
        }
    }

    /// Lists and watches for ever.
    pub(super) async fn run(mut self) {
        loop {
            let rejected = self.connection.client().await.map(|connected| connected.generation);
            let Err(failure) = self.attempt().await else { continue };
            if matches!(failure.kind, FailureKind::Outdated | FailureKind::Invalid) {
                self.version = None;
            }
            match (failure.kind, rejected) {
                (FailureKind::Outdated, _)
                    if self.listed_again_at.is_none_or(|listed_at| listed_at.elapsed() >= MIN_BETWEEN_LISTS) =>
                {
                    debug!(source = %self.source, error = %failure.error, "listing again");
                    self.listed_again_at = Some(Instant::now());
                    continue;
                }
                (FailureKind::Unauthorized, Ok(rejected)) if self.connection.renew(rejected).await => continue,
                _ => {}
            }
            self.failures = self.failures.saturating_add(1);
            self.reports.failed(failure.error).await;
            let pause = pause(self.failures, jitter::random());
            sleep(failure.retry_after.map_or(pause, |after| after.min(MAX_PAUSE).max(pause))).await;
        }
    }

    /// One watch, after a list if needed.
    async fn attempt(&mut self) -> Result<(), Failure> {
        let version = match self.version.take() {
            Some(version) => version,
            None => self.list_and_confirm().await?,
        };
        self.watch(version).await
    }

    /// Lists the objects and reports them. A list that lacks reported addresses, or has none, is repeated. Returns the version
    /// of the last list.
    async fn list_and_confirm(&mut self) -> Result<String, Failure> {
        let mut earlier = self.reports.last.clone();
        let mut lists: u32 = 0;
        loop {
            let (objects, version) = self.list().await?;
            self.objects = objects;
            let found = self.objects.addresses();
            self.reports.addresses(found.clone(), Evidence::List).await;
            let is_smaller = (lists == 0 && found.is_empty()) || lacks_addresses(&found, &earlier);
            lists = lists.saturating_add(1);
            if !is_smaller || lists == MAX_LISTS {
                return Ok(version);
            }
            earlier = found;
            sleep(CONFIRMATION_DELAY).await;
        }
    }

    /// All objects, and the version of the list.
    async fn list(&self) -> Result<(Objects, String), Failure> {
        let mut objects = Objects::default();
        let version = self.collection.list(&self.connection, |object| self.enter(&mut objects, &object)).await?;
        Ok((objects, version))
    }

    /// Enters an object of a list or an event.
    fn enter(&self, objects: &mut Objects, object: &K) -> Result<(), Failure> {
        let addresses = object.addresses(&self.source);
        objects.apply(name(object)?, addresses).map_err(Failure::invalid)
    }

    /// Watches from a version on, until the server ends the watch or is silent for too long.
    async fn watch(&mut self, mut version: String) -> Result<(), Failure> {
        let started = Instant::now();
        let ended = self.events(&mut version).await;
        // What was received before the end counts.
        self.version = Some(version);
        self.reports.changes(&self.objects).await;
        let what = format!("watch {}", self.collection.objects);
        ended.map_err(|failure| failure.while_doing(&what))?;
        if started.elapsed() >= SHORT_WATCH {
            self.short_watches = 0;
            return Ok(());
        }
        self.short_watches = self.short_watches.saturating_add(1);
        if self.short_watches > MAX_SHORT_WATCHES {
            return Err(Failure::unavailable("the API server ends each watch at once").while_doing(&what));
        }
        sleep(SHORT_PAUSE * self.short_watches).await;
        Ok(())
    }

    async fn events(&mut self, version: &mut String) -> Result<(), Failure> {
        let mut events = self.collection.watch(&self.connection, version, WATCH_SECONDS).await?;
        // Reported as a sign of life, after what changed before the watch.
        self.reports.note_change();
        loop {
            let due = self.reports.changed_at.map(|changed_at| changed_at + DEBOUNCE);
            let event = tokio::select! {
                event = events.next() => event?,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.reports.addresses(self.objects.addresses(), Evidence::Watch).await;
                    continue;
                }
            };
            let Some(event) = event else { return Ok(()) };
            self.apply(event, version).await?;
            self.failures = 0;
        }
    }

    async fn apply(&mut self, event: WatchEvent<K>, version: &mut String) -> Result<(), Failure> {
        advance(version, &event)?;
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let mut objects = std::mem::take(&mut self.objects);
                let entered = self.enter(&mut objects, &object);
                self.objects = objects;
                entered?;
                self.reports.note_change();
            }
            WatchEvent::Deleted(object) => {
                self.objects.remove(name(&object)?);
                self.reports.note_change();
            }
            WatchEvent::Bookmark(_) | WatchEvent::Error(_) => self.reports.sign_of_life(&self.objects).await,
        }
        Ok(())
    }
}

/// The name of an object, which identifies it within its source.
fn name<K: Resource>(object: &K) -> Result<&str, Failure> {
    let name = object.meta().name.as_deref().filter(|name| (1..=MAX_NAME).contains(&name.len()));
    name.ok_or_else(|| Failure::invalid("an object has no valid name"))
}

/// What is sent to the program, and when.
struct Reports {
    source: CloudSource,
    sender: mpsc::Sender<(CloudSource, Observation)>,
    /// The addresses that were reported last.
    last: Vec<ObjectAddress>,
    /// When they were reported. `None` after a failure, so that the next answer is reported at once.
    reported_at: Option<Instant>,
    /// When the first event since the last report came.
    changed_at: Option<Instant>,
}

impl Reports {
    fn new(source: KubernetesSource, sender: mpsc::Sender<(CloudSource, Observation)>) -> Self {
        Self { source: CloudSource::Kubernetes(source), sender, last: Vec::new(), reported_at: None, changed_at: None }
    }

    fn note_change(&mut self) {
        self.changed_at.get_or_insert_with(Instant::now);
    }

    /// Reports a complete set. What a watch left unchanged is reported only as a sign of life.
    async fn addresses(&mut self, found: Vec<ObjectAddress>, evidence: Evidence) {
        self.changed_at = None;
        if evidence == Evidence::Watch && self.last == found && !self.is_life_sign_due() {
            return;
        }
        self.last.clone_from(&found);
        self.reported_at = Some(Instant::now());
        self.send(Observation::Addresses { addresses: found, evidence }).await;
    }

    /// Reports what a watch has changed, if anything, when it has ended. An end is no sign of life.
    async fn changes(&mut self, objects: &Objects) {
        if self.changed_at.take().is_some() {
            let found = objects.addresses();
            if found != self.last {
                self.addresses(found, Evidence::Watch).await;
            }
        }
    }

    /// The server has answered: reports the set again, unless a report was sent a moment ago.
    async fn sign_of_life(&mut self, objects: &Objects) {
        if self.changed_at.is_none() && self.is_life_sign_due() {
            self.addresses(objects.addresses(), Evidence::Watch).await;
        }
    }

    fn is_life_sign_due(&self) -> bool {
        self.reported_at.is_none_or(|reported_at| reported_at.elapsed() >= LIFE_SIGN)
    }

    async fn failed(&mut self, error: String) {
        self.reported_at = None;
        self.send(Observation::Failed { error }).await;
    }

    /// A closed channel ends the whole resolver soon.
    async fn send(&self, observation: Observation) {
        let _ = self.sender.send((self.source.clone(), observation)).await;
    }
}

/// The wait before the next attempt: exponential, of which a random half is left out, so that many proxies spread out.
fn pause(failures: u32, random: u64) -> Duration {
    let whole = MIN_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(MAX_BACKOFF);
    jitter::less(whole, JITTER_PERCENT, random)
}

/// The label that names the service of an EndpointSlice.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// How long the server keeps a watch open. Each start of a watch shows that the server is there.
const WATCH_SECONDS: u32 = 45;

/// A server that ends several watches earlier than this has failed.
const SHORT_WATCH: Duration = Duration::from_secs(5);
const MAX_SHORT_WATCHES: u32 = 4;
const SHORT_PAUSE: Duration = Duration::from_millis(100);

/// A server that rejects its own versions more often has failed.
const MIN_BETWEEN_LISTS: Duration = Duration::from_secs(10);

/// Events of this time are reported together.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// The minimum time between two reports of an unchanged set.
const LIFE_SIGN: Duration = Duration::from_secs(15);

const CONFIRMATION_DELAY: Duration = Duration::from_millis(1_100);
const MAX_LISTS: u32 = 3;

/// The limit of Kubernetes is 253 bytes.
const MAX_NAME: usize = 512;

const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// The largest random part of a pause.
const JITTER_PERCENT: u32 = 50;

/// The longest wait that a server can ask for.
const MAX_PAUSE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pause_doubles_up_to_its_maximum() {
        let whole = |failures| pause(failures, 0).as_secs();
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, u32::MAX].map(whole), [1, 1, 2, 4, 8, 16, 30, 30, 30]);
    }

    proptest! {
        #[test]
        fn pause_loses_a_random_part_up_to_half(failures: u32, random: u64) {
            let (whole, shortened) = (pause(failures, 0), pause(failures, random));
            prop_assert!(shortened <= whole && shortened >= whole / 2, "{shortened:?} of {whole:?}");
            let missing = whole.saturating_sub(shortened).as_millis() * 2_000 / whole.as_millis();
            prop_assert!(missing.abs_diff(u128::from(random % 1_000)) <= 2, "{missing} of 2000, {random}");
        }
    }
}
