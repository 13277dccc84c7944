//! The temporary directory of one test: certificates, configuration and other files.

use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Authority, Leaf, Request};

/// The directory, with `ca.crt`, `server.crt` and `server.key` in it.
#[derive(Debug)]
pub(crate) struct TestDir {
    directory: TempDir,
    pub(crate) ca: Authority,
}

impl TestDir {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let site = Self { directory, ca: Authority::new("Test CA") };
        site.write("ca.crt", site.ca.pem());
        site.install("server", &site.server());
        site
    }

    /// A directory for another program with the same certificate.
    pub(crate) fn with_same_certificate(&self) -> Self {
        let other = Self::new();
        for name in ["ca.crt", "server.crt", "server.key"] {
            fs::copy(self.path(name), other.path(name)).expect("a file of the test can be copied");
        }
        other
    }

    /// One more certificate for this machine.
    pub(crate) fn server(&self) -> Leaf {
        self.ca.issue(Request::server(&["localhost", "127.0.0.1", "::1"]))
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file in place: opened, truncated, written.
    pub(crate) fn write(&self, name: &str, text: impl Display) {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.path(name))
            .expect("a file of the test can be opened");
        file.write_all(text.to_string().as_bytes()).expect("a file of the test can be written");
    }

    /// Writes a file beside the old one and renames it over that.
    pub(crate) fn replace(&self, name: &str, text: impl Display) {
        let beside = format!("{name}.new");
        self.write(&beside, text);
        fs::rename(self.path(&beside), self.path(name)).expect("a file can be renamed");
    }

    /// Writes `NAME.crt` and `NAME.key`.
    pub(crate) fn install(&self, name: &str, leaf: &Leaf) {
        self.write(&format!("{name}.crt"), leaf.pem());
        self.write(&format!("{name}.key"), leaf.key_pem());
    }
}
