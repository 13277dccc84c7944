//! Carries out the commands of other members.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::info;

use crate::fault;
use crate::fleet::command::{Answer, CloseFilter, Command, CommandTask, MAX_EVIDENCE};
use crate::fleet::manifest::Manifest;
use crate::fleet::store::{ANSWERS, Expected, Operation, Outcome};
use crate::fleet::view::View;
use crate::outcome::Reason;
use crate::printable;
use crate::server::fleet::apply::{change_file, message_of};
use crate::server::fleet::chunks::{FetchError, INCOMPLETE, fetch};
use crate::server::fleet::status::FleetStatus;
use crate::server::fleet::{FleetService, PART};
use crate::server::reload::change::{Affected, ChangeResult, ChangedFile, Edit, Edited, FileChange};
use crate::server::report::{self, MAX_LISTED};
use crate::session::registry::ConnectionRegistry;
use crate::source::rule::Network;

/// Carries out commands until the program ends.
pub(crate) async fn run(service: Arc<FleetService>) {
    service
        .with_fleet(|service, fleet| async move {
            let mut believed = service.believed.subscribe();
            let mut plans = JoinSet::new();
            loop {
                believed.mark_unchanged();
                let view = service.believed_view_of(&fleet.store);
                let may_plan = plans.len() < MAX_PLANS;
                let next = view.and_then(|view| next_command(&view, &mut service.done(), may_plan));
                let is_settled = match next {
                    // A plan takes long, and commands to close must not wait for it.
                    Some(Next { ids, command: Some(command) }) if command.is_plan() => {
                        service.done().extend(ids.iter().cloned());
                        plans.spawn(answer_plan(
                            Arc::clone(&service),
                            fleet.member.clone(),
                            Next { ids, command: Some(command) },
                        ));
                        true
                    }
                    Some(next) if answer(&service, &fleet.member, &next).await => {
                        service.done().extend(next.ids);
                        true
                    }
                    Some(_) => false,
                    None => {
                        let changed = tokio::select! {
                            changed = believed.changed() => changed,
                            Some(_) = plans.join_next() => Ok(()),
                        };
                        if changed.is_err() {
                            return;
                        }
                        true
                    }
                };
                if !is_settled {
                    // The store has not answered, or it is not known yet who has the name of the member.
                    let _ = timeout(RETRY_INTERVAL, believed.changed()).await;
                }
            }
        })
        .await;
}

async fn answer_plan(service: Arc<FleetService>, member: String, next: Next) {
    let answered = fault::contained(PART, async { timeout(PLAN_TIMEOUT, answer(&service, &member, &next)).await });
    // Without an answer, the member is missing for the one that has asked.
    let _ = answered.await;
}

/// A command, and all others that the same answer is for.
struct Next {
    ids: Vec<String>,
    /// `None` if this version does not know the command.
    command: Option<Command>,
}

/// The next command to be carried out: those that close sessions come first. Forgets what is no longer in the store.
fn next_command(view: &View, done: &mut HashSet<String>, may_plan: bool) -> Option<Next> {
    done.retain(|id| view.has_command(id));
    let mut pending: Vec<_> = view
        .commands()
        .filter(|(id, _)| !done.contains(*id))
        .map(|(id, shared)| (id.to_owned(), serde_json::from_str::<Command>(&shared.value).ok()))
        .filter(|(_, command)| may_plan || !command.as_ref().is_some_and(Command::is_plan))
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
    let only_reads = next.command.as_ref().is_none_or(|command| command.task.only_reads());
    // The answer of the member is that of the process that has its name. Another one closes its sessions and says nothing.
    let has_name = match service.status() {
        FleetStatus { has_name: true, .. } => true,
        FleetStatus { duplicate: Some(_), .. } if only_reads => return true,
        FleetStatus { duplicate: Some(_), .. } => false,
        FleetStatus { .. } => return false,
    };
    if has_name && !only_reads {
        for key in keys() {
            let started = Answer::Started(service.instance.clone());
            match put(service, key, &started, (Expected::Absent, CHANGE_LIFE)).await {
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
            info!(ids = ?next.ids, by = printable::field(by), "carrying out a command of the fleet");
            carry_out(service, task.clone()).await
        }
        None => Answer::Failed("this version does not know the command; upgrade this member".to_owned()),
    };
    if has_name {
        let (expected, seconds) = if only_reads { (Expected::Absent, READ_LIFE) } else { (Expected::Any, CHANGE_LIFE) };
        for key in keys() {
            // Without an answer, the member is missing for the one that has asked.
            let _ = put(service, key, &answer, (expected.clone(), seconds)).await;
        }
    }
    true
}

async fn put(service: &FleetService, key: String, answer: &Answer, (expected, seconds): (Expected, u32)) -> Outcome {
    let put = Operation::Put { key, value: answer.to_json(), expected, seconds: Some(seconds) };
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
        CommandTask::Plan { listener, manifest } => match count_ended(service, listener, &manifest).await {
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
            || ["last_used", "last_rejected"].iter().any(|key| item.get(key).is_some_and(|used| !used.is_null()))
    };
    let mut items: Vec<_> = items.into_iter().filter(is_used).collect();
    let (mut bytes, used) = (0_usize, items.len());
    // The report itself lists only so many rules of a listener.
    let mut rules = BTreeMap::<String, usize>::new();
    for item in items.iter().filter(|item| item.get("kind").is_some_and(|kind| kind == "source")) {
        *rules.entry(item.get("listener").map(ToString::to_string).unwrap_or_default()).or_default() += 1;
    }
    let is_cut = rules.values().any(|count| *count >= MAX_LISTED);
    // Certificates come before rules, of which there may be very many.
    items.retain(|item| {
        bytes = bytes.saturating_add(item.to_string().len());
        bytes <= MAX_EVIDENCE
    });
    Answer::Evidence { is_complete: items.len() == used && !is_cut, items }
}

/// How many sessions of this member rules would end.
async fn count_ended(service: &Arc<FleetService>, listener: String, manifest: &str) -> Result<u64, String> {
    let manifest = Manifest::parse(manifest).map_err(|error| format!("the manifest {error}"))?;
    let text = fetch(&service.store, &listener, &manifest, None).await.map_err(|error| match error {
        FetchError::Unavailable(error) | FetchError::Invalid(error) => error,
        FetchError::Incomplete => INCOMPLETE.to_owned(),
    })?;
    let edit: Box<Edit> =
        Box::new(move |_, _, _, _| Ok(Edited { content: Some(text.into_bytes()), affected: Affected::Nothing }));
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
const READ_LIFE: u32 = 60;

/// Seconds. An answer to a command that changes something must outlive it in every store, or it is carried out again.
const CHANGE_LIFE: u32 = 600;

/// Plans that are worked on at the same time.
const MAX_PLANS: usize = 2;

/// As long as the one that asks waits.
const PLAN_TIMEOUT: Duration = Duration::from_secs(5);

/// When a command is tried again that the store has not let this member begin.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

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
            let next = ids(next_command(&view, &mut done, true));
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
