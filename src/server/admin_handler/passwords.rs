//! Lists the clients of a listener, and adds and removes their passwords.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::audit::admin::AdminActionKind;
use crate::config::rule_cache::RuleCache;
use crate::control::error::ErrorKind;
use crate::control::request::{ChangePasswords, PasswordChange};
use crate::control::response::AdminResponse;
use crate::credential::password::PasswordText;
use crate::policy::Snapshot;
use crate::server::admin_handler::action::Action;
use crate::server::admin_handler::changes::find_listener;
use crate::server::admin_handler::{AdminHandler, Origin};
use crate::server::passwords::{PasswordEdit, clients_file};
use crate::server::reload::change::{Affected, ChangeResult, ChangedFile, Edit, Edited, FileChange};
use crate::server::report;
use crate::server::report::clients::PlannedPassword;
use crate::session::registry::ConnectionRegistry;
use crate::timestamp::seconds;

impl AdminHandler {
    pub(super) fn change_passwords(
        &mut self,
        request: ChangePasswords,
        origin: Origin,
        current: &Arc<Snapshot>,
        reply: oneshot::Sender<AdminResponse>,
    ) {
        let ChangePasswords { listener, user, change, if_match, plan } = request;
        let listener = match find_listener(current, &listener) {
            Ok(policy) => policy.name.to_string(),
            Err(response) => return drop(reply.send(response)),
        };
        let action = action_of(&change, &listener, &user, origin);
        let is_generated = matches!(&change, PasswordChange::Add(added) if added.text.is_none());
        let password = match PasswordEdit::of(change) {
            Ok(password) => password,
            Err(response) => return drop(reply.send(response)),
        };
        let shown = match &password {
            PasswordEdit::Add { text, .. } if is_generated => Some(text.clone()),
            PasswordEdit::Add { .. } | PasswordEdit::Remove { .. } => None,
        };
        let form = if matches!(password, PasswordEdit::Add { .. }) { Form::Created(shown) } else { Form::NoContent };
        let file_change = FileChange {
            requires_list_in_force: if_match.is_some(),
            edit: edit(listener.clone(), user.clone(), password, if_match),
            plan,
            action: Some(action),
            file: ChangedFile::Clients { listener: listener.clone() },
        };
        let (registry, before) = (Arc::clone(&self.registry), Arc::clone(current));
        self.send_change(file_change, reply, move |result| {
            let names = Names { listener: &listener, user: &user };
            respond(result, &names, &before, form, &registry).unwrap_or_else(|error| error)
        });
    }
}

/// The clients of a listener with their passwords.
pub(super) fn list(
    current: &Snapshot,
    listener: &str,
    registry: &ConnectionRegistry,
) -> Result<AdminResponse, AdminResponse> {
    let policy = find_listener(current, listener)?;
    let file = clients_file(current, &policy.name).ok();
    let body = report::clients::list(policy, file, registry);
    Ok(AdminResponse::ok(body).with_etag(&report::clients::etag(policy)))
}

/// How a change is answered.
enum Form {
    /// 201 with the password, of which a generated text is shown this once.
    Created(Option<PasswordText>),
    NoContent,
}

/// Whose password changes.
struct Names<'a> {
    listener: &'a str,
    user: &'a str,
}

fn respond(
    result: ChangeResult,
    Names { listener, user }: &Names<'_>,
    before: &Snapshot,
    form: Form,
    registry: &ConnectionRegistry,
) -> Result<AdminResponse, AdminResponse> {
    match result {
        ChangeResult::Planned { built, listeners, edited: Edited { affected, .. } } => {
            let snapshot = &built.snapshot;
            let planned = PlannedPassword {
                snapshot,
                before: find_listener(before, listener)?,
                after: find_listener(snapshot, listener)?,
                user,
                id: id_of(&affected),
                listeners: &listeners,
            };
            Ok(AdminResponse::ok(report::clients::plan(&planned, registry)))
        }
        ChangeResult::Applied { snapshot, affected, listeners } => {
            let policy = find_listener(&snapshot, listener)?;
            let response = match form {
                Form::Created(text) => {
                    let (names, text) = ([*user, id_of(&affected)], text.as_ref().map(PasswordText::reveal));
                    let body = report::clients::added(policy, names, &listeners, text, registry);
                    // A later change may have removed it already.
                    let removed = || AdminResponse::conflict("the password was added and has been removed since");
                    AdminResponse::created(body.ok_or_else(removed)?)
                }
                Form::NoContent => AdminResponse::no_content(),
            };
            Ok(response.with_etag(&report::clients::etag(policy)))
        }
    }
}

fn id_of(affected: &Affected) -> &str {
    affected.password().unwrap_or_default()
}

/// The target gets the ID when the file is edited.
fn action_of(change: &PasswordChange, listener: &str, user: &str, origin: Origin) -> Action {
    let (kind, detail) = match change {
        PasswordChange::Add(added) => {
            let end = added.new.expires_at.map(|end| format!("expires at {}", seconds(end)));
            (AdminActionKind::PasswordAdd, end)
        }
        PasswordChange::Remove { .. } => (AdminActionKind::PasswordRemove, None),
    };
    origin.action(kind, Some(format!("{listener}/{user}")), detail)
}

fn edit(listener: String, user: String, password: PasswordEdit, if_match: Option<String>) -> Box<Edit> {
    Box::new(move |path: &Path, content: Option<&[u8]>, current: &Snapshot, _: &mut RuleCache| {
        if let Some(wanted) = if_match
            && wanted != report::clients::etag(find_listener(current, &listener)?)
        {
            let message = "the clients have changed since they were read (ETag); read them again";
            return Err(AdminResponse::error(ErrorKind::PreconditionFailed, message));
        }
        password.edit(&user, path, content)
    })
}
