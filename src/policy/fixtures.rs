//! Snapshots for unit tests, built from configuration files.

use std::fmt::Display;
use std::path::PathBuf;

use rcgen::KeyPair;
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::config::Config;
use crate::config::files::Files;
use crate::policy::Snapshot;
use crate::source::addresses::AddressBook;
use crate::tls::fixtures::Authority;
use crate::x509::crypto::sha256_hex;

/// A temporary directory with a configuration and the certificates that it names. Relative paths in it resolve there.
#[derive(Debug)]
pub(crate) struct ConfigDir {
    directory: TempDir,
    authority: Authority,
}

impl ConfigDir {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), authority: Authority::new("Test CA") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a new certificate to `NAME.crt` and `NAME.key`, and returns its fingerprint.
    pub(crate) fn install(&self, name: &str, until: OffsetDateTime) -> String {
        let server = self.authority.server("db.test", KeyPair::generate().unwrap(), until);
        std::fs::write(self.path(&format!("{name}.crt")), server.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), server.key_pem()).unwrap();
        sha256_hex(&server.der())
    }

    pub(crate) fn snapshot(&self, config: impl Display, previous: Option<&Snapshot>) -> Snapshot {
        let file = self.path("portcullis.toml");
        std::fs::write(&file, config.to_string()).unwrap();
        let mut files = Files::default();
        let loaded = Config::load(&file, &mut files).unwrap();
        Snapshot::build(loaded, &mut files, previous, &AddressBook::new()).unwrap().snapshot
    }
}

/// A `[[listener]]` that serves `NAME.crt`.
pub(crate) fn listener(name: &str, port: u16, sources: &str) -> String {
    format!(
        "[[listener]]\nname = \"{name}\"\nprotocol = \"tcp\"\nlisten = \"127.0.0.1:{port}\"\n\
         upstream = \"127.0.0.1:1\"\ntrusted_sources = [{sources}]\n\
         tls.certificates = [{{ cert = \"{name}.crt\", key = \"{name}.key\" }}]\n"
    )
}
