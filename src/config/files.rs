//! The files and environment variables that a configuration names. Each is read once per load and identified by content.
//!
//! Changes are detected by content and not by modification time: a copy may keep the time, and a Kubernetes volume swaps a
//! symbolic link without touching the file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use crate::config::rule_cache::{KnownRules, RuleCache};
use crate::config::systemd_credential;
use crate::digest::{Sha256, sha256};
use crate::permissions;

/// The location of content that the configuration names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    File(PathBuf),
    /// An environment variable. Its value is fixed when the process starts.
    Variable(String),
}

/// Reads files for one load and keeps their digests.
#[derive(Debug, Default)]
pub struct Files {
    read: BTreeMap<Location, Content>,
    /// Patterns and the files that match them.
    matched: BTreeMap<PathBuf, Result<Vec<PathBuf>, String>>,
    /// Files that are about to be created or removed, which patterns list as if they already were.
    planned: BTreeMap<PathBuf, Existence>,
    /// The root certificates of the system, if the configuration needs them.
    system_roots: Option<Result<Vec<CertificateDer<'static>>, String>>,
    /// Secrets that only the agent reads, and whether it can.
    inspected: BTreeMap<PathBuf, Inspection>,
    /// The rules of `sources_file`s that are known by their text.
    pub(crate) rules: RuleCache,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Existence {
    Created,
    Removed,
}

/// The result of [`Files::inspect`]: the permission bits of the file, or why it cannot be read.
type Inspection = Result<u32, String>;

/// How a path of `client_certificates` names files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathKind {
    /// One file by its path.
    File,
    /// All files that match `*` and `?` in the last component.
    Pattern,
    /// All files in a directory.
    Directory,
}

/// Whether a file is in a Kubernetes volume. The files of a Secret or ConfigMap are links to `..data` in their directory.
pub(crate) fn is_in_volume(file: &Path) -> bool {
    file.parent().is_some_and(|directory| directory.join("..data").is_symlink())
}

/// The content of one location.
#[derive(Clone, Debug)]
struct Content {
    bytes: Result<Bytes, String>,
    /// Whether there is no such file.
    is_missing: bool,
    /// Permission bits of a file; 0 for a variable.
    mode: u32,
}

#[derive(Clone, Debug)]
enum Bytes {
    Kept(Arc<[u8]>),
    /// Read and freed. The digest shows whether a second read returns the same content.
    Released(Sha256),
}

impl Files {
    /// Files of which nothing is read yet, for a load that knows the rules of an earlier one.
    pub(crate) fn knowing(rules: Arc<KnownRules>) -> Self {
        Self { rules: RuleCache::knowing(rules), ..Self::default() }
    }

    /// Returns the content of `location`. A second call returns the cached content, so one load sees one state of every file.
    ///
    /// # Errors
    /// A message that completes a sentence about the location: "cannot be read: …".
    pub fn read(&mut self, location: impl Into<Location>) -> Result<Arc<[u8]>, String> {
        let location = location.into();
        let released = match self.read.get(&location).map(|content| &content.bytes) {
            Some(Ok(Bytes::Kept(bytes))) => return Ok(Arc::clone(bytes)),
            Some(Err(error)) => return Err(error.clone()),
            Some(Ok(Bytes::Released(digest))) => Some(*digest),
            None => None,
        };
        let FreshContent { bytes, is_missing, mode } = FreshContent::read(&location);
        if let (Some(released), Ok(bytes)) = (released, &bytes)
            && released != sha256(bytes)
        {
            return Err(CHANGED.to_owned());
        }
        let bytes = bytes.map(Arc::<[u8]>::from);
        // The digest of a file that was read once stays, even if a later read in this load fails.
        if released.is_none() || bytes.is_ok() {
            self.read.insert(location, Content { bytes: bytes.clone().map(Bytes::Kept), is_missing, mode });
        }
        bytes
    }

    /// Sets the content of a file that is about to be written. Later calls of [`Self::read`] return it.
    pub(crate) fn set_content(&mut self, path: &Path, bytes: &[u8]) {
        let location = Location::from(path);
        let mode = self.read.get(&location).map_or(0, |content| content.mode);
        if self.read.get(&location).is_some_and(|content| content.is_missing) {
            self.planned.insert(path.to_owned(), Existence::Created);
        }
        self.read.insert(location, Content { bytes: Ok(Bytes::Kept(bytes.into())), is_missing: false, mode });
    }

