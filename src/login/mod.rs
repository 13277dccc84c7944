//! Authentication of a client by Portcullis, and of Portcullis by a database.
//!
//! The module is pure: bytes in, bytes and verdicts out.

pub(crate) mod postgres;
#[allow(dead_code, reason = "listeners for Redis do not authenticate clients yet")]
pub(crate) mod redis;
