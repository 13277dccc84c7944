//! The files a configuration names, and the environment variables it names in their place: each read once per load, and
//! remembered by content.
//!
//! Content and not modification time decides whether something changed, because a copy may keep the time and a
//! Kubernetes volume swaps a symbolic link instead of touching the file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

use crate::config::credential;
use crate::permissions;

/// Where something stands that the configuration only names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    /// A file.
    File(PathBuf),
    /// An environment variable. It is what it was at the start as long as the process lives.
    Variable(String),
}

/// Reads files for one load, and keeps the fingerprint of what it read.
#[derive(Debug, Default)]
pub struct Files {
    read: BTreeMap<Location, Content>,
    /// Patterns, and the files they name.
    matched: BTreeMap<PathBuf, Result<Vec<PathBuf>, String>>,
}

/// Whether Kubernetes keeps a file: the files of a Secret or ConfigMap are links to `..data` beside them.
pub(crate) fn is_in_volume(file: &Path) -> bool {
    file.parent().is_some_and(|directory| directory.join("..data").is_symlink())
}

/// What was found in one place.
#[derive(Clone, Debug)]
struct Content {
    bytes: Result<Bytes, String>,
    /// Of a file.
    mode: u32,
}

#[derive(Clone, Debug)]
enum Bytes {
    Kept(Arc<[u8]>),
    /// Read and released. The digest tells whether a second read finds the same content.
    Released([u8; 32]),
}

impl Files {
    /// What stands at `location`. A second call answers from memory, so that one load sees one state of every file.
    ///
    /// # Errors
    /// Words that fit behind the location: "cannot be read: …".
    pub fn read(&mut self, location: impl Into<Location>) -> Result<Arc<[u8]>, String> {
        let location = location.into();
        let released = match self.read.get(&location).map(|content| &content.bytes) {
            Some(Ok(Bytes::Kept(bytes))) => return Ok(Arc::clone(bytes)),
            Some(Err(error)) => return Err(error.clone()),
            Some(Ok(Bytes::Released(digest))) => Some(*digest),
            None => None,
        };
        let (bytes, mode) = Content::read(&location);
        if let (Some(released), Ok(bytes)) = (released, &bytes)
            && released != digest_of(bytes)
        {
            return Err(CHANGED.to_owned());
        }
        let bytes = bytes.map(Arc::<[u8]>::from);
        // A file that was read once keeps its fingerprint, whatever becomes of it during this load.
        if released.is_none() || bytes.is_ok() {
            self.read.insert(location, Content { bytes: bytes.clone().map(Bytes::Kept), mode });
        }
        bytes
    }

    /// Frees the content of a large file that has been parsed, and keeps its digest. A later [`Self::read`] reads the file
    /// again and fails if it has changed meanwhile.
    pub fn release(&mut self, location: impl Into<Location>) {
        if let Some(Content { bytes: Ok(bytes), .. }) = self.read.get_mut(&location.into()) {
            *bytes = Bytes::Released(bytes.digest());
        }
    }

    /// The files that `path` names, in the order of their names: itself, or all that its last part describes by `*` and `?`.
    /// Files whose name begins with a dot are passed over, as a shell does.
    ///
    /// # Errors
    /// Words that fit behind the pattern.
    pub fn matching(&mut self, path: &Path) -> Result<Vec<PathBuf>, String> {
        if !is_pattern(path) {
            return Ok(vec![path.to_owned()]);
        }
        let matched = self.matched.entry(path.to_owned()).or_insert_with(|| list(path)).clone()?;
        if matched.is_empty() { Err(NO_FILE.to_owned()) } else { Ok(matched) }
    }

    /// Whether more people may read a file that was read before than the one it belongs to. systemd lets a service read its
    /// credentials by way of an access list, which the mode shows as a right of the group; and Kubernetes gives the files of a
    /// volume to a group of the pod alone (`fsGroup`), because they belong to root.
    pub fn is_open_to_others(&self, location: impl Into<Location>) -> bool {
        let location = location.into();
        let others = match &location {
            Location::File(path) if credential::holds(path) || is_in_volume(path) => 0o004,
            Location::File(_) | Location::Variable(_) => 0o044,
        };
        self.read.get(&location).is_some_and(|content| content.mode & others != 0)
    }

