//! Lookups of the host names in trusted sources. [`crate::resolution`] has their results.

pub(crate) mod lookup;
pub(crate) mod refresher;
pub(crate) mod resolv_conf;
pub(crate) mod ttl;
pub(crate) mod wire;

use std::collections::{BTreeSet, HashSet};

use time::OffsetDateTime;

use crate::resolution::cache::ResolutionCache;
use crate::resolution::cache_file::CacheFile;
use crate::resolution::host::HostChange;
use crate::source::addresses::{AddressBook, Resolvable};
use crate::source::host::HostName;

/// The answers for a policy that is being built.
#[derive(Debug)]
pub(crate) struct Lookup {
    pub book: AddressBook,
    /// Messages for the operator.
    pub warnings: Vec<String>,
}

/// The addresses of `sources`. Host names that are not `watched` yet are looked up now, which takes a few seconds at most. A
/// source without any answer gets the last one from `cache_file`; cloud sources are never waited for.
pub(crate) fn find(
    sources: &BTreeSet<Resolvable>,
    watched: &HashSet<&HostName>,
    cache: &ResolutionCache,
    cache_file: &CacheFile,
) -> Lookup {
    let mut warnings = Vec::new();
    let mut missing: BTreeSet<&Resolvable> = sources.iter().filter(|source| !cache.has_state(source)).collect();
    if !cache.is_offline() {
        let names = sources.iter().filter_map(Resolvable::host);
        let fresh = names.filter(|name| !watched.contains(name) || cache.host(name).is_none());
        let answers = lookup::lookup_all(&fresh.cloned().collect::<Vec<_>>());
        missing.retain(|source| source.host().is_none());
        missing.extend(
            sources
                .iter()
                .filter(|source| source.host().and_then(|name| answers.get(name)).is_some_and(Result::is_err)),
        );
        remember(&missing, cache, cache_file, &mut warnings);
        for (name, answer) in answers {
            if let Some(HostChange::Degraded(message)) = cache.note(&name, answer, OffsetDateTime::now_utc()) {
                warnings.push(message);
            }
        }
    } else {
        remember(&missing, cache, cache_file, &mut Vec::new());
    }
    Lookup { book: cache.book(sources), warnings }
}

fn remember(
    missing: &BTreeSet<&Resolvable>,
    cache: &ResolutionCache,
    cache_file: &CacheFile,
    warnings: &mut Vec<String>,
) {
    if missing.is_empty() {
        return;
    }
    match cache_file.read() {
        Ok(old) => cache.remember(old.into_iter().filter(|(source, _)| missing.contains(source))),
        Err(error) => warnings.push(error),
    }
}
