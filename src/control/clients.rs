//! The clients of one admin address. When there are too many, the oldest that has not shown a token makes room.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::{AbortHandle, JoinSet};

/// Whether the caller on a connection is identified. Once it is, no other client displaces it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identified(Arc<AtomicBool>);

/// The connections that are served.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    tasks: JoinSet<()>,
    /// Those that were not identified when they were looked at last, oldest first.
    unidentified: VecDeque<(AbortHandle, Identified)>,
}

impl Identified {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Clients {
    pub(crate) fn spawn(&mut self, identified: Identified, serving: impl Future<Output = ()> + Send + 'static) {
        let handle = self.tasks.spawn(serving);
        self.unidentified.retain(is_displaceable);
        self.unidentified.push_back((handle, identified));
    }

    /// Whether a further client may be accepted, possibly in the place of another.
    pub(crate) fn has_room(&self, max: usize) -> bool {
        self.tasks.len() < max || self.unidentified.iter().any(is_displaceable)
    }

    /// Makes room for a further client. Returns `false` if all are identified.
    pub(crate) async fn make_room(&mut self, max: usize) -> bool {
        while self.tasks.try_join_next().is_some() {}
        while self.tasks.len() >= max {
            let Some(oldest) = self.unidentified.pop_front() else { return false };
            // One that has ended leaves no place, and waiting for it would wait for another.
            if !is_displaceable(&oldest) {
                continue;
            }
            oldest.0.abort();
            // Ends with the aborted one at the latest.
            self.ended().await;
        }
        true
    }

    /// Returns when a client has ended; at once if there is none.
    pub(crate) async fn ended(&mut self) {
        let _ = self.tasks.join_next().await;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

fn is_displaceable((handle, identified): &(AbortHandle, Identified)) -> bool {
    !handle.is_finished() && !identified.is_set()
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// A client that stays, and what tells whether it is still served.
    fn stay(clients: &mut Clients) -> (Identified, oneshot::Receiver<()>) {
        let (identified, (served, ended)) = (Identified::default(), oneshot::channel::<()>());
        clients.spawn(identified.clone(), async move {
            let _served = served;
            std::future::pending().await
        });
        (identified, ended)
    }

    #[tokio::test]
    async fn oldest_client_that_is_not_identified_makes_room() {
        let mut clients = Clients::default();
        let (first, mut first_ended) = stay(&mut clients);
        let (_second, second_ended) = stay(&mut clients);
        let (_third, mut third_ended) = stay(&mut clients);
        first.set();
        assert!(clients.has_room(3) && clients.make_room(3).await);
        assert!(second_ended.await.is_err(), "it was the oldest");
        assert!(first_ended.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        assert!(third_ended.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        assert_eq!(clients.tasks.len(), 2);
    }

    #[tokio::test]
    async fn identified_clients_are_never_displaced() {
        let mut clients = Clients::default();
        for _ in 0..3 {
            stay(&mut clients).0.set();
        }
        assert!(!clients.has_room(3) && !clients.make_room(3).await);
        assert!(clients.has_room(4) && clients.make_room(4).await);
        assert_eq!(clients.tasks.len(), 3);
    }

    #[tokio::test]
    async fn client_that_ended_is_not_waited_for() {
        let mut clients = Clients::default();
        clients.spawn(Identified::default(), async {});
        clients.ended().await;
        for _ in 0..2 {
            clients.tasks.spawn(std::future::pending());
        }
        assert!(!clients.make_room(2).await);
    }

    #[tokio::test]
    async fn clients_that_ended_need_no_memory() {
        let mut clients = Clients::default();
        for _ in 0..1_000 {
            clients.spawn(Identified::default(), async {});
            clients.ended().await;
        }
        assert!(clients.is_empty() && clients.unidentified.len() <= 1);
    }
}
