//! The register of live connections: who is in, and a way to show each of them out.
//!
//! A connection signs in when it is accepted and signs out by dropping its [`Presence`]. Whoever wants it to end says so
//! here; the connection hears it at its next wake-up, wherever in its life it is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;

use crate::outcome::Reason;

/// All live connections of the process.
#[derive(Debug, Default)]
pub struct Register {
    present: Mutex<Present>,
    /// Told when the last one leaves.
    empty: Notify,
}

#[derive(Debug, Default)]
struct Present {
    next_id: u64,
    connections: HashMap<u64, Arc<Exit>>,
}

/// One connection's entry in the register; gone when dropped.
#[derive(Debug)]
pub struct Presence {
    id: u64,
    exit: Arc<Exit>,
    register: Arc<Register>,
}

/// The way one connection is shown out.
#[derive(Debug, Default)]
struct Exit {
    reason: OnceLock<Reason>,
    told: Notify,
}

impl Register {
    /// Enters a connection.
    pub fn enter(self: &Arc<Self>) -> Presence {
        let exit = Arc::new(Exit::default());
        let mut present = self.present();
        present.next_id += 1;
        let id = present.next_id;
        present.connections.insert(id, Arc::clone(&exit));
        Presence { id, exit, register: Arc::clone(self) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.present().connections.len()
    }

    /// Asks every connection to end.
    pub fn end_all(&self, reason: Reason) {
        for exit in self.present().connections.values() {
            exit.show(reason);
        }
    }

    /// Returns when nobody is left.
    pub async fn emptied(&self) {
        loop {
            let last_left = self.empty.notified();
            if self.count() == 0 {
                return;
            }
            last_left.await;
        }
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Presence {
    /// The connection's number, unique within this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns when the connection has to end, with the reason.
    pub async fn shown_out(&self) -> Reason {
        loop {
            let told = self.exit.told.notified();
            if let Some(reason) = self.exit.reason.get() {
                return *reason;
            }
            told.await;
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut present = self.register.present();
        present.connections.remove(&self.id);
        if present.connections.is_empty() {
            self.register.empty.notify_waiters();
        }
    }
}

impl Exit {
    /// The first reason counts.
    fn show(&self, reason: Reason) {
        let _ = self.reason.set(reason);
        self.told.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everybody_is_told_to_leave_and_the_register_knows_when_they_have() {
        let register = Arc::new(Register::default());
        register.emptied().await;
        let (first, second) = (register.enter(), register.enter());
        assert_ne!(first.id(), second.id());
        register.end_all(Reason::Shutdown);
        register.end_all(Reason::IoError);
        assert_eq!(first.shown_out().await, Reason::Shutdown);
        assert_eq!(second.shown_out().await, Reason::Shutdown);

        let leave = async {
            drop(first);
            assert_eq!(register.count(), 1);
            drop(second);
        };
        tokio::join!(register.emptied(), leave);
    }
}
