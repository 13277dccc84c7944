//! Authentication of a client by Portcullis, and of Portcullis by a database.
//!
//! The module is pure: bytes in, bytes and verdicts out.

pub(crate) mod postgres;
