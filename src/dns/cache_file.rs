//! Keeps the last good answers on disk, for a start while no name can be resolved.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::digest::{hex, sha256};
use crate::dns::HostCache;
use crate::durable_file;
use crate::source::host::{Addresses, HostName};
use crate::timestamp;

/// The file with the answers of one configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheFile {
    file: PathBuf,
    configuration: PathBuf,
}

/// Good answers with their times.
type Answers = BTreeMap<HostName, (Addresses, OffsetDateTime)>;

impl CacheFile {
    /// A file in `directory` for the configuration at this path, so that several instances on one machine do not mix answers.
    pub fn new(directory: &Path, configuration: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt as _;
        let configuration = std::path::absolute(configuration).unwrap_or_else(|_| configuration.to_owned());
        let digest = sha256(configuration.as_os_str().as_bytes());
        let print = hex(digest.get(..DIGEST_BYTES).unwrap_or_default());
        Self { file: directory.join(format!("names-{print}.json")), configuration }
    }

    /// Reads the answers. Without a file there are none.
    ///
    /// # Errors
    /// A message for the operator, if the file exists and cannot be used.
    pub(crate) fn read(&self) -> Result<Answers, String> {
        match bytes(&self.file) {
            Ok(bytes) => parse(&bytes).map_err(|what| self.unusable(what)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Answers::new()),
            Err(error) => Err(self.unusable(&error.to_string())),
        }
    }

    fn unusable(&self, why: &str) -> String {
        format!("the last good answers in {} are not used: {why}", self.file.display())
    }

    /// Writes the answers of these names atomically.
    ///
    /// # Errors
    /// A message for the operator.
    pub fn write<'a>(&self, names: &HostCache, of: impl IntoIterator<Item = &'a HostName>) -> Result<(), String> {
        let state = |name: &HostName| {
            let (addresses, at) = names.state(name)?.good?;
            Some((name.to_string(), json!({ "addresses": addresses.all(), "resolved_at": timestamp::seconds(at) })))
        };
        let names: serde_json::Map<_, _> = of.into_iter().filter_map(state).collect();
        let text = format!("{:#}\n", json!({ "configuration": self.configuration, "names": names }));
        self.replace(&text).map_err(|error| {
            format!(
                "cannot write the answers of dns sources to {}: {error}; after a restart, a name that cannot be resolved would \
                 admit no client. Set [state] directory to a writable directory, or StateDirectory= in the systemd unit",
                self.file.display()
            )
        })
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        if let Some(directory) = self.file.parent().filter(|directory| !directory.exists()) {
            DirBuilder::new().mode(0o700).create(directory)?;
        }
        if self.file.is_symlink() {
            // A link may lead to any file.
            fs::remove_file(&self.file)?;
        }
        durable_file::replace(&self.file, text.as_bytes(), 0o600)
    }
}

