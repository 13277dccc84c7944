//! Rotation of ticket keys: compare-and-swap lets one member do each step.

use serde_json::Value;

use super::*;
use crate::fleet::seal::SealingKeys;
use crate::fleet::ticket_ring::{Ring, Step, purpose};
use crate::policy::builder::fleet::open;
use crate::timestamp;
use crate::tls::tickets::KEY_LENGTH;

/// The content of `key_file`.
const SEAL: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n";

/// A member that uses the ticket keys of the fleet.
fn member(store: &MemoryStore, name: &str) -> Member {
    let dir = ConfigDir::new();
    std::fs::write(dir.path("fleet.key"), SEAL).unwrap();
    Member::start_with(store, name, dir, "key_file = \"fleet.key\"\n", "tls.ticket_keys = \"fleet\"\n")
}

fn ago(hours: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() - time::Duration::hours(hours)
}

/// A key that was made at this time.
fn sealed(made: OffsetDateTime) -> String {
    let secret = [made.hour(); KEY_LENGTH];
    let keys = SealingKeys::parse(SEAL.as_bytes()).unwrap();
    keys.seal(&secret, &purpose("prod", &timestamp::seconds(made))).unwrap()
}

/// A ring with one key.
fn one_key(made: OffsetDateTime) -> String {
    Ring::first(sealed(made), made).to_json()
}

/// The same ring, whose newest key encrypts since this time.
fn encrypting_since(ring: &str, at: OffsetDateTime) -> String {
    let mut ring: Value = serde_json::from_str(ring).unwrap();
    ring["keys"][0]["encrypts_since"] = timestamp::seconds(at).into();
    ring.to_string()
}

fn opened(value: &str) -> (u64, TicketKeys) {
    open(value.as_bytes(), &SealingKeys::parse(SEAL.as_bytes()).unwrap(), "prod").unwrap()
}

/// The sealed keys of a ring, the newest first, and whether the newest encrypts.
fn keys(value: &str) -> (Vec<String>, bool) {
    let ring: Value = serde_json::from_str(value).unwrap();
    let keys = ring["keys"].as_array().unwrap();
    let sealed = keys.iter().map(|key| key["sealed"].as_str().unwrap().to_owned()).collect();
    (sealed, !keys[0]["encrypts_since"].is_null())
}

impl Member {
    async fn await_ring(&self, sequence: u64) {
        self.until(&format!("ring {sequence} is in force"), |service| {
            service.status().tickets == sequence
                && service.policy().fleet_secrets.tickets.as_ref().is_some_and(|(known, _)| *known == sequence)
        })
        .await;
    }
}

impl MemoryStore {
    fn rings(&self) -> Vec<String> {
        self.content().rings.iter().map(|ring| ring.value.clone()).collect()
    }

    /// Checks that this ring was written when `members` members had the one before in force.
    fn assert_was_announced(&self, sequence: u64, members: usize) {
        let content = self.content();
        let written = content.rings.windows(2).find(|rings| opened(&rings[1].value).0 == sequence).unwrap();
        let announced = opened(&written[0].value);
        let has_it = |in_force: &Option<(u64, TicketKeys)>| in_force.as_ref() == Some(&announced);
        assert_eq!(written[1].in_force.iter().filter(|in_force| has_it(in_force)).count(), members);
        assert_eq!(written[1].alive, members, "the members are known");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn first_ticket_key_is_made_once() {
    let store = MemoryStore::default();
    for member in [member(&store, "a"), member(&store, "b")] {
        member.await_ring(1).await;
    }
    let rings = store.rings();
    assert_eq!((rings.len(), keys(&rings[0]).0.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn new_ticket_key_encrypts_when_every_member_can_decrypt_with_it() {
    let store = MemoryStore::default();
    let ring = one_key(ago(13));
    store.content().set(TICKETS, Some(encrypting_since(&ring, ago(0))));
    let members = [member(&store, "a"), member(&store, "b")];
    for member in &members {
        member.await_ring(1).await;
        member.until("both are alive", |_| store.named(ALIVE) == 2 && store.named(MEMBERS) == 2).await;
    }
    let b = store.content().members.pop().unwrap();
    store.content().set(TICKETS, Some(ring));
    members[0].await_ring(2).await;
    // The slow member does not know of it yet. Several times, the other one asks whether it has the key.
    let lists = store.content().member_lists;
    members[0].until("further listings", |_| store.content().member_lists > lists + 6).await;
    assert_eq!((store.rings().len(), members[1].service.status().tickets), (1, 1));
    {
        let mut content = store.content();
        content.list(&b);
        content.members.push(b);
    }
    for member in &members {
        member.await_ring(3).await;
    }
    let rings = store.rings();
    let sequences: Vec<_> = rings.iter().map(|ring| opened(ring).0).collect();
    assert_eq!(sequences, [2, 3], "one writer of each step");
    store.assert_was_announced(3, 2);
    let [added, promoted] = [&rings[0], &rings[1]].map(|ring| keys(ring));
    assert_eq!((added.0.len(), added.1), (2, false));
    assert_eq!(promoted, (added.0, true));
    assert!(members.iter().all(|member| member.service.status().tickets_error.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_ticket_key_is_retired_before_the_next_one_is_added() {
    let store = MemoryStore::default();
    let (old, new) = (ago(40), ago(13));
    let ring = Ring::first(sealed(old), old);
    let ring = ring.after(Step::Add, new, |_| Some(sealed(new))).unwrap().after(Step::Promote, new, |_| None).unwrap();
    let known = keys(&ring.to_json());
    store.content().set(TICKETS, Some(ring.to_json()));
    let members = [member(&store, "a"), member(&store, "b")];
    for member in &members {
        member.await_ring(6).await;
    }
    let rings = store.rings();
    let sequences: Vec<_> = rings.iter().map(|ring| opened(ring).0).collect();
    assert_eq!(sequences, [4, 5, 6], "one writer of each step");
    let [retired, added, promoted] = [&rings[0], &rings[1], &rings[2]].map(|ring| keys(ring));
    assert_eq!(retired, (known.0[..1].to_vec(), true));
    assert_eq!((&added.0[1..], added.1), (&known.0[..1], false));
    assert_eq!(promoted, (added.0, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn member_that_is_not_in_the_fleet_yet_does_not_conclude_that_all_have_a_ticket_key() {
    let store = MemoryStore::default();
    store.content().set(TICKETS, Some(one_key(ago(13))));
    store.content().fails_holds = true;
    let member = member(&store, "a");
    member.await_ring(2).await;
    let lists = store.content().member_lists;
    member.until("further listings", |_| store.content().member_lists > lists + 2).await;
    assert_eq!(store.rings().len(), 1);
    store.content().fails_holds = false;
    member.await_ring(3).await;
    store.assert_was_announced(3, 1);
}
