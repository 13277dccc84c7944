//! The buffer bytes pass through. It belongs to the worker thread and not to the session, so an idle session owns none.

use std::cell::RefCell;

/// Lends the thread's buffer for the length of one call. `work` must not call this again.
pub(super) fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        // Made on first use, so that threads that never relay have none.
        scratch.resize(SIZE, 0);
        work(scratch)
    })
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Four TLS records: large enough that system calls cost little, small enough to stay in the cache.
const SIZE: usize = 64 << 10;
