//! Carries out the commands of other members.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;
use tracing::info;

use crate::fault;
use crate::fleet::command::{Answer, CloseFilter, Command, CommandTask};
use crate::fleet::manifest::Manifest;
use crate::fleet::store::{ANSWERS, Expected, Operation, Outcome};
use crate::fleet::view::View;
use crate::outcome::Reason;
use crate::server::fleet::apply::{change_file, message_of};
use crate::server::fleet::chunks::{FetchError, fetch};
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
                let next = view.and_then(|view| next_command(&view, &mut done));
                let changed = match next {
                    None => believed.changed().await,
                    Some(next) if answer(&service, &fleet.member, &next).await => {
                        done.extend(next.ids);
                        continue;
                    }
                    // The store has not answered.
                    Some(_) => timeout(RETRY_INTERVAL, believed.changed()).await.unwrap_or(Ok(())),
                };
                if changed.is_err() {
                    return;
                }
            }
        })
        .await;
}

/// A command, and all others that the same answer is for.
struct Next {
    ids: Vec<String>,
    /// `None` if this version does not know the command.
    command: Option<Command>,
}

/// The next command to be carried out: those that close sessions come first. Forgets what is no longer in the store.
fn next_command(view: &View, done: &mut HashSet<String>) -> Option<Next> {
    done.retain(|id| view.has_command(id));
    let mut pending: Vec<_> = view
        .commands()
        .filter(|(id, _)| !done.contains(*id))
        .map(|(id, shared)| (id.to_owned(), serde_json::from_str::<Command>(&shared.value).ok()))
        .collect();
    let only_reads = |command: &Option<Command>| command.as_ref().is_none_or(|command| command.task.only_reads());
    pending.sort_by_key(|(_, command)| only_reads(command));
    let mut pending = pending.into_iter();
    let (id, command) = pending.next()?;
    let asks_for_evidence =
        |command: &Option<Command>| matches!(command, Some(Command { task: CommandTask::Evidence, .. }));
    let mut ids = vec![id];
    if asks_for_evidence(&command) {
        ids.extend(pending.filter(|(_, other)| asks_for_evidence(other)).map(|(id, _)| id));
    }
    Some(Next { ids, command })
}

/// Carries a command out and writes the answer. Returns whether that is settled.
async fn answer(service: &Arc<FleetService>, member: &str, next: &Next) -> bool {
    let keys = || next.ids.iter().map(|id| format!("{ANSWERS}{id}/{member}"));
    // The answer of the member is that of the process that has its name.
    let has_name = service.status().duplicate.is_none();
    let mut expected = Expected::Absent;
    if has_name && next.command.as_ref().is_some_and(|command| !command.task.only_reads()) {
        expected = Expected::Any;
        for key in keys() {
            let started = Answer::Started(service.instance.clone());
            match put(service, key, &started, Expected::Absent).await {
                Outcome::Done { .. } => {}
                // An earlier attempt was performed, and its answer was lost.
                Outcome::Conflict { current: Some(current) } if current.value == started.to_json() => {}
                Outcome::Conflict { .. } => return true,
                Outcome::Failed { .. } | Outcome::Entries(_) => return false,
            }
        }
    }
    let answer = match &next.command {
        Some(Command { by, task }) => {
            info!(ids = ?next.ids, by, "carrying out a command of the fleet");
            carry_out(service, task.clone()).await
        }
        None => Answer::Failed("this version does not know the command; upgrade this member".to_owned()),
    };
    if has_name {
        for key in keys() {
            // Without an answer, the member is missing for the one that has asked.
            let _ = put(service, key, &answer, expected.clone()).await;
        }
    }
    true
}

async fn put(service: &FleetService, key: String, answer: &Answer, expected: Expected) -> Outcome {
    let put = Operation::Put { key, value: answer.to_json(), expected, seconds: Some(ANSWER_LIFE) };
    service.store.perform(put).await
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
            items.await.unwrap_or_else(|fault| Answer::Failed(fault.to_string()))
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
fn evidence(mut report: Value) -> Answer {
    let items = report.get_mut("items").map(Value::take);
    let Some(Value::Array(items)) = items else {
        return Answer::Failed("the use of certificates and rules is not known".to_owned());
    };
    let is_used = |item: &Value| {
        item.get("sessions").and_then(Value::as_u64).unwrap_or_default() > 0
            || item.get("last_used").is_some_and(|used| !used.is_null())
    };
    let mut items: Vec<_> = items.into_iter().filter(is_used).collect();
    let (mut bytes, used) = (0_usize, items.len());
    // Certificates come before rules, of which there may be very many.
    items.retain(|item| {
        bytes = bytes.saturating_add(item.to_string().len());
        bytes <= MAX_EVIDENCE
    });
    Answer::Evidence { is_complete: items.len() == used, items }
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

/// When a command is tried again that the store has not let this member begin.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of the evidence in one answer.
const MAX_EVIDENCE: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view(commands: &[(&str, &str)]) -> View {
        let commands = commands.iter().map(|(id, task)| (*id, format!(r#"{{"by":"b","task":{task}}}"#)));
        View::with_commands(commands)
    }

    fn ids(next: Option<Next>) -> Vec<String> {
        next.map(|next| next.ids).unwrap_or_default()
    }

    #[test]
    fn commands_to_close_come_first_and_evidence_is_answered_together() {
        let close = r#"{"close":{"listener":null,"source":"10.0.0.0/8","client":null}}"#;
        let view = view(&[("1", "\"evidence\""), ("2", "\"unknown\""), ("3", close), ("4", "\"evidence\"")]);
        let mut done = HashSet::from(["gone".to_owned()]);
        for expected in [vec!["3"], vec!["1", "4"], vec!["2"], vec![]] {
            let next = ids(next_command(&view, &mut done));
            assert_eq!(next, expected);
            done.extend(next);
        }
        assert!(!done.contains("gone"));
    }

    #[test]
    fn evidence_beyond_the_size_of_an_answer_is_incomplete() {
        let item = |number: usize| json!({ "name": format!("{number}{}", "x".repeat(1000)), "sessions": 1 });
        for (number, is_all) in [(200, true), (300, false)] {
            let items: Vec<_> = (0..number).map(item).chain([json!({ "name": "unused", "sessions": 0 })]).collect();
            let Answer::Evidence { items, is_complete } = evidence(json!({ "items": items })) else { panic!() };
            assert_eq!((is_complete, items.len() == number), (is_all, is_all));
        }
        assert!(matches!(evidence(json!({})), Answer::Failed(_)));
    }
}
