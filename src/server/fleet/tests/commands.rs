//! Commands to all members.

use super::*;
use crate::fleet::command::{Answer, CloseFilter, Command, CommandTask};
use crate::server::fleet::chunks;
use crate::server::fleet::status::RulesState;

fn close() -> CommandTask {
    CommandTask::Close(CloseFilter { source: Some("10.0.0.0/8".to_owned()), ..CloseFilter::default() })
}

impl MemoryStore {
    fn command(&self, id: &str, task: CommandTask) {
        let command = Command { by: "test".to_owned(), task };
        self.content().set(&format!("shared/commands/{id}"), Some(command.to_json()));
    }

    fn answer(&self, id: &str) -> Option<Answer> {
        let entry = self.content().entry(&format!("answers/{id}/a"))?;
        Some(serde_json::from_str(&entry.value).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn command_to_close_that_another_process_has_begun_is_not_carried_out_again() {
    let store = MemoryStore::default();
    let started = Answer::Started("another process".to_owned());
    store.content().set("answers/1/a", Some(started.to_json()));
    store.command("1", close());
    store.command("2", close());
    let member = Member::start(&store, "a");
    member.until("the second is answered", |_| store.answer("2") == Some(Answer::Sessions(0))).await;
    assert_eq!(store.answer("1"), Some(started));
}

#[tokio::test(flavor = "multi_thread")]
async fn command_to_close_is_carried_out_when_the_store_lets_the_member_begin() {
    let store = MemoryStore::default();
    let member = Member::start(&store, "a");
    member.connected().await;
    store.content().failing_answers = 2;
    store.command("1", close());
    member.until("it is answered", |_| store.answer("1") == Some(Answer::Sessions(0))).await;
    assert_eq!(store.content().failing_answers, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_and_unknown_commands_are_answered_as_failed() {
    let store = MemoryStore::default();
    let member = Member::start(&store, "a");
    store.command("1", CommandTask::Close(CloseFilter::default()));
    // 16,000 times the same chunk, and a length that is never reached.
    let digest = "0".repeat(64);
    let huge = serde_json::json!({
        "format": 1, "sequence": 1, "written_by": "z", "written_at": "", "length": 1_u64 << 50, "sha256": digest,
        "content": { "chunks": vec![digest; 900] },
    });
    store.command("3", CommandTask::Plan { listener: "cache".to_owned(), manifest: huge.to_string() });
    store.content().set("shared/commands/2", Some("{\"by\": \"z\", \"task\": \"dance\"}".to_owned()));
    let are_answered = |_: &FleetService| ["1", "2", "3"].into_iter().all(|id| store.answer(id).is_some());
    member.until("all are answered", are_answered).await;
    for id in ["1", "2", "3"] {
        assert!(matches!(store.answer(id), Some(Answer::Failed(_))), "{:?}", store.answer(id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_at_the_same_time_share_the_evidence_of_one_question() {
    let store = MemoryStore::default();
    let member = Member::start(&store, "a");
    member.connected().await;
    member.until("the member is live", |service| service.status().roster.has("a")).await;
    let mut callers = JoinSet::new();
    for _ in 0..20 {
        let service = Arc::clone(&member.service);
        callers.spawn(async move { service.rotation().await.map_err(|response| response.status) });
    }
    for answered in callers.join_all().await {
        let answered = answered.unwrap();
        assert_eq!(answered["members"], serde_json::json!(["a"]), "{answered}");
        assert_eq!((&answered["missing"], &answered["incomplete"]), (&serde_json::json!([]), &serde_json::json!([])));
    }
    assert!(store.content().commands <= 2, "{}", store.content().commands);
    assert_eq!(store.named("shared/commands/"), 0, "nobody waits for further answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn chunk_of_a_plan_expires_unless_it_was_there() {
    let store = MemoryStore::default();
    let member = Member::start(&store, "a");
    member.connected().await;
    let longer = |seconds: std::ops::Range<usize>| seconds.map(long).collect::<String>();
    member.add(&longer(0..4)).await.unwrap();
    let permanent = store.named("chunks/cache/");
    assert!(permanent > 1 && store.content().limited.iter().all(|key| !key.starts_with("chunks/")));
    let (text, nothing) = (longer(0..8), HashSet::new());
    let encoded = member.service.encode(&text, 1, "a").await.unwrap();
    // The plan does not know that the manifest names its first chunks.
    chunks::put_planned(&member.service.store, "cache", &encoded, &nothing).await.unwrap();
    let content = store.content();
    let limited = content.limited.iter().filter(|key| key.starts_with("chunks/")).count();
    let all = content.with_prefix("chunks/cache/").len();
    assert_eq!((limited > 0, limited + permanent), (true, all));
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_with_a_strange_number_are_not_valid_and_the_next_change_replaces_them() {
    let store = MemoryStore::default();
    let members = [Member::start(&store, "a"), Member::start(&store, "b")];
    for member in &members {
        member.connected().await;
    }
    members[0].add(&short(1)).await.unwrap();
    members[1].until("it is in force", |_| members[1].rules() == 1).await;
    let manifest = store.content().entry("shared/rules/cache").unwrap().value;
    let mut forged: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    forged["sequence"] = u64::MAX.into();
    store.content().set("shared/rules/cache", Some(forged.to_string()));
    let is_invalid = |service: &FleetService| {
        service.status().rules.get("cache").is_some_and(|rules| rules.state == RulesState::Invalid)
    };
    for member in &members {
        member.until("it is reported", is_invalid).await;
    }
    members[0].add(&short(2)).await.unwrap();
    for member in &members {
        member.until("the change is in force", |service| member.rules() == 2 && !is_invalid(service)).await;
        assert_eq!(member.service.status().store, StoreState::Up);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_which_the_store_has_lost_a_chunk_are_reported_and_can_be_written_again() {
    let store = MemoryStore::default();
    let member = Member::start(&store, "a");
    member.connected().await;
    let longer: String = (0..8).map(long).collect();
    member.add(&longer).await.unwrap();
    let late = Member::start(&store, "b");
    late.until("it has them", |_| late.rules() == 24_000).await;
    let manifest = store.content().entry("shared/rules/cache").unwrap().value;
    let lost = crate::fleet::manifest::Manifest::parse(&manifest).unwrap().chunks()[0].clone();
    store.content().set(&format!("chunks/cache/{lost}"), None);
    let fresh = Member::start(&store, "c");
    let is_incomplete = |service: &FleetService| {
        service.status().rules.get("cache").is_some_and(|rules| rules.state == RulesState::Invalid)
    };
    fresh.until("it says so", is_incomplete).await;
    member.add(&short(1)).await.unwrap();
    fresh.until("a change writes the chunk again", |_| fresh.rules() == 24_001).await;
}
