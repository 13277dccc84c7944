//! Changes of passwords of clients: in which file they are, and how its text is edited.

use std::fs;
use std::path::Path;

use crate::config::credentials::clients::from_text;
use crate::config::edit::clients::{ClientEditError, with_mock_secret, with_password, without_password};
use crate::config::problem::Problems;
use crate::control::error::ErrorKind;
use crate::control::request::PasswordChange;
use crate::control::response::AdminResponse;
use crate::credential::clients::{Clients, SaltRule};
use crate::credential::mock::MockSecret;
use crate::credential::new_password::{NewPassword, NewPasswordError};
use crate::credential::password::PasswordText;
use crate::permissions;
use crate::policy::Snapshot;
use crate::server::reload::change::{Affected, Edited, invalid_configuration, text_of, unknown_listener};

/// A change whose password is known.
#[derive(Clone, Debug)]
pub(crate) enum PasswordEdit {
    Add { text: PasswordText, new: NewPassword },
    Remove { id: String },
}

impl PasswordEdit {
    /// Generates the password if the caller has sent none.
    ///
    /// # Errors
    /// A 500 response if the system provides no random bytes.
    pub(crate) fn of(change: PasswordChange) -> Result<Self, AdminResponse> {
        Ok(match change {
            PasswordChange::Add(added) => {
                let text = added.text.or_else(PasswordText::random).ok_or_else(no_random)?;
                Self::Add { text, new: added.new }
            }
            PasswordChange::Remove { id } => Self::Remove { id },
        })
    }

    /// Edits the text of a `clients_file` as `portcullis password` does.
    ///
    /// # Errors
    /// A 404 response if there is no such password to remove. A 409 response if the user has the password or its ID already.
    pub(crate) fn edit(self, user: &str, path: &Path, content: Option<&[u8]>) -> Result<Edited, AdminResponse> {
        let before = text_of(path, content)?;
        let not_edited = |error| edit_error(path, error);
        let (text, id) = match self {
            Self::Add { text, new } => {
                let clients = read(path, before)?;
                let client = clients.by_user(user).map(|client| &**client);
                let password = new.of(client, text.reveal()).map_err(|error| match error {
                    NewPasswordError::NoRandom => no_random(),
                    NewPasswordError::TakenId(_) | NewPasswordError::Known(_) => {
                        AdminResponse::conflict(format_args!("{user:?} {error}"))
                    }
                })?;
                let secret = MockSecret::random().ok_or_else(no_random)?;
                let text = with_password(before, user, &password).map_err(not_edited)?;
                (with_mock_secret(&text, &secret).map_err(not_edited)?, password.id)
            }
            Self::Remove { id } => (without_password(before, user, &id).map_err(not_edited)?, id),
        };
        Ok(Edited { content: Some(text.into_bytes()), affected: Affected::Password(id) })
    }
}

/// Reads the file as the command does. Each listener checks the salts by its own protocol when the policy is built.
fn read(path: &Path, text: &str) -> Result<Clients, AdminResponse> {
    from_text(path, text, SaltRule::Any).map_err(|problems| match Problems::unless_any(problems, ()) {
        Err(problems) => invalid_configuration(&problems),
        // Cannot happen: an invalid file has problems.
        Ok(()) => AdminResponse::conflict(format_args!("{} is invalid", path.display())),
    })
}

fn edit_error(path: &Path, error: ClientEditError) -> AdminResponse {
    let kind = match error {
        ClientEditError::NoClient | ClientEditError::NoPassword => ErrorKind::NotFound,
        ClientEditError::Syntax | ClientEditError::NotTables => ErrorKind::Conflict,
    };
    AdminResponse::error(kind, format_args!("{} {error}", path.display()))
}

fn no_random() -> AdminResponse {
    AdminResponse::error(ErrorKind::ServerError, "the system has no random numbers; nothing was changed")
}

/// The `clients_file` of a listener by the configuration in force.
///
/// # Errors
/// A 404 response if there is no such listener, a 409 response if it does not authenticate its clients.
pub(crate) fn clients_file<'s>(current: &'s Snapshot, listener: &str) -> Result<&'s Path, AdminResponse> {
    let configured = current.config.listeners.iter().find(|configured| configured.name == listener);
    let configured = configured.ok_or_else(|| unknown_listener(listener, current))?;
    let credentials = configured.credentials.as_ref();
    let file = credentials.map(|credentials| credentials.clients_file.path.as_path());
    file.ok_or_else(|| AdminResponse::conflict(no_credentials(listener)))
}

/// Why a listener has no passwords of its own, and what to do.
pub(crate) fn no_credentials(listener: &str) -> String {
    format!(
        "listener {listener} has no [listener.credentials], so its clients have the passwords of the database; add the section \
         with clients_file, and reload"
    )
}

/// Why the program cannot replace a `clients_file`, as far as its directory shows.
pub(crate) fn obstacle(file: &Path) -> Option<String> {
    // A symbolic link stays, and its target is replaced.
    let target = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let directory = target.parent().unwrap_or(Path::new("/"));
    let why = permissions::obstacle_to_creating(directory)?;
    Some(format!("{} {why}", directory.display()))
}

/// The clients of a listener; `None` if it does not authenticate them.
pub(crate) fn clients_of<'s>(snapshot: &'s Snapshot, listener: &str) -> Option<&'s Clients> {
    let credentials = snapshot.named(listener)?.credentials.as_ref()?;
    Some(&credentials.clients)
}

/// The listeners of `after` whose clients differ from those in `before`, in the order of the configuration.
pub(crate) fn changed_listeners(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let is_changed = |name: &str| clients_of(after, name) != clients_of(before, name);
    let names = after.listeners().iter().map(|policy| &*policy.name);
    names.filter(|name| is_changed(name)).map(str::to_owned).collect()
}
