//! What all connections of the admin API share.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Bytes;
use tokio::sync::{Semaphore, mpsc};

use crate::audit::Audit;
use crate::control::PendingRequest;
use crate::control::access::Access;
use crate::metrics::process::ProcessMetrics;

/// The queue to the owner of the state, who may call, and the limits of all connections together.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) requests: mpsc::Sender<PendingRequest>,
    pub(crate) access: Access,
    pub(crate) audit: Audit,
    pub(crate) metrics: Arc<ProcessMetrics>,
    /// Limits the memory of large bodies.
    pub(crate) large_bodies: Semaphore,
    /// Limits the memory of long responses, in KiB.
    pub(crate) response_memory: Arc<Semaphore>,
    /// Limits the connections that stay open for events.
    pub(crate) streams: Arc<Semaphore>,
}

impl Shared {
    /// Without tokens.
    pub(crate) fn new(requests: mpsc::Sender<PendingRequest>, audit: Audit, metrics: Arc<ProcessMetrics>) -> Self {
        Self {
            requests,
            access: Access::default(),
            audit,
            metrics,
            large_bodies: Semaphore::new(MAX_LARGE_BODIES),
            response_memory: Arc::new(Semaphore::new(MAX_RESPONSE_KIBIBYTES as usize)),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }
}

/// Large bodies that are read or handled at the same time.
const MAX_LARGE_BODIES: usize = 4;

/// Memory of all long responses that are being sent.
pub(crate) const MAX_RESPONSE_KIBIBYTES: u32 = 256 << 10;

/// Connections that follow events.
pub(crate) const MAX_STREAMS: usize = 32;

pub(crate) type ResponseBody = UnsyncBoxBody<Bytes, Infallible>;
