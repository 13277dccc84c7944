//! Shared parts of the tests: certificate authority, program under test, databases and clients. A test starts an upstream,
//! then Portcullis, then clients.

pub(crate) mod agent;
pub(crate) mod api;
pub(crate) mod cache;
pub(crate) mod client;
pub(crate) mod clock;
pub(crate) mod credentials;
pub(crate) mod database;
pub(crate) mod digitalocean;
pub(crate) mod digitalocean_api;
pub(crate) mod dns;
pub(crate) mod etcd;
pub(crate) mod fleet;
pub(crate) mod guide;
pub(crate) mod haproxy;
pub(crate) mod hosts;
pub(crate) mod kubernetes;
pub(crate) mod listener;
pub(crate) mod load;
pub(crate) mod log;
pub(crate) mod nginx;
pub(crate) mod openssl;
pub(crate) mod packages;
pub(crate) mod pki;
pub(crate) mod portcullis;
pub(crate) mod postgres;
pub(crate) mod program;
pub(crate) mod prometheus;
pub(crate) mod proxy;
pub(crate) mod redis;
pub(crate) mod rights;
pub(crate) mod store;
pub(crate) mod test_dir;
pub(crate) mod upstream;
pub(crate) mod wire;

use std::thread;
use std::time::{Duration, Instant};

pub(crate) use client::{Client, Connection};
pub(crate) use clock::ClockedPortcullis;
pub(crate) use haproxy::Haproxy;
pub(crate) use listener::Listener;
pub(crate) use load::Load;
pub(crate) use log::Event;
pub(crate) use pki::{Authority, CrlContent, Leaf, Request};
pub(crate) use portcullis::Portcullis;
pub(crate) use postgres::Postgres;
pub(crate) use redis::Redis;
pub(crate) use test_dir::TestDir;
pub(crate) use upstream::Upstream;

/// How long a test waits for anything that has to happen. A test that passes never waits this long, so it is long enough
/// for a machine that is busy with other work.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// Polls until `look` finds something. Only for changes without a notification, such as of files, /proc and processes.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {WAIT_TIMEOUT:?}");
        thread::sleep(Duration::from_millis(5));
    }
}