/// Reads a file that no other user can have written.
fn bytes(file: &Path) -> io::Result<Vec<u8>> {
    // O_NONBLOCK: a FIFO without a writer must not block. O_NOFOLLOW: a link may lead to any file.
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = File::options().read(true).custom_flags(flags).open(file)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(io::Error::other("it is writable by group or others; remove it or run chmod go-w"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(io::Error::other(format!("it exceeds {} MiB", MAX_BYTES >> 20)));
    }
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Answers, &'static str> {
    let value: Value = serde_json::from_slice(bytes).map_err(|_| "it is not valid JSON")?;
    let names = value.get("names").and_then(Value::as_object).ok_or("the key names is missing")?;
    let entries = names.iter().map(|(name, entry)| entry_of(name, entry));
    entries.collect::<Option<Answers>>().ok_or("an entry is damaged")
}

fn entry_of(name: &str, entry: &Value) -> Option<(HostName, (Addresses, OffsetDateTime))> {
    let at = timestamp::parse(entry.get("resolved_at")?.as_str()?)?;
    let ips = entry.get("addresses")?.as_array()?.iter().map(|ip| ip.as_str()?.parse::<IpAddr>().ok());
    let (addresses, _) = Addresses::of(ips.collect::<Option<Vec<_>>>()?).ok()?;
    Some((name.parse().ok()?, (addresses, at)))
}

/// Enough to distinguish the configurations of one machine.
const DIGEST_BYTES: usize = 8;

/// Enough for several hundred names with the maximum number of addresses, or tens of thousands with a few.
const MAX_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    fn names(entries: &[(&str, &[&str])]) -> (HostCache, Vec<HostName>) {
        let names = HostCache::default();
        for (name, ips) in entries {
            let answer = Addresses::of(ips.iter().map(|ip| ip.parse().unwrap())).map_err(|error| error.to_string());
            let _ = names.note(&name.parse().unwrap(), answer, OffsetDateTime::UNIX_EPOCH);
        }
        (names, entries.iter().map(|(name, _)| name.parse().unwrap()).collect())
    }

    fn cache_file() -> (tempfile::TempDir, CacheFile) {
        let directory = tempfile::tempdir().unwrap();
        let cache_file = CacheFile::new(&directory.path().join("state"), Path::new("/etc/a.toml"));
        (directory, cache_file)
    }

    #[test]
    fn written_answers_are_read_and_the_file_is_private() {
        let (_directory, cache_file) = cache_file();
        assert_eq!(cache_file.read(), Ok(Answers::new()), "a missing file is not an error");
        let (names, list) = names(&[("app.internal", &["10.0.0.2", "2001:db8::1"]), ("never", &[])]);
        for _ in 0..2 {
            cache_file.write(&names, &list).unwrap();
            let read = cache_file.read().unwrap();
            let entries: Vec<_> = read.iter().map(|(name, (ips, _))| format!("{name} {ips}")).collect();
            assert_eq!(entries, ["app.internal 10.0.0.2, 2001:db8::1"]);
            assert_eq!(fs::metadata(&cache_file.file).unwrap().mode() & 0o777, 0o600);
        }
        let directory = cache_file.file.parent().unwrap();
        assert_eq!(fs::read_dir(directory).unwrap().count(), 1, "no temporary file is left");
        let other = CacheFile::new(directory, Path::new("/etc/b.toml"));
        assert_eq!(other.read(), Ok(Answers::new()), "each configuration has its own");
    }

    #[test]
    fn file_writable_by_others_is_rejected() {
        let (_directory, cache_file) = cache_file();
        let (names, list) = names(&[("app.internal", &["10.0.0.2"])]);
        cache_file.write(&names, &list).unwrap();
        fs::set_permissions(&cache_file.file, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(cache_file.read().unwrap_err().contains("writable by group or others"));
        let moved = cache_file.file.with_extension("moved");
        fs::set_permissions(&cache_file.file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&cache_file.file, &moved).unwrap();
        std::os::unix::fs::symlink(&moved, &cache_file.file).unwrap();
        assert!(cache_file.read().is_err(), "a link is not followed");
        fs::remove_file(&cache_file.file).unwrap();
        fs::create_dir(&cache_file.file).unwrap();
        assert!(cache_file.read().is_err());
        assert!(cache_file.write(&names, &list).unwrap_err().contains("[state] directory"));
    }

    #[test]
    fn damaged_file_is_rejected_as_a_whole() {
        let good = r#"{"names":{"app":{"addresses":["10.0.0.1"],"resolved_at":"2026-11-22T00:00:00Z"}}}"#;
        assert_eq!(parse(good.as_bytes()).map(|answers| answers.len()), Ok(1));
        for (from, to) in [
            ("10.0.0.1", "10.0.0.0/8"),
            ("\"10.0.0.1\"", ""),
            ("\"10.0.0.1\"", "7"),
            ("10.0.0.1", "0.0.0.0"),
            ("app", "10.0.0.1"),
            ("names", "other"),
            ("2026-11-22T00:00:00Z", "yesterday"),
            ("}}}", "}}"),
        ] {
            assert!(parse(good.replacen(from, to, 1).as_bytes()).is_err(), "{from} as {to}");
        }
        let (_directory, cache_file) = cache_file();
        fs::create_dir_all(cache_file.file.parent().unwrap()).unwrap();
        let deep = "[".repeat(1 << 20);
        let large = format!("{}{good}", " ".repeat(5 << 20));
        for text in [deep, large] {
            fs::write(&cache_file.file, text).unwrap();
            fs::set_permissions(&cache_file.file, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(cache_file.read().is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0..80_usize) {
            let _ = parse(&bytes);
            let good = r#"{"names":{"app":{"addresses":["10.0.0.1"],"resolved_at":"2026-11-22T00:00:00Z"}}}"#;
            let mut mixed = good.as_bytes().to_vec();
            mixed.splice(cut..cut, bytes);
            let _ = parse(&mixed);
        }
    }
}
