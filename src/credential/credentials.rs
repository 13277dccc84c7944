//! What a listener needs to authenticate its clients, and itself to the database.

use crate::credential::clients::{Client, Clients};
use crate::credential::upstream_passwords::UpstreamPasswords;

/// `[listener.credentials]` with the content of its files. Its debug output has no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) clients: Clients,
    /// The user at the database for every client that has none of its own; `None` means the user of the client.
    pub(crate) upstream_user: Option<String>,
    pub(crate) upstream_passwords: UpstreamPasswords,
}

impl Credentials {
    /// The user at the database as which this client acts.
    pub(crate) fn upstream_user<'a>(&'a self, client: &'a Client) -> &'a str {
        client.upstream_user.as_ref().or(self.upstream_user.as_ref()).unwrap_or(&client.user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::clients::fixtures::{client, clients};

    #[test]
    fn client_acts_as_its_own_upstream_user_or_that_of_the_listener_or_itself() {
        let app = client("app", []);
        let job = Client { upstream_user: Some("batch".to_owned()), ..client("job", []) };
        let clients = clients([app.clone(), job.clone()]);
        let upstream_passwords = UpstreamPasswords::default();
        let mut credentials = Credentials { clients, upstream_user: Some("default".to_owned()), upstream_passwords };
        assert_eq!((credentials.upstream_user(&app), credentials.upstream_user(&job)), ("default", "batch"));
        credentials.upstream_user = None;
        assert_eq!((credentials.upstream_user(&app), credentials.upstream_user(&job)), ("app", "batch"));
    }
}
