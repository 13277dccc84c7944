//! What is known of the sources whose addresses change: the last good addresses, their age, and why there is no newer answer.
//!
//! [`crate::dns`] writes the answers about host names, the agent those about cloud sources. No failure removes an address.

pub(crate) mod cache;
pub(crate) mod cache_file;
pub(crate) mod cloud;
pub(crate) mod host;
pub(crate) mod observation;
pub(crate) mod saver;
pub(crate) mod settings;
pub(crate) mod status;