    /// Marks a file that is about to be removed. Later calls of [`Self::read`] fail, and no pattern lists it.
    pub(crate) fn set_removed(&mut self, path: &Path) {
        self.planned.insert(path.to_owned(), Existence::Removed);
        let bytes = Err("cannot be read: the change would remove it".to_owned());
        self.read.insert(Location::from(path), Content { bytes, is_missing: true, mode: 0 });
    }

    /// Returns the content of a file as [`Self::read`] does, and `None` if there is no such file. A file that appears later is a
    /// change.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn read_if_present(&mut self, file: &Path) -> Result<Option<Arc<[u8]>>, String> {
        let bytes = self.read(file);
        let is_missing = self.read.get(&Location::from(file)).is_some_and(|content| content.is_missing);
        if is_missing { Ok(None) } else { bytes.map(Some) }
    }

    /// Checks that a secret exists and is not empty, without reading it. A file that can be read later, or no longer, is a
    /// change; another content is not.
    ///
    /// # Errors
    /// A message that completes a sentence about the location: "cannot be read: …".
    pub(crate) fn inspect(&mut self, location: &Location) -> Result<(), String> {
        match location {
            Location::File(path) => {
                self.inspected.entry(path.clone()).or_insert_with(|| inspect_file(path)).clone().map(|_| ())
            }
            Location::Variable(name) => match std::env::var_os(name) {
                None => Err("is not set; set it to the secret".to_owned()),
                Some(text) if text.is_empty() => Err("is empty; set it to the secret".to_owned()),
                Some(_) => Ok(()),
            },
        }
    }

    /// Frees the content of a large file that has been parsed, and keeps its digest. A later [`Self::read`] reads the file
    /// again, and fails if the content has changed.
    pub fn release(&mut self, location: impl Into<Location>) {
        if let Some(Content { bytes: Ok(bytes), .. }) = self.read.get_mut(&location.into()) {
            *bytes = Bytes::Released(bytes.digest());
        }
    }

    /// Returns the files that `path` names, sorted: the path itself, or all files that match `*` and `?` in its last component.
    /// Skips files whose name starts with a dot, as a shell does.
    ///
    /// # Errors
    /// A message that completes a sentence about the pattern.
    pub fn matching(&mut self, path: &Path) -> Result<Vec<PathBuf>, String> {
        if !is_pattern(path) {
            return Ok(vec![path.to_owned()]);
        }
        let matched = self.listed(path)?;
        if matched.is_empty() { Err(NO_FILE.to_owned()) } else { Ok(matched) }
    }

    /// Returns the files that `path` names, sorted, and how it names them: as [`Self::matching`], or all files of a directory,
    /// which may have none. Names that start with a dot and directories in it are skipped.
    ///
    /// # Errors
    /// A message that completes a sentence about the path.
    pub(crate) fn named(&mut self, path: &Path) -> Result<(PathKind, Vec<PathBuf>), String> {
        if is_pattern(path) {
            return Ok((PathKind::Pattern, self.matching(path)?));
        }
        if path.is_dir() {
            let mut files = self.listed(&path.join(ANY))?;
            files.retain(|file| !file.is_dir());
            return Ok((PathKind::Directory, files));
        }
        if !path.exists() {
            // A directory that appears there is a change, which the failed read of a file does not show.
            let _ = self.listed(&path.join(ANY));
        }
        Ok((PathKind::File, vec![path.to_owned()]))
    }

    fn listed(&mut self, pattern: &Path) -> Result<Vec<PathBuf>, String> {
        let planned = &self.planned;
        let listed = || list(pattern).map(|files| with_planned(files, pattern, planned));
        self.matched.entry(pattern.to_owned()).or_insert_with(listed).clone()
    }

    /// Returns the root certificates of the system, from the places where OpenSSL searches.
    ///
    /// # Errors
    /// Why there are none.
    pub fn system_roots(&mut self) -> Result<Vec<CertificateDer<'static>>, String> {
        self.system_roots.get_or_insert_with(read_system_roots).clone()
    }

    /// Whether users other than the owner may read a file that was read or inspected before.
    ///
    /// Group access is accepted in two places. systemd grants a service access to its credentials with an ACL, which the mode
    /// shows as group permission. Kubernetes gives the files of a volume, which root owns, to a group of the pod (`fsGroup`).
    pub fn is_open_to_others(&self, location: impl Into<Location>) -> bool {
        let location = location.into();
        let others = match &location {
            Location::File(path) if systemd_credential::holds(path) || is_in_volume(path) => 0o004,
            Location::File(_) | Location::Variable(_) => 0o044,
        };
        let inspected = match &location {
            Location::File(path) => self.inspected.get(path).and_then(|mode| mode.clone().ok()),
            Location::Variable(_) => None,
        };
        let mode = self.read.get(&location).map(|content| content.mode).or(inspected);
        mode.is_some_and(|mode| mode & others != 0)
    }

    /// The digests of everything that was read. Failed reads are included, so a missing file that appears is a change.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint {
            read: self.read.iter().map(|(location, content)| (location.clone(), content.digest())).collect(),
            patterns: self.matched.clone(),
            inspected: self.inspected.iter().map(|(path, mode)| (path.clone(), mode.is_ok())).collect(),
            system_roots: self.system_roots.as_ref().map(|roots| roots.as_ref().ok().map(|roots| digest_of_all(roots))),
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

