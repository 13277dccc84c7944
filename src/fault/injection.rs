//! Faults on purpose, for tests of what becomes of the rest.

use std::cell::RefCell;

thread_local! {
    static WANTED: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
}

/// Has the next work of `part` that this thread contains panic.
pub(crate) fn inject(part: &'static str) {
    WANTED.with_borrow_mut(|wanted| wanted.push(part));
}

fn take(part: &str) -> bool {
    WANTED.with_borrow_mut(|wanted| {
        let found = wanted.iter().position(|other| *other == part);
        found.map(|index| wanted.remove(index)).is_some()
    })
}

/// Panics, if this is wanted.
pub(crate) fn strike(part: &str) {
    assert!(!take(part), "injected into {part}");
}

/// The same in work that this thread hands to another one.
pub(crate) fn carried<T>(part: &'static str, work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let is_wanted = take(part);
    move || {
        assert!(!is_wanted, "injected into {part}");
        work()
    }
}
