//! The last good answers on disk, for a start while sources cannot be resolved.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::digest::{hex, sha256};
use crate::durable_file;
use crate::resolution::cache::ResolutionCache;
use crate::resolution::observation::MAX_ADDRESSES;
use crate::source::addresses::{Addresses, Resolvable};
use crate::source::cloud::CloudSource;
use crate::timestamp;

/// The file with the answers of one configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CacheFile {
    file: PathBuf,
    configuration: PathBuf,
}

/// Good answers with their times.
type Answers = BTreeMap<Resolvable, (Addresses, OffsetDateTime)>;

impl CacheFile {
    /// A file in `directory` for the configuration at this path, so that several instances on one machine do not mix answers.
    pub(crate) fn new(directory: &Path, configuration: &Path) -> Self {
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
        match read_private(&self.file) {
            Ok(bytes) => parse(&bytes).map_err(|what| self.unusable(what)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Answers::new()),
            Err(error) => Err(self.unusable(&error.to_string())),
        }
    }

    fn unusable(&self, why: &str) -> String {
        format!("the last good answers in {} are not used: {why}", self.file.display())
    }

    /// Writes the answers of these sources atomically.
    ///
    /// # Errors
    /// A message for the operator.
    pub(crate) fn write<'a>(
        &self,
        cache: &ResolutionCache,
        of: impl IntoIterator<Item = &'a Resolvable>,
    ) -> Result<(), String> {
        let (mut names, mut cloud) = (serde_json::Map::new(), serde_json::Map::new());
        for (source, (addresses, at)) in cache.good_answers(of) {
            let at = timestamp::seconds(at);
            match source {
                Resolvable::Host(name) => {
                    names.insert(name.to_string(), json!({ "addresses": addresses.all(), "resolved_at": at }));
                }
                Resolvable::Cloud(source) => {
                    let objects: serde_json::Map<_, _> =
                        addresses.objects().map(|(ip, object)| (ip.to_string(), object.into())).collect();
                    cloud.insert(source.to_string(), json!({ "addresses": objects, "resolved_at": at }));
                }
            }
        }
        let text = format!("{:#}\n", json!({ "configuration": self.configuration, "names": names, "cloud": cloud }));
        self.replace(&text).map_err(|error| {
            format!(
                "cannot write the answers of dns and cloud sources to {}: {error}; after a restart, a source that cannot be \
                 resolved would admit no client. Set [state] directory to a writable directory, or StateDirectory= in the \
                 systemd unit",
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
pub(crate) fn read_private(file: &Path) -> io::Result<Vec<u8>> {
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
    let names = names.iter().map(|(name, entry)| host_entry(name, entry));
    // Earlier versions know no cloud sources.
    let cloud =
        value.get("cloud").map(|cloud| cloud.as_object().ok_or("the key cloud is not an object")).transpose()?;
    let cloud = cloud.into_iter().flatten().map(|(source, entry)| cloud_entry(source, entry));
    names.chain(cloud).collect::<Option<_>>().ok_or("an entry is damaged")
}

fn host_entry(name: &str, entry: &Value) -> Option<(Resolvable, (Addresses, OffsetDateTime))> {
    let at = timestamp::parse(entry.get("resolved_at")?.as_str()?)?;
    let ips = entry.get("addresses")?.as_array()?.iter().map(|ip| ip.as_str()?.parse::<IpAddr>().ok());
    let (addresses, _) = Addresses::of(ips.collect::<Option<Vec<_>>>()?).ok()?;
    Some((Resolvable::Host(name.parse().ok()?), (addresses, at)))
}

fn cloud_entry(source: &str, entry: &Value) -> Option<(Resolvable, (Addresses, OffsetDateTime))> {
    let at = timestamp::parse(entry.get("resolved_at")?.as_str()?)?;
    let object = |(ip, object): (&String, &Value)| Some((ip.parse::<IpAddr>().ok()?, Arc::from(object.as_str()?)));
    let objects = entry.get("addresses")?.as_object()?.iter().map(object).collect::<Option<Vec<_>>>()?;
    let (addresses, _) = Addresses::of_objects(objects, MAX_ADDRESSES).ok()?;
    Some((Resolvable::Cloud(CloudSource::try_from(source.to_owned()).ok()?), (addresses, at)))
}

/// Enough to distinguish the configurations of one machine.
const DIGEST_BYTES: usize = 8;

/// Enough for several cloud sources with the maximum number of addresses.
const MAX_BYTES: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;
    use crate::resolution::observation::{Evidence, ObjectAddress, Observation};

    const GOOD: &str = r#"{"names":{"app":{"addresses":["10.0.0.1"],"resolved_at":"2026-11-22T00:00:00Z"}},
        "cloud":{"tag:web":{"addresses":{"10.0.0.7":"droplet"},"resolved_at":"2026-11-23T00:00:00Z"},
        "tag:idle":{"addresses":{},"resolved_at":"2026-11-23T00:00:00Z"}}}"#;

    /// A cache with the answers of names and of a tag.
    fn answers(entries: &[(&str, &[&str])]) -> (ResolutionCache, Vec<Resolvable>) {
        let cache = ResolutionCache::default();
        for (name, ips) in entries {
            let answer = Addresses::of(ips.iter().map(|ip| ip.parse().unwrap())).map_err(|error| error.to_string());
            let _ = cache.note(&name.parse().unwrap(), answer, OffsetDateTime::UNIX_EPOCH);
        }
        let tag = CloudSource::parse("tag", "web").unwrap().unwrap();
        cache.expect([tag.clone()].into());
        let each = |(ip, object): (&str, &str)| ObjectAddress { ip: ip.parse().unwrap(), object: object.into() };
        let addresses = [("10.0.0.7", "droplet web-1"), ("2001:db8::7", "droplet \"web\"")].map(each).into();
        let observation = Observation::Addresses { addresses, evidence: Evidence::List };
        let _ = cache.observe(&tag, observation, OffsetDateTime::UNIX_EPOCH);
        let names = entries.iter().map(|(name, _)| Resolvable::Host(name.parse().unwrap()));
        (cache, names.chain([Resolvable::Cloud(tag)]).collect())
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
        let (cache, list) = answers(&[("app.internal", &["10.0.0.2", "2001:db8::1"]), ("never", &[])]);
        for _ in 0..2 {
            cache_file.write(&cache, &list).unwrap();
            let read = cache_file.read().unwrap();
            let entries: Vec<_> = read.iter().map(|(name, (ips, _))| format!("{name} {ips}")).collect();
            assert_eq!(entries, ["dns:app.internal 10.0.0.2, 2001:db8::1", "tag:web 10.0.0.7, 2001:db8::7"]);
            let (tag, _) = &read[&list[2]];
            let objects: Vec<_> = tag.objects().map(|(_, object)| object).collect();
            assert_eq!(objects, ["droplet web-1", "droplet \"web\""]);
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
        let (cache, list) = answers(&[("app.internal", &["10.0.0.2"])]);
        cache_file.write(&cache, &list).unwrap();
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
        assert!(cache_file.write(&cache, &list).unwrap_err().contains("[state] directory"));
    }

    #[test]
    fn damaged_file_is_rejected_as_a_whole() {
        let of_earlier_version = r#"{"names":{"app":{"addresses":["10.0.0.1"],"resolved_at":"2026-11-22T00:00:00Z"}}}"#;
        assert_eq!(parse(of_earlier_version.as_bytes()).map(|answers| answers.len()), Ok(1));
        let good = GOOD;
        assert_eq!(parse(good.as_bytes()).map(|answers| answers.len()), Ok(3));
        for (from, to) in [
            ("10.0.0.7", "10.0.0.0/8"),
            ("\"droplet\"", "7"),
            ("tag:web", "tag:w b"),
            ("tag:web", "ip_addr:10.0.0.1"),
            ("2026-11-23T00:00:00Z", "today"),
            ("{\"10.0.0.7\":\"droplet\"}", "[]"),
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
        let large = format!("{}{good}", " ".repeat(65 << 20));
        for text in [deep, large] {
            fs::write(&cache_file.file, text).unwrap();
            fs::set_permissions(&cache_file.file, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(cache_file.read().is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0..GOOD.len()) {
            let _ = parse(&bytes);
            let mut mixed = GOOD.as_bytes().to_vec();
            mixed.splice(cut..cut, bytes);
            let _ = parse(&mixed);
        }
    }
}
