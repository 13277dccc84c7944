//! Faults of accept loops.

use std::io::Read as _;
use std::net::TcpStream;

use super::*;
use crate::audit::{Audit, LineFormat};
use crate::fault::injection::inject;
use crate::fault::record;
use crate::policy::fixtures::{ConfigDir, listener};

#[tokio::test]
async fn accept_loop_that_panicked_accepts_from_the_same_socket() {
    let dir = ConfigDir::new();
    dir.install("main", OffsetDateTime::now_utc() + time::Duration::days(365));
    let snapshot = Arc::new(dir.snapshot(listener("main", 0, ""), None));
    let audit = Audit::start(LineFormat::Json, None);
    let current = watch::channel(Arc::clone(&snapshot)).1;
    let shared = Shared { current, registry: Arc::default(), audit, descriptors: Descriptors::default(), worker: 0 };
    let workers = Arc::new(Workers::start(1, &shared).unwrap());
    let mut listeners = Listeners::new(shared, Arc::clone(&workers));
    let prepared = listeners.prepare(&snapshot).unwrap();
    listeners.commit(prepared, &snapshot);
    let address = listeners.addresses(snapshot.named("main").unwrap()).remove(0);
    let runtime = workers.worker().unwrap().runtime;

    for count in 1..=2 {
        // `inject` affects work on its own thread.
        runtime.spawn(async { inject(PART) }).await.unwrap();
        let mut client = TcpStream::connect(&address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // The source is untrusted.
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "the client is accepted and closed");
        let faults = record::recent();
        let fault = faults.iter().find(|fault| fault.part == PART).unwrap();
        assert_eq!((fault.message.as_str(), fault.count), ("injected into accept loop", count));
    }
    listeners.close().await;
}
