use std::pin::pin;

use proptest::prelude::*;
use tokio::time::timeout;

use super::*;

fn pushed(recent: &RecentEvents, listener: &str, json: &str) {
    recent.push(&Event::new("connection.closed").with("listener", listener), json);
}

/// Events whose JSON has these sizes.
fn filled(sizes: impl IntoIterator<Item = usize>) -> Arc<RecentEvents> {
    let recent = Arc::new(RecentEvents::default());
    for size in sizes {
        pushed(&recent, "cache", &"x".repeat(size));
    }
    recent
}

fn reader(recent: &Arc<RecentEvents>, from: usize) -> EventReader {
    recent.reader(from, EventFilter::default())
}

fn sequences(batch: &Batch) -> Vec<u64> {
    batch.events.iter().map(|event| event.sequence).collect()
}

fn size(batch: &Batch) -> usize {
    batch.events.iter().map(|event| event.json.len()).sum()
}

/// The next batch, or `None` if the reader would wait for an event.
async fn ready(reader: &mut EventReader) -> Option<Batch> {
    // Time is paused: it moves when every task waits, and the pause between two batches is shorter.
    timeout(100 * GATHER_TIME, reader.next()).await.ok().flatten()
}

#[tokio::test(start_paused = true)]
async fn reader_gets_the_last_events_and_then_new_ones_in_order() {
    let recent = filled([10; 5]);
    let mut all = reader(&recent, 3);
    let mut new = reader(&recent, 0);
    assert_eq!(sequences(&all.next().await.unwrap()), [2, 3, 4]);
    assert!(ready(&mut all).await.is_none() && ready(&mut new).await.is_none());
    pushed(&recent, "cache", "{}\n");
    for reader in [&mut all, &mut new] {
        let batch = reader.next().await.unwrap();
        assert_eq!((batch.lost, sequences(&batch)), (0, vec![5]));
        let event = &batch.events[0];
        assert_eq!((event.name, event.listener.as_deref(), &*event.json), ("connection.closed", Some("cache"), "{}"));
    }
}

