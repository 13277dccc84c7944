//! The upstream. Only a client that has been identified and has said what it wants can cost it a connection.

pub(super) mod announce;
mod hold;
mod network;
mod reach;

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

pub(super) use self::reach::{Reached, Unfit, note_role, refused_late, silent};

use self::hold::{Held, Hold};
use self::network::resolve;
use self::reach::{reach, reach_anyhow, unresolved};
use super::hear::Ready;
use super::identify::Identified;
use super::leg::UpstreamLeg;
use super::part::{Leave, Startup};
use crate::audit::Facts;
use crate::outcome::{Ending, Reason};
use crate::printable;
use crate::protocol::{Protocol, Target, postgres};
use crate::snapshot::{Current, Node, Terms, Whereabouts};

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
    /// Whether one refuses connections, as while it restarts.
    is_refused: bool,
    hold: Hold,
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
            is_refused: false,
            hold: Hold::default(),
        }
    }

    /// All of them once more.
    fn start_over(&mut self, terms: &Terms) {
        *self = Self { hold: mem::take(&mut self.hold), ..Self::of(terms) };
    }

    /// What all of them refuse connections with, where another client has found that out a moment ago.
    fn known_refusal(&mut self, terms: &Terms) -> Option<Ending> {
        let outage = terms.nodes.outage();
        let known = outage.known(Instant::now().into_std()).filter(|_| self.hold.is_new() && is_retried(terms))?;
        self.is_refused = true;
        Some(known)
    }

    /// Whether there is more than one to choose from, as far as is known by now.
    pub(super) fn are_several(&self) -> bool {
        self.several
    }

    /// Whether the client has been held while the upstream refused connections.
    pub(super) fn has_waited(&self) -> bool {
        !self.hold.is_new()
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
                Err(error) => self.reject(&node.itself(), terms, unresolved(error)),
            }
        }
    }

    /// One of them will not do.
    pub(super) fn reject(&mut self, place: &Whereabouts, terms: &Terms, unfit: Unfit) {
        note_unfit(place, terms, &unfit, self.several);
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
        facts.upstream = Some(Arc::clone(&terms.upstream_name));
        let protocol = terms.protocol;
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
        log_answer(place, terms);
    }
}

/// Notes why a place will not do, and says so where that is news; `several` where there are others to try.
pub(super) fn note_unfit(place: &Whereabouts, terms: &Terms, unfit: &Unfit, several: bool) {
    let Unfit { words, answers, is_local, .. } = unfit;
    if *is_local {
        place.is_not_dialled(words);
    } else if *answers {
        if place.is_unsuitable(words) {
            log_answer(place, terms);
        }
    } else if place.is_silent(words) {
        if several {
            warn!("listener {}: upstream {place} is tried last from now on: {words}", terms.name);
        } else {
            warn!(listener = %terms.name, upstream = %place, error = %words, "upstream unhealthy");
        }
    }
}

fn log_answer(place: &Whereabouts, terms: &Terms) {
    warn!("listener {}: upstream {place} answers again", terms.name);
}

/// Reaches an upstream for a client, which is held while all refuse connections, for `dial_retry`.
pub(super) async fn dial(
    mut ready: Ready,
    candidates: &mut Candidates,
    current: &Current,
    facts: &mut Facts,
) -> Result<Dialled, Leave> {
    loop {
        let terms = &ready.identified.terms;
        let mut ending = match candidates.known_refusal(terms) {
            Some(ending) => ending,
            None => {
                let header = announce::of_client(&ready.identified, facts);
                match candidates.reach_next(terms, &header).await {
                    Ok(reached) => {
                        // Whether it will do is not known yet; the next one may try meanwhile.
                        candidates.hold.release();
                        facts.upstream = Some(reached.place.node.address().to_string().into());
                        let Ready { identified, first } = ready;
                        return Ok(Dialled { identified, reached, first });
                    }
                    Err(ending) if candidates.is_refused && is_retried(terms) => {
                        terms.nodes.outage().note(&ending, Instant::now().into_std());
                        ending
                    }
                    Err(ending) => return Err(candidates.turn_away(ending, ready, facts)),
                }
            }
        };
        let (held, again) = candidates.hold.wait(ready, current, facts).await?;
        ready = again;
        match held {
            Held::DialAgain => candidates.start_over(&ready.identified.terms),
            Held::GiveUp => {
                let retry = ready.identified.terms.upstream.dial_retry;
                ending.add(format_args!("; it was dialled again for {retry:?} (dial_retry)"));
                return Err(candidates.turn_away(ending, ready, facts));
            }
        }
    }
}

/// Whether a client is held while the upstream refuses connections.
fn is_retried(terms: &Terms) -> bool {
    !terms.upstream.dial_retry.is_zero()
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
    // That a connection is taken is too little to know that a server answers.
    let failed = |unfit: Unfit| {
        note_unfit(place, terms, &unfit, terms.nodes.are_several());
        Ending::new(unfit.reason, format_args!("upstream {place}: {}", unfit.words))
    };
    let leg = reach_anyhow(place, terms, header, deadline).await.map_err(failed)?;
    Ok((leg, Arc::clone(&place.node)))
}

/// Finds out whether a place that did not answer does so again, or a name that did not resolve. Where the name leads to other
/// places by now, whether those answer that nobody has dialled yet.
pub async fn probe(place: &Whereabouts, terms: &Terms) {
    let deadline = Instant::now() + terms.upstream.connect_timeout;
    let places = match resolve(&place.node, terms, deadline, false).await {
        Ok(places) => places,
        Err(error) => return note_still_unfit(place, terms, &silent(error)),
    };
    let header = announce::own(terms);
    if !place.is_name() && place.is_known() {
        return match reach::probe(place, terms, &header, deadline).await {
            Ok(()) => note_answer(place, terms),
            Err(unfit) => note_still_unfit(place, terms, &unfit),
        };
    }
    if place.is_name() {
        note_answer(place, terms);
    }
    for unknown in places.iter().filter(|place| place.is_unknown()) {
        let deadline = Instant::now() + share(terms.upstream.connect_timeout, places.len());
        match reach::probe(unknown, terms, &header, deadline).await {
            Ok(()) => note_answer(unknown, terms),
            Err(unfit) => note_unfit(unknown, terms, &unfit, terms.nodes.are_several()),
        }
    }
}

/// Notes why a place that was asked again will not do.
fn note_still_unfit(place: &Whereabouts, terms: &Terms, unfit: &Unfit) {
    match unfit {
        // It is there, if not what everybody wants.
        Unfit { answers: true, .. } => note_unfit(place, terms, unfit, true),
        Unfit { words, is_local: true, .. } => place.is_not_dialled_again(words),
        Unfit { words, .. } => place.is_silent_still(words),
    }
}
