//! Authentication in the protocol of Redis.
//!
//! A client speaks with [`before::Conversation`] until a password is right, then through [`translate::Translator`], which puts
//! the database's password in the place of the client's. [`upstream::UpstreamLogin`] authenticates Portcullis at the database.

pub(crate) mod attempt;
pub(crate) mod before;
pub(crate) mod credentials;
mod encode;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod known;
mod reader;
#[cfg(test)]
mod tests;
pub(crate) mod translate;
pub(crate) mod upstream;
