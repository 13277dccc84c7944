//! Keeps the last good answers on disk, whenever the addresses of a source change.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::fault;
use crate::resolution::cache::ResolutionCache;
use crate::resolution::cache_file::CacheFile;
use crate::source::addresses::{AddressBook, Resolvable};

/// The sources whose answers are kept, and the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub sources: BTreeSet<Resolvable>,
    pub cache_file: CacheFile,
}

/// Writes the answers until the policy channel is closed.
pub(crate) async fn run(mut current: watch::Receiver<Arc<Kept>>, cache: Arc<ResolutionCache>) {
    let mut saver = Saver { cache, written: None, has_failed: false };
    loop {
        let kept = Arc::clone(&current.borrow_and_update());
        saver.save(kept).await;
        tokio::select! {
            changed = current.changed() => if changed.is_err() { return },
            () = saver.cache.unsaved() => {}
        }
    }
}

struct Saver {
    cache: Arc<ResolutionCache>,
    /// The file and the answers that were last written.
    written: Option<(CacheFile, AddressBook)>,
    /// Whether the last write failed. A failure is logged once.
    has_failed: bool,
}

impl Saver {
    /// Writes the answers if they have changed, then pauses, so that a set that changes all the time does not occupy the disk.
    async fn save(&mut self, kept: Arc<Kept>) {
        let known = (kept.cache_file.clone(), self.cache.book(&kept.sources));
        if self.written.as_ref() == Some(&known) || (self.written.is_none() && known.1.is_empty()) {
            return;
        }
        let (cache, begin) = (Arc::clone(&self.cache), Instant::now());
        let result = fault::contained_blocking(PART, move || kept.cache_file.write(&cache, &kept.sources)).await;
        self.written = Some(known);
        let result = result.unwrap_or_else(|fault| Err(fault.to_string()));
        if let Err(error) = &result
            && !self.has_failed
        {
            warn!(%error, "cannot write the last good answers");
        }
        self.has_failed = result.is_err();
        sleep(begin.elapsed().saturating_mul(PAUSE_FACTOR).clamp(MIN_PAUSE, MAX_PAUSE)).await;
    }
}

/// The name of this part in fault reports.
pub(crate) const PART: &str = "answers on disk";

/// The pause after a write, by the time that the write took.
const PAUSE_FACTOR: u32 = 10;

const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(10);
