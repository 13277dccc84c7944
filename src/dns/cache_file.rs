//! The last good answers on disk, for a start at a time when no name can be resolved.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::dns::HostCache;
use crate::source::host::{Addresses, HostName};
use crate::timestamp;

/// Where the answers of one configuration are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheFile {
    file: PathBuf,
    configuration: PathBuf,
}

/// Good answers, and when they were given.
type Answers = BTreeMap<HostName, (Addresses, OffsetDateTime)>;

impl CacheFile {
    /// A file in `directory` for the configuration of this path: several programs on one machine must not mix their answers.
    pub fn new(directory: &Path, configuration: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt as _;
        let configuration = std::path::absolute(configuration).unwrap_or_else(|_| configuration.to_owned());
        let digest = digest(&SHA256, configuration.as_os_str().as_bytes());
        let print: String = digest.as_ref().iter().take(DIGEST_BYTES).map(|byte| format!("{byte:02x}")).collect();
        Self { file: directory.join(format!("names-{print}.json")), configuration }
    }

    /// The answers; none where there is no file.
    ///
    /// # Errors
    /// Words for the operator, where there is a file that cannot be used. It changes nothing else.
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

    /// Writes what is known of these names, whole or not at all.
    ///
    /// # Errors
    /// Words for the operator.
    pub fn write<'a>(&self, names: &HostCache, of: impl IntoIterator<Item = &'a HostName>) -> Result<(), String> {
        let state = |name: &HostName| {
            let (addresses, at) = names.state(name)?.good?;
            Some((name.to_string(), json!({ "addresses": addresses.all(), "resolved_at": timestamp::seconds(at) })))
        };
        let names: serde_json::Map<_, _> = of.into_iter().filter_map(state).collect();
        let text = format!("{:#}\n", json!({ "configuration": self.configuration, "names": names }));
        self.replace(&text).map_err(|error| {
            format!(
                "the answers of dns sources cannot be kept in {}: {error}; after a restart a name that cannot be resolved \
                 would let nobody in. Set [state] directory to one that the program may write, or StateDirectory= in its unit",
                self.file.display()
            )
        })
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        if let Some(directory) = self.file.parent().filter(|directory| !directory.exists()) {
            DirBuilder::new().mode(0o700).create(directory)?;
        }
        let beside = self.file.with_extension("new");
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // Of a program that was killed while it wrote.
            Ok(()) | Err(_) => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all())?;
        fs::rename(&beside, &self.file)
    }
}

/// The bytes of a file that nobody else can have written.
fn bytes(file: &Path) -> io::Result<Vec<u8>> {
    // Not to wait for the writer of a FIFO, nor to follow a link to where it may lead.
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = File::options().read(true).custom_flags(flags).open(file)?;
    let facts = file.metadata()?;
    if !facts.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if facts.mode() & 0o022 != 0 {
        return Err(io::Error::other("it can be written by group or others, and so could say anything"));
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MOST_BYTES {
        return Err(io::Error::other(format!("it has more than {} MiB", MOST_BYTES >> 20)));
    }
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Answers, &'static str> {
    let value: Value = serde_json::from_slice(bytes).map_err(|_| "it is not what this program writes")?;
    let names = value.get("names").and_then(Value::as_object).ok_or("it has no names in it")?;
    let entries = names.iter().map(|(name, entry)| entry_of(name, entry));
    entries.collect::<Option<Answers>>().ok_or("an entry of it is damaged")
}

fn entry_of(name: &str, entry: &Value) -> Option<(HostName, (Addresses, OffsetDateTime))> {
    let at = timestamp::parse(entry.get("resolved_at")?.as_str()?)?;
    let ips = entry.get("addresses")?.as_array()?.iter().map(|ip| ip.as_str()?.parse::<IpAddr>().ok());
    let (addresses, _) = Addresses::of(ips.collect::<Option<Vec<_>>>()?).ok()?;
    Some((name.parse().ok()?, (addresses, at)))
}

/// Enough to tell the configurations of one machine apart.
const DIGEST_BYTES: usize = 8;

/// Room for several hundred names with as many addresses as are taken, and several ten thousand with a few.
const MOST_BYTES: u64 = 4 << 20;

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
    fn what_is_written_is_read_and_nobody_else_may() {
        let (_directory, cache_file) = cache_file();
        assert_eq!(cache_file.read(), Ok(Answers::new()), "a file that is not there is no fault");
        let (names, list) = names(&[("app.internal", &["10.0.0.2", "2001:db8::1"]), ("never", &[])]);
        for _ in 0..2 {
            cache_file.write(&names, &list).unwrap();
            let read = cache_file.read().unwrap();
            let entries: Vec<_> = read.iter().map(|(name, (ips, _))| format!("{name} {ips}")).collect();
            assert_eq!(entries, ["app.internal 10.0.0.2, 2001:db8::1"]);
            assert_eq!(fs::metadata(&cache_file.file).unwrap().mode() & 0o777, 0o600);
        }
        let directory = cache_file.file.parent().unwrap();
        assert_eq!(fs::read_dir(directory).unwrap().count(), 1, "nothing is left beside it");
        let other = CacheFile::new(directory, Path::new("/etc/b.toml"));
        assert_eq!(other.read(), Ok(Answers::new()), "each configuration has its own");
    }

    #[test]
    fn a_file_that_others_may_have_written_is_not_believed() {
        let (_directory, cache_file) = cache_file();
        let (names, list) = names(&[("app.internal", &["10.0.0.2"])]);
        cache_file.write(&names, &list).unwrap();
        fs::set_permissions(&cache_file.file, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(cache_file.read().unwrap_err().contains("written by group or others"));
        let misplaced_keys = cache_file.file.with_extension("elsewhere");
        fs::set_permissions(&cache_file.file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&cache_file.file, &misplaced_keys).unwrap();
        std::os::unix::fs::symlink(&misplaced_keys, &cache_file.file).unwrap();
        assert!(cache_file.read().is_err(), "a link is not followed");
        fs::remove_file(&cache_file.file).unwrap();
        fs::create_dir(&cache_file.file).unwrap();
        assert!(cache_file.read().is_err());
        assert!(cache_file.write(&names, &list).unwrap_err().contains("[state] directory"));
    }

    #[test]
    fn a_damaged_file_is_refused_whole() {
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
        fn bytes_of_any_kind_are_no_disaster(bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0..80_usize) {
            let _ = parse(&bytes);
            let good = r#"{"names":{"app":{"addresses":["10.0.0.1"],"resolved_at":"2026-11-22T00:00:00Z"}}}"#;
            let mut mixed = good.as_bytes().to_vec();
            mixed.splice(cut..cut, bytes);
            let _ = parse(&mixed);
        }
    }
}
