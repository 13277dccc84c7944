//! Changes of trusted sources and tokens.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::oneshot;

use crate::audit::admin::AdminActionKind;
use crate::config::edit::sources::{EditError, SourcesChange, Target, apply};
use crate::config::edit::tokens::{with_token, without_token};
use crate::config::rule_cache::RuleCache;
use crate::config::sources::{GroupScope, RuleScope};
use crate::control::error::ErrorKind;
use crate::control::request::{ChangeSources, NewToken};
use crate::control::response::AdminResponse;
use crate::fleet::manifest;
use crate::policy::{ListenerPolicy, Snapshot};
use crate::server::admin_handler::action::Action;
use crate::server::admin_handler::fleet::FleetWish;
use crate::server::admin_handler::{AdminHandler, Origin};
use crate::server::fleet::write::{RulesChange, unavailable};
use crate::server::reload::ReloadRequest;
use crate::server::reload::change::{
    Affected, ChangeResult, ChangedFile, Edit, Edited, FileChange, text_of, unknown_listener, unknown_owner,
};
use crate::server::report;
use crate::server::report::sources::RuleList;
use crate::source::group::RuleOwner;
use crate::source::id::listener_uuid;
use crate::token::secret::TokenSecret;
use crate::token::{Token, TokenOrigin};

/// Finds a listener by its name or its UUID.
pub(super) fn find_listener<'s>(current: &'s Snapshot, id: &str) -> Result<&'s Arc<ListenerPolicy>, AdminResponse> {
    let by_uuid = || {
        let uuid = uuid::Uuid::try_parse(id).ok()?;
        current.listeners().iter().find(|policy| listener_uuid(&policy.name) == uuid)
    };
    current.named(id).or_else(by_uuid).ok_or_else(|| unknown_listener(id, current))
}

/// Finds the rules of a listener or a group by its name, where that of a group starts with `group:`, or by its UUID.
pub(super) fn find_rules<'s>(current: &'s Snapshot, id: &str) -> Result<RuleList<'s>, AdminResponse> {
    let by_uuid = || {
        let uuid = uuid::Uuid::try_parse(id).ok()?;
        let owner = current.rule_sets().map(|(owner, _)| owner).find(|owner| listener_uuid(&owner.to_string()) == uuid);
        RuleList::of(current, owner?)
    };
    let owner = RuleOwner::of(id);
    RuleList::of(current, owner).or_else(by_uuid).ok_or_else(|| unknown_owner(owner, current))
}

impl AdminHandler {
    pub(super) fn change_sources(
        &mut self,
        request: ChangeSources,
        origin: Origin,
        current: &Arc<Snapshot>,
        reply: oneshot::Sender<AdminResponse>,
    ) {
        let ChangeSources { listener, change, if_match, plan, wait } = request;
        let name = match find_rules(current, &listener) {
            Ok(list) => list.owner().to_string(),
            Err(response) => return drop(reply.send(response)),
        };
        let requires_list_in_force = if_match.is_some();
        let action = action_of(&change, &name, origin);
        let form = Form::of(&change);
        let replaces_all = matches!(change, SourcesChange::Replace(_));
        let edit = SourcesEdit { owner: name.clone(), if_match, change: Arc::new(change) };
        let (registry, resolutions) = (Arc::clone(&self.registry), Arc::clone(&self.resolutions));
        let (before, owner) = (Arc::clone(current), name.clone());
        let has_fleet_rules = current.named(&name).is_some_and(|policy| policy.has_fleet_rules);
        let respond = move |result| match result {
            ChangeResult::Planned { built, .. } => {
                AdminResponse::ok(report::sources::plan(&built.snapshot, &before, RuleOwner::of(&name), &registry))
            }
            ChangeResult::Applied { snapshot, affected, .. } => {
                let list = match find_rules(&snapshot, &name) {
                    Ok(list) => list,
                    Err(response) => return response,
                };
                let response = match form {
                    Form::Created => {
                        let rules = report::sources::rules_of(&list, &registry, &resolutions, affected.rules());
                        AdminResponse::created(json!({ "rules": rules }))
                    }
                    Form::NoContent => AdminResponse::no_content(),
                };
                response.with_etag(&report::sources::etag(&list))
            }
        };
        if has_fleet_rules {
            let edit = Box::new(move |digest| edit.clone().of_text(digest));
            let change =
                RulesChange { listener: owner, edit, has_precondition: requires_list_in_force, replaces_all, action };
            return self.change_fleet_rules(change, FleetWish { plan, wait }, reply, Box::new(respond));
        }
        if wait.is_some() {
            let message = format_args!(
                "{owner} has no sources_store = \"fleet\", so its rules are those of this member only; leave out wait"
            );
            return drop(reply.send(AdminResponse::conflict(message)));
        }
        let (file, action) = (ChangedFile::Sources { owner }, Some(action));
        let change = FileChange { file, edit: edit.of_text(None), requires_list_in_force, plan, action };
        self.send_change(change, reply, respond);
    }