    /// What was read, by content; failed reads are part of it, so that a missing file that appears is a change.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint {
            read: self.read.iter().map(|(location, content)| (location.clone(), content.digest())).collect(),
            patterns: self.matched.clone(),
        }
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl From<&PathBuf> for Location {
    fn from(path: &PathBuf) -> Self {
        Self::File(path.clone())
    }
}

impl From<&Self> for Location {
    fn from(location: &Self) -> Self {
        location.clone()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Variable(name) => write!(f, "the environment variable {name}"),
        }
    }
}

/// The content of a set of files at one moment, as digests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    read: BTreeMap<Location, Option<[u8; 32]>>,
    patterns: BTreeMap<PathBuf, Result<Vec<PathBuf>, String>>,
}

impl Fingerprint {
    /// The same files as they are now.
    #[must_use]
    pub fn now(&self) -> Self {
        let mut files = Files::default();
        // What cannot be read is remembered as such by `files`.
        for location in self.read.keys() {
            let _ = files.read(location);
            files.release(location);
        }
        for pattern in self.patterns.keys() {
            let _ = files.matching(pattern);
        }
        files.fingerprint()
    }

    /// The files it speaks of.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.read.keys().filter_map(|location| match location {
            Location::File(path) => Some(path.as_path()),
            Location::Variable(_) => None,
        })
    }

    /// The directories in which a file that appears or goes makes a difference.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.patterns.keys().filter_map(|pattern| pattern.parent())
    }
}

impl Content {
    /// The bytes of a file or a variable, and the mode of a file.
    fn read(location: &Location) -> (Result<Vec<u8>, String>, u32) {
        match location {
            Location::File(path) => match read_regular_file(path) {
                Ok((bytes, mode)) => (Ok(bytes), mode),
                Err(error) => (Err(permissions::cannot("cannot be read", &error)), 0),
            },
            Location::Variable(name) => (read_variable(name), 0),
        }
    }

    fn digest(&self) -> Option<[u8; 32]> {
        self.bytes.as_ref().ok().map(Bytes::digest)
    }
}

impl Bytes {
    fn digest(&self) -> [u8; 32] {
        match self {
            Self::Kept(bytes) => digest_of(bytes),
            Self::Released(digest) => *digest,
        }
    }
}

fn digest_of(bytes: &[u8]) -> [u8; 32] {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sha256
}

fn is_pattern(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().any(|byte| b"*?".contains(byte)))
}

fn list(pattern: &Path) -> Result<Vec<PathBuf>, String> {
    let (Some(directory), Some(name)) = (pattern.parent(), pattern.file_name()) else { return Ok(Vec::new()) };
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let cannot = |error: io::Error| permissions::cannot("cannot be listed", &error);
    let mut files = Vec::new();
    for entry in directory.read_dir().map_err(cannot)? {
        let entry = entry.map_err(cannot)?.file_name();
        let text = entry.as_encoded_bytes();
        if !text.starts_with(b".") && describes(name.as_encoded_bytes(), text) {
            files.push(directory.join(entry));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Whether a name is one that the pattern describes: `*` stands for any text, `?` for any byte. On a mismatch the last `*`
/// takes one byte more, which is all the going back there has to be.
fn describes(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut star) = (0, None);
    let mut position = 0;
    while let Some(byte) = name.get(position) {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, position));
                at += 1;
            }
            Some(wanted) if wanted == byte || *wanted == b'?' => {
                at += 1;
                position += 1;
            }
            Some(_) | None => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                at = star_at + 1;
                position = taken + 1;
            }
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|rest| *rest == b'*')
}

fn read_regular_file(path: &Path) -> io::Result<(Vec<u8>, u32)> {
    // Opening must not wait for a writer, should somebody name a FIFO.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(MAX_FILE_SIZE)).unwrap_or_default());
    file.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return Err(io::Error::other(format!("larger than {} MiB", MAX_FILE_SIZE >> 20)));
    }
    Ok((bytes, metadata.mode()))
}

fn read_variable(name: &str) -> Result<Vec<u8>, String> {
    match std::env::var_os(name) {
        None => Err("is not set".to_owned()),
        Some(text) if text.is_empty() => Err("is empty".to_owned()),
        Some(text) => Ok(with_line_breaks(text.into_vec())),
    }
}

