//! The upstream. Only a client that has been identified and has said what it wants can cost it a connection.

pub(crate) mod hold;

use crate::upstream::proxy_header;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::probe::probe;

use crate::upstream::dial::{Reached, Unfit};
use crate::upstream::record::{note_answer, note_unfit};

use crate::audit::event::Facts;
use crate::outcome::{Ending, Reason};
use crate::policy::Current;
use crate::printable;
use crate::protocol::{Protocol, postgres};
use crate::proxy::phase::authorize::Identified;
use crate::proxy::phase::close::{Leave, Startup};
use crate::proxy::phase::dial::hold::{Held, Hold};
use crate::proxy::phase::startup::Ready;
use crate::transport::UpstreamLeg;
use crate::upstream::Upstream;
use crate::upstream::connect::resolve;
use crate::upstream::dial::{reach, reach_anyhow, unresolved};
use crate::upstream::endpoint::{Node, Whereabouts};
use crate::upstream::probe::share;

/// A client and its upstream, between which nothing has passed yet.
#[derive(Debug)]
pub(crate) struct Dialled {
    pub(crate) identified: Identified,
    pub(crate) reached: Reached,
    /// What the client has said already and the upstream has not heard.
    pub(crate) first: Vec<u8>,
}

/// The nodes that have not been tried yet for a client, and what became of the others.
#[derive(Debug)]
pub(crate) struct Candidates {
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
    /// Whether one refuses connections, as while it restarts.
    is_refused: bool,
    hold: Hold,
}

impl Candidates {
    /// All of them.
    pub(crate) fn of(upstream: &Upstream) -> Self {
        let nodes = upstream.nodes.in_order(upstream.wants_writes());
        Self {
            several: nodes.len() > 1,
            nodes: nodes.into_iter(),
            places: Vec::new().into_iter(),
            left: Duration::ZERO,
            patience: Duration::ZERO,
            failures: Vec::new(),
            reason: Reason::UpstreamUnreachable,
            is_soon: false,
            is_refused: false,
            hold: Hold::default(),
        }
    }

    /// All of them once more.
    fn start_over(&mut self, upstream: &Upstream) {
        *self = Self { hold: mem::take(&mut self.hold), ..Self::of(upstream) };
    }

    /// What all of them refuse connections with, where another client has found that out a moment ago.
    fn known_refusal(&mut self, upstream: &Upstream) -> Option<Ending> {
        let outage = upstream.nodes.outage();
        let known = outage.known(Instant::now().into_std()).filter(|_| self.hold.is_new() && is_retried(upstream))?;
        self.is_refused = true;
        Some(known)
    }

    /// Whether there is more than one to choose from, as far as is known by now.
    pub(crate) fn are_several(&self) -> bool {
        self.several
    }

    /// Whether the client has been held while the upstream refused connections.
    pub(crate) fn has_waited(&self) -> bool {
        !self.hold.is_new()
    }

    /// How long the one that was reached may take to deal with the client.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Reaches the next of them that will do.
    ///
    /// # Errors
    /// When there is none left.
    pub(crate) async fn reach_next(&mut self, upstream: &Upstream, header: &[u8]) -> Result<Reached, Ending> {
        while let Some(place) = self.next(upstream).await {
            let begun = Instant::now();
            // No place may take more than its share of what time its node has.
            let reached = reach(&place, upstream, header, begun + share(self.left, self.places.len() + 1)).await;
            self.left = self.left.saturating_sub(begun.elapsed());
            match reached {
                Ok(leg) => return Ok(Reached { leg, place }),
                Err(unfit) => self.reject(&place, upstream, unfit),
            }
        }
        Err(Ending::new(self.reason, printable::list(&self.failures)))
    }

    async fn next(&mut self, upstream: &Upstream) -> Option<Whereabouts> {
        loop {
            if let Some(place) = self.places.next() {
                return Some(place);
            }
            let node = self.nodes.next()?;
            let begun = Instant::now();
            match resolve(&node, upstream, begun + upstream.settings.connect_timeout, upstream.wants_writes()).await {
                Ok(places) => {
                    self.left = upstream.settings.connect_timeout.saturating_sub(begun.elapsed());
                    self.patience = share(upstream.settings.connect_timeout, places.len());
                    self.several |= places.len() > 1;
                    self.places = places.into_iter();
                    let name = node.itself();
                    if name.is_name() {
                        note_answer(&name, upstream);
                    }
                }
                Err(error) => self.reject(&node.itself(), upstream, unresolved(error)),
            }
        }
    }

