//! Decides when to build a new snapshot, and builds it.
//!
//! One task does this, so reloads never overlap and the newest files win. A trigger (file event, poll, SIGHUP or request) only
//! starts a comparison; the content decides whether anything changed. New addresses of hosts and cloud sources take the same
//! path, so that they are ordered with reloads.

pub(crate) mod change;
#[cfg(test)]
pub(crate) mod secrets;
pub(crate) mod thread;
pub(crate) mod watcher;

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::info;

use crate::audit::changes::Changes;
use crate::config;
use crate::config::files::{Files, Fingerprint};
use crate::config::problem;
use crate::config::{Config, Loaded};
use crate::control::error::ErrorKind;
use crate::control::response::AdminResponse;
use crate::dns::{self, Lookup};
use crate::policy::{Built, Snapshot};
use crate::resolution::cache::ResolutionCache;
use crate::resolution::cache_file::CacheFile;
use crate::server::reload::change::{
    BuiltChange, ChangeReply, ChangeResult, Edited, FileChange, FileWrite, PendingChange,
};
use crate::server::reload::thread::PolicyThread;
use crate::server::reload::watcher::Watcher;
use crate::server::systemd;
use crate::source::host::HostName;

/// Watches the files of the configuration and builds new policies.
#[derive(Debug)]
pub(crate) struct Reloader {
    file: PathBuf,
    watcher: Watcher,
    /// The files of the last attempt, by content. An attempt that failed is not repeated before they change.
    attempted: Fingerprint,
    /// The files of the policy in force.
    in_force: Fingerprint,
    settings: config::Reload,
    /// The time of the last check. The next poll counts from here, regardless of address changes in between.
    last_check: Instant,
    /// Whether the next check must build a policy although no file changed, because the cause of a failure lies elsewhere.
    is_forced: bool,
    requests: mpsc::Receiver<ReloadRequest>,
    resolutions: Arc<ResolutionCache>,
    thread: PolicyThread,
}

/// A request of the admin API.
#[derive(Debug)]
pub(crate) enum ReloadRequest {
    /// Read all files again.
    Reload(ReplySender),
    /// Change a file and put it in force.
    Change(Box<FileChange>, ChangeReply),
}

/// Receives the reply to a reload request.
pub(crate) type ReplySender = oneshot::Sender<ReloadReply>;

/// The reply to a reload request.
#[derive(Debug)]
pub(crate) struct ReloadReply {
    pub result: ReloadResult,
    /// Since when the files are in force, if they were already before this reload.
    pub in_force_since: Option<OffsetDateTime>,
}

/// The changes that a reload put in force, or the errors by which it was rejected.
pub(crate) type ReloadResult = Result<Changes, String>;

/// Why to check for a new policy.
enum Trigger {
    /// A file event or the poll interval.
    Change,
    /// SIGHUP.
    Hangup,
    /// A request of the admin API for a reload.
    Request(ReplySender),
    /// A request of the admin API to change a file.
    FileChange(Box<FileChange>, ChangeReply),
    /// The addresses of a host or a cloud source changed.
    AddressChange,
}

/// A policy that may be put in force.
#[derive(Debug)]
pub(crate) enum PolicyChange {
    /// A policy of changed files, or a requested reload.
    Reload(ReloadAttempt),
    /// The policy in force with new addresses of hosts and cloud sources.
    Refresh(Box<Snapshot>),
    /// A policy with a changed file, which is not written yet.
    FileChange(Box<PendingChange>),
}

/// The outcome of building a policy from the files.
#[derive(Debug)]
pub(crate) struct ReloadAttempt {
    /// Whether the reload was requested (SIGHUP or admin API) rather than caused by a file change.
    pub requested: bool,
    /// Receives the result of a request by the admin API.
    pub reply: Option<ReplySender>,
    /// Whether the files are the same as at the previous attempt, and that attempt was complete.
    pub same_files: bool,
    /// The policy to put in force, or the errors.
    pub outcome: Result<Box<Built>, String>,
}

/// Loads the configuration, resolves new host names, and builds the snapshot that follows `previous`.
///
/// # Errors
/// All problems of the configuration. The fingerprint covers the files that were read, in both cases.
pub fn build(
    file: &Path,
    previous: Option<&Snapshot>,
    resolutions: &ResolutionCache,
) -> (Result<Built, problem::Problems>, Fingerprint) {
    let known = previous.map(|previous| Arc::clone(&previous.known_rules)).unwrap_or_default();
    build_from(file, previous, resolutions, Files::knowing(known))
}

