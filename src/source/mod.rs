//! Trusted sources: which addresses may connect. Pure: no clock, file or socket.
//!
//! Permission is a value. Only `SourcePolicy::admit` makes an `Admitted`, which every later phase of a connection requires.

pub(crate) mod addresses;
pub(crate) mod cloud;
pub(crate) mod group;
pub(crate) mod host;
pub(crate) mod id;
pub(crate) mod packet_filter;
pub(crate) mod proxies;
pub(crate) mod rule;
pub(crate) mod rule_set;
pub(crate) mod trusted;