    pub(super) fn new_token(
        &mut self,
        request: NewToken,
        origin: Origin,
        current: &Snapshot,
        reply: oneshot::Sender<AdminResponse>,
    ) {
        let NewToken { name, role, expires_at, sources } = request;
        if current.config.admin.iter().flat_map(|admin| admin.tokens.iter()).any(|token| token.name == name) {
            let message = format_args!("there is a token {name:?} already; revoke it first, or choose another name");
            return drop(reply.send(AdminResponse::error(ErrorKind::Conflict, message)));
        }
        let Ok(secret) = TokenSecret::generate() else {
            let message = "the system has no random numbers; nothing was changed";
            return drop(reply.send(AdminResponse::error(ErrorKind::ServerError, message)));
        };
        let now = OffsetDateTime::now_utc();
        let created_at = now.replace_nanosecond(0).unwrap_or(now);
        let token = Token {
            name: name.clone(),
            role,
            digest: secret.digest(),
            created_at: Some(created_at),
            expires_at,
            sources,
            origin: TokenOrigin::TokensFile,
        };
        let detail = format!("role {}", role.code());
        let action = origin.action(AdminActionKind::TokenNew, Some(name), Some(detail));
        let added = token.clone();
        let edit: Box<Edit> = Box::new(move |path: &Path, content: Option<&[u8]>, _: &Snapshot, _: &mut RuleCache| {
            let text = with_token(text_of(path, content)?, &added).map_err(|error| token_error(&error))?;
            Ok(Edited { content: Some(text.into_bytes()), affected: Affected::Nothing })
        });
        self.send_change(of_tokens(edit, action), reply, move |_| {
            let mut body = report::tokens::token(&token, None);
            if let Some(fields) = body.as_object_mut() {
                fields.insert("token".to_owned(), secret.reveal().into());
            }
            AdminResponse::created(body)
        });
    }

    pub(super) fn revoke_token(
        &mut self,
        name: String,
        origin: Origin,
        current: &Snapshot,
        reply: oneshot::Sender<AdminResponse>,
    ) {
        let mut tokens = current.config.admin.iter().flat_map(|admin| admin.tokens.iter());
        let refusal = match tokens.find(|token| token.name == name).map(|token| token.origin) {
            None => {
                Some((ErrorKind::NotFound, format!("there is no token {name:?}; list them with portcullis token list")))
            }
            Some(TokenOrigin::Configuration) => Some((
                ErrorKind::Conflict,
                format!("the token {name:?} is in the configuration file; remove its [[admin.token]] there and reload"),
            )),
            Some(TokenOrigin::TokensFile) => None,
        };
        if let Some((kind, message)) = refusal {
            return drop(reply.send(AdminResponse::error(kind, message)));
        }
        let action = origin.action(AdminActionKind::TokenRevoke, Some(name.clone()), None);
        let edit: Box<Edit> = Box::new(move |path: &Path, content: Option<&[u8]>, _: &Snapshot, _: &mut RuleCache| {
            let text = without_token(text_of(path, content)?, &name).map_err(|error| token_error(&error))?;
            Ok(Edited { content: Some(text.into_bytes()), affected: Affected::Nothing })
        });
        self.send_change(of_tokens(edit, action), reply, |_| AdminResponse::no_content());
    }

