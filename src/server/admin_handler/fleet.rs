//! Requests about the fleet, and changes of rules that are in its store.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::audit::admin::AdminActionKind;
use crate::control::error::ErrorKind;
use crate::control::request::CloseSessions;
use crate::control::response::AdminResponse;
use crate::fleet::command::{CloseFilter, CommandTask};
use crate::fleet::roster::Confirmation;
use crate::server::admin_handler::action::Action;
use crate::server::admin_handler::{AdminHandler, Origin, in_background};
use crate::server::fleet::FleetService;
use crate::server::fleet::ask::Missing;
use crate::server::fleet::commands::close;
use crate::server::fleet::report::missing;
use crate::server::fleet::write::{RulesChange, Written, fleet_of, unavailable};
use crate::server::reload::change::{ChangeResult, ChangedFile, Edit, FileChange};

/// Makes the response of a change from its result.
pub(super) type Respond = Box<dyn FnOnce(ChangeResult) -> AdminResponse + Send>;

/// What a caller wants to know about all members.
#[derive(Clone, Copy, Debug)]
pub(super) struct FleetWish {
    pub(super) plan: bool,
    /// How long to wait until all members have the change in force.
    pub(super) wait: Option<Duration>,
}

impl AdminHandler {
    /// Changes rules in the store of the fleet, or shows what would change.
    pub(super) fn change_fleet_rules(
        &mut self,
        change: RulesChange,
        wish: FleetWish,
        reply: oneshot::Sender<AdminResponse>,
        respond: Respond,
    ) {
        let service = Arc::clone(&self.fleet);
        self.respond_later(reply, async move {
            Some(if wish.plan {
                plan(&service, change, respond).await
            } else {
                change_rules(&service, change, wish.wait, respond).await
            })
        });
    }

    pub(super) fn describe_fleet(&mut self, reply: oneshot::Sender<AdminResponse>) {
        let service = Arc::clone(&self.fleet);
        self.respond_later(reply, async move {
            Some(service.describe().await.map_or_else(|response| response, AdminResponse::ok))
        });
    }

    pub(super) fn accept_store(&mut self, origin: Origin, reply: oneshot::Sender<AdminResponse>) {
        let service = Arc::clone(&self.fleet);
        let action = origin.action(AdminActionKind::FleetAccept, None, None);
        self.respond_later(reply, async move {
            Some(service.accept(action).await.map_or_else(|response| response, AdminResponse::ok))
        });
    }

    pub(super) fn forget_member(&mut self, name: String, origin: Origin, reply: oneshot::Sender<AdminResponse>) {
        let service = Arc::clone(&self.fleet);
        let action = origin.action(AdminActionKind::FleetForget, Some(name.clone()), None);
        self.respond_later(reply, async move {
            let forgotten = service.forget_member(&name, action).await;
            Some(forgotten.map_or_else(|response| response, |()| AdminResponse::no_content()))
        });
    }

    /// The use of certificates and rules at all members.
    pub(super) fn fleet_rotation(&mut self, reply: oneshot::Sender<AdminResponse>) {
        let service = Arc::clone(&self.fleet);
        self.respond_later(reply, async move {
            Some(service.rotation().await.map_or_else(|response| response, AdminResponse::ok))
        });
    }

    /// Closes the sessions that a filter selects, here or at all members.
    pub(super) fn close_sessions(
        &mut self,
        request: CloseSessions,
        origin: Origin,
        reply: oneshot::Sender<AdminResponse>,
    ) {
        let CloseSessions { listener, source, client, fleet, wait } = request;
        let filter = CloseFilter { listener, source: source.map(|source| source.to_string()), client };
        let action =
            origin.action(AdminActionKind::SessionsClose, filter.listener.clone(), Some(shown(&filter, fleet)));
        if !fleet && wait.is_some() {
            let message = "wait is for the members of a fleet; add fleet=true, or leave it out";
            return drop(reply.send(AdminResponse::error(ErrorKind::Unprocessable, message)));
        }
        if !fleet {
            let response = match close(&self.registry, &filter) {
                Ok(closed) => {
                    action.write(&self.audit);
                    AdminResponse::ok(json!({ "closed": closed }))
                }
                Err(error) => AdminResponse::error(ErrorKind::Unprocessable, error),
            };
            return drop(reply.send(response));
        }
        let service = Arc::clone(&self.fleet);
        self.respond_later(reply, async move {
            let closed = close_everywhere(&service, filter, action, wait.unwrap_or(CLOSE_WAIT)).await;
            Some(closed.unwrap_or_else(|response| response))
        });
    }
}

