//! A change of a file that the configuration names, requested by the admin API: the file is edited, created or removed.
//!
//! The policy is built from the changed text before the file is written. So a change that leads to an invalid policy changes
//! nothing, and one that is answered is in force and in the file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::config::files::{Files, Fingerprint, MAX_FILE_SIZE};
use crate::config::fleet::Fleet;
use crate::config::problem::Problems;
use crate::config::rule_cache::RuleCache;
use crate::control::error::ErrorKind;
use crate::control::request::PinChange;
use crate::control::response::AdminResponse;
use crate::durable_file;
use crate::policy::{Built, Snapshot};
use crate::resolution::cache::ResolutionCache;
use crate::server::admin_handler::action::Action;
use crate::server::reload::build_from;
use crate::server::report;
use crate::server::report::sources::RuleList;
use crate::server::{passwords, pins};
use crate::source::group::RuleOwner;

/// A file that the API may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChangedFile {
    /// The `sources_file` of a listener or a group, given by the text of its [`RuleOwner`]. With `sources_store`, the last good
    /// copy, which a plan edits.
    Sources { owner: String },
    /// The last good copy of the rules of a listener in the store of the fleet.
    FleetRules { listener: String },
    /// The last good copy of the fleet's ticket keys.
    FleetTickets,
    /// `[admin] tokens_file`.
    Tokens,
    /// The file of `client_certificates` of a listener that holds a certificate, or that is to hold it.
    Pin { listener: String, change: PinChange },
    /// The `clients_file` of a listener.
    Clients { listener: String },
}

/// A change of a file.
pub(crate) struct FileChange {
    pub(crate) file: ChangedFile,
    /// Edits the text; runs on the policy thread.
    pub(crate) edit: Box<Edit>,
    /// Whether the list must be as it is in force, because the caller has read it.
    pub(crate) requires_list_in_force: bool,
    /// Whether to show only what would change.
    pub(crate) plan: bool,
    /// Who changes what, for the audit.
    /// `None` for what the fleet has changed.
    pub(crate) action: Option<Action>,
}

/// Edits a file. Receives its path, its content (`None` if it does not exist), the policy in force and the rules that are known
/// by their text.
pub(crate) type Edit =
    dyn FnOnce(&Path, Option<&[u8]>, &Snapshot, &mut RuleCache) -> Result<Edited, AdminResponse> + Send;

pub(crate) type ChangeReply = oneshot::Sender<Result<ChangeResult, AdminResponse>>;

/// An edited file.
#[derive(Debug)]
pub(crate) struct Edited {
    /// `None` removes the file.
    pub(crate) content: Option<Vec<u8>>,
    pub(crate) affected: Affected,
}

/// What a change names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Affected {
    #[default]
    Nothing,
    Rules(Vec<Uuid>),
    /// A password, by its ID.
    Password(String),
}

impl Affected {
    pub(crate) fn rules(&self) -> &[Uuid] {
        match self {
            Self::Rules(uuids) => uuids,
            Self::Nothing | Self::Password(_) => &[],
        }
    }

    pub(crate) fn password(&self) -> Option<&str> {
        match self {
            Self::Password(id) => Some(id),
            Self::Nothing | Self::Rules(_) => None,
        }
    }
}

/// The text of a file; a missing file has none.
///
/// # Errors
/// A 409 response if it is not UTF-8.
pub(crate) fn text_of<'c>(path: &Path, content: Option<&'c [u8]>) -> Result<&'c str, AdminResponse> {
    std::str::from_utf8(content.unwrap_or_default())
        .map_err(|error| AdminResponse::conflict(format_args!("{} is not UTF-8: {error}", path.display())))
}

/// The result of a change. `listeners` are those whose pinned certificates or clients change, in the order of the configuration.
#[derive(Debug)]
pub(crate) enum ChangeResult {
    /// The change is in force with this policy.
    Applied { snapshot: Arc<Snapshot>, affected: Affected, listeners: Vec<String> },
    /// The policy that the change leads to.
    Planned { built: Box<Built>, listeners: Vec<String>, edited: Edited },
}

/// A change whose policy is built and whose file is not written yet.
#[derive(Debug)]
pub(crate) struct BuiltChange {
    pub(crate) built: Box<Built>,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) write: FileWrite,
    pub(crate) affected: Affected,
    /// The listeners whose pinned certificates or clients change.
    pub(crate) listeners: Vec<String>,
}

/// A built change that is to be put in force.
#[derive(Debug)]
pub(crate) struct PendingChange {
    pub(crate) change: BuiltChange,
    /// `None` for a change that is in the file already.
    pub(crate) action: Option<Action>,
    pub(crate) reply: ChangeReply,
}