    /// One of them will not do.
    pub(crate) fn reject(&mut self, place: &Whereabouts, upstream: &Upstream, unfit: Unfit) {
        note_unfit(place, upstream, &unfit, self.several);
        let Unfit { reason, words, answers, refuses, .. } = unfit;
        self.is_refused |= refuses;
        self.is_soon |= answers;
        self.failures.push(format!("upstream {place}: {words}"));
        self.reason = reason;
    }

    /// Turns a client away for whom there is none left.
    fn turn_away(&self, ending: Ending, ready: Ready, facts: &mut Facts) -> Leave {
        let Identified { client, terms, .. } = ready.identified;
        // Each of them has been tried.
        facts.upstream = Some(Arc::clone(&terms.upstream.name));
        let protocol = terms.protocol;
        match (protocol, self.is_soon) {
            (Protocol::Postgres, true) => Leave::with_words(ending, client, postgres::come_again()),
            (Protocol::Postgres | Protocol::Redis | Protocol::Tcp, _) => {
                Leave::refused(ending, client, protocol, Startup::Heard)
            }
        }
    }
}

/// Reaches an upstream for a client, which is held while all refuse connections, for `dial_retry`.
pub(crate) async fn dial(
    mut ready: Ready,
    candidates: &mut Candidates,
    current: &Current,
    facts: &mut Facts,
) -> Result<Dialled, Leave> {
    loop {
        let terms = &ready.identified.terms;
        let mut ending = match candidates.known_refusal(&terms.upstream) {
            Some(ending) => ending,
            None => {
                let Identified { client, credential, .. } = &ready.identified;
                let header = proxy_header::of_client(client, credential.as_deref(), &terms.upstream, facts);
                match candidates.reach_next(&terms.upstream, &header).await {
                    Ok(reached) => {
                        // Whether it will do is not known yet; the next one may try meanwhile.
                        candidates.hold.release();
                        facts.upstream = Some(reached.place.node.address().to_string().into());
                        let Ready { identified, first } = ready;
                        return Ok(Dialled { identified, reached, first });
                    }
                    Err(ending) if candidates.is_refused && is_retried(&terms.upstream) => {
                        terms.upstream.nodes.outage().note(&ending, Instant::now().into_std());
                        ending
                    }
                    Err(ending) => return Err(candidates.turn_away(ending, ready, facts)),
                }
            }
        };
        let (held, again) = candidates.hold.wait(ready, current, facts).await?;
        ready = again;
        match held {
            Held::DialAgain => candidates.start_over(&ready.identified.terms.upstream),
            Held::GiveUp => {
                let retry = ready.identified.terms.upstream.settings.dial_retry;
                ending.add(format_args!("; it was dialled again for {retry:?} (dial_retry)"));
                return Err(candidates.turn_away(ending, ready, facts));
            }
        }
    }
}

/// Whether a client is held while the upstream refuses connections.
fn is_retried(upstream: &Upstream) -> bool {
    !upstream.settings.dial_retry.is_zero()
}

/// Reaches the upstream for a CancelRequest: the place where its session is or, where that is not known, the first that
/// will do.
pub(crate) async fn dial_for_cancel(
    place: Option<&Whereabouts>,
    upstream: &Upstream,
    header: &[u8],
) -> Result<(UpstreamLeg, Arc<Node>), Ending> {
    let Some(place) = place else {
        let reached = Candidates::of(upstream).reach_next(upstream, header).await?;
        return Ok((reached.leg, reached.place.node));
    };
    let deadline = Instant::now() + upstream.settings.connect_timeout;
    // That a connection is taken is too little to know that a server answers.
    let failed = |unfit: Unfit| {
        note_unfit(place, upstream, &unfit, upstream.nodes.are_several());
        Ending::new(unfit.reason, format_args!("upstream {place}: {}", unfit.words))
    };
    let leg = reach_anyhow(place, upstream, header, deadline).await.map_err(failed)?;
    Ok((leg, Arc::clone(&place.node)))
}
