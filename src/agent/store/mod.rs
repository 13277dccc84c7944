//! The agent's end of the store of a fleet: follows the shared keys, and performs operations.
//!
//! This file has what no engine differs in: the limits, the times, and when a failed engine is tried again. An [`Engine`] has the
//! connection, the listing, the watch and the operations.

#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod limits;
mod news;

use std::future::pending;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::agent::message::FromAgent;
use crate::agent::store::limits::is_within_limits;
use crate::agent::store::news::News;
use crate::fault;
use crate::fleet::settings::{Engine as EngineSettings, StoreSettings};
use crate::fleet::store::{Operation, Outcome};

/// A kind of store.
trait Engine: Send + Sync + 'static {
    /// Connects, lists the shared keys, and watches them until that fails.
    fn follow(&self, news: &mut News) -> impl Future<Output = End> + Send;

    /// Performs an operation.
    ///
    /// # Errors
    /// In words for an operator, if it is unknown whether it was performed.
    fn perform(&self, operation: &Operation) -> impl Future<Output = Result<Outcome, String>> + Send;

    /// An operation was not answered in time: checks the connection.
    fn suspect(&self);
}

/// Why the engine no longer follows the shared keys.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The history of the keys is no longer complete: list again.
    Outdated,
    /// The store is of no use, in words for an operator.
    Failed(String),
}

/// The store of the task, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Store {
    running: Option<Running>,
}

/// A store in use.
#[derive(Debug)]
struct Running {
    settings: StoreSettings,
    operations: mpsc::Sender<(u64, Operation)>,
    messages: mpsc::Receiver<FromAgent>,
    /// Ends when this is dropped.
    _task: JoinSet<()>,
}

impl Store {
    /// Uses this store from now on.
    pub(crate) fn apply(&mut self, settings: Option<&StoreSettings>) {
        if self.running.as_ref().map(|running| &running.settings) == settings {
            return;
        }
        self.running = settings.map(|settings| {
            let (sender, messages) = mpsc::channel(MAX_QUEUED);
            let (operations, received) = mpsc::channel(MAX_OPEN);
            let mut task = JoinSet::new();
            match &settings.engine {
                #[cfg(feature = "etcd")]
                EngineSettings::Etcd(etcd) => {
                    task.spawn(serve(etcd::EtcdEngine::new(&settings.fleet, etcd.clone()), sender, received));
                }
                #[cfg(feature = "kubernetes")]
                EngineSettings::Kubernetes { connection, namespace } => {
                    let engine =
                        kubernetes::KubernetesEngine::new(&settings.fleet, connection.clone(), namespace.clone());
                    task.spawn(serve(engine, sender, received));
                }
                // The configuration names the feature that is missing, so no task has such a store.
                #[allow(unreachable_patterns, reason = "with all features")]
                _ => drop((sender, received)),
            }
            Running { settings: settings.clone(), operations, messages, _task: task }
        });
    }

    /// Performs an operation, whose answer is one of the next messages. Returns the answer if there is one already.
    pub(crate) fn perform(&mut self, number: u64, operation: Operation) -> Option<FromAgent> {
        let sent = self.running.as_ref().map(|running| running.operations.try_send((number, operation)));
        let error = match sent {
            Some(Ok(())) => return None,
            Some(Err(_)) => "too many operations at a time",
            None => "no store",
        };
        Some(FromAgent::StoreReply { number, outcome: Outcome::Failed { error: error.to_owned() } })
    }

    /// The next message to the program.
    pub(crate) async fn next(&mut self) -> FromAgent {
        match &mut self.running {
            Some(running) => match running.messages.recv().await {
                Some(message) => message,
                None => pending().await,
            },
            None => pending().await,
        }
    }
}