/// A PEM text whose line breaks are written as `\n`, as env files and the panels of hosting providers have it, with real ones.
/// No PEM text has a backslash of its own.
fn with_line_breaks(text: Vec<u8>) -> Vec<u8> {
    match String::from_utf8(text) {
        Ok(text) if text.contains("-----BEGIN ") => text.replace("\\r\\n", "\n").replace("\\n", "\n").into_bytes(),
        Ok(text) => text.into_bytes(),
        Err(error) => error.into_bytes(),
    }
}

const CHANGED: &str = "has changed while the configuration was read; reload again";

const NO_FILE: &str = "names no file that is there; put one there, or take the pattern out";

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
    fn released_file_is_read_again_unless_it_has_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, "one").unwrap();
        let mut files = Files::default();
        files.read(&path).unwrap();
        let one = files.fingerprint();
        files.release(&path);
        assert!(matches!(files.read.values().next().unwrap().bytes, Ok(Bytes::Released(_))));
        assert_eq!(files.fingerprint(), one);
        assert_eq!(&*files.read(&path).unwrap(), b"one");

        files.release(&path);
        std::fs::write(&path, "two").unwrap();
        assert_eq!(files.read(&path), Err(CHANGED.to_owned()));
        assert_eq!(files.fingerprint(), one, "so that the next look finds a change");
        assert_ne!(one.now(), one);
    }

    #[test]
    fn only_regular_files_are_read() {
        let mut files = Files::default();
        assert!(files.read(Path::new("/dev/zero")).unwrap_err().contains("not a regular file"));
        assert!(files.read(Path::new("/")).is_err());
    }

    #[test]
    fn a_pattern_names_files_in_order_and_a_new_one_is_a_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["b.crt", "a.crt", ".hidden.crt", "a.key"] {
            std::fs::write(path(name), "x").unwrap();
        }
        let mut files = Files::default();
        assert_eq!(files.matching(&path("plain")), Ok(vec![path("plain")]), "no pattern: itself, there or not");
        assert_eq!(files.matching(&path("*.crt")), Ok(vec![path("a.crt"), path("b.crt")]));
        assert_eq!(files.matching(&path("*.pem")), Err(NO_FILE.to_owned()));
        assert!(files.matching(&path("missing/*")).unwrap_err().contains("cannot be listed"));
        let before = files.fingerprint();
        assert_eq!(before.now(), before);
        std::fs::write(path("c.crt"), "x").unwrap();
        assert_ne!(before.now(), before);
        assert!(before.directories().any(|path| path == directory.path()));
    }

    #[test]
    fn a_pattern_describes_whole_names() {
        let cases = [
            ("*", "", true),
            ("*.crt", "a.crt", true),
            ("*.crt", "a.crt.old", false),
            ("a*b*c", "aXbbYc", true),
            ("a*b*c", "aXbbY", false),
            ("?.crt", "ab.crt", false),
            ("?b*", "ab", true),
            ("ab", "ab", true),
            ("ab", "abc", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(describes(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} and {name}");
        }
    }

    #[test]
    fn written_line_breaks_of_pem_become_real_ones() {
        let pem = "-----BEGIN X-----\nAAEC\n-----END X-----\n";
        for written in [pem.to_owned(), pem.replace('\n', "\\n"), pem.replace('\n', "\\r\\n")] {
            assert_eq!(with_line_breaks(written.into_bytes()), pem.as_bytes());
        }
        // A passphrase may have a backslash in it.
        assert_eq!(with_line_breaks(b"a\\nb".to_vec()), b"a\\nb");
    }

    #[test]
    fn a_variable_is_read_like_a_file_and_has_no_path_to_watch() {
        let mut files = Files::default();
        let set = Location::Variable("CARGO_PKG_NAME".to_owned());
        let unset = Location::Variable("PORTCULLIS_NO_SUCH_VARIABLE".to_owned());
        assert_eq!(&*files.read(&set).unwrap(), b"portcullis");
        assert!(files.read(&unset).unwrap_err().contains("is not set"));
        assert!(!files.is_open_to_others(&set));
        assert_eq!(files.fingerprint().paths().count(), 0);
        assert_eq!(files.fingerprint().now(), files.fingerprint());
    }
}
