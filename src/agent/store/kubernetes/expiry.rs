//! Removes objects with a limited life. Kubernetes has no such life, so every member removes what it has seen for that long.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::agent::kubernetes::failure::Failure;
use crate::agent::store::kubernetes::KubernetesEngine;
use crate::agent::store::kubernetes::lifetimes::Lifetimes;
use crate::agent::store::kubernetes::object::{Kind, Object, temporary_selector};
use crate::agent::store::kubernetes::request::Requests;

/// Objects with a limited life.
#[derive(Default)]
pub(super) struct Limited {
    objects: Vec<Object>,
    ages: Lifetimes,
}

impl Limited {
    pub(super) fn note(&mut self, object: Object) {
        if object.lifetime().is_some() {
            self.objects.push(object);
        }
    }

    pub(super) fn forget(&mut self, changed: &Object) {
        self.objects.retain(|object| object.metadata.name != changed.metadata.name);
    }

    /// Removes the objects whose time has passed since this process has seen them first.
    pub(super) async fn remove_expired(&mut self, requests: &Requests) -> Result<(), Failure> {
        let mut expired = Vec::new();
        for object in &self.objects {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            let time = Duration::from_secs(object.lifetime().unwrap_or(u32::MAX).into());
            let version = object.metadata.resource_version.clone().unwrap_or_default();
            if !self.ages.note(name, version, time) {
                expired.push(object.clone());
            }
        }
        for object in expired {
            // Whatever came of it, the watch reports it.
            requests.delete(&object).await?;
            self.forget(&object);
        }
        let names: BTreeSet<_> = self.objects.iter().filter_map(|object| object.metadata.name.as_deref()).collect();
        self.ages.retain(|name| names.contains(name));
        Ok(())
    }
}

/// Objects with a limited life that nobody watches: answers to commands, and chunks of plans.
#[derive(Default)]
pub(super) struct Unwatched {
    /// Those that this process has written, by name, and when they are to be removed.
    written: BTreeMap<String, (Object, Instant)>,
    /// Those that others have left behind.
    left: Limited,
    swept_at: Option<Instant>,
}

impl Unwatched {
    /// Notes an object that this process has written.
    pub(super) fn wrote(&mut self, object: &Object) {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let Some(seconds) = object.lifetime().filter(|_| self.written.len() < MAX_OBJECTS) else {
            self.written.remove(name);
            return;
        };
        let due_at = Instant::now() + Duration::from_secs(seconds.into());
        self.written.insert(name.to_owned(), (object.without_data(), due_at));
    }

    fn take_due(&mut self) -> Vec<Object> {
        let now = Instant::now();
        let (due, written) = std::mem::take(&mut self.written).into_iter().partition(|(_, (_, due_at))| *due_at <= now);
        self.written = written;
        let due: BTreeMap<String, (Object, Instant)> = due;
        due.into_values().map(|(object, _)| object).collect()
    }
}

impl KubernetesEngine {
    pub(super) fn unwatched(&self) -> MutexGuard<'_, Unwatched> {
        self.unwatched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes answers and chunks of plans whose time has passed, for ever.
    ///
    /// Each member removes its own at once. To look for what a member has left behind that has ended before, everything is
    /// listed, which costs the server more and is rare.
    pub(super) async fn remove_unwatched(&self) -> Infallible {
        loop {
            sleep(EXPIRY_INTERVAL).await;
            let due = self.unwatched().take_due();
            for object in due {
                // One that is not removed now is found by a sweep.
                let _ = self.remove(&object).await;
            }
            let is_due = self.unwatched().swept_at.is_none_or(|swept_at| swept_at.elapsed() >= SWEEP_INTERVAL);
            if is_due {
                let _ = self.sweep().await;
                self.unwatched().swept_at = Some(Instant::now());
            }
        }
    }

    async fn remove(&self, object: &Object) -> Result<(), Failure> {
        self.requests(Kind::ConfigMap).await?.delete(object).await.map(drop)
    }

    async fn sweep(&self) -> Result<(), Failure> {
        let collection = self.collection(Kind::ConfigMap, temporary_selector(&self.fleet)).await?;
        let mut left = std::mem::take(&mut self.unwatched().left);
        left.objects.clear();
        collection
            .list(&self.connection, |object| {
                if left.objects.len() < MAX_OBJECTS {
                    left.note(object.without_data());
                }
                Ok(())
            })
            .await?;
        let removed = left.remove_expired(&self.requests(Kind::ConfigMap).await?).await;
        self.unwatched().left = left;
        removed
    }
}

/// How often objects are removed whose time has passed.
pub(super) const EXPIRY_INTERVAL: Duration = Duration::from_secs(2);

/// How often objects are looked for that others have left behind.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);

/// More are removed later.
const MAX_OBJECTS: usize = 2_000;