async fn close_everywhere(
    service: &FleetService,
    filter: CloseFilter,
    action: Action,
    wait: Duration,
) -> Result<AdminResponse, AdminResponse> {
    let fleet = fleet_of(service)?;
    if service.status().store != crate::server::fleet::status::StoreState::Up {
        return Err(service.no_store());
    }
    action.write(&service.audit);
    let answers = service.ask(&fleet.member, CommandTask::Close(filter), wait).await.map_err(unavailable)?;
    let response = AdminResponse::ok(json!({
        "closed": answers.sessions(),
        "members": answers.by_member.keys().collect::<Vec<_>>(),
        "missing": missing(&answers.missing),
    }));
    Ok(if answers.missing.is_empty() { response } else { response.with_status(StatusCode::ACCEPTED) })
}

/// What a filter selects, for the audit.
fn shown(filter: &CloseFilter, fleet: bool) -> String {
    let CloseFilter { listener: _, source, client } = filter;
    let source = source.as_ref().map(|source| format!("source {source}"));
    let client = client.as_ref().map(|client| format!("client {client}"));
    let place = fleet.then(|| "at all members".to_owned());
    [source, client, place].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

async fn change_rules(
    service: &FleetService,
    change: RulesChange,
    wait: Option<Duration>,
    respond: Respond,
) -> AdminResponse {
    let listener = change.listener.clone();
    let (result, Written { epoch, sequence }) = match service.change_rules(change).await {
        Ok(done) => done,
        Err(response) => return response,
    };
    let response = in_background(move || respond(result)).await;
    let Some(wait) = wait.filter(|_| response.status.is_success()) else { return response };
    let confirmation = Confirmation::Rules { listener: &listener, epoch, sequence };
    match service.wait_for(&confirmation, wait).await {
        Ok(missing) if missing.is_empty() => response,
        Ok(missing) => unconfirmed(response, &missing),
        Err(_) => unconfirmed(response, &[]),
    }
}

/// A 202 response: the change is in force here, and not known to be at all members.
fn unconfirmed(response: AdminResponse, members: &[Missing]) -> AdminResponse {
    let headers = response.headers.clone();
    let mut body = response.into_json().unwrap_or_else(|| json!({}));
    if let Some(fields) = body.as_object_mut() {
        fields.insert("missing".to_owned(), missing(members));
    }
    let response = AdminResponse::ok(body).with_status(StatusCode::ACCEPTED);
    headers.into_iter().fold(response, |response, (name, value)| response.with_header(name, value))
}

/// What a change would do here, and how many sessions it would end at all members.
async fn plan(service: &FleetService, change: RulesChange, respond: Respond) -> AdminResponse {
    let RulesChange { listener, edit, has_precondition, action, .. } = change;
    let file = ChangedFile::Sources { owner: listener.clone() };
    let edit: Box<Edit> = edit(None);
    let requires_list_in_force = has_precondition;
    let change = FileChange { file, edit, requires_list_in_force, plan: true, action: Some(action) };
    let (result, text) = match crate::server::fleet::apply::change_file(service, change).await {
        Ok(ChangeResult::Planned { built, listeners, mut edited }) => {
            let text = edited.content.take().and_then(|content| String::from_utf8(content).ok());
            (ChangeResult::Planned { built, listeners, edited }, text)
        }
        Ok(applied) => (applied, None),
        Err(response) => return response,
    };
    let response = in_background(move || respond(result)).await;
    let Some(mut body) = response.into_json() else {
        return AdminResponse::error(ErrorKind::ServerError, "the plan cannot be shown");
    };
    let fleet = match text {
        Some(text) => count_at_members(service, &listener, &text).await,
        None => None,
    };
    let unknown = || json!({ "sessions_ended_count": null, "missing": null });
    if let Some(fields) = body.as_object_mut() {
        fields.insert("fleet".to_owned(), fleet.unwrap_or_else(unknown));
    }
    AdminResponse::ok(body)
}

/// `None` if the members cannot be asked.
async fn count_at_members(service: &FleetService, listener: &str, text: &str) -> Option<Value> {
    let task = service.planned_rules(listener, text).await?;
    let member = service.policy().config.fleet.as_ref()?.member.clone();
    let answers = service.ask(&member, task, PLAN_WAIT).await.ok()?;
    Some(json!({ "sessions_ended_count": answers.sessions(), "missing": missing(&answers.missing) }))
}

/// How long the members may take to close sessions.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// How long the members may take to build the policy of a plan.
const PLAN_WAIT: Duration = Duration::from_secs(5);
