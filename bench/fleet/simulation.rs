//! What a large fleet costs the store, and how long a change takes in it, from measured parts.
//!
//! The load of the store is the number of requests times what each kind costs a store with so many members; see
//! [`crate::stand_ins`]. The time of a change is that of the last member. Each member has the time in which a store with so many
//! members reports the change to it, and the time that one member in a fleet of two took, both drawn from those measured.

use std::time::Duration;

use crate::fault::Result;
use crate::measures::Changes;
use crate::stand_ins::{Costs, measure};
use crate::store::Work;
use crate::summary::Summary;

/// What was measured with real members.
#[derive(Debug)]
pub(crate) struct Simulation<'a> {
    /// A fleet of two.
    pub(crate) pair: &'a Changes,
    pub(crate) fleet: &'a Changes,
}

impl Simulation<'_> {
    /// Compares what is computed for the real fleet with what was measured.
    pub(crate) async fn check(&self) -> Result<()> {
        let Changes { members, writes, quiet, busy, sample, .. } = self.fleet;
        let costs = measure(*members, sample).await?;
        // Without what the store would have done in the same time anyway.
        let change = (busy.work - quiet.rate() * busy.time.as_secs_f64()) * f64::from(*writes).recip();
        println!("the store of {members} members");
        println!("  a quiet second, measured: {}", quiet.rate());
        println!("  a quiet second, computed: {}", costs.quiet(*members));
        println!("  a change, measured:       {change}");
        println!("  a change, computed:       {}", costs.with_confirmations(*members));
        println!("  in force on all after the request, computed: {}", self.latency(&costs));
        Ok(())
    }

    /// Prints what is computed for a fleet of this size.
    pub(crate) async fn run(&self, members: usize) -> Result<()> {
        let costs = measure(members, &self.fleet.sample).await?;
        let last = costs.deliveries.iter().filter_map(|times| times.iter().max()).copied();
        println!("{members} members, simulated");
        println!("  the store, a quiet second: {}", costs.quiet(members));
        println!("  the store, a change:       {}", costs.with_confirmations(members));
        println!("  reported to all after the request: {}", Summary::from(last.collect::<Vec<_>>()));
        println!("  in force on all after the request: {}", self.latency(&costs));
        Ok(())
    }

    /// The time until the last member has a change in force.
    fn latency(&self, costs: &Costs) -> Summary {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let round = |_| {
            let deliveries = random.of(&costs.deliveries).map(Vec::as_slice).unwrap_or_default();
            let member = |delivery: &Duration| *delivery + random.of(&self.pair.others).copied().unwrap_or_default();
            deliveries.iter().map(member).max().unwrap_or_default()
        };
        Summary::from((0..ROUNDS).map(round).collect::<Vec<_>>())
    }
}

impl Costs {
    /// A second in which nobody changes anything.
    fn quiet(&self, members: usize) -> Work {
        let every = |seconds: f64| members as f64 / seconds;
        self.idle
            + self.hold * every(HOLD_INTERVAL)
            + self.list * every(HOLD_INTERVAL)
            + self.state * every(STATE_INTERVAL)
            + self.ask * every(ASK_INTERVAL)
    }

    /// A change, after which every member writes what it has in force.
    fn with_confirmations(&self, members: usize) -> Work {
        self.change + self.state * members as f64
    }
}

/// xorshift64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        all.get(usize::try_from(self.0 % all.len().max(1) as u64).ok()?)
    }
}

/// How often a member holds its name and lists all members, how often it writes its state, and how often it asks for a sign of
/// life of a watch without events, in seconds. The comparison with the real fleet shows when this is no longer true.
const HOLD_INTERVAL: f64 = 3.0;
const STATE_INTERVAL: f64 = 5.0;
const ASK_INTERVAL: f64 = 10.0;

/// Simulated changes.
const ROUNDS: usize = 10_000;
