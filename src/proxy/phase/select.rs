//! Whether the PostgreSQL server that was reached will do, where there are several or one is wanted that takes writes.
//!
//! The client's StartupMessage goes to one place after the other, and the client hears nothing, until one begins to deal with
//! it and does not say that it is only starting or stopping. One that hangs or closes is gone past, too.
//!
//! Which role it has a server says only behind authentication, which is between it and the client. So where one is wanted that
//! takes writes, the client hears nothing until a server says that it is a primary; but one that asks the client for a password
//! cannot be exchanged any more without the client noticing. If that one is a standby, the client is told to come again, and
//! from then on the place is tried behind the others.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout, timeout_at};

use crate::outcome::{Ending, Reason};
use crate::protocol::farewell::goodbye;
use crate::protocol::postgres::startup::{Hold, QUESTION, Role, Stage};
use crate::protocol::{Protocol, Target, postgres};
use crate::proxy::phase::authorize::Identified;
use crate::proxy::phase::close::Leave;
use crate::proxy::phase::dial::{Candidates, Dialled};
use crate::proxy::phase::startup::Ready;
use crate::proxy::relay::startup::Opening;
use crate::upstream::dial::{Unfit, refused_late, silent};
use crate::upstream::record::{note_answer, note_role, note_unfit};

/// A client and an upstream that will do.
#[derive(Debug)]
pub(crate) struct Welcome {
    pub(crate) dialled: Dialled,
    /// The beginning of a PostgreSQL session, as far as it has come.
    pub(crate) opening: Option<Box<Opening>>,
}

/// What has come of a node.
#[derive(Debug)]
pub(crate) enum Settled {
    Session(Box<Welcome>),
    /// It will not do, and the client has not noticed.
    Elsewhere(Ready),
}

pub(crate) async fn settle(dialled: Dialled, candidates: &mut Candidates) -> Result<Settled, Leave> {
    let Dialled { identified, reached, .. } = &dialled;
    let terms = &identified.terms;
    if terms.protocol != Protocol::Postgres {
        note_answer(&reached.place, &terms.upstream);
        return Ok(Settled::Session(Box::new(Welcome { dialled, opening: None })));
    }
    let hold = match terms.upstream.settings.target {
        Target::Primary => Hold::Role,
        // A server that restarts takes connections before it is ready.
        Target::Any if candidates.are_several() || candidates.has_waited() => Hold::Refusal,
        Target::Any => Hold::Nothing,
    };
    let opening = Box::new(Opening::of(&dialled, hold));
    if hold == Hold::Nothing {
        note_answer(&dialled.reached.place, &dialled.identified.terms.upstream);
        return Ok(Settled::Session(Box::new(Welcome { dialled, opening: Some(opening) })));
    }
    let mut audition = Audition { dialled, opening, has_waited: candidates.has_waited() };
    let verdict = audition.hold(candidates.patience()).await;
    let Audition { dialled, opening, .. } = audition;
    let Dialled { identified, reached, first } = dialled;
    let (place, upstream) = (&reached.place, &identified.terms.upstream);
    match verdict {
        Verdict::Chosen(role) => {
            note_answer(place, upstream);
            if role == Some(Role::Primary) {
                note_role(place, upstream, true);
            }
            // It has had the first packet.
            let dialled = Dialled { identified, reached, first: Vec::new() };
            Ok(Settled::Session(Box::new(Welcome { dialled, opening: Some(opening) })))
        }
        Verdict::Unfit(unfit, role) => {
            if role == Some(Role::Standby) {
                note_role(place, upstream, false);
            }
            if !opening.asks_client() {
                candidates.reject(place, upstream, unfit);
                return Ok(Settled::Elsewhere(Ready { identified, first }));
            }
            if unfit.answers {
                note_unfit(place, upstream, &unfit, candidates.are_several());
            }
            let next =
                if role == Some(Role::Standby) { "; when the client comes again another is tried first" } else { "" };
            let detail = format_args!("upstream {place}: {}{next}", unfit.words);
            let ending = Ending::new(unfit.reason, detail);
            Err(Leave::with_words(ending, identified.client, postgres::come_again()))
        }
        Verdict::ClientLost(error) => Err(Ending::new(Reason::ClientClosed, error).into()),
        Verdict::Silence => {
            Err(Leave::with_words(Reason::IdleTimeout, identified.client, goodbye(Reason::IdleTimeout)))
        }
    }
}

/// A server that has to show what it is.
struct Audition {
    dialled: Dialled,
    opening: Box<Opening>,
    /// The client has been held already while the upstream refused connections, and is held on while it starts.
    has_waited: bool,
}

