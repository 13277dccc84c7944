//! Injects faults for tests.

use std::cell::RefCell;

thread_local! {
    static WANTED: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
}

/// Makes the next work of `part` on this thread panic.
pub(crate) fn inject(part: &'static str) {
    WANTED.with_borrow_mut(|wanted| wanted.push(part));
}

fn take(part: &str) -> bool {
    WANTED.with_borrow_mut(|wanted| {
        let found = wanted.iter().position(|other| *other == part);
        found.map(|index| wanted.remove(index)).is_some()
    })
}

/// Panics if a fault was injected.
pub(crate) fn strike(part: &str) {
    assert!(!take(part), "injected into {part}");
}

/// Moves an injected fault into work for another thread.
pub(crate) fn carried<T>(part: &'static str, work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let is_wanted = take(part);
    move || {
        assert!(!is_wanted, "injected into {part}");
        work()
    }
}
