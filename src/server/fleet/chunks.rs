//! Reads and writes the chunks of long lists of rules.
//!
//! # Why no chunk of a manifest is ever removed
//!
//! A writer lists the chunks with their versions, writes every chunk that the manifest it replaces does not name, replaces the
//! manifest, and then removes the listed chunks that the new manifest does not name, if they still have the listed versions.
//!
//! Let a writer A replace a manifest, and let a later manifest name a chunk that A wants to remove. The manifest of A does not
//! name the chunk. So one of the writers after A was the first to name it again, and wrote the chunk, even if it was there,
//! after it had read a manifest of A or later. A had listed the chunks before it wrote its manifest. So the chunk has another
//! version than A has listed, and A does not remove it. A writer that read an older manifest than A's cannot replace A's.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::fault;
use crate::fleet::chunks::split;
use crate::fleet::manifest::{Encoded, Manifest, digest};
use crate::fleet::store::{CHUNKS, Entry, Expected, MAX_KEYS, Operation, Outcome, StoreClient};
use crate::server::fleet::PART;

/// Why a text cannot be read from the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FetchError {
    /// It may succeed later.
    Unavailable(String),
    /// A chunk is not there: the rules were replaced meanwhile, or the store has lost it.
    Incomplete,
    /// The store has something else.
    Invalid(String),
}

/// Reads the text of a manifest. Chunks that `known` has are not read.
///
/// # Errors
/// [`FetchError`].
pub(crate) async fn fetch(
    store: &StoreClient,
    listener: &str,
    manifest: &Manifest,
    known: Option<Arc<[u8]>>,
) -> Result<String, FetchError> {
    // Other listeners wait for it.
    match timeout(FETCH_TIMEOUT, fetch_chunks(store, listener, manifest, known)).await {
        Ok(fetched) => fetched,
        Err(_) => Err(FetchError::Unavailable(format!("they did not arrive within {FETCH_TIMEOUT:?}"))),
    }
}

