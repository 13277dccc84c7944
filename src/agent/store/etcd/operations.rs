//! Reads and writes.

use etcd_client::{Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};

use crate::agent::store::etcd::EtcdEngine;
use crate::agent::store::etcd::connection::Connected;
use crate::agent::store::etcd::failure::{Failure, Kind};
use crate::agent::store::etcd::range::{Range, invalid};
use crate::agent::store::limits::MAX_ANSWER;
use crate::fleet::store::{Entry, Expected, Outcome};

impl EtcdEngine {
    /// Reads keys as of one revision.
    pub(super) async fn get(&self, connected: &Connected, keys: &[String]) -> Result<Outcome, Failure> {
        let reads: Vec<_> = keys.iter().map(|key| TxnOp::get(self.root.full(key), None)).collect();
        let answer = connected.kv.clone().txn(Txn::new().and_then(reads)).await?;
        let mut entries: Vec<Entry> = Vec::new();
        for response in answer.op_responses() {
            let TxnOpResponse::Get(found) = response else { return Err(invalid("not a read")) };
            for entry in found.kvs().iter().filter_map(|found| self.root.entry(found)) {
                if !entries.contains(&entry) {
                    entries.push(entry);
                }
            }
        }
        if entries.iter().map(|entry| entry.value.len()).sum::<usize>() > MAX_ANSWER {
            return Err(Failure::new(Kind::Other, format_args!("the values have more than {} MiB", MAX_ANSWER >> 20)));
        }
        Ok(Outcome::Entries(entries))
    }

    pub(super) async fn list(&self, connected: &Connected, prefix: &str, keys_only: bool) -> Result<Outcome, Failure> {
        let range = Range { prefix, keys_only, limit: MAX_ANSWER };
        Ok(Outcome::Entries(self.range(connected, range).await?.entries))
    }

    /// Writes a key. With `seconds` it has a lease that is not extended.
    pub(super) async fn put(
        &self,
        connected: &Connected,
        (key, value): (&str, &str),
        expected: &Expected,
        seconds: Option<u32>,
    ) -> Result<Outcome, Failure> {
        let full = self.root.full(key);
        let condition = match condition(&full, expected) {
            Some(condition) => condition,
            None => return self.conflict(connected, &full).await,
        };
        let lease = match seconds {
            Some(seconds) => Some(connected.lease.clone().grant(i64::from(seconds), None).await?.id()),
            None => None,
        };
        let options = lease.map(|lease| PutOptions::new().with_lease(lease));
        let write = TxnOp::put(full.clone(), value, options);
        let outcome = self.write(connected, (&full, condition), write).await?;
        if let (Outcome::Conflict { .. }, Some(lease)) = (&outcome, lease) {
            // Otherwise it expires by itself.
            let _ = connected.lease.clone().revoke(lease).await;
        }
        Ok(outcome)
    }

    pub(super) async fn delete(
        &self,
        connected: &Connected,
        key: &str,
        expected: &Expected,
    ) -> Result<Outcome, Failure> {
        let full = self.root.full(key);
        let outcome = match condition(&full, expected) {
            Some(condition) => self.write(connected, (&full, condition), TxnOp::delete(full.clone(), None)).await?,
            None => self.conflict(connected, &full).await?,
        };
        if let Some(lease) = self.leases.forget(key, &outcome) {
            let _ = connected.lease.clone().revoke(lease).await;
        }
        Ok(match outcome {
            // It is absent, as it shall be.
            Outcome::Conflict { current: None } => Outcome::Done { version: String::new() },
            outcome => outcome,
        })
    }

    /// Writes under conditions, or reads what is there instead.
    pub(super) async fn write(
        &self,
        connected: &Connected,
        (full, condition): (&str, Vec<Compare>),
        write: TxnOp,
    ) -> Result<Outcome, Failure> {
        let read = TxnOp::get(full, None);
        let txn = Txn::new().when(condition).and_then([write]).or_else([read]);
        let answer = connected.kv.clone().txn(txn).await?;
        if answer.succeeded() {
            let header = answer.header().ok_or_else(|| invalid("it has no revision"))?;
            return Ok(Outcome::Done { version: header.revision().to_string() });
        }
        let current = found(&answer)?.and_then(|found| self.root.entry(&found));
        Ok(Outcome::Conflict { current })
    }

    /// A version of another store cannot be that of a key.
    async fn conflict(&self, connected: &Connected, full: &str) -> Result<Outcome, Failure> {
        let answer = connected.kv.clone().txn(Txn::new().and_then([TxnOp::get(full, None)])).await?;
        let current = found(&answer)?.and_then(|found| self.root.entry(&found));
        Ok(Outcome::Conflict { current })
    }
}

/// What a transaction has read of one key.
pub(super) fn found(answer: &TxnResponse) -> Result<Option<KeyValue>, Failure> {
    match answer.op_responses().into_iter().next() {
        Some(TxnOpResponse::Get(found)) => Ok(found.kvs().first().cloned()),
        _ => Err(invalid("not a read")),
    }
}

/// The conditions of a transaction; `None` if no key can meet them.
fn condition(full: &str, expected: &Expected) -> Option<Vec<Compare>> {
    match expected {
        Expected::Any => Some(Vec::new()),
        Expected::Absent => Some(vec![Compare::create_revision(full, CompareOp::Equal, 0)]),
        Expected::Version(version) => {
            let revision = version.parse().ok().filter(|revision| *revision > 0)?;
            Some(vec![Compare::mod_revision(full, CompareOp::Equal, revision)])
        }
    }
}
