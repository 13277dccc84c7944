use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

use tokio::task::JoinSet;

use super::*;
use crate::fault::record::recent;
use crate::printable;

/// The recorded faults of a part that no other test uses.
fn kept(part: &str) -> Vec<(String, u64)> {
    let of_it = recent().into_iter().filter(|fault| fault.part == part);
    of_it.map(|fault| (fault.message, fault.count)).collect()
}

fn broken(number: usize) -> usize {
    [1, 2, 3][number]
}

#[test]
fn work_that_panics_is_a_fault_and_other_work_continues() {
    assert_eq!(contain("test of work", || broken(2)), Ok(3));
    let message = "index out of bounds: the len is 3 but the index is 7";
    for count in 1..=2 {
        let fault = contain("test of work", || broken(7)).unwrap_err();
        assert_eq!((fault.message.as_str(), fault.count), (message, count));
        assert!(fault.to_string().starts_with("internal fault in test of work: index out of bounds"), "{fault}");
    }
    assert_eq!(kept("test of work"), [(message.to_owned(), 2)]);
    assert_eq!(contain("test of work", || broken(0)), Ok(1));
    let quoting =
        contain("test of quotations", || panic!("{}\u{202e}{}", "a\n", "b".repeat(5_000))).unwrap_err().message;
    assert!(quoting.len() <= printable::MAX_FIELD && quoting.starts_with("a\\n\\u{202e}b"), "{quoting}");
    assert_eq!(contain("test of payloads", || panic::panic_any(7)).unwrap_err().message, "no message");
}

#[test]
fn fault_has_its_location_in_the_code() {
    install_hook();
    let inner = || contain("test of places", || broken(7)).unwrap_err();
    let [first, second] = [contain("test of outer places", inner).unwrap(), inner()];
    for fault in [first, second] {
        let location = fault.location.unwrap();
        assert!(location.starts_with("src/fault/tests.rs:"), "{location}");
    }
    assert_eq!(contain("test of outer places", || 7), Ok(7));
}

#[test]
fn lock_held_by_work_that_panics_is_free_again() {
    let lock = Mutex::new(1);
    let fault = contain("test of locks", || {
        let _held = lock.lock();
        panic!("while it is held")
    });
    fault.unwrap_err();
    assert_eq!(*lock.lock().unwrap_or_else(PoisonError::into_inner), 1);
}

#[test]
fn panic_while_another_unwinds_is_contained_too() {
    struct Last;
    impl Drop for Last {
        fn drop(&mut self) {
            // The record of a connection writes its last event like this.
            contain("test of the second", || panic!("second")).unwrap_err();
        }
    }
    let fault = contain("test of the first", || {
        let _last = Last;
        panic!("first")
    });
    assert_eq!(fault.unwrap_err().message, "first");
    assert_eq!(kept("test of the second"), [("second".to_owned(), 1)]);
}

#[tokio::test]
async fn future_that_panics_later_is_a_fault() {
    assert_eq!(contained("test of futures", async { 7 }).await, Ok(7));
    let later = async {
        tokio::task::yield_now().await;
        broken(7)
    };
    contained("test of futures", later).await.unwrap_err();
    assert_eq!(kept("test of futures").len(), 1);
}

#[tokio::test]
async fn blocking_work_that_panics_is_a_fault() {
    assert_eq!(contained_blocking("test of blocking work", || 7).await, Ok(7));
    contained_blocking("test of blocking work", || broken(7)).await.unwrap_err();
    assert_eq!(kept("test of blocking work").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn task_that_panics_is_started_again_until_it_returns() {
    let starts = Cell::new(0);
    restarted("test of tasks", || {
        starts.set(starts.get() + 1);
        assert!(starts.get() != 1, "before there is a future");
        async { assert!(starts.get() > 3, "in it") }
    })
    .await;
    assert_eq!(starts.get(), 4);
    assert_eq!(kept("test of tasks"), [("before there is a future".to_owned(), 1), ("in it".to_owned(), 2)]);
}

#[tokio::test]
async fn task_of_a_set_that_panics_is_noted_and_one_that_is_aborted_is_not() {
    let mut tasks = JoinSet::new();
    tasks.spawn(async { assert_eq!(broken(7), 0) });
    tasks.spawn(pending());
    note_task("test of sets", tasks.join_next().await.unwrap().unwrap_err());
    tasks.abort_all();
    note_task("test of sets", tasks.join_next().await.unwrap().unwrap_err());
    assert_eq!(kept("test of sets").len(), 1);
}

#[test]
fn pause_doubles_with_each_fault_in_a_row_up_to_a_second() {
    let (mut backoff, mut now) = (Backoff::default(), Instant::now());
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let pause = backoff.pause_at(now);
        now += pause;
        pauses.push(pause.as_millis());
    }
    assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1_000, 1_000]);
    assert_eq!(backoff.pause_at(now + RESTART_PAUSE), MIN_PAUSE, "the streak is over");
}
