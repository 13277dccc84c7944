//! Authentication of clients in the protocol of their database, and of Portcullis at the database: bytes in, verdict out.

pub(crate) mod redis;