#[tokio::test(start_paused = true)]
async fn event_of_a_group_is_selected_by_the_name_of_the_group() {
    let recent = Arc::new(RecentEvents::default());
    recent.push(&Event::new("source.added").with("group", "web"), "{}");
    recent.push(&Event::new("connection.opened").with("listener", "cache").with("group", "web"), "{}");
    for (owner, sequence) in [("group:web", 0), ("cache", 1)] {
        let filter = EventFilter { listener: Some(owner.into()), event: None };
        let batch = recent.reader(9, filter).next().await.unwrap();
        assert_eq!(sequences(&batch), [sequence], "{owner}");
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_reader_is_woken_by_an_event() {
    let recent = filled([]);
    let mut reader = reader(&recent, 0);
    let mut next = pin!(reader.next());
    assert!(timeout(GATHER_TIME, &mut next).await.is_err());
    // The reader is polled first, so it waits when the event comes.
    let (batch, ()) = tokio::join!(biased; next, async { pushed(&recent, "cache", "{}") });
    assert_eq!(sequences(&batch.unwrap()), [0]);
}

#[tokio::test(start_paused = true)]
async fn dropped_wait_loses_no_event() {
    let recent = filled([]);
    let mut reader = reader(&recent, 0);
    assert!(ready(&mut reader).await.is_none());
    pushed(&recent, "cache", "{}");
    assert_eq!(sequences(&reader.next().await.unwrap()), [0]);
}

#[tokio::test(start_paused = true)]
async fn slow_reader_loses_the_oldest_events_and_learns_how_many() {
    let recent = filled([]);
    let mut reader = reader(&recent, 0);
    for _ in 0..MAX_EVENTS + 7 {
        pushed(&recent, "cache", "{}");
    }
    let batch = reader.next().await.unwrap();
    assert_eq!((batch.lost, batch.events.len()), (7, MAX_EVENTS));
    assert_eq!(sequences(&batch)[0], 7);
    assert!(ready(&mut reader).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn filter_selects_listener_and_event() {
    let recent = filled([2; 3]);
    recent.push(&Event::new("reload.applied"), "{}");
    pushed(&recent, "db", "{}");
    pushed(&recent, "cache", "{}");
    let of = |listener: Option<&str>, event: Option<&str>, count| {
        let filter = EventFilter { listener: listener.map(Box::from), event: event.map(Box::from) };
        let first = recent.reader(count, filter.clone()).next;
        let (batch, next) = recent.ring().batch(first, &filter);
        assert_eq!(next, 6);
        sequences(&batch)
    };
    assert_eq!(of(Some("cache"), None, 2), [2, 5], "the last two that pass");
    assert_eq!(of(Some("db"), Some("connection.closed"), 9), [4]);
    assert_eq!(of(None, Some("reload.applied"), 9), [3]);
    assert_eq!(of(None, Some("reload.rejected"), 9), [0; 0]);
    // An event that does not pass wakes the reader and ends nothing.
    let mut reader = recent.reader(0, EventFilter { listener: Some("db".into()), event: None });
    pushed(&recent, "cache", "{}");
    assert!(ready(&mut reader).await.is_none());
    pushed(&recent, "db", "{}");
    assert_eq!(sequences(&reader.next().await.unwrap()), [7]);
}

#[tokio::test(start_paused = true)]
async fn reader_of_the_past_ends_before_events_that_come_later() {
    let recent = filled([MAX_BATCH_BYTES; 3]);
    let mut past = reader(&recent, 2).of_the_past();
    let mut nothing = reader(&recent, 0).of_the_past();
    pushed(&recent, "cache", "{}");
    assert_eq!(sequences(&past.next().await.unwrap()), [1]);
    assert_eq!(sequences(&past.next().await.unwrap()), [2]);
    assert!(past.next().await.is_none() && nothing.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn cleared_events_are_lost() {
    let recent = filled([10; 5]);
    let mut behind = reader(&recent, 9);
    recent.clear();
    let batch = behind.next().await.unwrap();
    assert_eq!((batch.lost, batch.events.len()), (5, 0));
    pushed(&recent, "cache", "{}");
    assert_eq!(sequences(&behind.next().await.unwrap()), [5]);
}

#[test]
fn reader_in_another_thread_gets_every_event_or_its_loss() {
    let recent = filled([]);
    let mut reader = reader(&recent, 0);
    let writer = Arc::clone(&recent);
    let writing = std::thread::spawn(move || (0..50_000).for_each(|_| pushed(&writer, "cache", "{}")));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut expected = 0;
    while expected < 50_000 {
        let batch = runtime.block_on(reader.next()).unwrap();
        expected += batch.lost;
        for event in &batch.events {
            assert_eq!(event.sequence, expected);
            expected += 1;
        }
    }
    writing.join().unwrap();
    assert_eq!(expected, 50_000);
}

proptest! {
    #[test]
    fn ring_is_bounded_and_readers_account_for_every_event(
        steps in prop::collection::vec((prop_oneof![0_usize..700, Just(9_000), Just(65_000)], 0_usize..4, 1_usize..40), 1..120),
    ) {
        let recent = filled([]);
        let filter = EventFilter::default();
        // Each reader expects an event; those with higher numbers read less often.
        let mut expected = [0_u64; 3];
        for (step, (size_of_event, reader, times)) in steps.into_iter().enumerate() {
            for _ in 0..times {
                pushed(&recent, "cache", &"x".repeat(size_of_event));
            }
            {
                let ring = recent.ring();
                prop_assert!(ring.events.len() <= MAX_EVENTS && ring.bytes <= MAX_BYTES);
                prop_assert_eq!(ring.bytes, ring.events.iter().map(|event| event.json.len()).sum::<usize>());
            }
            let Some(next) = expected.get_mut(reader).filter(|_| step % (reader + 1) == 0) else { continue };
            let (batch, after) = recent.ring().batch(*next, &filter);
            prop_assert!(batch.events.len() == 1 || size(&batch) <= MAX_BATCH_BYTES);
            prop_assert!(batch.lost > 0 || !batch.events.is_empty() || after == *next);
            let first = *next + batch.lost;
            let consecutive: Vec<_> = (first..after).collect();
            prop_assert_eq!(sequences(&batch), consecutive);
            *next = after;
        }
    }
}
