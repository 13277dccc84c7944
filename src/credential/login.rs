//! How a client has authenticated, and whether that still holds.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use time::OffsetDateTime;

use crate::credential::clients::{Client, Clients, Password};
use crate::timestamp;
use crate::x509::subject_name::SubjectName;

/// How a client has authenticated. A session keeps it, and is judged again by it.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) client: Arc<Client>,
    pub(crate) by: Proof,
    /// The user at the database. A change ends the session, because the database would not notice it.
    pub(crate) upstream_user: Arc<str>,
    /// Earlier logins of the same session that still count: the database may still act on them, because it has not acted on the
    /// present one (an AUTH within MULTI that is discarded). They have no earlier ones themselves.
    earlier: Vec<Self>,
}

/// A password of a client as something that sessions use. Another verifier under the same ID is another one; another expiry is not.
#[derive(Clone, Debug)]
pub struct UsedPassword {
    user: String,
    password: Arc<Password>,
}

impl UsedPassword {
    pub(crate) fn new(client: &Client, password: &Arc<Password>) -> Self {
        Self { user: client.user.clone(), password: Arc::clone(password) }
    }

    /// Whether these clients have it.
    pub(crate) fn is_in(&self, clients: &Clients) -> bool {
        let known = clients.by_user(&self.user).and_then(|client| client.password(&self.password.id));
        known.is_some_and(|known| known.verifier == self.password.verifier)
    }
}

impl PartialEq for UsedPassword {
    fn eq(&self, other: &Self) -> bool {
        let Self { user, password } = self;
        *user == other.user && password.id == other.password.id && password.verifier == other.password.verifier
    }
}

impl Eq for UsedPassword {}

impl Hash for UsedPassword {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.user, &self.password.id).hash(state);
    }
}

/// What a client has authenticated with.
#[derive(Clone, Debug)]
pub(crate) enum Proof {
    /// One of its passwords.
    Password(Arc<Password>),
    /// A verified certificate that matches one of its `certificates`.
    Certificate,
}

/// Why a login no longer holds. The text has the names of user and password, and nothing of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokedLogin {
    user: String,
    why: WhyRevoked,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum WhyRevoked {
    ClientRemoved,
    ClientDisabled,
    /// No password has this ID, or another one has it.
    PasswordRemoved(String),
    PasswordExpired(String, OffsetDateTime),
    /// The certificate is not one of the client.
    Certificate,
    /// The client acts as another user at the database now.
    UpstreamUser,
}

impl RevokedLogin {
    pub(crate) fn by_upstream_user(login: &Login) -> Self {
        Self { user: login.client.user.clone(), why: WhyRevoked::UpstreamUser }
    }
}

impl Login {
    pub(crate) fn new(client: Arc<Client>, by: Proof, upstream_user: impl Into<Arc<str>>) -> Self {
        Self { client, by, upstream_user: upstream_user.into(), earlier: Vec::new() }
    }

    /// The next login of the same session. Each user at the database needs one login that holds, so this one still counts unless
    /// both act as the same user there.
    #[must_use]
    pub(crate) fn followed_by(&self, next: Self) -> Self {
        let former = self.with_earlier().filter(|former| former.upstream_user != next.upstream_user);
        let earlier = former.map(|former| Self { earlier: Vec::new(), ..former.clone() }).collect();
        Self { earlier, ..next }
    }

    /// When the login ends even if the clients stay as they are.
    pub(crate) fn until(&self) -> Option<OffsetDateTime> {
        let ends = self.with_earlier().map(|login| match &login.by {
            Proof::Password(password) => password.expires_at,
            Proof::Certificate => None,
        });
        ends.flatten().min()
    }

    /// The passwords that the session uses; none with a certificate.
    pub(crate) fn used_passwords(&self) -> impl Iterator<Item = UsedPassword> {
        self.with_earlier().filter_map(|login| match &login.by {
            Proof::Password(password) => Some(UsedPassword::new(&login.client, password)),
            Proof::Certificate => None,
        })
    }

