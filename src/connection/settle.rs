//! Whether the PostgreSQL server that was reached takes writes, where that is wanted.
//!
//! A server says so only behind authentication, which is between it and the client. So the client's StartupMessage goes to
//! one node after the other, and the client hears nothing, until one says that it is a primary. A node that asks the client
//! for a password cannot be exchanged any more without the client noticing: if that one is a standby, the client is told to
//! come again, and from then on the node is tried behind the others.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::dial::{Candidates, Dialled};
use super::hear::Ready;
use super::identify::Identified;
use super::opening::Opening;
use super::part::{Leave, Startup};
use crate::outcome::{Ending, Reason};
use crate::protocol::overture::{QUESTION, Role, Stage};
use crate::protocol::{Protocol, Target};

/// A client and an upstream that will do.
#[derive(Debug)]
pub(super) struct Welcome {
    pub(super) dialled: Dialled,
    /// The beginning of a PostgreSQL session, as far as it has come.
    pub(super) opening: Option<Opening>,
}

/// What has come of a node.
#[derive(Debug)]
pub(super) enum Settled {
    Session(Box<Welcome>),
    /// It will not do, and the client has not noticed.
    Elsewhere(Ready),
}

pub(super) async fn settle(dialled: Dialled, candidates: &mut Candidates) -> Result<Settled, Leave> {
    let terms = &dialled.identified.terms;
    if terms.protocol != Protocol::Postgres {
        return Ok(Settled::Session(Box::new(Welcome { dialled, opening: None })));
    }
    let opening = Opening::of(&dialled);
    if terms.upstream.target == Target::Any {
        return Ok(Settled::Session(Box::new(Welcome { dialled, opening: Some(opening) })));
    }
    let mut audition = Audition { dialled, opening };
    let verdict = audition.hold().await;
    let Audition { dialled, opening } = audition;
    let Dialled { identified, reached, first } = dialled;
    let node = &reached.whereabouts.node;
    match verdict {
        Verdict::Chosen { primary } => {
            if primary {
                node.takes_writes(true);
            }
            // It has had the first packet.
            let dialled = Dialled { identified, reached, first: Vec::new() };
            Ok(Settled::Session(Box::new(Welcome { dialled, opening: Some(opening) })))
        }
        Verdict::Unfit { words, standby } => {
            if standby && node.takes_writes(false) {
                warn!("listener {}: upstream {} is a standby", identified.terms.name, node.address());
            }
            candidates.reject(node, &words);
            if !opening.asks_client() {
                return Ok(Settled::Elsewhere(Ready { identified, first }));
            }
            let detail = format_args!(
                "upstream {}: {words}; when the client comes again another is tried first",
                node.address()
            );
            let ending = Ending::new(Reason::UpstreamUnreachable, detail);
            Err(Leave::refused(ending, identified.client, Protocol::Postgres, Startup::Heard))
        }
        Verdict::ClientLost(error) => Err(Ending::new(Reason::ClientClosed, error).into()),
    }
}

/// A node that is asked for its role.
struct Audition {
    dialled: Dialled,
    opening: Opening,
}

enum Verdict {
    /// It is the client's, for better or worse.
    Chosen {
        primary: bool,
    },
    Unfit {
        words: String,
        standby: bool,
    },
    ClientLost(io::Error),
}

impl Audition {
    async fn hold(&mut self) -> Verdict {
        let deadline = Instant::now() + self.dialled.identified.terms.upstream.connect_timeout;
        let Dialled { reached, first, .. } = &mut self.dialled;
        if let Err(error) = send(&mut reached.leg, first).await {
            return unfit(error);
        }
        loop {
            let verdict = match self.opening.asks_client() {
                // The client takes its time, and the server gives it one.
                true => self.go_on().await,
                false => timeout_at(deadline, self.go_on()).await.unwrap_or_else(|_| {
                    Some(unfit("it did not say in time whether it takes writes (connect_timeout)"))
                }),
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
                Ok(0) => return Some(unfit("it closed the connection")),
                Ok(count) => self.opening.follow(theirs.get(..count).unwrap_or_default()),
                Err(error) => return Some(unfit(error)),
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
                return send(&mut reached.leg, bytes).await.err().map(unfit);
            }
        };
        if let Err(error) = send(client, &self.opening.take_due()).await {
            return Some(Verdict::ClientLost(error));
        }
        match stage {
            Stage::Ongoing => None,
            Stage::Role(Role::Standby) => {
                Some(Verdict::Unfit { words: "it is a standby, and target is \"primary\"".to_owned(), standby: true })
            }
            Stage::Ask => send(&mut reached.leg, QUESTION).await.err().map(unfit),
            Stage::Refused if self.opening.is_not_ready() => Some(unfit("it is not ready for connections (57P03)")),
            Stage::Spoilt => Some(unfit("it did not say whether it is a primary")),
            // What a refusal says is for the client; and one that does not tell its role may be what is wanted.
            Stage::Role(Role::Primary | Role::Unknown) | Stage::Refused | Stage::Done | Stage::Lost => {
                self.opening.release();
                Some(Verdict::Chosen { primary: stage == Stage::Role(Role::Primary) })
            }
        }
    }
}

async fn send<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}

fn unfit(words: impl std::fmt::Display) -> Verdict {
    Verdict::Unfit { words: words.to_string(), standby: false }
}

/// What a client may say behind its StartupMessage before it has been asked: it is kept, to be said to another node again.
const MOST_REPEATED: usize = 32 << 10;