/// The content of a set of files at one time, as SHA-256 digests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    read: BTreeMap<Location, Option<Sha256>>,
    patterns: BTreeMap<PathBuf, Result<Vec<PathBuf>, String>>,
    /// Whether the agent can read each secret.
    inspected: BTreeMap<PathBuf, bool>,
    /// `None` if they are not needed, `Some(None)` if there are none.
    system_roots: Option<Option<Sha256>>,
}

impl Fingerprint {
    /// Reads the same files again.
    #[must_use]
    pub fn now(&self) -> Self {
        let mut files = Files::default();
        // `files` records failed reads too.
        for location in self.read.keys() {
            let _ = files.read(location);
            files.release(location);
        }
        for pattern in self.patterns.keys() {
            let _ = files.matching(pattern);
        }
        for path in self.inspected.keys() {
            let _ = files.inspect(&Location::from(path));
        }
        if self.system_roots.is_some() {
            let _ = files.system_roots();
        }
        files.fingerprint()
    }

    /// Whether a file that `files` has read has the same content as in this set.
    pub(crate) fn has_same_content(&self, path: &Path, files: &Files) -> bool {
        let location = Location::from(path);
        let known = self.read.get(&location).copied().flatten();
        known == files.read.get(&location).and_then(Content::digest)
    }

    /// The files in the set.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let read = self.read.keys().filter_map(|location| match location {
            Location::File(path) => Some(path.as_path()),
            Location::Variable(_) => None,
        });
        read.chain(self.inspected.keys().map(PathBuf::as_path))
    }

    /// The directories of patterns, where an added or removed file is a change.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.patterns.keys().filter_map(|pattern| pattern.parent())
    }
}

/// Content that has just been read.
struct FreshContent {
    bytes: Result<Vec<u8>, String>,
    is_missing: bool,
    mode: u32,
}

impl FreshContent {
    fn read(location: &Location) -> Self {
        let failed = |why: String, is_missing| Self { bytes: Err(why), is_missing, mode: 0 };
        match location {
            Location::File(path) => match read_regular_file(path) {
                Ok((bytes, mode)) => Self { bytes: Ok(bytes), is_missing: false, mode },
                Err(error) => {
                    let is_missing = error.kind() == io::ErrorKind::NotFound;
                    failed(permissions::cannot("cannot be read", &error), is_missing)
                }
            },
            Location::Variable(name) => match read_variable(name) {
                Ok(bytes) => Self { bytes: Ok(bytes), is_missing: false, mode: 0 },
                Err(why) => failed(why, false),
            },
        }
    }
}

impl Content {
    fn digest(&self) -> Option<Sha256> {
        self.bytes.as_ref().ok().map(Bytes::digest)
    }
}

