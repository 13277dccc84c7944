//! When to build a new snapshot, and building it.
//!
//! One task does this, so reloads never overlap and the newest files win. What triggers it, a file event, the poll or
//! SIGHUP, only says that it is time to look; whether anything changed is decided by content. New addresses of host names
//! come by this way, too, so that they and a reload never overtake each other.

#[cfg(test)]
pub(crate) mod secrets;
pub(crate) mod thread;
pub(crate) mod watcher;

use crate::config::problem;
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use crate::audit::changes::Changes;
use crate::config;
use crate::config::files::{Files, Fingerprint};
use crate::config::{Config, Loaded};
use crate::dns::cache_file::CacheFile;
use crate::dns::{HostCache, Lookup};
use crate::policy::{Built, Snapshot};
use crate::server::reload::thread::PolicyThread;
use crate::server::reload::watcher::Watcher;
use crate::server::systemd;
use crate::source::host::HostName;

/// Looks after the files of the configuration.
#[derive(Debug)]
pub(crate) struct Reloader {
    file: PathBuf,
    watcher: Watcher,
    /// The files of the last attempt, by content. An attempt that failed is not repeated before they change.
    attempted: Fingerprint,
    settings: config::Reload,
    /// When it last looked; the next poll counts from here, however often names move in between.
    looked: Instant,
    /// Whether the last attempt failed for a reason outside the files, so that the poll has to try again.
    again: bool,
    /// Those who ask for a reload and wait to hear what became of it.
    askers: mpsc::Receiver<Asker>,
    /// What is known of the host names that rules trust.
    host_cache: Arc<HostCache>,
    thread: PolicyThread,
}

/// Where somebody waits to hear what became of a reload.
pub(crate) type Asker = oneshot::Sender<ReloadReply>;

/// What somebody is told who asked for a reload.
#[derive(Debug)]
pub(crate) struct ReloadReply {
    /// What became of it.
    pub verdict: ReloadResult,
    /// Since when what the files say has been in force, where that was before.
    pub in_force_since: Option<OffsetDateTime>,
}

/// What became of a reload: the changes that are in force now, or why there are none.
pub(crate) type ReloadResult = Result<Changes, String>;

/// Why to look.
enum Trigger {
    /// A file event, or the time to poll.
    Change,
    /// SIGHUP.
    Hangup,
    /// Somebody asked, and waits.
    Asked(Asker),
    /// A host name has other addresses.
    Moved,
}

/// A policy that may be put in force.
#[derive(Debug)]
pub(crate) enum PolicyChange {
    /// What the files say.
    Reload(ReloadAttempt),
    /// What the files have said before, with what is known of its host names now.
    Refresh(Box<Snapshot>),
}

/// What an attempt to reload came to.
#[derive(Debug)]
pub(crate) struct ReloadAttempt {
    /// Whether the operator asked for it, rather than a file having changed.
    pub requested: bool,
    /// Who wants to hear what becomes of it.
    pub asker: Option<Asker>,
    /// Whether the files are the same as at the attempt before, and that came to its end.
    pub same_files: bool,
    /// A policy to put in force, or why there is none.
    pub outcome: Result<Box<Built>, String>,
}

/// Reads the configuration, asks for host names that nobody looks after yet, and builds the snapshot after `previous`, or
/// the first one.
///
/// # Errors
/// Every problem found. The fingerprint tells which files were looked at, either way.
pub fn build(
    file: &Path,
    previous: Option<&Snapshot>,
    host_cache: &HostCache,
) -> (Result<Built, problem::Problems>, Fingerprint) {
    let mut files = Files::default();
    let built = Config::load(file, &mut files).and_then(|loaded| {
        let Lookup { book, warnings } = find(&loaded, previous, host_cache);
        let mut built = Snapshot::build(loaded, &mut files, previous, &book)?;
        built.warnings.extend(warnings);
        Ok(built)
    });
    (built, files.fingerprint())
}

fn find(loaded: &Loaded, previous: Option<&Snapshot>, host_cache: &HostCache) -> Lookup {
    let Loaded { config, problems, .. } = loaded;
    // What cannot come into force need not wait for a resolver.
    let listeners = if problems.is_empty() { config.listeners.as_slice() } else { &[] };
    let hosts = listeners.iter().flat_map(|listener| listener.sources.trusted.hosts());
    let mode: BTreeSet<HostName> = hosts.map(|host| host.name.clone()).collect();
    let looked_after: HashSet<&HostName> =
        previous.into_iter().flat_map(Snapshot::hosts).map(|host| &host.name).collect();
    host_cache.find(&mode, &looked_after, &CacheFile::new(&config.state_directory, &config.file))
}

