//! The file of a command: read and checked before it is edited, and written as a whole.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::cli::{Failure, hint};
use crate::config::credentials::clients::from_text;
use crate::config::edit::clients::ClientEditError;
use crate::config::files::Files;
use crate::config::problem::{Position, Problem, Problems};
use crate::credential::clients::{Client, Clients, SaltRule};
use crate::{durable_file, permissions};

/// A valid `clients_file`.
pub(crate) struct ClientsFile<'a> {
    path: &'a Path,
    /// `None` if the file does not exist.
    content: Option<Arc<[u8]>>,
    pub(crate) clients: Clients,
}

impl<'a> ClientsFile<'a> {
    /// # Errors
    /// If the file is missing, cannot be read or is invalid.
    pub(crate) fn read(path: &'a Path) -> Result<Self, Failure> {
        let Some(content) = content(path)? else {
            return Err(Failure::file(path, "does not exist; create it with portcullis password add, or fix the path"));
        };
        let clients = parse(path, text(path, Some(&content))?)?;
        Ok(Self { path, content: Some(content), clients })
    }

    /// Reads the file as [`Self::read`] does. A missing or empty one has no clients.
    pub(crate) fn read_or_new(path: &'a Path) -> Result<Self, Failure> {
        let content = content(path)?;
        let text = text(path, content.as_deref())?;
        let clients = if text.trim().is_empty() { Clients::default() } else { parse(path, text)? };
        Ok(Self { path, content, clients })
    }

    pub(crate) fn client(&self, user: &str) -> Option<&Client> {
        self.clients.by_user(user).map(|client| &**client)
    }

    /// Writes the edited text, so that after a crash the file has either its old or its new content.
    ///
    /// # Errors
    /// If the edit fails or its result is invalid, and if the file cannot be written or was edited meanwhile. The file is
    /// unchanged then.
    pub(crate) fn write(&self, edit: impl FnOnce(&str) -> Result<String, ClientEditError>) -> Result<(), Failure> {
        let path = self.path;
        let edited = edit(text(path, self.content.as_deref())?).map_err(|error| Failure::file(path, error))?;
        parse(path, &edited)?;
        let is_unchanged = || match Files::default().read_if_present(path) {
            Ok(content) if content == self.content => Ok(()),
            Ok(_) => Err(io::Error::other("was edited meanwhile; run the command again")),
            Err(why) => Err(io::Error::other(why)),
        };
        durable_file::replace_if(path, edited.as_bytes(), NEW_FILE_MODE, is_unchanged)
            .map_err(|error| Failure::file(path, permissions::cannot("cannot be written", &error)))?;
        self.warn_about_readers();
        Ok(())
    }

    fn warn_about_readers(&self) {
        let mut files = Files::default();
        if files.read(self.path).is_ok() && files.is_open_to_others(self.path) {
            let path = self.path.display();
            hint(&format!("group or others can read the clients {path}; run: chmod 600 {path}"));
        }
    }
}

/// `None` if the file does not exist.
fn content(path: &Path) -> Result<Option<Arc<[u8]>>, Failure> {
    Files::default().read_if_present(path).map_err(|why| Failure::file(path, why))
}

fn text<'c>(path: &Path, content: Option<&'c [u8]>) -> Result<&'c str, Failure> {
    let not_utf8 = |error| {
        let message = format!("is not UTF-8: {error}");
        Failure::Configuration(Problem { position: Position::file(path), key: String::new(), message }.into())
    };
    std::str::from_utf8(content.unwrap_or_default()).map_err(not_utf8)
}

/// Each listener checks the salts by its own protocol.
fn parse(path: &Path, text: &str) -> Result<Clients, Failure> {
    from_text(path, text, SaltRule::Any).map_err(|problems| match Problems::unless_any(problems, ()) {
        Err(problems) => Failure::Configuration(problems),
        // Cannot happen: an invalid file has problems.
        Ok(()) => Failure::file(path, "is invalid"),
    })
}

/// For the owner only.
const NEW_FILE_MODE: u32 = 0o600;