/// The new content of a file.
#[derive(Debug)]
pub(crate) struct FileWrite {
    path: PathBuf,
    /// The content that was edited; `None` if the file did not exist.
    before: Option<Arc<[u8]>>,
    /// `None` removes the file.
    after: Option<Vec<u8>>,
    links: Links,
}

/// Whether a file may be written through a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Links {
    /// The operator has named the file, so its link is meant.
    Followed,
    /// Whoever writes to a directory must not redirect the program out of it.
    Refused,
}

impl std::fmt::Debug for FileChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, plan, action, .. } = self;
        f.debug_struct("FileChange").field("file", file).field("plan", plan).field("action", action).finish()
    }
}

impl ChangedFile {
    /// The path by the configuration in force.
    fn path(&self, current: &Snapshot) -> Result<PathBuf, AdminResponse> {
        match self {
            Self::Sources { owner } => {
                let owner = RuleOwner::of(owner);
                current.rule_set(owner).ok_or_else(|| unknown_owner(owner, current))?;
                let (kind, name) = owner.field();
                current.config.sources_file(owner).map(Path::to_owned).ok_or_else(|| {
                    let message = format_args!(
                        "{kind} {name} has no sources_file, so its sources can be changed in the configuration only; \
                         add sources_file = \"{name}.sources\" to the {kind}, create the file with \"rule = []\", and reload"
                    );
                    AdminResponse::conflict(message)
                })
            }
            Self::FleetRules { listener } => {
                let configured = current.config.listeners.iter().find(|configured| configured.name == *listener);
                let configured = configured.filter(|configured| configured.fleet_rules.is_some());
                configured.and_then(|configured| configured.sources_file.clone()).ok_or_else(no_fleet)
            }
            Self::FleetTickets => current.config.fleet.as_ref().map(Fleet::tickets_file).ok_or_else(no_fleet),
            Self::Tokens => {
                let file = current.config.admin.as_ref().and_then(|admin| admin.tokens_file.clone());
                file.ok_or_else(|| {
                    let message = "no tokens_file is configured, so tokens can be changed in the configuration only; \
                                   add tokens_file = \"tokens.toml\" to [admin] and reload";
                    AdminResponse::conflict(message)
                })
            }
            Self::Pin { listener, change } => {
                let policy = current.named(listener).ok_or_else(|| unknown_listener(listener, current))?;
                pins::find_file(policy, change)
            }
            Self::Clients { listener } => passwords::clients_file(current, listener).map(Path::to_owned),
        }
    }

    /// Checks that the policy of a configuration that was read again has the change.
    ///
    /// # Errors
    /// A 409 response if files were edited by hand, so that it has not.
    fn check_effect(&self, snapshot: &Snapshot, path: &Path) -> Result<(), AdminResponse> {
        match self {
            _ if self.is_named() && self.path(snapshot).is_ok_and(|named| named == path) => Ok(()),
            Self::Sources { .. }
            | Self::FleetRules { .. }
            | Self::FleetTickets
            | Self::Tokens
            | Self::Clients { .. } => Err(AdminResponse::conflict(
                "the configuration file was edited and names another file now; reload first",
            )),
            Self::Pin { listener, change } => match snapshot.named(listener) {
                Some(policy) => pins::check_effect(policy, change, path),
                None => Err(AdminResponse::conflict(format_args!(
                    "the configuration file was edited and no longer has listener {listener}; reload first"
                ))),
            },
        }
    }

    /// The action as the audit shows it, once the effect of the change is known.
    pub(crate) fn audited(&self, action: Option<Action>, change: &BuiltChange) -> Option<Action> {
        match self {
            Self::Sources { .. } | Self::FleetRules { .. } | Self::FleetTickets | Self::Tokens => action,
            Self::Pin { .. } if change.write.is_empty() => None,
            Self::Pin { listener, .. } => Some(action?.with_other_listeners(listener, &change.listeners)),
            Self::Clients { listener } => {
                let action = action?.with_password(change.affected.password().unwrap_or_default());
                Some(action.with_other_listeners(listener, &change.listeners))
            }
        }
    }

    /// Whether the configuration names the file by its path.
    const fn is_named(&self) -> bool {
        !matches!(self, Self::Pin { .. })
    }

    /// Whether the file may be missing: the first change creates it.
    fn may_be_missing(&self, current: &Snapshot) -> bool {
        match self {
            Self::Sources { owner } => current.named(owner).is_some_and(|policy| policy.has_fleet_rules),
            // The policy in force has read it. A file that is missing since must not become one with a single client.
            Self::Clients { .. } => false,
            // Each new pin has a file of its own.
            Self::FleetRules { .. } | Self::FleetTickets | Self::Tokens | Self::Pin { .. } => true,
        }
    }

