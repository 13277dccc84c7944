//! What the agent's clients share: requests over HTTPS, secrets, and the texts of errors.

#[cfg(feature = "digitalocean")]
pub(crate) mod api;
#[cfg(feature = "digitalocean")]
pub(crate) mod endpoint;
#[cfg(feature = "etcd")]
pub(crate) mod password;
pub(crate) mod secret;
#[cfg(feature = "digitalocean")]
pub(crate) mod token;

use std::error::Error;

/// An error and its causes.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    // Some errors repeat their cause.
    texts.dedup_by(|cause, error| error.ends_with(cause.as_str()));
    texts.join(": ")
}
