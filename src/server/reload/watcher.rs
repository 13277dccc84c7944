//! Change events of the files a configuration names.
//!
//! Directories are watched and not only files, because a file is replaced by renaming another over it, and a Kubernetes
//! volume by swapping a symbolic link two steps up the path. An event only says that it is time to compare contents.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::ModifyKind;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tracing::warn;

use crate::config::files::Fingerprint;
use crate::fault;

/// Watches the files it is told to follow.
#[derive(Debug)]
pub(crate) struct Watcher {
    inner: Option<RecommendedWatcher>,
    /// Shared with the thread that receives events.
    steps: Arc<Mutex<Steps>>,
    /// Holds one event at most: that there was one is all there is to know.
    events: mpsc::Receiver<()>,
}

/// The paths an event of which can make a difference.
#[derive(Clone, Debug, Default)]
struct Steps {
    /// Files, and whatever stands between them and their content.
    paths: BTreeSet<PathBuf>,
    /// Directories in which every file that comes or goes does.
    directories: BTreeSet<PathBuf>,
}

impl Watcher {
    /// Follows nothing yet. Where the system has no change events left to give, says so and stays silent for ever; the
    /// poll still finds every change.
    pub(crate) fn start() -> Self {
        let (sender, events) = mpsc::channel(1);
        let steps = Arc::<Mutex<Steps>>::default();
        let theirs = Arc::clone(&steps);
        let watcher = notify::recommended_watcher(move |event: Result<Event, notify::Error>| {
            let steps = theirs.lock().unwrap_or_else(PoisonError::into_inner);
            // When in doubt, contents are compared.
            if fault::contain("file watcher", || event.map_or(true, |event| concerns(&event, &steps))).unwrap_or(true) {
                // Full means that one is waiting already.
                let _ = sender.try_send(());
            }
        });
        let inner = watcher.map_err(|error| warn!(%error, "cannot watch files, polling them for changes")).ok();
        Self { inner, steps, events }
    }

    /// Follows the files of a fingerprint, and whatever stands between them and their content.
    pub(crate) fn follow(&mut self, files: &Fingerprint) {
        let Some(watcher) = &mut self.inner else { return };
        let directories: BTreeSet<_> = files.directories().map(absolute).collect();
        let mode: BTreeSet<_> = files.paths().chain(directories.iter().map(PathBuf::as_path)).flat_map(steps).collect();
        let fresh = Steps { paths: mode.clone(), directories };
        let former = std::mem::replace(&mut *self.steps.lock().unwrap_or_else(PoisonError::into_inner), fresh);
        for path in former.paths.difference(&mode) {
            // It may be gone, and its watch with it.
            let _ = watcher.unwatch(path);
        }
        // Watched anew even where known: the file or directory of that name may be another one now.
        for path in &mode {
            if path.exists()
                && let Err(error) = watcher.watch(path, RecursiveMode::NonRecursive)
            {
                warn!(path = %path.display(), %error, "cannot watch a path, polling it for changes");
            }
        }
    }

    /// Returns when something may have changed; never, where nothing can be watched.
    pub(crate) async fn changed(&mut self) {
        if self.events.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Whether an event is of a step that is followed, and not of a neighbour in the same directory: an audit file there would
/// make every one of its lines an event.
fn concerns(event: &Event, steps: &Steps) -> bool {
    let comes_or_goes =
        !matches!(event.kind, EventKind::Access(_) | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)));
    let is_listed = |path: &Path| path.parent().is_some_and(|directory| steps.directories.contains(directory));
    let is_step = |path: &PathBuf| steps.paths.contains(path) || (comes_or_goes && is_listed(path));
    // Without paths it says that events were lost.
    is_change(event.kind) && (event.paths.is_empty() || event.paths.iter().any(is_step))
}

fn is_change(kind: EventKind) -> bool {
    match kind {
        // Our own reading makes access events.
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
fn steps(file: &Path) -> Vec<PathBuf> {
    let mut steps = Vec::new();
    let mut todo = vec![absolute(file)];
    for _ in 0..MOST_LINKS {
        let Some(path) = todo.pop() else { break };
        let mut so_far = PathBuf::new();
        for part in path.components() {
            so_far.push(part);
            if let (Component::Normal(_), Ok(target)) = (part, so_far.read_link()) {
                let rest = path.strip_prefix(&so_far).unwrap_or(Path::new(""));
                let parent = so_far.parent().unwrap_or(Path::new("/"));
                todo.push(parent.join(target).join(rest));
                steps.extend([parent.to_owned(), so_far]);
                break;
            }
        }
        steps.extend(path.parent().map(Path::to_owned));
        steps.push(path);
    }
    steps
}

/// As many as Linux follows in one path.
const MOST_LINKS: usize = 40;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_steps_of_a_mounted_secret_lead_through_its_swapped_link() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().canonicalize().unwrap();
        std::fs::create_dir(volume.join("..2026_1")).unwrap();
        std::fs::write(volume.join("..2026_1/tls.crt"), "x").unwrap();
        symlink("..2026_1", volume.join("..data")).unwrap();
        symlink("..data/tls.crt", volume.join("tls.crt")).unwrap();

        let steps: BTreeSet<_> = steps(&volume.join("tls.crt")).into_iter().collect();
        for expected in ["tls.crt", "..data", "..2026_1", "..2026_1/tls.crt"] {
            assert!(steps.contains(&volume.join(expected)), "{expected} in {steps:?}");
        }
        assert!(steps.contains(&volume), "{steps:?}");

        let event = |name: &str| Event::new(EventKind::Any).add_path(volume.join(name));
        let mut steps = Steps { paths: steps, directories: BTreeSet::new() };
        assert!(concerns(&event("..data"), &steps));
        assert!(!concerns(&event("audit.jsonl"), &steps));
        assert!(concerns(&Event::new(EventKind::Other), &steps));

        // Where files are named by a pattern, a new one counts, but not what is written to a neighbour.
        steps.directories.insert(volume.clone());
        assert!(concerns(&event("new.crt"), &steps));
        let written = EventKind::Modify(ModifyKind::Data(notify::event::DataChange::Any));
        assert!(!concerns(&Event::new(written).add_path(volume.join("audit.jsonl")), &steps));
    }

    #[test]
    fn a_link_to_itself_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("loop");
        symlink("loop", &path).unwrap();
        assert!(steps(&path).len() <= 4 * MOST_LINKS);
    }
}
