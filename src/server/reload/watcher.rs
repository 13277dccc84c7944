//! Change events of the files of a configuration.
//!
//! Directories are watched as well as files: a file may be replaced by a rename, and a Kubernetes volume by swapping a
//! symbolic link two levels up. An event only triggers a comparison of contents.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::ModifyKind;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tracing::warn;

use crate::config::files::Fingerprint;
use crate::fault;

#[derive(Debug)]
pub(crate) struct Watcher {
    inner: Option<RecommendedWatcher>,
    /// Shared with the thread that receives events.
    watched: Arc<Mutex<WatchedPaths>>,
    /// Holds at most one event, because several events need only one comparison.
    events: mpsc::Receiver<()>,
}

/// The paths whose events are relevant.
#[derive(Clone, Debug, Default)]
struct WatchedPaths {
    /// Files, and the directories and symbolic links on the way to their content.
    paths: BTreeSet<PathBuf>,
    /// Directories in which every created or removed file is relevant.
    directories: BTreeSet<PathBuf>,
}

impl Watcher {
    /// Creates a watcher without files. If the system has no inotify instances left, logs a warning and never reports an event;
    /// polling still detects every change.
    pub(crate) fn start() -> Self {
        let (sender, events) = mpsc::channel(1);
        let watched = Arc::<Mutex<WatchedPaths>>::default();
        let shared = Arc::clone(&watched);
        let watcher = notify::recommended_watcher(move |event: Result<Event, notify::Error>| {
            let watched = shared.lock().unwrap_or_else(PoisonError::into_inner);
            // When in doubt, contents are compared.
            if fault::contain("file watcher", || event.map_or(true, |event| is_relevant(&event, &watched)))
                .unwrap_or(true)
            {
                // A full channel already holds an event.
                let _ = sender.try_send(());
            }
        });
        let inner = watcher.map_err(|error| warn!(%error, "cannot watch files, polling them for changes")).ok();
        Self { inner, watched, events }
    }

    /// Watches the files of a fingerprint, including the path to their content.
    pub(crate) fn watch(&mut self, files: &Fingerprint) {
        let Some(watcher) = &mut self.inner else { return };
        let directories: BTreeSet<_> = files.directories().map(absolute).collect();
        let paths: BTreeSet<_> =
            files.paths().chain(directories.iter().map(PathBuf::as_path)).flat_map(watched_paths).collect();
        let fresh = WatchedPaths { paths: paths.clone(), directories };
        let former = std::mem::replace(&mut *self.watched.lock().unwrap_or_else(PoisonError::into_inner), fresh);
        for path in former.paths.difference(&paths) {
            // Fails if the path no longer exists.
            let _ = watcher.unwatch(path);
        }
        // Watch known paths again: another file or directory may have taken the name.
        for path in &paths {
            if path.exists()
                && let Err(error) = watcher.watch(path, RecursiveMode::NonRecursive)
            {
                warn!(path = %path.display(), %error, "cannot watch a path, polling it for changes");
            }
        }
    }

    /// Waits until a file may have changed; never completes without a working watcher.
    pub(crate) async fn changed(&mut self) {
        if self.events.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Whether an event concerns a watched path. Other files in the same directory are ignored: otherwise each line written to
/// an audit file there would be an event.
fn is_relevant(event: &Event, watched: &WatchedPaths) -> bool {
    let is_created_or_removed =
        !matches!(event.kind, EventKind::Access(_) | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)));
    let is_listed = |path: &Path| path.parent().is_some_and(|directory| watched.directories.contains(directory));
    let is_watched = |path: &PathBuf| watched.paths.contains(path) || (is_created_or_removed && is_listed(path));
    // An event without paths reports that events were lost.
    is_change(event.kind) && (event.paths.is_empty() || event.paths.iter().any(is_watched))
}

fn is_change(kind: EventKind) -> bool {
    match kind {
        // Reading the files causes access events.
        EventKind::Access(access) => {
            matches!(access, notify::event::AccessKind::Close(notify::event::AccessMode::Write))
        }
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The file, its directory, and the same for every symbolic link on the way to its content.
fn watched_paths(file: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let mut todo = vec![absolute(file)];
    for _ in 0..MAX_SYMLINKS {
        let Some(path) = todo.pop() else { break };
        let mut so_far = PathBuf::new();
        for part in path.components() {
            so_far.push(part);
            if let (Component::Normal(_), Ok(target)) = (part, so_far.read_link()) {
                let rest = path.strip_prefix(&so_far).unwrap_or(Path::new(""));
                let parent = so_far.parent().unwrap_or(Path::new("/"));
                todo.push(parent.join(target).join(rest));
                paths.extend([parent.to_owned(), so_far]);
                break;
            }
        }
        paths.extend(path.parent().map(Path::to_owned));
        paths.push(path);
    }
    paths
}

/// The limit of Linux for symbolic links in one path (path_resolution(7)).
const MAX_SYMLINKS: usize = 40;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn watched_paths_of_a_mounted_secret_include_the_swapped_link() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().canonicalize().unwrap();
        std::fs::create_dir(volume.join("..2026_1")).unwrap();
        std::fs::write(volume.join("..2026_1/tls.crt"), "x").unwrap();
        symlink("..2026_1", volume.join("..data")).unwrap();
        symlink("..data/tls.crt", volume.join("tls.crt")).unwrap();

        let paths: BTreeSet<_> = watched_paths(&volume.join("tls.crt")).into_iter().collect();
        for expected in ["tls.crt", "..data", "..2026_1", "..2026_1/tls.crt"] {
            assert!(paths.contains(&volume.join(expected)), "{expected} in {paths:?}");
        }
        assert!(paths.contains(&volume), "{paths:?}");

        let event = |name: &str| Event::new(EventKind::Any).add_path(volume.join(name));
        let mut watched = WatchedPaths { paths, directories: BTreeSet::new() };
        assert!(is_relevant(&event("..data"), &watched));
        assert!(!is_relevant(&event("audit.jsonl"), &watched));
        assert!(is_relevant(&Event::new(EventKind::Other), &watched));

        // With a glob pattern, a new file is relevant, but a write to an unrelated file is not.
        watched.directories.insert(volume.clone());
        assert!(is_relevant(&event("new.crt"), &watched));
        let written = EventKind::Modify(ModifyKind::Data(notify::event::DataChange::Any));
        assert!(!is_relevant(&Event::new(written).add_path(volume.join("audit.jsonl")), &watched));
    }

    #[test]
    fn symlink_loop_terminates() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("loop");
        symlink("loop", &path).unwrap();
        assert!(watched_paths(&path).len() <= 4 * MAX_SYMLINKS);
    }
}