    /// Whether both are the same login under the same clients. One that was judged by other clients is another one.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        let is_same_proof = match (&self.by, &other.by) {
            (Proof::Password(one), Proof::Password(other)) => Arc::ptr_eq(one, other),
            (Proof::Certificate, Proof::Certificate) => true,
            (Proof::Password(_), Proof::Certificate) | (Proof::Certificate, Proof::Password(_)) => false,
        };
        is_same_proof
            && Arc::ptr_eq(&self.client, &other.client)
            && self.earlier.len() == other.earlier.len()
            && self.earlier.iter().zip(&other.earlier).all(|(one, other)| one.is_same_as(other))
    }

    /// This login first.
    pub(crate) fn with_earlier(&self) -> impl Iterator<Item = &Self> {
        [self].into_iter().chain(&self.earlier)
    }
}

impl Clients {
    /// Returns the login as these clients have it. `names` are those of the verified certificate that the client has now.
    ///
    /// # Errors
    /// If these clients would not accept it.
    pub(crate) fn judge<'a>(
        &self,
        login: &Login,
        names: impl IntoIterator<Item = SubjectName<'a>>,
        now: OffsetDateTime,
    ) -> Result<Login, RevokedLogin> {
        if login.earlier.is_empty() {
            return self.judge_one(login, names, now);
        }
        let names: Vec<_> = names.into_iter().collect();
        let judge = |login| self.judge_one(login, names.iter().copied(), now);
        let earlier = login.earlier.iter().map(judge).collect::<Result<_, _>>()?;
        Ok(Login { earlier, ..judge(login)? })
    }

    /// The same without earlier logins.
    fn judge_one<'a>(
        &self,
        login: &Login,
        names: impl IntoIterator<Item = SubjectName<'a>>,
        now: OffsetDateTime,
    ) -> Result<Login, RevokedLogin> {
        let user = &login.client.user;
        let revoked = |why| RevokedLogin { user: user.clone(), why };
        let client = self.by_user(user).ok_or_else(|| revoked(WhyRevoked::ClientRemoved))?;
        if client.is_disabled {
            return Err(revoked(WhyRevoked::ClientDisabled));
        }
        let by = match &login.by {
            Proof::Password(known) => {
                let password = client.password(&known.id).filter(|password| password.verifier == known.verifier);
                let password = password.ok_or_else(|| revoked(WhyRevoked::PasswordRemoved(known.id.clone())))?;
                if let Some(end) = password.expires_at.filter(|_| password.is_expired(now)) {
                    return Err(revoked(WhyRevoked::PasswordExpired(known.id.clone(), end)));
                }
                Proof::Password(Arc::clone(password))
            }
            Proof::Certificate => match self.by_certificate(names) {
                Ok(Some(owner)) if Arc::ptr_eq(owner, client) => Proof::Certificate,
                Ok(_) | Err(_) => return Err(revoked(WhyRevoked::Certificate)),
            },
        };
        Ok(Login::new(Arc::clone(client), by, Arc::clone(&login.upstream_user)))
    }
}