/// Follows the shared keys and performs operations until the channels are closed.
async fn serve<E: Engine>(
    engine: E,
    messages: mpsc::Sender<FromAgent>,
    mut operations: mpsc::Receiver<(u64, Operation)>,
) {
    let engine = Arc::new(engine);
    let mut tasks = JoinSet::new();
    let (followed, sender) = (Arc::clone(&engine), messages.clone());
    tasks.spawn(async move {
        fault::restarted(PART, || follow(Arc::clone(&followed), sender.clone())).await;
    });
    loop {
        tokio::select! {
            operation = operations.recv(), if tasks.len() <= MAX_OPEN => {
                let Some((number, operation)) = operation else { return };
                let (engine, messages) = (Arc::clone(&engine), messages.clone());
                tasks.spawn(async move {
                    let outcome = fault::contained(PART, performed(&*engine, &operation)).await;
                    let outcome = outcome.unwrap_or_else(|fault| Outcome::Failed { error: fault.to_string() });
                    // A closed channel means that the store is no longer used.
                    let _ = messages.send(FromAgent::StoreReply { number, outcome }).await;
                });
            }
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// Performs an operation in time.
async fn performed<E: Engine>(engine: &E, operation: &Operation) -> Outcome {
    if !is_within_limits(operation) {
        return Outcome::Failed { error: "a key or a value is too long for the store".to_owned() };
    }
    match timeout(OPERATION_TIMEOUT, engine.perform(operation)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => Outcome::Failed { error },
        Err(_) => {
            engine.suspect();
            Outcome::Failed { error: format!("the store does not answer within {OPERATION_TIMEOUT:?}") }
        }
    }
}

/// Follows the shared keys for ever.
async fn follow<E: Engine>(engine: Arc<E>, messages: mpsc::Sender<FromAgent>) {
    let mut news = News::new(messages);
    let mut failures: u32 = 0;
    loop {
        let end = engine.follow(&mut news).await;
        if news.take_synced() {
            failures = 0;
        }
        match end {
            End::Failed(error) => news.down(error).await,
            End::Outdated if failures >= MAX_OUTDATED => {
                news.down("the store rejects the revision of each of its listings".to_owned()).await;
            }
            End::Outdated => {}
        }
        sleep(pause(failures, RandomState::new().hash_one(()))).await;
        failures = failures.saturating_add(1);
    }
}

/// The wait before the next attempt: exponential, of which a random half is left out, so that many members spread out.
fn pause(failures: u32, random: u64) -> Duration {
    let whole = MIN_PAUSE.saturating_mul(1 << failures.min(8)).min(MAX_PAUSE);
    let part = u32::try_from(random % 1_000).unwrap_or_default();
    whole.saturating_sub(whole / 2_000 * part)
}

/// The program waits for 5 seconds.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(4);

/// With the time of an attempt to connect, the store is used again within 10 seconds of its return.
const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Listings that can be outdated in a row before the store is of no use.
const MAX_OUTDATED: u32 = 3;

/// How often the shared keys are listed again, although the watch reports no loss.
const RELIST: Duration = Duration::from_secs(300);

/// Operations at a time. The program has at most this many without an answer.
const MAX_OPEN: usize = 64;

/// Messages that wait for the program.
const MAX_QUEUED: usize = 16;

/// The name of this part in fault reports.
const PART: &str = "store of the fleet";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::store::StoreEvent;

    #[test]
    fn pause_doubles_up_to_the_limit_with_jitter() {
        let milliseconds = |random| [0, 1, 2, 3, 4, 5, 40].map(|failures| pause(failures, random).as_millis());
        assert_eq!(milliseconds(0), [200, 400, 800, 1600, 3200, 5000, 5000]);
        for (least, whole) in milliseconds(999).into_iter().zip(milliseconds(0)) {
            assert!(least >= whole / 2 && least <= whole / 2 + whole / 500, "{least} of {whole}");
        }
    }

    /// An engine that does what a test tells it.
    struct Scripted {
        ends: std::sync::Mutex<Vec<End>>,
        suspected: std::sync::atomic::AtomicBool,
    }

    impl Engine for Scripted {
        async fn follow(&self, news: &mut News) -> End {
            let next = self.ends.lock().unwrap().pop();
            match next {
                Some(end) => {
                    news.listing().await;
                    news.synced("c", 7).await;
                    end
                }
                None => pending().await,
            }
        }

        async fn perform(&self, operation: &Operation) -> Result<Outcome, String> {
            match operation {
                Operation::Delete { .. } => pending().await,
                Operation::Keys { .. } => panic!("a defect"),
                _ => Ok(Outcome::Done { version: "1".to_owned() }),
            }
        }

        fn suspect(&self) {
            self.suspected.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn scripted(ends: Vec<End>) -> Scripted {
        Scripted { ends: std::sync::Mutex::new(ends), suspected: false.into() }
    }

    #[tokio::test(start_paused = true)]
    async fn operation_without_an_answer_fails_before_the_program_gives_up() {
        let engine = scripted(Vec::new());
        let delete = Operation::Delete { key: "a".to_owned(), expected: crate::fleet::store::Expected::Any };
        let started = tokio::time::Instant::now();
        assert!(matches!(performed(&engine, &delete).await, Outcome::Failed { .. }));
        assert_eq!(started.elapsed(), OPERATION_TIMEOUT);
        assert!(engine.suspected.into_inner());
    }

    #[tokio::test]
    async fn operation_that_panics_fails() {
        let (messages, mut received) = mpsc::channel(4);
        let (operations, requests) = mpsc::channel(4);
        let mut task = JoinSet::new();
        task.spawn(serve(scripted(Vec::new()), messages, requests));
        operations.send((1, Operation::Keys { prefix: String::new() })).await.unwrap();
        let reply = received.recv().await.unwrap();
        assert!(matches!(reply, FromAgent::StoreReply { number: 1, outcome: Outcome::Failed { .. } }), "{reply:?}");
        let long = Operation::Hold { key: "a".repeat(300), value: String::new(), seconds: 1 };
        operations.send((2, long)).await.unwrap();
        let reply = received.recv().await.unwrap();
        assert!(matches!(reply, FromAgent::StoreReply { number: 2, outcome: Outcome::Failed { .. } }), "{reply:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn failed_engine_is_reported_and_started_again() {
        let (messages, mut received) = mpsc::channel(4);
        let ends = vec![End::Outdated, End::Failed("away".to_owned())];
        let mut task = JoinSet::new();
        task.spawn(follow(Arc::new(scripted(ends)), messages));
        let listing = || FromAgent::StoreNews(StoreEvent::Listing);
        let synced = || FromAgent::StoreNews(StoreEvent::Synced { cluster: "c".to_owned(), revision: 7 });
        let down = FromAgent::StoreNews(StoreEvent::Down { error: "away".to_owned() });
        for expected in [listing(), synced(), down, listing(), synced()] {
            assert_eq!(received.recv().await.unwrap(), expected);
        }
    }
}
