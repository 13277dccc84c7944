//! The files a configuration names: each read once per load, and remembered by content.
//!
//! Content and not modification time decides whether something changed, because a copy may keep the time and a
//! Kubernetes volume swaps a symbolic link instead of touching the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

/// Reads files for one load, and keeps the fingerprint of what it read.
#[derive(Debug, Default)]
pub struct Files {
    read: BTreeMap<PathBuf, Content>,
}

/// What one file held.
#[derive(Clone, Debug)]
struct Content {
    bytes: Result<Arc<[u8]>, String>,
    mode: u32,
}

impl Files {
    /// The content of `path`. A second call answers from memory, so that one load sees one state of every file.
    ///
    /// # Errors
    /// Words that fit behind the file's name: "cannot be read: …".
    pub fn read(&mut self, path: &Path) -> Result<Arc<[u8]>, String> {
        self.read.entry(path.to_owned()).or_insert_with(|| Content::read(path)).bytes.clone()
    }

    /// Whether group or others may read a file that was read before.
    pub fn is_open_to_others(&self, path: &Path) -> bool {
        self.read.get(path).is_some_and(|content| content.mode & 0o044 != 0)
    }

    /// What was read, by content; failed reads are part of it, so that a missing file that appears is a change.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(self.read.iter().map(|(path, content)| (path.clone(), content.digest())).collect())
    }
}

/// The content of a set of files at one moment, as digests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<PathBuf, Option<[u8; 32]>>);

impl Fingerprint {
    /// The same files as they are now.
    #[must_use]
    pub fn now(&self) -> Self {
        let mut files = Files::default();
        for path in self.0.keys() {
            // What cannot be read is remembered as such by `files`.
            let _ = files.read(path);
        }
        files.fingerprint()
    }

    /// The files it speaks of.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }
}

impl Content {
    fn read(path: &Path) -> Self {
        match read_regular_file(path) {
            Ok((bytes, mode)) => Self { bytes: Ok(bytes.into()), mode },
            Err(error) => Self { bytes: Err(format!("cannot be read: {error}")), mode: 0 },
        }
    }

    fn digest(&self) -> Option<[u8; 32]> {
        let bytes = self.bytes.as_ref().ok()?;
        digest(&SHA256, bytes).as_ref().try_into().ok()
    }
}

fn read_regular_file(path: &Path) -> io::Result<(Vec<u8>, u32)> {
    // Opening must not wait for a writer, should somebody name a FIFO.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return Err(io::Error::other(format!("larger than {} MiB", MAX_FILE_SIZE >> 20)));
    }
    Ok((bytes, metadata.mode()))
}

/// Far above any real certificate bundle or list of sources (100,000 rules are about 10 MiB); bounds what a wrong path
/// can make this program hold.
const MAX_FILE_SIZE: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_sees_one_state_of_a_file_and_the_next_sees_the_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let mut files = Files::default();
        assert!(files.read(&path).unwrap_err().contains("cannot be read"));
        let missing = files.fingerprint();

        std::fs::write(&path, "one").unwrap();
        assert!(files.read(&path).is_err(), "the answer of this load stands");
        assert_ne!(missing.now(), missing);
        let one = missing.now();
        assert_eq!(one.now(), one);

        std::fs::write(&path, "two").unwrap();
        assert_ne!(one.now(), one);
    }

    #[test]
    fn only_regular_files_are_read() {
        let mut files = Files::default();
        assert!(files.read(Path::new("/dev/zero")).unwrap_err().contains("not a regular file"));
        assert!(files.read(Path::new("/")).is_err());
    }
}