/// The same as [`build`], with the content of some files given in `files`.
pub(crate) fn build_from(
    file: &Path,
    previous: Option<&Snapshot>,
    resolutions: &ResolutionCache,
    mut files: Files,
) -> (Result<Built, problem::Problems>, Fingerprint) {
    files.rules = std::mem::take(&mut files.rules).begin_load();
    let built = Config::load(file, &mut files).and_then(|loaded| {
        let Lookup { book, warnings } = resolve(&loaded, previous, resolutions);
        let mut built = Snapshot::build(loaded, &mut files, previous, &book)?;
        built.warnings.extend(warnings);
        built.snapshot.known_rules = Arc::new(std::mem::take(&mut files.rules).into_known());
        Ok(built)
    });
    (built, files.fingerprint())
}

fn resolve(loaded: &Loaded, previous: Option<&Snapshot>, resolutions: &ResolutionCache) -> Lookup {
    let Loaded { config, problems, .. } = loaded;
    // An invalid configuration does not wait for the resolver.
    let sources = if problems.is_empty() { config.resolvables().collect() } else { BTreeSet::new() };
    let known: HashSet<&HostName> = previous.into_iter().flat_map(Snapshot::hosts).map(|host| &host.name).collect();
    dns::find(&sources, &known, resolutions, &CacheFile::new(&config.state_directory, &config.file))
}

impl Reloader {
    /// Starts with the snapshot in force, which was built from files with the content `fingerprint`.
    pub(crate) fn new(
        snapshot: &Snapshot,
        fingerprint: Fingerprint,
        requests: mpsc::Receiver<ReloadRequest>,
        resolutions: Arc<ResolutionCache>,
        thread: PolicyThread,
    ) -> Self {
        let mut reloader = Self {
            file: snapshot.config.file.clone(),
            watcher: Watcher::start(),
            in_force: fingerprint.clone(),
            attempted: fingerprint,
            settings: snapshot.config.reload,
            last_check: Instant::now(),
            is_forced: false,
            requests,
            resolutions,
            thread,
        };
        reloader.update_watches();
        reloader
    }

    /// Notes that the snapshot of the last attempt is in force, and applies its `[reload]` settings.
    pub(crate) fn note_in_force(&mut self, snapshot: &Snapshot) {
        self.in_force = self.attempted.clone();
        self.settings = snapshot.config.reload;
        self.update_watches();
    }

    /// Makes the next check build a policy even if no file changed, because the last failure had another cause.
    pub(crate) fn force_attempt(&mut self) {
        self.is_forced = true;
    }

    /// Waits for the next change or request and builds the snapshot that follows `current`.
    pub(crate) async fn next(&mut self, current: &Arc<Snapshot>, hangup: &mut Signal) -> PolicyChange {
        loop {
            let trigger = match self.next_trigger(hangup).await {
                Trigger::AddressChange => match self.with_new_addresses(current).await {
                    Some(snapshot) => return PolicyChange::Refresh(snapshot),
                    None => continue,
                },
                Trigger::FileChange(change, reply) => match self.build_change(*change, reply, current).await {
                    Some(built) => return PolicyChange::FileChange(Box::new(built)),
                    None => continue,
                },
                other => other,
            };
            if matches!(trigger, Trigger::Hangup) {
                info!("reload requested by SIGHUP");
            }
            self.last_check = Instant::now();
            let requested = !matches!(trigger, Trigger::Change);
            if !requested {
                self.wait_until_quiet().await;
                if !self.is_forced && !self.has_changed().await {
                    continue;
                }
            }
            let is_forced = std::mem::take(&mut self.is_forced);
            systemd::reloading();
            let before = self.attempted.clone();
            let mut outcome = self.attempt(current).await;
            if outcome.is_err() && !requested {
                // Only one file of a certificate and key pair may have been replaced: wait for the other before reporting.
                let _ = timeout(PAIR_TIMEOUT, self.watcher.changed()).await;
                self.wait_until_quiet().await;
                outcome = self.attempt(current).await;
            }
            self.update_watches();
            let reply = match trigger {
                Trigger::Request(reply) => Some(reply),
                Trigger::Change | Trigger::Hangup | Trigger::AddressChange | Trigger::FileChange(..) => None,
            };
            let same_files = !is_forced && self.attempted == before;
            return PolicyChange::Reload(ReloadAttempt { requested, reply, same_files, outcome });
        }
    }

