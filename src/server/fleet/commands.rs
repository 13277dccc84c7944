//! Carries out the commands of other members.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;
use tracing::info;

use crate::config::fleet::Fleet;
use crate::fault;
use crate::fleet::command::{Answer, CloseFilter, Command, CommandTask};
use crate::fleet::manifest::Manifest;
use crate::fleet::store::{ANSWERS, Expected, Operation, Outcome};
use crate::fleet::view::View;
use crate::outcome::Reason;
use crate::server::fleet::chunks::{FetchError, fetch};
use crate::server::fleet::follow::{change_file, message_of};
use crate::server::fleet::{FleetService, PART};
use crate::server::reload::change::{ChangeResult, ChangedFile, Edit, Edited, FileChange};
use crate::server::report;
use crate::session::registry::ConnectionRegistry;
use crate::source::rule::Network;

/// Carries out commands until the program ends.
pub(crate) async fn run(service: Arc<FleetService>) {
    service
        .with_fleet(|service, fleet| async move {
            let mut done = HashSet::new();
            let mut believed = service.believed.subscribe();
            loop {
                believed.mark_unchanged();
                let view = service.believed_view_of(&fleet.store);
                if let Some(view) = view {
                    carry_out_all(&service, &fleet, &view, &mut done).await;
                }
                if believed.changed().await.is_err() {
                    return;
                }
            }
        })
        .await;
}

async fn carry_out_all(service: &Arc<FleetService>, fleet: &Fleet, view: &View, done: &mut HashSet<String>) {
    done.retain(|id| view.commands().any(|(known, _)| known == id));
    for (id, shared) in view.commands() {
        if done.contains(id) {
            continue;
        }
        let key = format!("{ANSWERS}{id}/{}", fleet.member);
        // An earlier process of this member may have carried it out already.
        let known = service.store.perform(Operation::Get { keys: vec![key.clone()] }).await;
        if matches!(&known, Outcome::Entries(entries) if !entries.is_empty()) {
            done.insert(id.to_owned());
            continue;
        }
        done.insert(id.to_owned());
        let answer = match serde_json::from_str::<Command>(&shared.value) {
            Ok(command) => {
                info!(id, by = command.by, "carrying out a command of the fleet");
                carry_out(service, command.task).await
            }
            Err(_) => Answer::Failed("this version does not know the command; upgrade this member".to_owned()),
        };
        if service.status().duplicate.is_some() {
            // The answer of the member is that of the other process.
            continue;
        }
        let (value, expected) = (answer.to_json(), Expected::Absent);
        let _ = service.store.perform(Operation::Put { key, value, expected, seconds: Some(ANSWER_LIFE) }).await;
    }
}

async fn carry_out(service: &Arc<FleetService>, task: CommandTask) -> Answer {
    let registry = Arc::clone(&service.registry);
    match task {
        CommandTask::Close(filter) => match close(&registry, &filter) {
            Ok(closed) => Answer::Sessions(closed),
            Err(error) => Answer::Failed(error),
        },
        CommandTask::Evidence => {
            let policy = service.policy();
            let items = fault::contained_blocking(PART, move || evidence(report::rotation(&policy, &registry)));
            items.await.map_or_else(|fault| Answer::Failed(fault.to_string()), Answer::Evidence)
        }
        CommandTask::Plan { listener, rules } => match count_ended(service, listener, &rules).await {
            Ok(ended) => Answer::Sessions(ended),
            Err(error) => Answer::Failed(error),
        },
    }
}

/// Closes the sessions that a filter selects, and returns their number.
///
/// # Errors
/// If the filter is not valid.
pub(crate) fn close(registry: &ConnectionRegistry, filter: &CloseFilter) -> Result<u64, String> {
    let CloseFilter { listener, source, client } = filter;
    if source.is_none() && client.is_none() {
        return Err("no source and no client is named".to_owned());
    }
    let source: Option<Network> = source
        .as_deref()
        .map(str::parse)
        .transpose()
        .map_err(|error: crate::source::rule::NetworkError| error.to_string())?;
    let mut closed = 0_u64;
    for live in registry.all() {
        let Some(info) = report::relaying(&live) else { continue };
        let identity = info.session.authorization.identity.as_ref();
        let is_selected = listener.as_ref().is_none_or(|listener| **live.listener() == **listener)
            && source.is_none_or(|network| live.client().ip().is_some_and(|ip| network.net().contains(&ip)))
            && client
                .as_ref()
                .is_none_or(|subject| identity.is_some_and(|identity| identity.certificate.subject == *subject));
        if is_selected {
            live.end(Reason::ClosedByAdmin.into());
            closed = closed.saturating_add(1);
        }
    }
    Ok(closed)
}

/// The items that were used here, within the size of an answer.
fn evidence(mut report: Value) -> Vec<Value> {
    let items = report.get_mut("items").map(Value::take);
    let Some(Value::Array(items)) = items else { return Vec::new() };
    let mut bytes = 0_usize;
    let is_used = |item: &Value| {
        item.get("sessions").and_then(Value::as_u64).unwrap_or_default() > 0
            || item.get("last_used").is_some_and(|used| !used.is_null())
    };
    let mut used: Vec<_> = items.into_iter().filter(is_used).collect();
    // Certificates come before rules, of which there may be very many.
    used.retain(|item| {
        bytes = bytes.saturating_add(item.to_string().len());
        bytes <= MAX_EVIDENCE
    });
    used
}

/// How many sessions of this member rules would end.
async fn count_ended(service: &Arc<FleetService>, listener: String, manifest: &Manifest) -> Result<u64, String> {
    let text = fetch(&service.store, &listener, manifest, None).await.map_err(|error| match error {
        FetchError::Unavailable(error) | FetchError::Invalid(error) => error,
    })?;
    let edit: Box<Edit> =
        Box::new(move |_, _, _, _| Ok(Edited { content: Some(text.into_bytes()), affected: Vec::new() }));
    let file = ChangedFile::FleetRules { listener };
    let change = FileChange { file, edit, requires_list_in_force: false, plan: true, action: None };
    match change_file(service, change).await {
        Ok(ChangeResult::Planned { built, .. }) => {
            let registry = Arc::clone(&service.registry);
            let count = fault::contained_blocking(PART, move || report::count_ended(&built.snapshot, &registry));
            let count = count.await.map_err(|fault| fault.to_string())?;
            Ok(u64::try_from(count).unwrap_or(u64::MAX))
        }
        Ok(ChangeResult::Applied { .. }) => Err("a plan was applied".to_owned()),
        Err(response) => Err(message_of(&response)),
    }
}

/// Seconds; as long as a command.
const ANSWER_LIFE: u32 = 60;

/// Bytes of the evidence in one answer.
const MAX_EVIDENCE: usize = 256 << 10;
