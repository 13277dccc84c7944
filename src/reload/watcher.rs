//! Change events of the files a configuration names.
//!
//! Directories are watched and not only files, because a file is replaced by renaming another over it, and a Kubernetes
//! volume by swapping a symbolic link two steps up the path. An event only says that it is time to compare contents.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tracing::warn;

/// Watches the files it is told to follow.
#[derive(Debug)]
pub(super) struct Watcher {
    inner: Option<RecommendedWatcher>,
    /// Shared with the thread that receives events.
    steps: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// Holds one event at most: that there was one is all there is to know.
    events: mpsc::Receiver<()>,
}

impl Watcher {
    /// Follows nothing yet. Where the system has no change events left to give, says so and stays silent for ever; the
    /// poll still finds every change.
    pub(super) fn start() -> Self {
        let (sender, events) = mpsc::channel(1);
        let steps = Arc::new(Mutex::new(BTreeSet::new()));
        let theirs = Arc::clone(&steps);
        let watcher = notify::recommended_watcher(move |event: Result<Event, notify::Error>| {
            let steps = theirs.lock().unwrap_or_else(PoisonError::into_inner);
            if event.map_or(true, |event| concerns(&event, &steps)) {
                // Full means that one is waiting already.
                let _ = sender.try_send(());
            }
        });
        let inner = watcher.map_err(|error| warn!("file changes cannot be watched: {error}; they are polled for")).ok();
        Self { inner, steps, events }
    }

    /// Follows `files`, and whatever stands between them and their content.
    pub(super) fn follow<'a>(&mut self, files: impl Iterator<Item = &'a Path>) {
        let Some(watcher) = &mut self.inner else { return };
        let wanted: BTreeSet<PathBuf> = files.flat_map(steps).collect();
        let former = std::mem::replace(&mut *self.steps.lock().unwrap_or_else(PoisonError::into_inner), wanted.clone());
        for path in former.difference(&wanted) {
            // It may be gone, and its watch with it.
            let _ = watcher.unwatch(path);
        }
        // Watched anew even where known: the file or directory of that name may be another one now.
        for path in &wanted {
            if path.exists()
                && let Err(error) = watcher.watch(path, RecursiveMode::NonRecursive)
            {
                warn!("{} cannot be watched: {error}; it is polled for changes", path.display());
            }
        }
    }

    /// Returns when something may have changed; never, where nothing can be watched.
    pub(super) async fn changed(&mut self) {
        if self.events.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Whether an event is of a step that is followed, and not of a neighbour in the same directory: an audit file there would
/// make every one of its lines an event.
fn concerns(event: &Event, steps: &BTreeSet<PathBuf>) -> bool {
    // Without paths it says that events were lost.
    is_change(event.kind) && (event.paths.is_empty() || event.paths.iter().any(|path| steps.contains(path)))
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

/// The file, its directory, and the same for every symbolic link on the way to its content.
fn steps(file: &Path) -> Vec<PathBuf> {
    let mut steps = Vec::new();
    let mut todo = vec![std::path::absolute(file).unwrap_or_else(|_| file.to_owned())];
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
        assert!(concerns(&event("..data"), &steps));
        assert!(!concerns(&event("audit.jsonl"), &steps));
        assert!(concerns(&Event::new(EventKind::Other), &steps));
    }

    #[test]
    fn a_link_to_itself_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("loop");
        symlink("loop", &path).unwrap();
        assert!(steps(&path).len() <= 4 * MOST_LINKS);
    }
}
