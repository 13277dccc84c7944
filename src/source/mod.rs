//! The questions, answered without a clock, a file or a socket: may a client at this address come in, and one of these
//! names?
//!
//! Permission is a value. Only [`SourcePolicy::admit`] makes an [`Admitted`], and everything later in a connection's life
//! asks for one.

pub(crate) mod host;
pub(crate) mod packet_filter;
pub(crate) mod proxies;
pub(crate) mod rule;
pub(crate) mod trusted;

use crate::source::trusted::{Admitted, SourcePolicy};