impl Bytes {
    fn digest(&self) -> Sha256 {
        match self {
            Self::Kept(bytes) => sha256(bytes),
            Self::Released(digest) => *digest,
        }
    }
}

/// The digest of a sequence of certificates, each of which states its own length.
fn digest_of_all(certificates: &[CertificateDer<'_>]) -> Sha256 {
    let all: Vec<&[u8]> = certificates.iter().map(|certificate| &**certificate).collect();
    sha256(&all.concat())
}

fn read_system_roots() -> Result<Vec<CertificateDer<'static>>, String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        return Err(if why.is_empty() { "none of the usual files exists".to_owned() } else { why.join("; ") });
    }
    Ok(found.certs)
}

/// The files after the planned changes.
fn with_planned(mut files: Vec<PathBuf>, pattern: &Path, planned: &BTreeMap<PathBuf, Existence>) -> Vec<PathBuf> {
    for (path, existence) in planned {
        files.retain(|file| file != path);
        if *existence == Existence::Created && is_match(pattern, path) {
            files.push(path.clone());
        }
    }
    files.sort_unstable();
    files
}

/// Whether [`list`] lists an existing file for the pattern.
pub(crate) fn is_match(pattern: &Path, file: &Path) -> bool {
    let (Some(wanted), Some(name)) = (pattern.file_name(), file.file_name()) else { return false };
    let name = name.as_encoded_bytes();
    pattern.parent() == file.parent() && !name.starts_with(b".") && matches_pattern(wanted.as_encoded_bytes(), name)
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
        if !text.starts_with(b".") && matches_pattern(name.as_encoded_bytes(), text) {
            files.push(directory.join(entry));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Whether a name matches the pattern: `*` matches any text, `?` any byte. After a mismatch the last `*` takes one more byte;
/// no other backtracking is necessary.
fn matches_pattern(pattern: &[u8], name: &[u8]) -> bool {
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
    // Opening a FIFO must not block until a writer appears.
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

/// Opens a file without reading it.
fn inspect_file(path: &Path) -> Inspection {
    let cannot = |error: io::Error| permissions::cannot("cannot be read", &error);
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    if !metadata.is_file() {
        return Err(cannot(io::Error::other("not a regular file")));
    }
    if metadata.len() == 0 {
        return Err("is empty; write the secret into it".to_owned());
    }
    Ok(metadata.mode())
}

fn read_variable(name: &str) -> Result<Vec<u8>, String> {
    match std::env::var_os(name) {
        None => Err("is not set; set it to PEM text".to_owned()),
        Some(text) if text.is_empty() => Err("is empty; set it to PEM text".to_owned()),
        Some(text) => Ok(with_line_breaks(text.into_vec())),
    }
}

/// Replaces `\n` escapes in a PEM text by line breaks. Env files and hosting panels write line breaks that way, and PEM
/// contains no backslashes.
fn with_line_breaks(text: Vec<u8>) -> Vec<u8> {
    match String::from_utf8(text) {
        Ok(text) if text.contains("-----BEGIN ") => text.replace("\\r\\n", "\n").replace("\\n", "\n").into_bytes(),
        Ok(text) => text.into_bytes(),
        Err(error) => error.into_bytes(),
    }
}

const CHANGED: &str = "changed while the configuration was being read; reload again";

/// The pattern that all names match.
const ANY: &str = "*";

const NO_FILE: &str = "matches no file; add a file or remove the pattern";

/// In bytes. Far above any real certificate bundle or list of sources (100,000 rules are about 10 MiB). Limits the memory
/// that a wrong path can use.
pub(crate) const MAX_FILE_SIZE: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_file_is_seen_by_the_next_load_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let mut files = Files::default();
        assert!(files.read(&path).unwrap_err().contains("cannot be read"));
        let missing = files.fingerprint();

        std::fs::write(&path, "one").unwrap();
        assert!(files.read(&path).is_err(), "this load keeps its first result");
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
        assert_eq!(files.fingerprint(), one, "the next comparison must find a change");
        assert_ne!(one.now(), one);
    }

    #[test]
    fn other_roots_of_the_system_are_a_change_if_they_are_needed() {
        let of = |roots| Files { system_roots: roots, ..Files::default() }.fingerprint();
        let root = |byte| CertificateDer::from(vec![byte]);
        let one = of(Some(Ok(vec![root(1)])));
        assert_eq!(of(Some(Ok(vec![root(1)]))), one);
        for other in [None, Some(Err("none".to_owned())), Some(Ok(vec![root(2)])), Some(Ok(vec![root(1), root(2)]))] {
            assert_ne!(of(other), one);
        }
        assert_ne!(one.now(), one, "the roots of this machine are read again");
        assert_eq!(of(None).now(), of(None));
        let mut files = Files::default();
        let _ = files.system_roots();
        assert_eq!(files.fingerprint().now(), files.fingerprint());
    }

    #[test]
    fn file_that_is_not_regular_is_rejected() {
        let mut files = Files::default();
        assert!(files.read(Path::new("/dev/zero")).unwrap_err().contains("not a regular file"));
        assert!(files.read(Path::new("/")).is_err());
    }

    #[test]
    fn pattern_lists_files_in_order_and_a_new_file_is_a_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["b.crt", "a.crt", ".hidden.crt", "a.key"] {
            std::fs::write(path(name), "x").unwrap();
        }
        let mut files = Files::default();
        assert_eq!(
            files.matching(&path("plain")),
            Ok(vec![path("plain")]),
            "a path without a pattern is returned even if the file is missing"
        );
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
    fn directory_lists_its_files_and_may_be_empty() {
        let directory = tempfile::tempdir().unwrap();
        let clients = directory.path().join("clients");
        let mut files = Files::default();
        assert_eq!(files.named(&clients), Ok((PathKind::File, vec![clients.clone()])), "it is missing");
        let missing = files.fingerprint();
        std::fs::create_dir(&clients).unwrap();
        assert_ne!(missing.now(), missing);

        let mut files = Files::default();
        assert_eq!(files.named(&clients), Ok((PathKind::Directory, vec![])));
        let empty = files.fingerprint();
        assert_eq!(empty.now(), empty);
        for name in ["b.crt", "a", ".a.new"] {
            std::fs::write(clients.join(name), "x").unwrap();
        }
        std::fs::create_dir(clients.join("lost+found")).unwrap();
        assert_ne!(empty.now(), empty);
        let mut files = Files::default();
        assert_eq!(files.named(&clients).unwrap().1, [clients.join("a"), clients.join("b.crt")]);
        assert!(files.read(&clients).is_err(), "other keys must not name a directory");
    }

    #[test]
    fn planned_changes_are_listed_as_if_they_were_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("a.crt"), "a").unwrap();
        let mut files = Files::default();
        assert_eq!(files.read_if_present(&path("b.crt")), Ok(None));
        files.set_content(&path("b.crt"), b"b");
        files.set_removed(&path("a.crt"));
        assert_eq!(files.matching(&path("*.crt")), Ok(vec![path("b.crt")]));
        assert_eq!(files.named(directory.path()).unwrap().1, [path("b.crt")]);
        assert_eq!((&*files.read(&path("b.crt")).unwrap(), files.read(&path("a.crt")).is_err()), (&b"b"[..], true));
        std::fs::write(path("b.crt"), "b").unwrap();
        std::fs::remove_file(path("a.crt")).unwrap();
        assert_eq!(files.fingerprint().now(), files.fingerprint(), "the change itself is not another change");
    }

    #[test]
    fn pattern_matches_whole_names() {
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
            assert_eq!(matches_pattern(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} and {name}");
        }
    }

    #[test]
    fn escaped_line_breaks_of_pem_are_replaced() {
        let pem = "-----BEGIN X-----\nAAEC\n-----END X-----\n";
        for written in [pem.to_owned(), pem.replace('\n', "\\n"), pem.replace('\n', "\\r\\n")] {
            assert_eq!(with_line_breaks(written.into_bytes()), pem.as_bytes());
        }
        // A passphrase may contain a backslash.
        assert_eq!(with_line_breaks(b"a\\nb".to_vec()), b"a\\nb");
    }

    #[test]
    fn variable_is_read_like_a_file_and_is_not_watched() {
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
