//! What no engine differs in: the limits, the times, and when a failed engine is tried again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::agent::message::FromAgent;
use crate::agent::store::MAX_OPEN;
use crate::agent::store::limits::is_within_limits;
use crate::agent::store::news::News;
use crate::fault;
use crate::fleet::store::{Operation, Outcome};
use crate::jitter;

/// A kind of store.
pub(super) trait Engine: Send + Sync + 'static {
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
pub(super) enum End {
    /// The history of the keys is no longer complete: list again.
    Outdated,
    /// The store is of no use, in words for an operator.
    Failed(String),
}

/// Follows the shared keys and performs operations until the channels are closed.
pub(super) async fn serve<E: Engine>(
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
        // A watch that fails at once after each listing is a failure of the same store.
        if news.take_synced_at().is_some_and(|synced_at| synced_at.elapsed() >= STABLE) {
            failures = 0;
        }
        match end {
            End::Failed(error) => news.down(error).await,
            End::Outdated if failures >= MAX_OUTDATED => {
                news.down("the store rejects the revision of each of its listings".to_owned()).await;
            }
            End::Outdated => {}
        }
        sleep(pause(failures, jitter::random())).await;
        failures = failures.saturating_add(1);
    }
}

/// The wait before the next attempt: exponential, of which a random half is left out, so that many members spread out.
fn pause(failures: u32, random: u64) -> Duration {
    let whole = MIN_PAUSE.saturating_mul(1 << failures.min(8)).min(MAX_PAUSE);
    jitter::less(whole, 50, random)
}

/// The program waits for 5 seconds.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(4);

/// With the time of an attempt without an answer and a margin for the listing, the store is used again within 10 seconds of its
/// return.
const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(4);

/// How long after its listing a store has to be followed, so that a later failure is a new one.
const STABLE: Duration = Duration::from_secs(2);

/// Listings that can be outdated in a row before the store is of no use.
const MAX_OUTDATED: u32 = 3;

/// How often the shared keys are listed again, although the watch reports no loss.
pub(super) const RELIST: Duration = Duration::from_secs(300);

/// The name of this part in fault reports.
pub(super) const PART: &str = "store of the fleet";

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::fleet::store::StoreEvent;

    #[test]
    fn pause_doubles_up_to_the_limit_with_jitter() {
        let milliseconds = |random| [0, 1, 2, 3, 4, 5, 40].map(|failures| pause(failures, random).as_millis());
        assert_eq!(milliseconds(0), [200, 400, 800, 1600, 3200, 4000, 4000]);
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
    async fn engine_whose_listings_are_outdated_at_once_is_down_and_tried_again_more_slowly() {
        let (messages, mut received) = mpsc::channel(4);
        let ends = std::iter::repeat_with(|| End::Outdated).take(100).collect();
        let mut task = JoinSet::new();
        task.spawn(follow(Arc::new(scripted(ends)), messages));
        let started = tokio::time::Instant::now();
        let (mut listings, mut downs) = (0, 0);
        while started.elapsed() < Duration::from_secs(60) {
            match received.recv().await.unwrap() {
                FromAgent::StoreNews(StoreEvent::Listing) => listings += 1,
                FromAgent::StoreNews(StoreEvent::Down { error }) => {
                    assert!(error.contains("rejects the revision"), "{error}");
                    downs += 1;
                }
                _ => {}
            }
        }
        assert!(listings < 40 && downs > 0, "{listings} listings, {downs} times down");
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
