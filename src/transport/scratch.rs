//! Buffers for relayed bytes. They belong to the worker thread and not to the session, so an idle session owns none.

use std::cell::RefCell;
use std::thread::LocalKey;

use crate::tls::engine::{MAX_UNOPENED, max_overhead};

/// Calls `work` with the thread's plaintext buffer, which has [`READ`] bytes. `work` must not call this function.
pub(crate) fn with_plain<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    lend(&PLAIN, READ, work)
}

/// Calls `work` with the thread's buffer for TLS records. It holds the records that are incomplete and [`READ`] more bytes, or
/// [`READ`] plaintext bytes once they are sealed. `work` must not call this function.
pub(crate) fn with_sealed<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    lend(&SEALED, const { larger(MAX_UNOPENED, max_overhead(READ)) + READ }, work)
}

fn lend<T>(buffer: &'static LocalKey<RefCell<Vec<u8>>>, size: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    buffer.with_borrow_mut(|buffer| {
        // Allocated on first use, so threads that never relay have no buffer.
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

/// The size of one read, in bytes: four TLS records. Large enough to make system calls cheap, small enough for the CPU cache.
pub(crate) const READ: usize = 64 << 10;
