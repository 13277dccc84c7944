//! Makes and rotates the session ticket keys of the fleet.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use time::OffsetDateTime;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::config::SharedTicketKeys;
use crate::config::fleet::Fleet;
use crate::fault;
use crate::fleet::roster::Confirmation;
use crate::fleet::seal::SealingKeys;
use crate::fleet::store::{Expected, Operation, Outcome, TICKETS};
use crate::fleet::ticket_ring::{Ring, purpose};
use crate::fleet::view::{Shared, View};
use crate::policy::Snapshot;
use crate::server::fleet::{FleetService, PART};
use crate::timestamp;
use crate::tls::tickets::KEY_LENGTH;

/// Whether a listener uses the ticket keys of the fleet.
pub(crate) fn are_used(policy: &Snapshot) -> bool {
    let mut tls = policy.config.listeners.iter().filter_map(|listener| listener.tls.as_ref());
    tls.any(|tls| tls.ticket_keys == Some(SharedTicketKeys::Fleet))
}

/// Rotates the keys until the program ends. Every member tries; compare-and-swap lets one succeed.
pub(crate) async fn run(service: Arc<FleetService>) {
    service
        .with_fleet(|service, fleet| async move {
            let mut believed = service.believed.subscribe();
            let mut ticks = interval(CHECK_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                believed.mark_unchanged();
                let view = service.believed_view_of(&fleet.store);
                if let Some(view) = view {
                    rotate(&service, &fleet, &view).await;
                }
                tokio::select! {
                    _ = ticks.tick() => {}
                    changed = believed.changed() => if changed.is_err() { return },
                }
            }
        })
        .await;
}

/// Makes the first keys, or does the step that is due.
async fn rotate(service: &FleetService, fleet: &Fleet, view: &View) {
    let policy = service.policy();
    let Some(keys) = policy.fleet_secrets.keys.as_ref().filter(|_| are_used(&policy)) else { return };
    let now = OffsetDateTime::now_utc();
    let new_key = |at: OffsetDateTime| sealed_key(keys, fleet.name(), &timestamp::seconds(at));
    let (ring, expected) = match view.tickets() {
        None => (new_key(now).map(|key| Ring::first(key, now)), Expected::Absent),
        Some(shared) => {
            // A ring that cannot be read is reported where it is taken over.
            let Ok(ring) = Ring::parse(&shared.value) else { return };
            if ring.unseal(keys, fleet.name()).is_err() {
                return;
            }
            let known = service.status().ticket_age;
            if known.is_some_and(|known| !ring.age().may_follow(known)) {
                return put_back(service, fleet, shared).await;
            }
            let mut due = ring.due(now, fleet.ticket_rotation, false);
            if due.is_none() && ring.is_announced() {
                let confirmation = Confirmation::Tickets { sequence: ring.sequence };
                // While this member is not in the fleet yet, others may not be either.
                let is_everywhere = service
                    .list_members()
                    .await
                    .is_ok_and(|roster| roster.has(&fleet.member) && roster.missing(&confirmation).is_empty());
                due = ring.due(now, fleet.ticket_rotation, is_everywhere);
            }
            let Some(step) = due else { return };
            (ring.after(step, now, new_key), Expected::Version(shared.version.clone()))
        }
    };
    let Some(ring) = ring else {
        warn!("cannot make a ticket key, because the system has no random numbers");
        return;
    };
    let (key, value) = (TICKETS.to_owned(), ring.to_json());
    match service.store.perform(Operation::Put { key, value, expected, seconds: None }).await {
        Outcome::Done { .. } => info!(sequence = ring.sequence, "ticket keys of the fleet changed"),
        Outcome::Conflict { .. } => {}
        other => warn!(error = other.failure(), "cannot change the ticket keys of the fleet"),
    }
}

/// Writes the last good ring of this member in the place of retired keys. If another member has a newer one, it does the same.
async fn put_back(service: &FleetService, fleet: &Fleet, retired: &Shared) {
    let file = fleet.tickets_file();
    let Ok(Ok(value)) = fault::contained_blocking(PART, move || std::fs::read_to_string(file)).await else { return };
    if value == *retired.value {
        return;
    }
    let expected = Expected::Version(retired.version.clone());
    let put = Operation::Put { key: TICKETS.to_owned(), value, expected, seconds: None };
    if let Outcome::Done { .. } = service.store.perform(put).await {
        warn!("retired ticket keys were back in the store of the fleet; the last good ones replace them");
    }
}

fn sealed_key(keys: &SealingKeys, fleet: &str, created_at: &str) -> Option<String> {
    let mut key = Zeroizing::new([0; KEY_LENGTH]);
    rand::fill(key.as_mut()).ok()?;
    keys.seal(key.as_slice(), &purpose(fleet, created_at))
}

/// How often the age of the keys is compared with `ticket_rotation`.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
