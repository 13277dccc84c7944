//! The load that members put on the store, without the members: what each kind of request costs a store that has the keys of
//! many members, and how long the store takes to report a change to all of them.

use std::time::{Duration, Instant};

use etcd_client::{
    Compare, CompareOp, GetOptions, KvClient, LeaseClient, PutOptions, Txn, TxnOp, WatchOptions, WatchStream,
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::fault::{Context as _, Result};
use crate::store::{FLEET, Sample, Store, Work};

/// What the store spends on each kind of request.
#[derive(Debug)]
pub(crate) struct Costs {
    /// Nothing, for a second.
    pub(crate) idle: Work,
    /// A member holds its name.
    pub(crate) hold: Work,
    /// A member writes what it has in force.
    pub(crate) state: Work,
    /// A member lists all members.
    pub(crate) list: Work,
    /// A member asks for a sign of life of its watch.
    pub(crate) ask: Work,
    /// A manifest is replaced and reported to all members.
    pub(crate) change: Work,
    /// How long after the request each member has the manifest, for each change.
    pub(crate) deliveries: Vec<Vec<Duration>>,
}

/// Measures a store with the keys of this number of members.
pub(crate) async fn measure(members: usize, sample: &Sample) -> Result<Costs> {
    let directory = TempDir::new()?;
    let store = Store::start(directory.path()).await?;
    let ((), idle) = store
        .usage_during(async || {
            sleep(IDLE).await;
            Ok(())
        })
        .await?;
    let idle = idle.rate();
    let client = store.client().await?;
    let (mut kv, mut lease) = (client.kv_client(), client.lease_client());
    let mut leases = Vec::with_capacity(members);
    for member in 0..members {
        leases.push(enter(&mut kv, &mut lease, member, sample).await?);
    }
    let meter = Meter { store: &store, idle };
    let mut watches = Vec::with_capacity(members);
    for _ in 0..members {
        let mut watch = store.client().await?.watch_client();
        let options = WatchOptions::new().with_prefix().with_progress_notify();
        watches.push(watch.watch(key("shared/"), Some(options)).await?);
    }
    let mut turn = (0..members).cycle();
    let mut next = || turn.next().unwrap_or_default();
    let hold = meter
        .each(async || {
            let member = next();
            let id = leases.get(member).copied().unwrap_or_default();
            lease.keep_alive(id).await?;
            // Each call opens a stream and abandons it. The HTTP/2 library ends a connection that does this too often.
            sleep(HOLD_PAUSE).await;
            kv.txn(Txn::new().and_then([TxnOp::get(alive(member), None)])).await?;
            Ok(())
        })
        .await?;
    let state = meter
        .each(async || {
            let put = TxnOp::put(state(next()), sample.state.as_str(), None);
            kv.txn(Txn::new().and_then([put])).await?;
            Ok(())
        })
        .await?;
    let list = meter
        .each(async || {
            list(&mut kv, "members/").await?;
            list(&mut kv, "alive/").await
        })
        .await?;
    let watch = watches.first_mut().ok_or("there are no members")?;
    let ask = meter
        .each(async || {
            watch.request_progress().await?;
            watch.message().await?;
            Ok(())
        })
        .await?;
    let (change, deliveries) = changes(&meter, &mut kv, watches, sample).await?;
    Ok(Costs { idle, hold, state, list, ask, change, deliveries })
}

/// Writes the keys of a member. Returns its lease.
async fn enter(kv: &mut KvClient, lease: &mut LeaseClient, member: usize, sample: &Sample) -> Result<i64> {
    let id = lease.grant(LIFE, None).await?.id();
    let held = TxnOp::put(alive(member), sample.alive.as_str(), Some(PutOptions::new().with_lease(id)));
    kv.txn(Txn::new().and_then([held, TxnOp::put(state(member), sample.state.as_str(), None)])).await?;
    Ok(id)
}

/// Lists keys in pages, as members do.
async fn list(kv: &mut KvClient, prefix: &str) -> Result<()> {
    let end = key(&prefix.replace('/', "0"));
    let (mut from, mut revision) = (key(prefix).into_bytes(), 0);
    loop {
        let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(revision);
        let page = kv.get(from, Some(options)).await?;
        revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
        match page.kvs().last() {
            Some(last) if page.more() => from = [last.key(), &[0]].concat(),
            _ => return Ok(()),
        }
    }
}

/// Replaces a manifest that all members watch.
async fn changes(
    meter: &Meter<'_>,
    kv: &mut KvClient,
    watches: Vec<WatchStream>,
    sample: &Sample,
) -> Result<(Work, Vec<Vec<Duration>>)> {
    let (members, (sender, mut received)) = (watches.len(), mpsc::unbounded_channel());
    let mut watching = JoinSet::new();
    for mut watch in watches {
        let sender = sender.clone();
        watching.spawn(async move {
            while let Ok(Some(message)) = watch.message().await {
                let now = Instant::now();
                if message.events().iter().any(|_| sender.send(now).is_err()) {
                    return;
                }
            }
        });
    }
    let mut deliveries = Vec::new();
    let work = meter
        .each(async || {
            let manifest = key("shared/rules/cache");
            let asked = Instant::now();
            // A writer lists the chunks, and compares the version of the manifest.
            list(kv, "chunks/").await?;
            let is_known = Compare::mod_revision(manifest.as_str(), CompareOp::Greater, -1);
            let put = TxnOp::put(manifest, sample.manifest.as_str(), None);
            kv.txn(Txn::new().when([is_known]).and_then([put])).await?;
            let mut times = Vec::with_capacity(members);
            while times.len() < members {
                let arrived = timeout(PATIENCE, received.recv()).await;
                let arrived = arrived.context(|| format!("{} of {members} have the change", times.len()))?;
                times.push(arrived.ok_or("the watches have ended")?.saturating_duration_since(asked));
            }
            deliveries.push(times);
            Ok(())
        })
        .await?;
    Ok((work, deliveries))
}

/// Measures one kind of request.
struct Meter<'a> {
    store: &'a Store,
    idle: Work,
}

impl Meter<'_> {
    /// What the store does for one request. It is repeated for a while.
    async fn each(&self, mut request: impl AsyncFnMut() -> Result<()>) -> Result<Work> {
        let repeat = async || {
            let (started, mut count) = (Instant::now(), 0.0_f64);
            while started.elapsed() < REPEATED || count < LEAST {
                request().await?;
                count += 1.0;
            }
            Ok(count)
        };
        let (count, usage) = self.store.usage_during(repeat).await?;
        Ok((usage.work - self.idle * usage.time.as_secs_f64()) * count.recip())
    }
}

/// A key as the store has it.
fn key(key: &str) -> String {
    format!("/portcullis/{FLEET}/{key}")
}

fn state(member: usize) -> String {
    key(&format!("members/m{member}"))
}

fn alive(member: usize) -> String {
    key(&format!("alive/m{member}"))
}

/// How long the store is watched while it has nothing to do.
const IDLE: Duration = Duration::from_secs(10);

/// How long a kind of request is repeated, and how often at least.
const REPEATED: Duration = Duration::from_secs(5);
const LEAST: f64 = 20.0;

/// The wait between two holds by one connection. A member waits far longer.
const HOLD_PAUSE: Duration = Duration::from_millis(25);

/// Keys in a page of a listing.
const PAGE: i64 = 100;

/// How long a name is held, in seconds: longer than the measurement, in which most names are not extended.
const LIFE: i64 = 3_600;

const PATIENCE: Duration = Duration::from_secs(60);
