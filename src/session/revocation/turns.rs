//! The order in which sessions are judged when their chains have to be verified again.

use std::collections::HashMap;
use std::sync::Arc;

use crate::identity::verified::VerifiedIdentity;
use crate::session::registry::LiveConnection;

/// The sessions of one listener with one chain. They share a verdict.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) listener: Arc<str>,
    pub(crate) identity: Arc<VerifiedIdentity>,
    pub(crate) sessions: Vec<Arc<LiveConnection>>,
    /// Number of chains of the same client that come before it.
    pub(crate) turn: usize,
}

/// Groups the sessions that have a chain. Clients, known by their own certificates, take turns with one chain each; within a turn
/// the shorter chains come first.
pub(crate) fn in_turns(sessions: Vec<Arc<LiveConnection>>) -> Vec<Group> {
    let mut groups: HashMap<(Arc<str>, [u8; 32]), Group> = HashMap::new();
    for live in sessions {
        let Some(identity) = live.session().and_then(|session| session.authorization.presented.clone()) else {
            continue;
        };
        let listener = Arc::clone(live.listener());
        let group = groups.entry((Arc::clone(&listener), identity.chain_digest()));
        group.or_insert_with(|| Group { listener, identity, sessions: Vec::new(), turn: 0 }).sessions.push(live);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    // The largest groups first, as an ordinary client has many sessions with one chain.
    groups.sort_by_key(|group| (group.identity.sent(), usize::MAX - group.sessions.len()));
    // A client with one chain at several listeners has one turn.
    let mut chains: HashMap<&str, Vec<[u8; 32]>> = HashMap::new();
    for group in &mut groups {
        let of_client = chains.entry(group.identity.certificate.sha256.as_str()).or_default();
        let digest = group.identity.chain_digest();
        group.turn = of_client.iter().position(|known| *known == digest).unwrap_or_else(|| {
            of_client.push(digest);
            of_client.len() - 1
        });
    }
    groups.sort_by_key(|group| group.turn);
    groups
}
