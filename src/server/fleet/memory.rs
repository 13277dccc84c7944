//! What a member remembers across restarts, in its state directory.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::durable_file;
use crate::fleet::known::Known;
use crate::resolution::cache_file::read_private;

/// The file with the memory.
#[derive(Clone, Debug)]
pub(crate) struct MemoryFile(PathBuf);

impl MemoryFile {
    pub(crate) fn new(directory: &Path) -> Self {
        Self(directory.join("member.json"))
    }

    /// Reads the memory. Without a file there is none.
    ///
    /// # Errors
    /// A message for the operator, if the file exists and cannot be used. Then nothing protects against a store that was
    /// restored.
    pub(crate) fn read(&self) -> Result<Known, String> {
        match read_private(&self.0) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|_| self.unusable("it is damaged")),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.has_copies() => {
                Err(self.unusable("it is missing beside last good copies"))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Known::default()),
            Err(error) => Err(self.unusable(&error.to_string())),
        }
    }

    /// Whether a last good copy is in the directory.
    fn has_copies(&self) -> bool {
        let entries = self.0.parent().map(std::fs::read_dir);
        entries.is_some_and(|entries| entries.is_ok_and(|mut entries| entries.next().is_some()))
    }

    fn unusable(&self, why: &str) -> String {
        format!("this member does not know which store it had: {}: {why}", self.0.display())
    }

    /// Writes the memory durably.
    ///
    /// # Errors
    /// A message for the operator.
    pub(crate) fn write(&self, known: &Known) -> Result<(), String> {
        let text = format!("{:#}\n", serde_json::json!(known));
        let written = self.directory().and_then(|()| durable_file::replace(&self.0, text.as_bytes(), 0o600));
        written.map_err(|error| format!("cannot write {}: {error}", self.0.display()))
    }

    /// Creates the directory of the last good copies.
    pub(crate) fn directory(&self) -> io::Result<()> {
        match self.0.parent() {
            Some(directory) => DirBuilder::new().recursive(true).mode(0o700).create(directory),
            None => Ok(()),
        }
    }
}
