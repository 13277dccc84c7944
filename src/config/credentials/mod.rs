//! `[listener.credentials]`: the passwords of clients at a listener, and those of the listener at the database.

pub(crate) mod clients;
mod machine;

use std::path::Path;

use crate::config::SourcedFile;
use crate::config::document::{Node, Section};
use crate::config::resolver::transposed;
use crate::credential::clients::check_user;
use crate::protocol::Protocol;

/// `[listener.credentials]`. The policy reads the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialSettings {
    /// The `[[client]]` tables.
    pub clients_file: SourcedFile,
    /// The user at the database; `None` means the user of the client.
    pub upstream_user: Option<String>,
    /// The passwords of that user, one on each line. Without it, the database must need none.
    pub upstream_password_file: Option<SourcedFile>,
}

/// Reads the section; `Some(None)` if there is none.
pub(crate) fn credentials(
    listener: &Section<'_>,
    protocol: Option<Protocol>,
    directory: &Path,
) -> Option<Option<CredentialSettings>> {
    let Some(node) = listener.get("credentials") else { return Some(None) };
    let section = node.section("a table with clients_file")?;
    let clients_file = section.require("clients_file", CLIENTS_FILE).and_then(|node| node.named_file(directory));
    let upstream_user = section.get("upstream_user").map(|node| user(&node));
    let upstream_password_file = section.get("upstream_password_file").map(|node| node.named_file(directory));
    section.finish();
    if protocol == Some(Protocol::Tcp) {
        node.problem(NO_PASSWORDS);
        return None;
    }
    let default = (protocol == Some(Protocol::Redis)).then(|| DEFAULT_USER.to_owned());
    Some(Some(CredentialSettings {
        clients_file: clients_file?,
        upstream_user: transposed(upstream_user)?.or(default),
        upstream_password_file: transposed(upstream_password_file)?,
    }))
}

/// The name of a client or of a user at the database.
pub(crate) fn user(node: &Node<'_>) -> Option<String> {
    let name = node.text("the name of a user")?;
    check_user(name).map_err(|error| node.expected(error)).ok()?;
    Some(name.to_owned())
}

const CLIENTS_FILE: &str = "a file of [[client]] tables, which portcullis password add creates";

const NO_PASSWORDS: &str = "is set, but protocol = \"tcp\" has no passwords that Portcullis can check; set protocol to \"redis\" \
                            or \"postgres\", or remove it";

/// The user of Redis whose password `requirepass` sets.
const DEFAULT_USER: &str = "default";
