//! A verified client certificate in the place of a password.

use std::sync::Arc;

use tracing::debug;

use crate::credential::clients::{Client, TwoClients};
use crate::credential::credentials::Credentials;
use crate::proxy::phase::authorize::AuthorizedClient;

/// The enabled client to which the verified certificate belongs.
pub(crate) fn owner<'c>(authorized: &AuthorizedClient, credentials: &'c Credentials) -> Option<&'c Arc<Client>> {
    let identity = authorized.identity.as_ref()?;
    match credentials.clients.by_certificate(identity.names()) {
        Ok(owner) => owner.filter(|owner| !owner.is_disabled),
        Err(TwoClients([first, second])) => {
            let (listener, [first, second]) = (&authorized.policy.name, [&first.user, &second.user]);
            debug!(%listener, first, second, "client certificate has names of two clients, asking for a password");
            None
        }
    }
}
