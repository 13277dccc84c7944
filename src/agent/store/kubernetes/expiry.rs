//! Removes objects with a limited life. Kubernetes has no such life, so every member removes what it has seen for that long.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use tokio::time::sleep;

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

impl KubernetesEngine {
    /// Removes answers to commands and chunks of plans whose time has passed, for ever. Nobody watches them.
    pub(super) async fn sweep(&self) -> Infallible {
        let mut limited = Limited::default();
        loop {
            sleep(SWEEP_INTERVAL).await;
            // What could not be removed now is removed later.
            let _ = self.remove_unwatched(&mut limited).await;
        }
    }

    async fn remove_unwatched(&self, limited: &mut Limited) -> Result<(), Failure> {
        let collection = self.collection(Kind::ConfigMap, temporary_selector(&self.fleet)).await?;
        limited.objects.clear();
        collection
            .list(&self.connection, |object| {
                if limited.objects.len() < MAX_OBJECTS {
                    limited.note(object.without_data());
                }
                Ok(())
            })
            .await?;
        limited.remove_expired(&self.requests(Kind::ConfigMap).await?).await
    }
}

/// How often objects are looked for that nobody watches.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// More are removed later.
const MAX_OBJECTS: usize = 2_000;
