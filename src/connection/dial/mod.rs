//! The upstream. Only a client that has been identified and has said what it wants can cost it a connection.

pub(super) mod announce;
mod network;
mod reach;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

pub(super) use self::reach::{Reached, Unfit, note_role, refused_late, silent};

use self::network::resolve;
use self::reach::{reach, reach_anyhow};
use super::hear::Ready;
use super::identify::Identified;
use super::leg::{ClientLeg, UpstreamLeg};
use super::part::{Leave, Startup};
use crate::audit::Facts;
use crate::outcome::{Ending, Reason};
use crate::printable;
use crate::protocol::{Protocol, Target, postgres};
use crate::snapshot::{Node, Terms, Whereabouts};

/// A client and its upstream, between which nothing has passed yet.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) identified: Identified,
    pub(super) reached: Reached,
    /// What the client has said already and the upstream has not heard.
    pub(super) first: Vec<u8>,
}

/// The nodes that have not been tried yet for a client, and what became of the others.
#[derive(Debug)]
pub(super) struct Candidates {
    nodes: std::vec::IntoIter<Arc<Node>>,
    /// Where the node leads whose turn it is.
    places: std::vec::IntoIter<Whereabouts>,
    /// How long all its places together may still take.
    left: Duration,
    /// How long each of them may take to deal with the client.
    patience: Duration,
    several: bool,
    failures: Vec<String>,
    reason: Reason,
    /// Whether one answers and is only not what is wanted, or not yet.
    is_soon: bool,
}

impl Candidates {
    /// All of them.
    pub(super) fn of(terms: &Terms) -> Self {
        let nodes = terms.nodes.in_order(wants_writes(terms));
        Self {
            several: nodes.len() > 1,
            nodes: nodes.into_iter(),
            places: Vec::new().into_iter(),
            left: Duration::ZERO,
            patience: Duration::ZERO,
            failures: Vec::new(),
            reason: Reason::UpstreamUnreachable,
            is_soon: false,
        }
    }

    /// Whether there is more than one to choose from, as far as is known by now.
    pub(super) fn are_several(&self) -> bool {
        self.several
    }

    /// How long the one that was reached may take to deal with the client.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Reaches the next of them that will do.
    ///
    /// # Errors
    /// When there is none left.
    pub(super) async fn reach_next(&mut self, terms: &Terms, header: &[u8]) -> Result<Reached, Ending> {
        while let Some(place) = self.next(terms).await {
            let begun = Instant::now();
            // No place may take more than its share of what time its node has.
            let reached = reach(&place, terms, header, begun + share(self.left, self.places.len() + 1)).await;
            self.left = self.left.saturating_sub(begun.elapsed());
            match reached {
                Ok(leg) => return Ok(Reached { leg, place }),
                Err(unfit) => self.reject(&place, terms, unfit),
            }
        }
        Err(Ending::new(self.reason, printable::list(&self.failures)))
    }

    async fn next(&mut self, terms: &Terms) -> Option<Whereabouts> {
        loop {
            if let Some(place) = self.places.next() {
                return Some(place);
            }
            let node = self.nodes.next()?;
            let begun = Instant::now();
            match resolve(&node, terms, begun + terms.upstream.connect_timeout, wants_writes(terms)).await {
                Ok(places) => {
                    self.left = terms.upstream.connect_timeout.saturating_sub(begun.elapsed());
                    self.patience = share(terms.upstream.connect_timeout, places.len());
                    self.several |= places.len() > 1;
                    self.places = places.into_iter();
                    let name = node.itself();
                    if name.is_name() {
                        note_answer(&name, terms);
                    }
                }
                Err(error) => self.reject(&node.itself(), terms, silent(error)),
            }
        }
    }

    /// One of them will not do.
    pub(super) fn reject(&mut self, place: &Whereabouts, terms: &Terms, unfit: Unfit) {
        let Unfit { reason, words, answers } = unfit;
        if answers {
            self.is_soon = true;
            note_answer(place, terms);
        } else if self.several && place.is_silent(&words) {
            warn!("listener {}: upstream {place} is tried last from now on: {words}", terms.name);
        }
        self.failures.push(format!("upstream {place}: {words}"));
        self.reason = reason;
    }

    /// Turns a client away for whom there is none left.
    fn turn_away(&self, ending: Ending, client: ClientLeg, protocol: Protocol) -> Leave {
        match (protocol, self.is_soon) {
            (Protocol::Postgres, true) => Leave::with_words(ending, client, postgres::come_again()),
            (Protocol::Postgres | Protocol::Redis | Protocol::Tcp, _) => {
                Leave::refused(ending, client, protocol, Startup::Heard)
            }
        }
    }
}

fn share(time: Duration, places: usize) -> Duration {
    time / u32::try_from(places).unwrap_or(u32::MAX).max(1)
}

/// Whether only a place will do that takes writes.
fn wants_writes(terms: &Terms) -> bool {
    terms.upstream.target == Target::Primary
}

/// Notes that a place has answered as it should, and says so where that is news.
pub(super) fn note_answer(place: &Whereabouts, terms: &Terms) {
    if place.answers() {
        warn!("listener {}: upstream {place} answers again", terms.name);
    }
}

/// Reaches an upstream for a client.
pub(super) async fn dial(ready: Ready, candidates: &mut Candidates, facts: &mut Facts) -> Result<Dialled, Leave> {
    let Ready { identified, first } = ready;
    let header = announce::of_client(&identified, facts);
    match candidates.reach_next(&identified.terms, &header).await {
        Ok(reached) => {
            facts.upstream = Some(reached.place.node.address().to_string().into());
            Ok(Dialled { identified, reached, first })
        }
        Err(ending) => {
            // Each of them has been tried.
            facts.upstream = Some(Arc::clone(&identified.terms.upstream_name));
            Err(candidates.turn_away(ending, identified.client, identified.terms.protocol))
        }
    }
}

/// Reaches the upstream for a CancelRequest: the place where its session is or, where that is not known, the first that
/// will do.
pub(super) async fn dial_for_cancel(
    place: Option<&Whereabouts>,
    terms: &Terms,
    header: &[u8],
) -> Result<(UpstreamLeg, Arc<Node>), Ending> {
    let Some(place) = place else {
        let reached = Candidates::of(terms).reach_next(terms, header).await?;
        return Ok((reached.leg, reached.place.node));
    };
    let deadline = Instant::now() + terms.upstream.connect_timeout;
    let failed = |unfit: Unfit| Ending::new(unfit.reason, format_args!("upstream {place}: {}", unfit.words));
    let leg = reach_anyhow(place, terms, header, deadline).await.map_err(failed)?;
    Ok((leg, Arc::clone(&place.node)))
}

/// Finds out whether a place that did not answer does so again, or a name that did not resolve.
pub async fn probe(place: &Whereabouts, terms: &Terms) {
    match ask(place, terms).await {
        // It is there, if not what everybody wants.
        Ok(()) | Err(Unfit { answers: true, .. }) => note_answer(place, terms),
        Err(Unfit { words, .. }) => place.is_silent_still(&words),
    }
}

async fn ask(place: &Whereabouts, terms: &Terms) -> Result<(), Unfit> {
    let deadline = Instant::now() + terms.upstream.connect_timeout;
    resolve(&place.node, terms, deadline, false).await.map_err(silent)?;
    // What a name leads to now may be somewhere else, and that nobody has found silent.
    if place.is_name() || !place.is_known() {
        return Ok(());
    }
    reach::probe(place, terms, &announce::own(terms), deadline).await
}
