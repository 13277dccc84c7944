//! Keys that are held with a lease.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use etcd_client::{Compare, CompareOp, Error, PutOptions, Txn, TxnOp};

use crate::agent::store::etcd::EtcdEngine;
use crate::agent::store::etcd::connection::Connected;
use crate::agent::store::etcd::failure::Failure;
use crate::agent::store::etcd::operations::found;
use crate::fleet::store::Outcome;

/// The leases of this process, by key.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<BTreeMap<String, Lease>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lease {
    id: i64,
    seconds: u32,
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, key: &str) -> Option<Lease> {
        self.lock().get(key).copied()
    }

    fn remember(&self, key: &str, lease: Lease) {
        let mut leases = self.lock();
        if leases.len() < MAX_HELD || leases.contains_key(key) {
            leases.insert(key.to_owned(), lease);
        }
    }

    /// Forgets the lease of a key that is removed.
    pub(super) fn forget(&self, key: &str, outcome: &Outcome) -> Option<i64> {
        let is_removed = !matches!(outcome, Outcome::Conflict { current: Some(_) });
        is_removed.then(|| self.lock().remove(key))?.map(|lease| lease.id)
    }
}

impl EtcdEngine {
    /// Takes a key with a lease, or extends the one that it has. The same value is that of an earlier process of this holder.
    pub(super) async fn hold(
        &self,
        connected: &Connected,
        (key, value): (&str, &str),
        seconds: u32,
    ) -> Result<Outcome, Failure> {
        if let Some(lease) = self.leases.of(key).filter(|lease| lease.seconds == seconds) {
            if let Some(outcome) = self.extend(connected, (key, value), lease).await? {
                return Ok(outcome);
            }
            self.leases.lock().remove(key);
        }
        let full = self.root.full(key);
        let id = connected.lease.clone().grant(i64::from(seconds), None).await?.id();
        let put = || TxnOp::put(full.clone(), value, Some(PutOptions::new().with_lease(id)));
        let is_absent = Compare::create_revision(full.clone(), CompareOp::Equal, 0);
        let mut outcome = self.write(connected, (&full, vec![is_absent]), put()).await?;
        if let Outcome::Conflict { current: Some(current) } = &outcome
            && current.value == value
        {
            let is_ours = Compare::value(full.clone(), CompareOp::Equal, value);
            outcome = self.write(connected, (&full, vec![is_ours]), put()).await?;
        }
        match outcome {
            Outcome::Done { .. } => self.leases.remember(key, Lease { id, seconds }),
            // Otherwise it expires by itself.
            _ => drop(connected.lease.clone().revoke(id).await),
        }
        Ok(outcome)
    }

    /// Extends a lease; `None` if it is lost.
    async fn extend(
        &self,
        connected: &Connected,
        (key, value): (&str, &str),
        lease: Lease,
    ) -> Result<Option<Outcome>, Failure> {
        match connected.lease.clone().keep_alive(lease.id).await {
            Ok(_) => {}
            // It has expired.
            Err(Error::LeaseKeepAliveError(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let full = self.root.full(key);
        let answer = connected.kv.clone().txn(Txn::new().and_then([TxnOp::get(full, None)])).await?;
        let Some(found) = found(&answer)? else { return Ok(None) };
        if found.value() != value.as_bytes() {
            let current = self.root.entry(&found);
            return Ok(Some(Outcome::Conflict { current }));
        }
        let is_held = found.lease() == lease.id;
        Ok(is_held.then(|| Outcome::Done { version: found.mod_revision().to_string() }))
    }
}

/// A program holds one key.
const MAX_HELD: usize = 16;
