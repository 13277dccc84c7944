//! The use of certificates and rules at all members.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::control::response::AdminResponse;
use crate::fault;
use crate::fleet::command::{Answer, CommandTask};
use crate::server::fleet::ask::Answers;
use crate::server::fleet::report::missing;
use crate::server::fleet::write::{fleet_of, unavailable};
use crate::server::fleet::{FleetService, PART};
use crate::server::report;

/// The use at all members, for every caller that has waited for it.
type Shared = Result<Arc<Value>, String>;

/// Asks all members for their evidence, one question at a time.
///
/// Callers that come during a question share the next one. So an answer is never older than its question, and callers at one
/// member, however many, cost the others little.
#[derive(Debug)]
pub(crate) struct EvidenceQueue {
    /// The question that has not begun yet.
    next: Mutex<Option<watch::Receiver<Option<Shared>>>>,
    turn: Semaphore,
    /// When the last question began.
    asked_at: Mutex<Option<Instant>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Default for EvidenceQueue {
    fn default() -> Self {
        Self { next: Mutex::default(), turn: Semaphore::new(1), asked_at: Mutex::default(), tasks: Mutex::default() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FleetService {
    /// The evidence of all members, as it is after this call.
    async fn evidence(self: &Arc<Self>, member: &str) -> Shared {
        let mut waiting = {
            let mut next = lock(&self.evidence.next);
            // One that has failed before its turn has no sender any more.
            let _ = next.take_if(|waiting| waiting.has_changed().is_err());
            let waiting = next.get_or_insert_with(|| {
                let (answer, waiting) = watch::channel(None);
                let (service, member) = (Arc::clone(self), member.to_owned());
                let mut tasks = lock(&self.evidence.tasks);
                while tasks.try_join_next().is_some() {}
                tasks.spawn(async move {
                    let asked = fault::contained(PART, service.ask_for_evidence(&member)).await;
                    answer.send_replace(Some(asked.unwrap_or_else(|fault| Err(fault.to_string()))));
                });
                waiting
            });
            waiting.clone()
        };
        let answered = waiting.wait_for(Option::is_some).await;
        let answered = answered.ok().and_then(|answered| answered.clone());
        answered.unwrap_or_else(|| Err("the question was not asked".to_owned()))
    }

    async fn ask_for_evidence(&self, member: &str) -> Shared {
        let _turn = self.evidence.turn.acquire().await.map_err(|closed| closed.to_string())?;
        let earliest = lock(&self.evidence.asked_at).map(|asked_at| asked_at + MIN_INTERVAL);
        if let Some(earliest) = earliest {
            sleep_until(earliest).await;
        }
        *lock(&self.evidence.asked_at) = Some(Instant::now());
        // Whoever comes from now on may know of a use that these answers do not have.
        drop(lock(&self.evidence.next).take());
        let answers = self.ask(member, CommandTask::Evidence, TIMEOUT).await?;
        let (policy, registry) = (self.policy(), Arc::clone(&self.registry));
        let merge = move || Arc::new(merged(report::rotation(&policy, &registry), &answers));
        fault::contained_blocking(PART, merge).await.map_err(|fault| fault.to_string())
    }

    /// The use of certificates and rules at all members.
    ///
    /// # Errors
    /// The response to the caller.
    pub(crate) async fn rotation(self: &Arc<Self>) -> Result<Value, AdminResponse> {
        let fleet = fleet_of(self)?;
        if self.believed.borrow().is_none() {
            return Err(self.no_store());
        }
        let shared = self.evidence(&fleet.member).await.map_err(unavailable)?;
        Ok(Value::clone(&shared))
    }
}

/// Adds the use at all members to the items of this one.
fn merged(mut own: Value, answers: &Answers) -> Value {
    let mut all = Vec::new();
    let mut known = BTreeMap::<_, Vec<usize>>::new();
    if let Some(Value::Array(items)) = own.get_mut("items").map(Value::take) {
        for mut item in items {
            // The answer of this member has its use too.
            without_use(&mut item);
            known.entry(identity(&item)).or_default().push(all.len());
            all.push(item);
        }
    }
    let mut incomplete = Vec::new();
    for (member, answer) in &answers.by_member {
        let Answer::Evidence { items, is_complete } = answer else { continue };
        if !is_complete {
            incomplete.push(member);
        }
        // Several rules for one source have one use, which each of them shows.
        let mut counted = BTreeSet::new();
        for item in items.iter().filter(|item| counted.insert(identity(item))) {
            match known.get(&identity(item)) {
                Some(same) => same.iter().for_each(|index| {
                    if let Some(sum) = all.get_mut(*index) {
                        add(sum, item);
                    }
                }),
                None => {
                    let mut item = item.clone();
                    set(&mut item, "only_at", json!(member));
                    known.entry(identity(&item)).or_default().push(all.len());
                    all.push(item);
                }
            }
        }
    }
    if !answers.missing.is_empty() || !incomplete.is_empty() {
        // No use is known, and there may be one at a member whose use is not all known.
        for item in all.iter_mut().filter(|item| number(item, "sessions") == 0) {
            set(item, "sessions", Value::Null);
        }
    }
    let members: Vec<_> = answers.by_member.keys().collect();
    set(&mut own, "items", Value::Array(all));
    set(&mut own, "members", json!(members));
    set(&mut own, "missing", missing(&answers.missing));
    set(&mut own, "incomplete", json!(incomplete));
    own
}

/// What the items of different members have in common if they are the same.
fn identity(item: &Value) -> [String; 4] {
    ["listener", "kind", "name", "sha256"]
        .map(|key| item.get(key).and_then(Value::as_str).unwrap_or_default().to_owned())
}

fn without_use(item: &mut Value) {
    if item.get("last_rejected").is_some() {
        set(item, "last_rejected", Value::Null);
        set(item, "rejected_users", json!([]));
    }
    for (key, value) in [
        ("sessions", json!(0)),
        ("first_used", Value::Null),
        ("last_used", Value::Null),
        ("last_users", json!([])),
        ("clients", json!([])),
        ("more_clients", json!(0)),
    ] {
        set(item, key, value);
    }
}

/// Adds the use at another member.
fn add(sum: &mut Value, other: &Value) {
    for key in ["sessions", "more_clients"] {
        let total = number(sum, key).saturating_add(number(other, key));
        set(sum, key, json!(total));
    }
    // Times in RFC 3339 with the same precision and offset are ordered as text.
    let text = |item: &Value, key: &str| item.get(key).and_then(Value::as_str).map(str::to_owned);
    let first = [text(sum, "first_used"), text(other, "first_used")].into_iter().flatten().min();
    let last = [text(sum, "last_used"), text(other, "last_used")].into_iter().flatten().max();
    set(sum, "first_used", json!(first));
    set(sum, "last_used", json!(last));
    if sum.get("last_rejected").is_some() {
        let rejected = [text(sum, "last_rejected"), text(other, "last_rejected")].into_iter().flatten().max();
        set(sum, "last_rejected", json!(rejected));
    }
    for (key, most) in [("clients", MAX_CLIENTS), ("last_users", MAX_LAST_USERS), ("rejected_users", MAX_LAST_USERS)] {
        if sum.get(key).is_none() {
            continue;
        }
        let list = |item: &Value| item.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        let mut both = [list(sum), list(other)].concat();
        let omitted = both.len().saturating_sub(most);
        both.truncate(most);
        set(sum, key, Value::Array(both));
        if key == "clients" {
            let more = number(sum, "more_clients").saturating_add(u64::try_from(omitted).unwrap_or(u64::MAX));
            set(sum, "more_clients", json!(more));
        }
    }
}

fn number(item: &Value, key: &str) -> u64 {
    item.get(key).and_then(Value::as_u64).unwrap_or_default()
}

fn set(item: &mut Value, key: &str, value: Value) {
    if let Some(fields) = item.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
}

/// How long the members may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The time between two questions, which every member answers by a write to the store.
const MIN_INTERVAL: Duration = Duration::from_secs(5);

const MAX_CLIENTS: usize = 5;
const MAX_LAST_USERS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::roster::Liveness;
    use crate::server::fleet::ask::Missing;

    fn item(name: &str, sessions: u64) -> Value {
        let facts = json!({ "listener": "cache", "kind": "source", "name": name, "since": "1970-01-01T00:00:00Z" });
        let mut item = facts;
        without_use(&mut item);
        set(&mut item, "sessions", json!(sessions));
        item
    }

    fn of(member: &str, items: Vec<Value>, is_complete: bool) -> (String, Answer) {
        (member.to_owned(), Answer::Evidence { items, is_complete })
    }

    fn sessions(merged: &Value) -> Vec<Value> {
        merged["items"].as_array().unwrap().iter().map(|item| item["sessions"].clone()).collect()
    }

    #[test]
    fn rules_for_one_source_all_show_its_use_which_counts_once_for_each_member() {
        let own = json!({ "items": [item("a", 9), item("a", 9), item("b", 0)] });
        let by_member =
            [of("x", vec![item("a", 2), item("a", 2)], true), of("y", vec![item("a", 3), item("c", 1)], true)];
        let answers = Answers { by_member: by_member.into(), missing: Vec::new() };
        let merged = merged(own, &answers);
        assert_eq!(sessions(&merged), [json!(5), json!(5), json!(0), json!(1)], "{merged}");
        assert_eq!(merged["items"][3]["only_at"], "y");
    }

    #[test]
    fn verdicts_of_databases_at_all_members_are_listed_with_the_last_time() {
        let password = |accepted: &[&str], rejected: &[&str]| {
            let users = |times: &[&str]| times.iter().map(|at| json!({ "user": "app", "at": at })).collect::<Vec<_>>();
            json!({
                "listener": "db", "kind": "upstream_password", "name": "line 1", "sessions": 0,
                "last_used": accepted.first(), "last_users": users(accepted),
                "last_rejected": rejected.first(), "rejected_users": users(rejected),
            })
        };
        let own = json!({ "items": [password(&["9"], &["9"])] });
        let by_member = [of("x", vec![password(&["2"], &[])], true), of("y", vec![password(&["3"], &["4"])], true)];
        let merged = merged(own, &Answers { by_member: by_member.into(), missing: Vec::new() });
        let item = &merged["items"][0];
        assert_eq!((&item["last_used"], &item["last_rejected"]), (&json!("3"), &json!("4")), "{item}");
        assert_eq!(item["last_users"].as_array().unwrap().len(), 2, "{item}");
        assert_eq!(item["rejected_users"].as_array().unwrap().len(), 1, "{item}");
    }

    #[test]
    fn unused_is_unknown_while_a_member_is_missing_or_incomplete() {
        let own = || json!({ "items": [item("a", 0), item("b", 0)] });
        let missing = vec![Missing { member: "y".to_owned(), liveness: Liveness::Live }];
        for (is_complete, missing) in [(true, missing), (false, Vec::new())] {
            let answers = Answers { by_member: [of("x", vec![item("a", 2)], is_complete)].into(), missing };
            assert_eq!(sessions(&merged(own(), &answers)), [json!(2), Value::Null]);
        }
    }
}
