//! The agent: a child process that holds the tokens of clouds and clusters and speaks to their APIs.
//!
//! The process that has the TLS keys and the sessions never makes these connections. Both processes treat each other's messages
//! as hostile input. The files of this folder belong to both processes or to the program; the folders below it to the agent.

#[cfg(any(feature = "digitalocean", feature = "etcd"))]
pub(crate) mod client;
#[cfg(feature = "digitalocean")]
pub(crate) mod digitalocean;
pub(crate) mod frame;
#[cfg(feature = "kubernetes")]
pub(crate) mod kubernetes;
pub(crate) mod message;
pub(crate) mod process;
pub(crate) mod state;
pub(crate) mod store;
pub(crate) mod supervisor;
