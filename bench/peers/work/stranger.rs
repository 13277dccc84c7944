//! A client from an address that is on no list: connect, be thrown out.

use std::net::SocketAddr;

use super::drive::{Lane, Measured, measure};
use super::{Outcome, Trial};
use crate::client::be_refused;
use crate::databases::local;
use crate::door::Door;
use crate::fault::Result;

const LANES: usize = 4;

#[derive(Debug)]
pub(super) struct Stranger(SocketAddr);

impl Lane for Stranger {
    async fn step(&mut self) -> Result<()> {
        be_refused(self.0).await
    }
}

/// Strangers before one instance.
pub(super) async fn turn_away(trial: Trial<'_>) -> Result<Measured<Stranger>> {
    let address = local(trial.instance.port(Door::Redis)?);
    measure(trial, (0..LANES).map(|_| Stranger(address)).collect(), |_| ()).await
}

pub(super) async fn sample(trial: Trial<'_>) -> Result<Outcome> {
    let measured = turn_away(trial).await?;
    Ok(measured.per(measured.steps, "µs/connection"))
}