    /// Checks that the list of an edited file is still the one in force, whose `ETag` the caller has.
    ///
    /// # Errors
    /// A 422 response if the configuration cannot be loaded, because no list can be read until it is repaired. A 412 response
    /// if the list differs.
    fn check_unchanged(
        &self,
        path: &Path,
        current: &Snapshot,
        resolutions: &ResolutionCache,
        edited: &Files,
    ) -> Result<(), AdminResponse> {
        let files = Files::knowing(Arc::clone(&current.known_rules));
        let (built, fingerprint) = build_from(&current.config.file, Some(current), resolutions, files);
        let built = built.map_err(|problems| invalid_configuration(&problems))?;
        if fingerprint.has_same_content(path, edited) && self.has_same_list(&built.snapshot, current) {
            return Ok(());
        }
        let message = "the file was edited by hand and is not in force yet; reload, and read it again";
        Err(AdminResponse::error(ErrorKind::PreconditionFailed, message))
    }

    /// Whether both policies have the same list of the file.
    fn has_same_list(&self, one: &Snapshot, other: &Snapshot) -> bool {
        match self {
            // Its tag depends on no verifier.
            Self::Clients { listener } => {
                passwords::clients_of(one, listener) == passwords::clients_of(other, listener)
            }
            Self::Sources { .. } | Self::FleetRules { .. } | Self::FleetTickets | Self::Tokens | Self::Pin { .. } => {
                self.etag(one) == self.etag(other)
            }
        }
    }

    /// The entity tag of the list that the file belongs to, if it has one.
    fn etag(&self, snapshot: &Snapshot) -> Option<String> {
        match self {
            Self::Sources { owner } => {
                let list = RuleList::of(snapshot, RuleOwner::of(owner));
                list.map(|list| report::sources::etag(&list))
            }
            Self::Pin { listener, .. } => {
                snapshot.named(listener).map(|policy| report::client_certificates::etag(policy))
            }
            Self::Clients { .. } | Self::FleetRules { .. } | Self::FleetTickets | Self::Tokens => None,
        }
    }

    const fn links(&self) -> Links {
        match self {
            Self::Sources { .. }
            | Self::FleetRules { .. }
            | Self::FleetTickets
            | Self::Tokens
            | Self::Clients { .. } => Links::Followed,
            Self::Pin { .. } => Links::Refused,
        }
    }
}

/// Edits the file in memory and builds the policy that the change leads to. `in_force` are the files of the policy in force, if
/// the list of the file must be as it is there.
///
/// # Errors
/// The response to the caller. Nothing has changed.
pub(crate) fn build(
    file: &ChangedFile,
    edit: Box<Edit>,
    current: &Snapshot,
    resolutions: &ResolutionCache,
    in_force: Option<&Fingerprint>,
) -> Result<BuiltChange, AdminResponse> {
    let path = file.path(current)?;
    let mut files = Files::knowing(Arc::clone(&current.known_rules));
    let before = read(&path, file.may_be_missing(current), &mut files)?;
    if let Some(in_force) = in_force
        && !in_force.has_same_content(&path, &files)
    {
        file.check_unchanged(&path, current, resolutions, &files)?;
    }
    let Edited { content: after, affected } = edit(&path, before.as_deref(), current, &mut files.rules)?;
    let links = file.links();
    if before.as_deref() != after.as_deref() {
        links.check(&path)?;
    }
    match &after {
        // The next start could not read a larger file.
        Some(after) if after.len() as u64 > MAX_FILE_SIZE => {
            let message = format_args!(
                "{} would have {} MiB; the limit is {} MiB, so nothing was changed",
                path.display(),
                after.len() >> 20,
                MAX_FILE_SIZE >> 20
            );
            return Err(AdminResponse::error(ErrorKind::Unprocessable, message));
        }
        Some(after) => files.set_content(&path, after),
        None => files.set_removed(&path),
    }
    let (built, fingerprint) = build_from(&current.config.file, Some(current), resolutions, files);
    let built = built.map_err(|problems| invalid_configuration(&problems))?;
    file.check_effect(&built.snapshot, &path)?;
    let listeners = match file {
        ChangedFile::Pin { .. } => pins::changed_listeners(current, &built.snapshot),
        ChangedFile::Clients { .. } => passwords::changed_listeners(current, &built.snapshot),
        ChangedFile::Sources { .. }
        | ChangedFile::FleetRules { .. }
        | ChangedFile::FleetTickets
        | ChangedFile::Tokens => Vec::new(),
    };
    let write = FileWrite { path, before, after, links };
    Ok(BuiltChange { built: Box::new(built), fingerprint, write, affected, listeners })
}