enum Verdict {
    /// It is the client's, for better or worse.
    Chosen(Option<Role>),
    Unfit(Unfit, Option<Role>),
    ClientLost(io::Error),
    /// The client was asked for something, and nothing was said for as long as a session may be silent.
    Silence,
}

impl Audition {
    async fn hold(&mut self, patience: Duration) -> Verdict {
        let deadline = Instant::now() + patience;
        let Dialled { reached, first, .. } = &mut self.dialled;
        if let Err(error) = send(&mut reached.leg, first).await {
            return self.lost(&error);
        }
        loop {
            let verdict = match self.opening.asks_client() {
                // The client takes its time, and the server gives it one.
                true => match self.dialled.identified.terms.limits.idle_timeout {
                    Some(limit) => timeout(limit, self.go_on()).await.unwrap_or(Some(Verdict::Silence)),
                    None => self.go_on().await,
                },
                false => timeout_at(deadline, self.go_on()).await.unwrap_or_else(|_| Some(mute(HANGS))),
            };
            if let Some(verdict) = verdict {
                return verdict;
            }
        }
    }

    /// One step further, between the two.
    async fn go_on(&mut self) -> Option<Verdict> {
        let Dialled { identified: Identified { client, .. }, reached, first } = &mut self.dialled;
        let repeatable = !self.opening.asks_client();
        let (mut theirs, mut ours) = ([0; 4096], [0; 4096]);
        let stage = tokio::select! {
            heard = reached.leg.read(&mut theirs) => match heard {
                Ok(0) => return Some(mute("it closed the connection without a word")),
                Ok(count) => self.opening.follow(theirs.get(..count).unwrap_or_default()),
                Err(error) => return Some(self.lost(&error)),
            },
            said = client.read(&mut ours), if !repeatable || first.len() < MOST_REPEATED => {
                let bytes = match said {
                    Ok(0) => return Some(Verdict::ClientLost(io::ErrorKind::UnexpectedEof.into())),
                    Ok(count) => ours.get(..count).unwrap_or_default(),
                    Err(error) => return Some(Verdict::ClientLost(error)),
                };
                if repeatable {
                    first.extend_from_slice(bytes);
                }
                let sent = send(&mut reached.leg, bytes).await;
                return sent.err().map(|error| self.lost(&error));
            }
        };
        match stage {
            // It deals with the client. What that is to hear of it by now is left to the relay.
            Stage::Ongoing if self.opening.hold() == Hold::Refusal && self.opening.has_due() => {
                return Some(Verdict::Chosen(None));
            }
            Stage::Role(Role::Standby) => {
                let words = "it is a standby, and target is \"primary\"";
                return Some(Verdict::Unfit(not_now(words), Some(Role::Standby)));
            }
            Stage::Refused if self.opening.is_not_ready() => {
                let unfit = Unfit { refuses: self.has_waited, ..not_now("it is not ready for connections (57P03)") };
                return Some(Verdict::Unfit(unfit, None));
            }
            Stage::Lost if repeatable => return Some(mute("what answers is no PostgreSQL server")),
            Stage::Spoilt => return Some(mute("it did not say whether it is a primary")),
            // What a refusal says is for the client; and one that does not tell its role may be what is wanted.
            Stage::Role(role @ (Role::Primary | Role::Unknown)) => {
                self.opening.release();
                return Some(Verdict::Chosen(Some(role)));
            }
            Stage::Refused | Stage::Done | Stage::Lost => {
                self.opening.release();
                return Some(Verdict::Chosen(None));
            }
            Stage::Ongoing | Stage::Ask => {}
        }
        if let Err(error) = send(client, &self.opening.take_due()).await {
            return Some(Verdict::ClientLost(error));
        }
        if stage == Stage::Ask {
            return send(&mut reached.leg, QUESTION).await.err().map(|error| self.lost(&error));
        }
        None
    }

    fn lost(&self, error: &io::Error) -> Verdict {
        Verdict::Unfit(refused_late(error, &self.dialled.identified.terms.upstream), None)
    }
}

async fn send<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}

/// It does not answer as a server should.
fn mute(words: &str) -> Verdict {
    Verdict::Unfit(silent(io::Error::other(words)), None)
}

/// It answers, but is not what is wanted, or not yet.
fn not_now(words: &str) -> Unfit {
    let reason = Reason::UpstreamUnreachable;
    Unfit { reason, words: words.to_owned(), answers: true, is_local: false, refuses: false }
}

const HANGS: &str = "it took the connection, and then there was no answer in time (connect_timeout)";

/// What a client may say behind its StartupMessage before it has been asked: it is kept, to be said to another server again.
const MOST_REPEATED: usize = 32 << 10;