    async fn next_trigger(&mut self, hangup: &mut Signal) -> Trigger {
        let config::Reload { watch, poll, .. } = self.settings;
        tokio::select! {
            _ = hangup.recv() => Trigger::Hangup,
            Some(request) = self.requests.recv() => match request {
                ReloadRequest::Reload(reply) => Trigger::Request(reply),
                ReloadRequest::Change(change, reply) => Trigger::FileChange(change, reply),
            },
            () = self.resolutions.moved() => Trigger::AddressChange,
            () = self.watcher.changed(), if watch => Trigger::Change,
            () = sleep_until(self.last_check + poll.unwrap_or_default()), if poll.is_some() => Trigger::Change,
        }
    }

    /// Waits until there is no file event for [`QUIET`], but at most [`MAX_QUIET_WAITS`] times, in case files change all the time.
    async fn wait_until_quiet(&mut self) {
        for _ in 0..MAX_QUIET_WAITS {
            if timeout(QUIET, self.watcher.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Whether the content of the files differs from the last attempt.
    async fn has_changed(&self) -> bool {
        let attempted = self.attempted.clone();
        self.thread.run(move || attempted.now() != attempted).await.unwrap_or(true)
    }

    /// Builds on the policy thread, because reading and parsing would delay other work.
    async fn attempt(&mut self, current: &Arc<Snapshot>) -> Result<Box<Built>, String> {
        let (file, previous, resolutions) = (self.file.clone(), Arc::clone(current), Arc::clone(&self.resolutions));
        match self.thread.run(move || build(&file, Some(&previous), &resolutions)).await {
            Ok((built, fingerprint)) => {
                self.attempted = fingerprint;
                built.map(Box::new).map_err(|problems| problems.to_string())
            }
            Err(fault) => Err(fault.to_string()),
        }
    }

    /// Builds the policy in force with the current addresses, or returns `None` if they did not change.
    async fn with_new_addresses(&self, current: &Arc<Snapshot>) -> Option<Box<Snapshot>> {
        let (current, resolutions) = (Arc::clone(current), Arc::clone(&self.resolutions));
        let built = self.thread.run(move || {
            let sources: BTreeSet<_> = current.resolvables().collect();
            let book = resolutions.book(&sources);
            current.with_addresses(&book).map(Box::new)
        });
        built.await.ok().flatten()
    }

    /// Builds the policy that a change of a file leads to. Returns `None` if the caller has its reply already: the change is
    /// rejected, or only a plan.
    async fn build_change(
        &self,
        change: FileChange,
        reply: ChangeReply,
        current: &Arc<Snapshot>,
    ) -> Option<PendingChange> {
        let FileChange { file, edit, requires_list_in_force, plan, action } = change;
        let in_force = requires_list_in_force.then(|| self.in_force.clone());
        let (current, resolutions) = (Arc::clone(current), Arc::clone(&self.resolutions));
        let built = self.thread.run(move || {
            let built = change::build(&file, edit, &current, &resolutions, in_force.as_ref())?;
            let action = file.audited(action, &built);
            Ok((built, action))
        });
        let built = built.await;
        let built = built.unwrap_or_else(|fault| Err(AdminResponse::error(ErrorKind::ServerError, fault)));
        match built {
            Ok((BuiltChange { built, listeners, write, affected, .. }, _)) if plan => {
                let Built { snapshot, warnings } = *built;
                let built = Box::new(Built { snapshot: snapshot.planned(), warnings });
                let edited = Edited { content: write.into_content(), affected };
                let _ = reply.send(Ok(ChangeResult::Planned { built, listeners, edited }));
                None
            }
            Ok((change, action)) => Some(PendingChange { change, action, reply }),
            Err(response) => {
                let _ = reply.send(Err(response));
                None
            }
        }
    }

    /// Writes a changed file, whose content is known from then on.
    ///
    /// # Errors
    /// The response to the caller of the change.
    pub(crate) async fn write(&mut self, write: FileWrite, fingerprint: Fingerprint) -> Result<(), AdminResponse> {
        let written = self.thread.run(move || write.run()).await;
        written.unwrap_or_else(|fault| Err(AdminResponse::error(ErrorKind::ServerError, fault)))?;
        self.attempted = fingerprint;
        Ok(())
    }

    fn update_watches(&mut self) {
        if self.settings.watch {
            self.watcher.watch(&self.attempted);
        }
    }
}

/// The name of this part in internal faults.
pub(crate) const PART: &str = "reload";

/// Long enough to cover all writes of one change, short enough to be in force within two seconds.
const QUIET: Duration = Duration::from_millis(100);
const MAX_QUIET_WAITS: u32 = 8;

/// How long to wait for the second file of a pair.
const PAIR_TIMEOUT: Duration = Duration::from_millis(400);
