//! What many replicas share through a store: the rules of listeners, session ticket keys, and what each member has applied.
//!
//! Pure: the agent reads and writes the store, and the server composes the two.

pub(crate) mod chunks;
pub(crate) mod command;
pub(crate) mod guard;
pub(crate) mod known;
pub(crate) mod manifest;
pub(crate) mod roster;
pub(crate) mod seal;
pub(crate) mod settings;
pub(crate) mod store;
pub(crate) mod ticket_ring;
pub(crate) mod view;
