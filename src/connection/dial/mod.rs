//! The upstream. Only a client that has been identified and has said what it wants can cost it a connection.

pub(super) mod announce;
mod network;
mod reach;

use std::sync::Arc;
use std::time::Instant;

use tracing::warn;

pub(super) use self::reach::Reached;

use self::reach::{Unfit, reach, reach_again};
use super::hear::Ready;
use super::identify::Identified;
use super::leg::UpstreamLeg;
use super::part::{Leave, Startup};
use crate::audit::Facts;
use crate::outcome::{Ending, Reason};
use crate::protocol::Target;
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
    untried: std::vec::IntoIter<Arc<Node>>,
    several: bool,
    failures: Vec<String>,
    reason: Reason,
}

impl Candidates {
    /// All of them.
    pub(super) fn of(terms: &Terms) -> Self {
        let nodes = terms.nodes.in_order(terms.upstream.target == Target::Primary);
        Self {
            several: nodes.len() > 1,
            untried: nodes.into_iter(),
            failures: Vec::new(),
            reason: Reason::UpstreamUnreachable,
        }
    }

    /// Reaches the next of them that will do.
    ///
    /// # Errors
    /// When there is none left.
    pub(super) async fn reach_next(&mut self, terms: &Terms, header: &[u8]) -> Result<Reached, Ending> {
        while let Some(node) = self.untried.next() {
            match reach(&node, terms, header).await {
                Ok(reached) => {
                    if node.answers() {
                        warn!("listener {}: upstream {} answers again", terms.name, node.address());
                    }
                    return Ok(reached);
                }
                Err(unfit) => self.note(&node, terms, unfit),
            }
        }
        Err(self.exhausted())
    }

    /// A node that was reached will not do after all.
    pub(super) fn reject(&mut self, node: &Node, words: &str) {
        self.failures.push(format!("upstream {}: {words}", node.address()));
    }

    /// What is to be said when none is left.
    pub(super) fn exhausted(&self) -> Ending {
        Ending::new(self.reason, self.failures.join("; "))
    }

    fn note(&mut self, node: &Node, terms: &Terms, unfit: Unfit) {
        let Unfit { reason, words, answers } = unfit;
        let address = node.address();
        if self.several && !answers && node.is_silent(Instant::now()) {
            warn!("listener {}: upstream {address} is tried last from now on: {words}", terms.name);
        }
        self.failures.push(format!("upstream {address}: {words}"));
        self.reason = reason;
    }
}

/// Reaches an upstream for a client.
pub(super) async fn dial(ready: Ready, candidates: &mut Candidates, facts: &mut Facts) -> Result<Dialled, Leave> {
    let Ready { identified, first } = ready;
    let header = announce::of_client(&identified, facts);
    match candidates.reach_next(&identified.terms, &header).await {
        Ok(reached) => {
            facts.upstream = Some(reached.whereabouts.node.address().to_string().into());
            Ok(Dialled { identified, reached, first })
        }
        Err(ending) => {
            let protocol = identified.terms.protocol;
            Err(Leave::refused(ending, identified.client, protocol, Startup::Heard))
        }
    }
}

/// Reaches the upstream for a CancelRequest: the node where the session of this key is or, where that is not known, the
/// first that will do.
pub(super) async fn dial_for_cancel(
    key: &[u8],
    terms: &Terms,
    header: &[u8],
) -> Result<(UpstreamLeg, Arc<Node>), Ending> {
    let Some(whereabouts) = terms.cancels.find(key) else {
        let reached = Candidates::of(terms).reach_next(terms, header).await?;
        return Ok((reached.leg, reached.whereabouts.node));
    };
    let Whereabouts { node, .. } = &whereabouts;
    let failed = |unfit: Unfit| Ending::new(unfit.reason, format_args!("upstream {}: {}", node.address(), unfit.words));
    let leg = reach_again(&whereabouts, terms, header).await.map_err(failed)?;
    Ok((leg, Arc::clone(node)))
}

/// Finds out whether a node that did not answer does so again.
pub async fn probe(node: &Arc<Node>, terms: &Terms) -> bool {
    match reach(node, terms, &announce::own(terms)).await {
        Ok(_) => node.answers(),
        // It is there, if not what everybody wants.
        Err(Unfit { answers: true, .. }) => node.answers(),
        Err(Unfit { .. }) => {
            node.is_silent(Instant::now());
            false
        }
    }
}