fn no_fleet() -> AdminResponse {
    AdminResponse::conflict("the configuration has changed and no longer uses the fleet here")
}

pub(crate) fn invalid_configuration(problems: &Problems) -> AdminResponse {
    let message = format_args!("the configuration is not valid, so nothing was changed:\n{problems}");
    AdminResponse::error(ErrorKind::ReloadRejected, message)
}

fn read(path: &Path, may_be_missing: bool, files: &mut Files) -> Result<Option<Arc<[u8]>>, AdminResponse> {
    let text = if may_be_missing { files.read_if_present(path) } else { files.read(path).map(Some) };
    text.map_err(|why| AdminResponse::conflict(format_args!("{} {why}", path.display())))
}

impl FileWrite {
    /// The new content of the file.
    pub(crate) fn into_content(self) -> Option<Vec<u8>> {
        self.after
    }

    /// Whether the file stays as it is.
    fn is_empty(&self) -> bool {
        self.before.as_deref() == self.after.as_deref()
    }

    /// Writes the file, so that after a crash it has either its old or its new content.
    ///
    /// # Errors
    /// The response to the caller: the file cannot be written, or was edited meanwhile.
    pub(crate) fn run(self) -> Result<(), AdminResponse> {
        let Self { path, before, after, links } = self;
        let is_unchanged = || {
            // Reads neither a FIFO nor an endless file that may have taken the name meanwhile.
            let now = Files::default().read_if_present(&path);
            let now = now.map_err(|why| {
                AdminResponse::conflict(format_args!("{} {why}; nothing was changed", path.display()))
            })?;
            if now.as_deref() == before.as_deref() {
                return Ok(());
            }
            Err(AdminResponse::conflict(format_args!("{} was edited meanwhile; try again", path.display())))
        };
        if before.as_deref() == after.as_deref() {
            return is_unchanged();
        }
        let check = || links.check(&path).and_then(|()| is_unchanged()).map_err(WriteError::Refused);
        let written = match &after {
            Some(after) => durable_file::replace_if(&path, after, NEW_FILE_MODE, check),
            None => durable_file::remove_if(&path, check),
        };
        match written {
            Ok(()) => Ok(()),
            Err(WriteError::Refused(response)) => Err(response),
            Err(WriteError::Disk(error)) => Err(cannot_be_written(&path, &error)),
        }
    }
}

impl Links {
    /// # Errors
    /// A 409 response if the path is a symbolic link that must not be followed.
    fn check(self, path: &Path) -> Result<(), AdminResponse> {
        if self == Self::Refused && path.is_symlink() {
            let message = format_args!(
                "{} is a symbolic link, which the API does not follow; change the file by hand",
                path.display()
            );
            return Err(AdminResponse::conflict(message));
        }
        Ok(())
    }
}

/// Why a file was not written.
enum WriteError {
    Refused(AdminResponse),
    Disk(io::Error),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

fn cannot_be_written(path: &Path, error: &io::Error) -> AdminResponse {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            let directory = path.parent().unwrap_or(Path::new("/")).display();
            format!(". The program needs permission to create files in {directory}")
        }
        _ => String::new(),
    };
    AdminResponse::conflict(format_args!("{} cannot be written: {error}; nothing was changed{hint}", path.display()))
}

/// Only the program reads a new file.
const NEW_FILE_MODE: u32 = 0o600;

/// The response about the sources of an unknown listener or group.
pub(crate) fn unknown_owner(owner: RuleOwner<'_>, current: &Snapshot) -> AdminResponse {
    match owner {
        RuleOwner::Listener(name) => unknown_listener(name, current),
        RuleOwner::Group(name) => {
            let names: Vec<String> = current.groups().iter().map(|group| group.owner().to_string()).collect();
            let known = if names.is_empty() { "none; add a [[source_group]]".to_owned() } else { names.join(", ") };
            let message = format_args!("there is no source group {name:?}; source groups: {known}");
            AdminResponse::error(ErrorKind::NotFound, message)
        }
    }
}

pub(crate) fn unknown_listener(listener: &str, current: &Snapshot) -> AdminResponse {
    let names: Vec<&str> = current.listeners().iter().map(|policy| &*policy.name).collect();
    let message = format_args!("there is no listener {listener:?}; listeners: {}", names.join(", "));
    AdminResponse::error(ErrorKind::NotFound, message)
}