async fn fetch_chunks(
    store: &StoreClient,
    listener: &str,
    manifest: &Manifest,
    known: Option<Arc<[u8]>>,
) -> Result<String, FetchError> {
    let mut chunks = match known {
        Some(known) if !manifest.chunks().is_empty() => blocking(move || split_known(&known)).await?,
        _ => BTreeMap::new(),
    };
    let mut wanted: Vec<String> =
        manifest.chunks().iter().filter(|digest| !chunks.contains_key(*digest)).cloned().collect();
    wanted.sort_unstable();
    wanted.dedup();
    // More than the manifest says is another text, and would only take memory.
    let mut room = manifest.length();
    for group in wanted.chunks(MAX_KEYS) {
        let keys = group.iter().map(|digest| key(listener, digest)).collect();
        match store.perform(Operation::Get { keys }).await {
            Outcome::Entries(entries) => {
                let prefix = key(listener, "");
                for Entry { key, value, .. } in entries {
                    let Some(left) = room.checked_sub(value.len()) else {
                        return Err(FetchError::Invalid("the chunks are longer than the manifest says".to_owned()));
                    };
                    room = left;
                    if let Some(digest) = key.strip_prefix(&prefix) {
                        chunks.insert(digest.to_owned(), value);
                    }
                }
            }
            other => return Err(FetchError::Unavailable(other.failure())),
        }
    }
    let manifest = manifest.clone();
    let text = blocking(move || manifest.text(|digest| chunks.get(digest).map(String::as_str))).await?;
    match text {
        Ok(Some(text)) => Ok(text),
        Ok(None) => Err(FetchError::Incomplete),
        Err(error) => Err(FetchError::Invalid(format!("the manifest {error}"))),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, FetchError> {
    fault::contained_blocking(PART, work).await.map_err(|fault| FetchError::Unavailable(fault.to_string()))
}

fn split_known(known: &[u8]) -> BTreeMap<String, String> {
    let text = std::str::from_utf8(known).unwrap_or_default();
    split(text).into_iter().map(|chunk| (digest(chunk), chunk.to_owned())).collect()
}

/// Writes the chunks of planned rules that the manifest in force does not name, for a limited time.
///
/// A chunk that is there stays as it is: it may have become a part of a manifest meanwhile, and must not expire.
///
/// # Errors
/// Why the store does not have all of them.
pub(crate) async fn put_planned(
    store: &StoreClient,
    listener: &str,
    encoded: &Encoded<'_>,
    named: &HashSet<String>,
) -> Result<(), String> {
    write(store, listener, encoded, named, |key, value| Operation::Put {
        key,
        value,
        expected: Expected::Absent,
        seconds: Some(PLAN_LIFE),
    })
    .await
}

/// The chunks of a listener in the store, before a manifest is replaced.
#[derive(Debug)]
pub(crate) struct Listed(Vec<Entry>);

/// Lists the chunks of a listener, and writes those of a new text that the manifest to be replaced does not name.
///
/// # Errors
/// Why the store does not have all of them.
pub(crate) async fn put(
    store: &StoreClient,
    listener: &str,
    encoded: &Encoded<'_>,
    named: &HashSet<String>,
) -> Result<Listed, String> {
    let prefix = key(listener, "");
    let listed = match store.perform(Operation::Keys { prefix: prefix.clone() }).await {
        Outcome::Entries(entries) => Listed(entries),
        other => return Err(other.failure()),
    };
    // One that the manifest names and the store has lost is written again.
    let there: HashSet<_> = listed.0.iter().filter_map(|entry| entry.key.strip_prefix(&prefix)).collect();
    let kept = named.iter().filter(|digest| there.contains(digest.as_str())).cloned().collect();
    write(store, listener, encoded, &kept, |key, value| Operation::Put {
        key,
        value,
        expected: Expected::Any,
        seconds: None,
    })
    .await?;
    Ok(listed)
}

/// Writes the chunks that a manifest does not name yet.
async fn write(
    store: &StoreClient,
    listener: &str,
    encoded: &Encoded<'_>,
    named: &HashSet<String>,
    put: impl Fn(String, String) -> Operation,
) -> Result<(), String> {
    let mut writes = JoinSet::new();
    for (digest, chunk) in encoded.chunks.iter().filter(|(digest, _)| !named.contains(digest)) {
        if writes.len() >= MAX_WRITES {
            written(writes.join_next().await)?;
        }
        let (store, operation) = (store.clone(), put(key(listener, digest), (*chunk).to_owned()));
        writes.spawn(async move { store.perform(operation).await });
    }
    while let Some(outcome) = writes.join_next().await {
        written(Some(outcome))?;
    }
    Ok(())
}

fn written(outcome: Option<Result<Outcome, tokio::task::JoinError>>) -> Result<(), String> {
    match outcome {
        // A conflict is a chunk that is there already: its key is its digest.
        None | Some(Ok(Outcome::Done { .. } | Outcome::Conflict { .. })) => Ok(()),
        Some(Ok(other)) => Err(other.failure()),
        Some(Err(error)) => Err(error.to_string()),
    }
}

/// Removes the listed chunks that the manifest in force does not name and nobody has written since. One that stays is removed
/// after the next change.
pub(crate) async fn remove_unnamed(store: &StoreClient, manifest: &Manifest, listener: &str, listed: Listed) {
    let named: HashSet<String> = manifest.chunks().iter().map(|digest| key(listener, digest)).collect();
    for Entry { key, version, .. } in listed.0 {
        if !named.contains(&key) {
            let _ = store.perform(Operation::Delete { key, expected: Expected::Version(version) }).await;
        }
    }
}

fn key(listener: &str, digest: &str) -> String {
    format!("{CHUNKS}{listener}/{digest}")
}

/// What to tell of [`FetchError::Incomplete`].
pub(crate) const INCOMPLETE: &str = "a part of the rules is not in the store";

/// How long the chunks of one list may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(20);

/// Chunks that are written at the same time.
const MAX_WRITES: usize = 8;

/// Seconds; longer than members take to answer how many sessions a plan would end.
const PLAN_LIFE: u32 = 120;
