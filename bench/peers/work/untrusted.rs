//! An untrusted client: it connects, and the target closes the connection.

use std::net::SocketAddr;

use super::drive::{Lane, Measured, measure};
use super::{Outcome, Trial};
use crate::client::expect_rejection;
use crate::databases::local;
use crate::fault::Result;
use crate::route::Route;

const LANES: usize = 4;

#[derive(Debug)]
pub(super) struct Untrusted(SocketAddr);

impl Lane for Untrusted {
    async fn step(&mut self) -> Result<()> {
        expect_rejection(self.0).await
    }
}

/// Measures rejected connections at one instance.
pub(super) async fn reject(trial: Trial<'_>) -> Result<Measured<Untrusted>> {
    let address = local(trial.instance.port(Route::Redis)?);
    measure(trial, (0..LANES).map(|_| Untrusted(address)).collect(), |_| ()).await
}

pub(super) async fn sample(trial: Trial<'_>) -> Result<Outcome> {
    let measured = reject(trial).await?;
    Ok(measured.per(measured.steps, "µs/connection"))
}