/// Completes "credential_revoked: …". Fits a policy in force and one that is only planned.
impl fmt::Display for RevokedLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, why } = self;
        match why {
            WhyRevoked::ClientRemoved => write!(f, "the client {user:?} is not in clients_file"),
            WhyRevoked::ClientDisabled => write!(f, "the client {user:?} is disabled"),
            WhyRevoked::PasswordRemoved(id) => {
                write!(f, "the password {id} of {user:?} is not in clients_file, or another one has its ID")
            }
            WhyRevoked::PasswordExpired(id, end) => {
                write!(f, "the password {id} of {user:?} expired at {}", timestamp::seconds(*end))
            }
            WhyRevoked::UpstreamUser => write!(f, "the client {user:?} has another upstream_user"),
            WhyRevoked::Certificate => write!(f, "the certificate is not one of the client {user:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;
    use crate::credential::clients::fixtures::{client, clients, password};

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn by_password(clients: &Clients, user: &str, id: &str) -> Login {
        let client = Arc::clone(clients.by_user(user).unwrap());
        let by = Proof::Password(Arc::clone(client.password(id).unwrap()));
        let upstream_user = client.upstream_user.clone().unwrap_or_default();
        Login::new(client, by, upstream_user)
    }

    fn why(judged: Result<Login, RevokedLogin>) -> String {
        judged.unwrap_err().to_string()
    }

    fn app(passwords: impl IntoIterator<Item = Password>) -> Clients {
        clients([client("app", passwords)])
    }

    #[test]
    fn login_by_password_holds_while_the_same_password_is_valid() {
        let before = app([password("p1", "one"), password("p2", "two")]);
        let login = by_password(&before, "app", "p1");
        assert!(before.judge(&login, [], NOW).unwrap().is_same_as(&login));
        assert_eq!(login.until(), None);

        let end = NOW + Duration::HOUR;
        let ending = app([Password { expires_at: Some(end), ..password("p1", "one") }]);
        let renewed = ending.judge(&login, [], NOW).unwrap();
        assert_eq!(renewed.until(), Some(end));
        assert!(!renewed.is_same_as(&login));
        assert_eq!(why(ending.judge(&renewed, [], end)), "the password p1 of \"app\" expired at 1970-01-01T01:00:00Z");

        let removed = "the password p1 of \"app\" is not in clients_file, or another one has its ID";
        assert_eq!(why(app([password("p2", "two")]).judge(&login, [], NOW)), removed);
        assert_eq!(why(app([password("p1", "other")]).judge(&login, [], NOW)), removed);
        assert_eq!(why(Clients::default().judge(&login, [], NOW)), "the client \"app\" is not in clients_file");
        let disabled = Client { is_disabled: true, ..client("app", [password("p1", "one")]) };
        assert_eq!(why(clients([disabled]).judge(&login, [], NOW)), "the client \"app\" is disabled");
    }

    #[test]
    fn login_by_certificate_holds_while_the_certificate_belongs_to_the_client() {
        let with =
            |user: &str, pattern: &str| Client { certificates: vec![pattern.parse().unwrap()], ..client(user, []) };
        let before = clients([with("app", "cn:app"), client("web", [])]);
        let login = Login::new(Arc::clone(before.by_user("app").unwrap()), Proof::Certificate, "");
        let names = [SubjectName::Common("app"), SubjectName::Dns("app.internal")];
        assert!(before.judge(&login, names, NOW).is_ok());
        let other = "the certificate is not one of the client \"app\"";
        assert_eq!(why(before.judge(&login, [], NOW)), other, "it is no longer verified");
        for changed in [
            clients([client("app", []), with("web", "cn:app")]),
            clients([client("app", [password("p1", "one")])]),
            clients([with("app", "cn:app"), with("web", "dns:app.internal")]),
        ] {
            assert_eq!(why(changed.judge(&login, names, NOW)), other);
        }
        assert!(clients([with("app", "dns:*.internal")]).judge(&login, names, NOW).is_ok());
    }

    #[test]
    fn former_login_counts_while_the_database_may_still_know_its_user() {
        let acts_as = |user: &str, upstream_user: &str| Client {
            upstream_user: Some(upstream_user.to_owned()),
            ..client(user, [password("p1", "one"), password("p2", "two")])
        };
        let end = NOW + Duration::HOUR;
        let ending = Password { expires_at: Some(end), ..password("p1", "one") };
        let job = Client { upstream_user: Some("batch".to_owned()), ..client("job", [ending]) };
        let list = [acts_as("app", "shared"), acts_as("web", "shared"), job];
        let all = clients(list.clone());
        let used = |login: &Login| -> Vec<String> {
            login.used_passwords().map(|used| format!("{} {}", used.user, used.password.id)).collect()
        };
        let first = by_password(&all, "app", "p1");
        let same_user = first.followed_by(by_password(&all, "web", "p2"));
        assert_eq!(used(&same_user), ["web p2"], "the database sees no difference");
        let other_user = same_user.followed_by(by_password(&all, "job", "p1"));
        assert_eq!(used(&other_user), ["job p1", "web p2"]);
        assert_eq!(other_user.until(), Some(end));
        let back = other_user.followed_by(by_password(&all, "app", "p2"));
        assert_eq!((used(&back), back.until()), (vec!["app p2".to_owned(), "job p1".to_owned()], Some(end)));
        assert!(all.judge(&back, [], NOW).unwrap().is_same_as(&back));
        assert!(!back.is_same_as(&by_password(&all, "app", "p2")));
        let without_job = clients(list.into_iter().take(2));
        assert_eq!(why(without_job.judge(&back, [], NOW)), "the client \"job\" is not in clients_file");
    }
}
