//! What a listener needs to authenticate its clients, and itself to the database.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::credential::clients::{Client, Clients};
use crate::credential::login::{Login, Proof, RevokedLogin};
use crate::credential::upstream_passwords::UpstreamPasswords;
use crate::x509::subject_name::SubjectName;

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

    /// How a client has authenticated by these credentials.
    pub(crate) fn login(&self, client: &Arc<Client>, by: Proof) -> Login {
        Login::new(Arc::clone(client), by, self.upstream_user(client))
    }

    /// Returns the login as these credentials have it. `names` are those of the verified certificate that the client has now.
    ///
    /// # Errors
    /// If they would not accept it, or the client would act as another user at the database.
    pub(crate) fn judge<'a>(
        &self,
        login: &Login,
        names: impl IntoIterator<Item = SubjectName<'a>>,
        now: OffsetDateTime,
    ) -> Result<Login, RevokedLogin> {
        let judged = self.clients.judge(login, names, now)?;
        let is_other = |login: &&Login| *login.upstream_user != *self.upstream_user(&login.client);
        let other = judged.with_earlier().find(is_other).map(RevokedLogin::by_upstream_user);
        other.map_or(Ok(judged), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::clients::fixtures::{client, clients, password};

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

    #[test]
    fn login_ends_when_its_client_acts_as_another_user_of_the_database() {
        let (app, job) = (client("app", [password("p1", "one")]), client("job", [password("p1", "two")]));
        let job = Client { upstream_user: Some("batch".to_owned()), ..job };
        let credentials = |list: [Client; 2], upstream_user: &str| Credentials {
            clients: clients(list),
            upstream_user: Some(upstream_user.to_owned()),
            upstream_passwords: UpstreamPasswords::default(),
        };
        let before = credentials([app.clone(), job.clone()], "shared");
        let login = |user: &str| {
            let client = before.clients.by_user(user).unwrap();
            before.login(client, Proof::Password(Arc::clone(client.password("p1").unwrap())))
        };
        let now = OffsetDateTime::UNIX_EPOCH;
        let both = login("app").followed_by(login("job"));
        assert!(before.judge(&both, [], now).is_ok());
        let after = credentials([app.clone(), job.clone()], "weak");
        let why = "the client \"app\" has another upstream_user";
        assert_eq!(after.judge(&login("app"), [], now).unwrap_err().to_string(), why);
        assert_eq!(after.judge(&both, [], now).unwrap_err().to_string(), why, "an earlier login counts");
        assert!(after.judge(&login("job"), [], now).is_ok());
        let own = Client { upstream_user: Some("shared".to_owned()), ..app };
        assert!(credentials([own, job], "weak").judge(&both, [], now).is_ok(), "it is the same user");
    }
}
