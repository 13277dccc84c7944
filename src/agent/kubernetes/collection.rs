//! The list and the watch of a collection of objects, with what every API server can do wrong.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use kube::Resource;
use kube::api::{ListParams, WatchParams};
use kube::core::{ObjectList, Request, WatchEvent};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout, timeout_at};

use crate::agent::kubernetes::connection::Connection;
use crate::agent::kubernetes::failure::{Failure, FailureKind};

/// An object with a version.
pub(crate) trait Versioned: Clone + DeserializeOwned + Send + 'static {
    /// Its resourceVersion, empty if it has none.
    fn version(&self) -> &str;
}

impl<K: Resource + Clone + DeserializeOwned + Send + 'static> Versioned for K {
    fn version(&self) -> &str {
        self.meta().resource_version.as_deref().unwrap_or_default()
    }
}

/// What is listed and watched.
#[derive(Clone, Debug)]
pub(crate) struct Collection<K> {
    pub(crate) path: String,
    /// The kind of a list, such as `PodList`.
    pub(crate) list_kind: String,
    pub(crate) selector: Option<String>,
    /// For messages: `pods`.
    pub(crate) objects: String,
    pub(crate) kind: PhantomData<fn() -> K>,
}

impl<K: Versioned> Collection<K> {
    /// Reads all pages of the list, and passes each object on. Returns the version of the list.
    pub(crate) async fn list(
        &self,
        connection: &Connection,
        enter: impl FnMut(K) -> Result<(), Failure>,
    ) -> Result<String, Failure> {
        let what = format!("list {}", self.objects);
        let listed = timeout(LIST_TIMEOUT, self.pages(connection, enter)).await;
        listed
            .unwrap_or_else(|_| Err(Failure::unavailable(format_args!("not complete within {LIST_TIMEOUT:?}"))))
            .map_err(|failure| failure.while_doing(&what))
    }

    async fn pages(
        &self,
        connection: &Connection,
        mut enter: impl FnMut(K) -> Result<(), Failure>,
    ) -> Result<String, Failure> {
        let mut tokens = BTreeSet::new();
        let mut next = None;
        for _ in 0..MAX_PAGES {
            let page = self.page(connection, next.clone()).await?;
            page.items.into_iter().try_for_each(&mut enter)?;
            let version = page.metadata.resource_version.filter(|version| !version.is_empty());
            next = page.metadata.continue_.filter(|token| !token.is_empty());
            match (&next, version) {
                (None, Some(version)) if version.len() <= MAX_VERSION => return Ok(version),
                (None, _) => return Err(Failure::invalid("the list has no resourceVersion")),
                (Some(token), _) if token.len() > MAX_TOKEN || !tokens.insert(token.clone()) => {
                    return Err(Failure::invalid("the list has an invalid continue token"));
                }
                (Some(_), _) => {}
            }
        }
        Err(Failure::invalid(format_args!("the list has more than {MAX_PAGES} pages; use a narrower source")))
    }

    async fn page(&self, connection: &Connection, next: Option<String>) -> Result<ObjectList<K>, Failure> {
        let client = connection.client().await?.client;
        let parameters = ListParams {
            label_selector: self.selector.clone(),
            limit: Some(PAGE_SIZE),
            continue_token: next,
            ..ListParams::default()
        };
        let request = Request::new(self.path.clone()).list(&parameters).map_err(Failure::invalid)?;
        // `Client::request` would log a body that it cannot parse.
        let text = {
            let _permit = connection.lists.acquire().await.map_err(Failure::unavailable)?;
            connection.within_timeout(client.request_text(request)).await?
        };
        let page: ObjectList<K> = serde_json::from_str(&text)
            .map_err(|error| Failure::invalid(format_args!("the answer is not valid: {error}")))?;
        if page.types.kind != self.list_kind {
            return Err(Failure::invalid(format_args!("the answer is not a {}", self.list_kind)));
        }
        Ok(page)
    }

    /// Starts a watch at a version. The server ends it after this time.
    pub(crate) async fn watch(
        &self,
        connection: &Connection,
        version: &str,
        seconds: u32,
    ) -> Result<Events<K>, Failure> {
        let client = connection.client().await?.client;
        let parameters = WatchParams {
            label_selector: self.selector.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = Request::new(self.path.clone()).watch(&parameters, version).map_err(Failure::invalid)?;
        let stream = connection.within_timeout(client.request_events::<K>(request)).await?;
        // A watch that is silent for longer than the server keeps it open is dead.
        let silence = Duration::from_secs(u64::from(seconds)) + SILENCE_MARGIN;
        Ok(Events { stream: Box::pin(stream), silence, silent_until: Instant::now() + silence })
    }
}

/// The events of a watch.
pub(crate) struct Events<K> {
    stream: Pin<Box<dyn Stream<Item = Result<WatchEvent<K>, kube::Error>> + Send>>,
    silence: Duration,
    silent_until: Instant,
}

impl<K: Versioned> Events<K> {
    /// The next event; `None` if the server has ended the watch, the connection broke, or nothing came for too long, which a
    /// watch from the last version repairs. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<WatchEvent<K>>, Failure> {
        let event = match timeout_at(self.silent_until, self.stream.next()).await {
            Ok(Some(Ok(event))) => event,
            Ok(Some(Err(kube::Error::ReadEvents(error)))) => match Failure::from(kube::Error::ReadEvents(error)) {
                failure if failure.kind == FailureKind::Unavailable => return Ok(None),
                failure => return Err(failure),
            },
            Ok(Some(Err(error))) => return Err(error.into()),
            Ok(None) | Err(_) => return Ok(None),
        };
        self.silent_until = Instant::now() + self.silence;
        Ok(Some(event))
    }
}

/// Takes over the version of an event.
///
/// # Errors
/// If the event is an error, or its version is older than the known one.
pub(crate) fn advance<K: Versioned>(version: &mut String, event: &WatchEvent<K>) -> Result<(), Failure> {
    let newer = match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) => object.version(),
        WatchEvent::Bookmark(bookmark) => bookmark.metadata.resource_version.as_str(),
        WatchEvent::Error(status) => return Err(Failure::from_status(status)),
    };
    if newer.is_empty() || newer.len() > MAX_VERSION {
        return Err(Failure::invalid("an event has no resourceVersion"));
    }
    if is_older(newer, version) {
        let outdated = format_args!("the version went back from {version} to {newer}").to_string();
        return Err(Failure::new(FailureKind::Outdated, outdated));
    }
    newer.clone_into(version);
    Ok(())
}

/// Whether a resource version is older than the known one. Both are decimal numbers; a server that uses another form gets no
/// such check.
fn is_older(version: &str, known: &str) -> bool {
    matches!((version.parse::<u128>(), known.parse::<u128>()), (Ok(version), Ok(known)) if version < known)
}

/// The time that all pages of a list may take together.
const LIST_TIMEOUT: Duration = Duration::from_secs(120);

const SILENCE_MARGIN: Duration = Duration::from_secs(5);

/// The page size of kubectl and client-go.
const PAGE_SIZE: u32 = 500;

/// A million objects.
const MAX_PAGES: u32 = 2_000;

const MAX_VERSION: usize = 256;
const MAX_TOKEN: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_that_goes_backwards_is_older() {
        assert!(is_older("99", "100") && is_older("0", "18446744073709551616"));
        for (version, known) in [("100", "100"), ("101", "100"), ("abc", "100"), ("99", ""), ("", "")] {
            assert!(!is_older(version, known), "{version} {known}");
        }
    }
}