    /// Sends a change to the reloader. `respond` makes the response from its result, on a separate thread.
    pub(super) fn send_change(
        &mut self,
        change: FileChange,
        reply: oneshot::Sender<AdminResponse>,
        respond: impl FnOnce(ChangeResult) -> AdminResponse + Send + 'static,
    ) {
        let (sender, result) = oneshot::channel();
        let requests = self.reload_requests.clone();
        self.respond_later(reply, async move {
            // The queue is short. The number of callers is limited, and each waits here.
            requests.send(ReloadRequest::Change(Box::new(change), sender)).await.ok()?;
            Some(match result.await.ok()? {
                Ok(result) => super::in_background(move || respond(result)).await,
                Err(response) => response,
            })
        });
    }
}

fn of_tokens(edit: Box<Edit>, action: Action) -> FileChange {
    FileChange { file: ChangedFile::Tokens, edit, requires_list_in_force: false, plan: false, action: Some(action) }
}

/// A change of the rules of a listener or a group, which may be made more than once.
#[derive(Clone)]
struct SourcesEdit {
    owner: String,
    if_match: Option<String>,
    change: Arc<SourcesChange>,
}

impl SourcesEdit {
    /// The edit of a text, which must have this digest if there is one.
    fn of_text(self, digest: Option<String>) -> Box<Edit> {
        Box::new(move |path: &Path, content: Option<&[u8]>, current: &Snapshot, cache: &mut RuleCache| {
            let Self { owner, if_match, change } = self;
            let list = find_rules(current, &owner)?;
            if let Some(wanted) = if_match
                && wanted != report::sources::etag(&list)
            {
                let message = "the rules have changed since they were read (ETag); read them again";
                return Err(AdminResponse::error(ErrorKind::PreconditionFailed, message));
            }
            // The fleet may have no rules of the listener yet.
            let text = if content.is_none() { NO_RULES } else { text_of(path, content)? };
            if digest.is_some_and(|digest| digest != manifest::digest(text)) {
                return Err(unavailable("the last good copy of the rules was edited by hand"));
            }
            let names: Vec<_> = current.groups().iter().map(|group| group.name.clone()).collect();
            let groups = match list.owner() {
                RuleOwner::Listener(_) => GroupScope::Named(&names),
                RuleOwner::Group(_) => GroupScope::InGroup,
            };
            let scope = RuleScope { resolvers: current.config.resolvers.written(), groups };
            let target = Target { file: path, owner: &owner, rules: list.rules(), scope };
            let edited = apply(text, &target, &change, OffsetDateTime::now_utc(), cache).map_err(edit_error)?;
            Ok(Edited { content: Some(edited.text.into_bytes()), affected: Affected::Rules(edited.affected) })
        })
    }
}

/// The text of a file without rules.
const NO_RULES: &str = "rule = []\n";

/// How a change is answered.
#[derive(Clone, Copy)]
enum Form {
    /// 201 with the rules.
    Created,
    NoContent,
}

impl Form {
    const fn of(change: &SourcesChange) -> Self {
        match change {
            SourcesChange::Append(_) => Self::Created,
            SourcesChange::Replace(_) | SourcesChange::Remove(_) => Self::NoContent,
        }
    }
}

fn action_of(change: &SourcesChange, listener: &str, origin: Origin) -> Action {
    let rules = |count: usize| if count == 1 { "1 rule".to_owned() } else { format!("{count} rules") };
    let (kind, target, detail) = match change {
        SourcesChange::Append(new) => (AdminActionKind::SourcesAppend, listener.to_owned(), rules(new.len())),
        SourcesChange::Replace(new) => (AdminActionKind::SourcesReplace, listener.to_owned(), rules(new.len())),
        SourcesChange::Remove(uuids) => {
            let target = match uuids.as_slice() {
                [one] => format!("{listener}/{one}"),
                _ => listener.to_owned(),
            };
            (AdminActionKind::SourcesRemove, target, rules(uuids.len()))
        }
    };
    origin.action(kind, Some(target), Some(detail))
}

fn edit_error(error: EditError) -> AdminResponse {
    let kind = match &error {
        EditError::Invalid { .. } => ErrorKind::Unprocessable,
        EditError::UnknownUuid(_) => ErrorKind::NotFound,
        EditError::Configured(_) | EditError::File(_) | EditError::Form(_) => ErrorKind::Conflict,
    };
    AdminResponse::error(kind, error)
}

fn token_error(error: &dyn std::fmt::Display) -> AdminResponse {
    AdminResponse::error(ErrorKind::Conflict, format_args!("tokens_file cannot be changed: {error}"))
}