impl Reloader {
    /// Looks after the files of the snapshot in force, whose content was `fingerprint`, and attends to those who ask.
    pub(crate) fn new(
        snapshot: &Snapshot,
        fingerprint: Fingerprint,
        askers: mpsc::Receiver<Asker>,
        host_cache: Arc<HostCache>,
        thread: PolicyThread,
    ) -> Self {
        let mut reloader = Self {
            file: snapshot.config.file.clone(),
            watcher: Watcher::start(),
            attempted: fingerprint,
            settings: snapshot.config.reload,
            looked: Instant::now(),
            again: false,
            askers,
            host_cache,
            thread,
        };
        reloader.follow();
        reloader
    }

    /// Takes over the `[reload]` settings of a snapshot that has come into force.
    pub(crate) fn applied(&mut self, snapshot: &Snapshot) {
        self.settings = snapshot.config.reload;
        self.follow();
    }

    /// Makes the next look an attempt, though no file may have changed: what failed lay outside them.
    pub(crate) fn try_again(&mut self) {
        self.again = true;
    }

    /// Waits for the next time something has changed, or SIGHUP, and builds the snapshot after `current`.
    pub(crate) async fn next(&mut self, current: &Arc<Snapshot>, hangup: &mut Signal) -> PolicyChange {
        loop {
            let trigger = self.triggered(hangup).await;
            if let Trigger::Moved = trigger {
                match self.refreshed(current).await {
                    Some(snapshot) => return PolicyChange::Refresh(snapshot),
                    None => continue,
                }
            }
            self.looked = Instant::now();
            let requested = !matches!(trigger, Trigger::Change);
            if !requested {
                self.select().await;
                if !self.again && !self.changed().await {
                    continue;
                }
            }
            let again = std::mem::take(&mut self.again);
            systemd::reloading();
            let before = self.attempted.clone();
            let mut outcome = self.attempt(current).await;
            if outcome.is_err() && !requested {
                // Half of a pair of files may have been replaced: give the other half a moment before complaining.
                let _ = timeout(SECOND_LOOK, self.watcher.changed()).await;
                self.select().await;
                outcome = self.attempt(current).await;
            }
            self.follow();
            let asker = match trigger {
                Trigger::Asked(asker) => Some(asker),
                Trigger::Change | Trigger::Hangup | Trigger::Moved => None,
            };
            let same_files = !again && self.attempted == before;
            return PolicyChange::Reload(ReloadAttempt { requested, asker, same_files, outcome });
        }
    }

    async fn triggered(&mut self, hangup: &mut Signal) -> Trigger {
        let config::Reload { watch, poll, .. } = self.settings;
        tokio::select! {
            _ = hangup.recv() => Trigger::Hangup,
            Some(asker) = self.askers.recv() => Trigger::Asked(asker),
            () = self.host_cache.moved() => Trigger::Moved,
            () = self.watcher.changed(), if watch => Trigger::Change,
            () = sleep_until(self.looked + poll.unwrap_or_default()), if poll.is_some() => Trigger::Change,
        }
    }

    /// Waits until the files have been quiet for a moment, but not for ever: something may be writing all the time.
    async fn select(&mut self) {
        for _ in 0..MOST_SETTLING {
            if timeout(QUIET, self.watcher.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Whether the content of the files is another one than at the last attempt.
    async fn changed(&self) -> bool {
        let attempted = self.attempted.clone();
        self.thread.run(move || attempted.now() != attempted).await.unwrap_or(true)
    }

    /// Builds on the thread for policies: reading and parsing must not keep connections waiting.
    async fn attempt(&mut self, current: &Arc<Snapshot>) -> Result<Box<Built>, String> {
        let (file, previous, host_cache) = (self.file.clone(), Arc::clone(current), Arc::clone(&self.host_cache));
        match self.thread.run(move || build(&file, Some(&previous), &host_cache)).await {
            Ok((built, fingerprint)) => {
                self.attempted = fingerprint;
                built.map(Box::new).map_err(|problems| problems.to_string())
            }
            Err(fault) => Err(fault.to_string()),
        }
    }

    /// The policy in force with the addresses that are known now, where those are others. A long list takes its time.
    async fn refreshed(&self, current: &Arc<Snapshot>) -> Option<Box<Snapshot>> {
        let (current, host_cache) = (Arc::clone(current), Arc::clone(&self.host_cache));
        let built = self.thread.run(move || {
            let book = host_cache.book(current.hosts().map(|host| &host.name));
            current.with_addresses(&book).map(Box::new)
        });
        built.await.ok().flatten()
    }

    fn follow(&mut self) {
        if self.settings.watch {
            self.watcher.follow(&self.attempted);
        }
    }
}

/// What its faults are noted under.
pub(crate) const PART: &str = "reload";

/// Long enough for the writes of one change to come together, short enough to be in force within two seconds.
const QUIET: Duration = Duration::from_millis(100);
const MOST_SETTLING: u32 = 8;

/// How long the second file of a pair may take.
const SECOND_LOOK: Duration = Duration::from_millis(400);
