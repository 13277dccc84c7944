//! The buffers bytes pass through. They belong to the worker thread and not to the session, so an idle session owns none.

use std::cell::RefCell;
use std::thread::LocalKey;

use crate::tls::engine::{MAX_UNOPENED, max_overhead};

/// Lends the thread's buffer for plaintext, of [`READ`] bytes, for the length of one call. `work` must not call this again.
pub(crate) fn with_plain<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    lend(&PLAIN, READ, work)
}

/// Lends the thread's buffer for TLS records for the length of one call: room for what could not be opened yet and
/// another [`READ`] bytes, or for as many once they are sealed. `work` must not call this again.
pub(crate) fn with_sealed<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    lend(&SEALED, const { larger(MAX_UNOPENED, max_overhead(READ)) + READ }, work)
}

fn lend<T>(buffer: &'static LocalKey<RefCell<Vec<u8>>>, size: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    buffer.with_borrow_mut(|buffer| {
        // Made on first use, so that threads that never relay have none.
        buffer.resize(size, 0);
        work(buffer)
    })
}

thread_local! {
    static PLAIN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

const fn larger(one: usize, other: usize) -> usize {
    if one > other { one } else { other }
}

/// What is read at a time: four TLS records, large enough that system calls cost little, small enough to stay in the cache.
pub(crate) const READ: usize = 64 << 10;
