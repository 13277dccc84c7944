//! The clients of a listener: who may authenticate, with which passwords and certificates.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use time::OffsetDateTime;

use crate::credential::certificate_owners::{CertificateOwners, TwoOwners};
use crate::credential::mock::MockSecret;
use crate::credential::verifier::{NEW_ITERATIONS, Parameters, Verifier};
use crate::identity::trusted_clients::ClientPattern;
use crate::x509::subject_name::SubjectName;

/// One `[[client]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    /// Unique among the clients; see [`check_user`].
    pub(crate) user: String,
    /// The IDs are unique, see [`is_id`]. May be empty.
    pub(crate) passwords: Vec<Arc<Password>>,
    /// A verified client certificate that matches one of them needs no password.
    pub(crate) certificates: Vec<ClientPattern>,
    /// The user at the database, if it differs from that of other clients.
    pub(crate) upstream_user: Option<String>,
    /// Whether the client cannot authenticate at present.
    pub(crate) is_disabled: bool,
}

/// One of the passwords of a client, without the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Password {
    pub(crate) id: String,
    pub(crate) verifier: Verifier,
    pub(crate) created_at: Option<OffsetDateTime>,
    /// From this time on the password is invalid; `None` means that it does not expire.
    pub(crate) expires_at: Option<OffsetDateTime>,
}

impl Client {
    /// The passwords that are accepted at this time.
    pub(crate) fn valid_passwords(&self, now: OffsetDateTime) -> impl Iterator<Item = &Arc<Password>> {
        self.passwords.iter().filter(move |password| !self.is_disabled && !password.is_expired(now))
    }

    /// The password with this ID.
    pub(crate) fn password(&self, id: &str) -> Option<&Arc<Password>> {
        self.passwords.iter().find(|password| password.id == id)
    }

    /// What a SCRAM client needs to know before it proves a password; `None` without passwords. Does not depend on which of them
    /// are valid, because clients cache it.
    pub(crate) fn parameters(&self) -> Option<&Parameters> {
        self.passwords.first().map(|password| &password.verifier.parameters)
    }

    /// The iterations that it takes to compare a password with all of the client.
    fn iterations(&self) -> u32 {
        let parameters: HashSet<&Parameters> =
            self.passwords.iter().map(|password| &password.verifier.parameters).collect();
        parameters.into_iter().fold(0, |sum, parameters| sum.saturating_add(parameters.iterations.get()))
    }
}

impl Password {
    pub(crate) fn is_expired(&self, now: OffsetDateTime) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}

/// The clients of a listener, indexed for the lookups of each connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clients {
    /// In the order of the file.
    all: Vec<Arc<Client>>,
    by_user: HashMap<String, usize>,
    by_certificate: CertificateOwners,
    mock_secret: MockSecret,
    /// See [`Self::iterations`].
    most_iterations: u32,
}

/// Whether all passwords of one user need the same salt and iterations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SaltRule {
    /// A SCRAM client computes one proof, which is compared with every password.
    OnePerUser,
    /// Clients send the password itself.
    Any,
}

/// Why a list of clients is rejected. The positions are those in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClientsError {
    /// An earlier client has the same user.
    DuplicateUser { client: usize },
    /// An earlier password of the client has the same ID.
    DuplicateId { client: usize, password: usize },
    /// The client has more than [`MAX_PASSWORDS`].
    ManyPasswords { client: usize },
    /// The salt or the iterations differ from those of the first password of the client.
    OtherParameters { client: usize, password: usize },
    /// A certificate that matches `certificates[certificate]` may match the pattern `pattern` of the client `other`, too.
    SharedCertificate { client: usize, certificate: usize, pattern: ClientPattern, other: usize },
}

/// A certificate has names of two clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TwoClients<'c>(pub(crate) [&'c Client; 2]);

impl Clients {
    /// # Errors
    /// Everything that is wrong with the list.
    pub(crate) fn new(list: Vec<Client>, salts: SaltRule) -> Result<Self, Vec<ClientsError>> {
        let mut errors = Vec::new();
        let mut clients = Self::default();
        for (index, client) in list.iter().enumerate() {
            if *clients.by_user.entry(client.user.clone()).or_insert(index) != index {
                errors.push(ClientsError::DuplicateUser { client: index });
            }
            check_passwords(client, index, salts, &mut errors);
        }
        clients.add_certificates(&list, &mut errors);
        clients.most_iterations = list.iter().map(Client::iterations).max().unwrap_or_default();
        clients.all = list.into_iter().map(Arc::new).collect();
        if errors.is_empty() { Ok(clients) } else { Err(errors) }
    }

    /// With the secret for the salts of unknown users.
    #[must_use]
    pub(crate) fn with_mock_secret(self, mock_secret: MockSecret) -> Self {
        Self { mock_secret, ..self }
    }

    fn add_certificates(&mut self, list: &[Client], errors: &mut Vec<ClientsError>) {
        let patterns = list.iter().enumerate().flat_map(|(index, client)| {
            client.certificates.iter().enumerate().map(move |(certificate, pattern)| (index, certificate, pattern))
        });
        for (client, certificate, pattern) in patterns.clone() {
            if let Some(other) = self.by_certificate.insert(pattern, client) {
                let pattern = pattern.clone();
                errors.push(ClientsError::SharedCertificate { client, certificate, pattern, other });
            }
        }
        for (client, certificate, pattern) in patterns {
            match self.by_certificate.wider(pattern, client) {
                // The same pattern has been reported.
                Some((wider, _)) if wider == *pattern => {}
                Some((pattern, other)) => {
                    errors.push(ClientsError::SharedCertificate { client, certificate, pattern, other });
                }
                None => {}
            }
        }
    }

    /// The client with this user.
    pub(crate) fn by_user(&self, user: &str) -> Option<&Arc<Client>> {
        self.all.get(*self.by_user.get(user)?)
    }

    /// The client to which a verified certificate with these names belongs. It may be disabled.
    ///
    /// # Errors
    /// If the names belong to two clients, so that it is unknown which one is meant.
    pub(crate) fn by_certificate<'a>(
        &self,
        names: impl IntoIterator<Item = SubjectName<'a>>,
    ) -> Result<Option<&Arc<Client>>, TwoClients<'_>> {
        match self.by_certificate.of(names) {
            Ok(owner) => Ok(owner.and_then(|owner| self.all.get(owner))),
            Err(TwoOwners([one, other])) => match (self.all.get(one), self.all.get(other)) {
                (Some(one), Some(other)) => Err(TwoClients([one, other])),
                // Cannot happen: the positions are those of clients.
                _ => Ok(None),
            },
        }
    }

    /// What a SCRAM client with this user needs to know, also if there is no such user. That one seems to have as many iterations
    /// as the first of the others.
    pub(crate) fn parameters(&self, user: &str) -> Parameters {
        let known = self.by_user(user).and_then(|client| client.parameters());
        known.cloned().unwrap_or_else(|| {
            let usual = self.all.iter().find_map(|client| client.parameters()).map(|usual| usual.iterations);
            let mock = self.mock_secret.parameters(user);
            Parameters { iterations: usual.unwrap_or(mock.iterations), ..mock }
        })
    }

    /// The iterations that it takes to find out that a password is wrong, for the user with the most.
    pub(crate) fn iterations(&self) -> u32 {
        self.most_iterations.max(NEW_ITERATIONS.get())
    }

    /// In the order of the file.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Client>> {
        self.all.iter()
    }
}

fn check_passwords(client: &Client, index: usize, salts: SaltRule, errors: &mut Vec<ClientsError>) {
    if client.passwords.len() > MAX_PASSWORDS {
        errors.push(ClientsError::ManyPasswords { client: index });
        return;
    }
    for (password, Password { id, verifier, .. }) in client.passwords.iter().map(|password| &**password).enumerate() {
        if client.passwords.iter().take(password).any(|earlier| earlier.id == *id) {
            errors.push(ClientsError::DuplicateId { client: index, password });
        }
        if salts == SaltRule::OnePerUser && client.parameters() != Some(&verifier.parameters) {
            errors.push(ClientsError::OtherParameters { client: index, password });
        }
    }
}

/// Why a text is not the name of a user. Completes "expected …".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserNameError {
    #[error("a user name that is not empty")]
    Empty,
    #[error("a user name of at most {MAX_USER} bytes, but it has {0}")]
    Long(usize),
    #[error("a user name without control characters")]
    Control,
}

/// Checks the name of a client or of a user at the database. PostgreSQL and Redis end it at a NUL.
///
/// # Errors
/// If it is empty, long, or has control characters.
pub(crate) fn check_user(name: &str) -> Result<(), UserNameError> {
    match name {
        "" => Err(UserNameError::Empty),
        _ if name.len() > MAX_USER => Err(UserNameError::Long(name.len())),
        _ if name.chars().any(char::is_control) => Err(UserNameError::Control),
        _ => Ok(()),
    }
}

/// Whether a text is a valid ID of a password: [`ID`].
pub(crate) fn is_id(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=32).contains(&text.len()) && text.bytes().all(is_allowed)
}

/// Completes "expected …".
pub(crate) const ID: &str = "an ID of 1 to 32 letters, digits and \"-\", \"_\", \".\", such as \"p1\"";

/// The same as a regular expression.
pub(crate) const ID_PATTERN: &str = "^[A-Za-z0-9_.-]{1,32}$";

/// Each attempt to authenticate is compared with all of them.
pub(crate) const MAX_PASSWORDS: usize = 16;

/// In bytes. Longer than the names of both databases.
pub(crate) const MAX_USER: usize = 255;

/// Clients for tests of other folders.
#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;

    /// A password that does not expire. Equal for equal arguments.
    pub(crate) fn password(id: &str, text: &str) -> Password {
        let parameters = Parameters::mock("fixture", &[7; 32]);
        Password { id: id.to_owned(), verifier: Verifier::of(text, parameters), created_at: None, expires_at: None }
    }

    pub(crate) fn client(user: &str, passwords: impl IntoIterator<Item = Password>) -> Client {
        Client {
            user: user.to_owned(),
            passwords: passwords.into_iter().map(Arc::new).collect(),
            certificates: Vec::new(),
            upstream_user: None,
            is_disabled: false,
        }
    }

    pub(crate) fn clients(list: impl IntoIterator<Item = Client>) -> Clients {
        Clients::new(list.into_iter().collect(), SaltRule::OnePerUser).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::fixtures::{client, clients, password};
    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn with_certificates(user: &str, patterns: &[&str]) -> Client {
        let certificates = patterns.iter().map(|pattern| pattern.parse().unwrap()).collect();
        Client { certificates, ..client(user, []) }
    }

    fn ids(client: &Client, now: OffsetDateTime) -> Vec<&str> {
        client.valid_passwords(now).map(|password| password.id.as_str()).collect()
    }

    #[test]
    fn password_is_valid_until_it_expires_and_while_its_client_is_enabled() {
        let ending = Password { expires_at: Some(NOW + Duration::HOUR), ..password("p2", "two") };
        let app = client("app", [password("p1", "one"), ending]);
        assert_eq!(ids(&app, NOW), ["p1", "p2"]);
        assert_eq!(ids(&app, NOW + Duration::HOUR - Duration::NANOSECOND), ["p1", "p2"]);
        assert_eq!(ids(&app, NOW + Duration::HOUR), ["p1"]);
        let disabled = Client { is_disabled: true, ..app };
        assert!(ids(&disabled, NOW).is_empty());
        assert!(disabled.parameters().is_some(), "it answers as before");
    }

    #[test]
    fn client_is_found_by_user_and_by_certificate() {
        let list = [
            client("app", [password("p1", "one")]),
            with_certificates("web", &["cn:web", "uri:spiffe://prod/web/*"]),
            with_certificates("job", &["dns:*.job.internal"]),
        ];
        let clients = clients(list);
        let found = |names: &[SubjectName<'_>]| {
            clients.by_certificate(names.iter().copied()).unwrap().map(|client| client.user.as_str())
        };
        assert_eq!(clients.by_user("app").unwrap().user, "app");
        assert!(clients.by_user("App").is_none() && clients.by_user("").is_none());
        assert_eq!(found(&[SubjectName::Common("web")]), Some("web"));
        assert_eq!(found(&[SubjectName::Common("x"), SubjectName::Uri("spiffe://prod/web/1")]), Some("web"));
        assert_eq!(found(&[SubjectName::Dns("1.job.internal")]), Some("job"));
        assert_eq!(found(&[SubjectName::Common("app")]), None, "it needs its password");
        let TwoClients([one, other]) =
            clients.by_certificate([SubjectName::Common("web"), SubjectName::Dns("1.job.internal")]).unwrap_err();
        assert_eq!([&*one.user, &*other.user], ["web", "job"]);
    }

    #[test]
    fn ambiguous_list_is_rejected_with_the_position_of_every_error() {
        let list = vec![
            client("app", [password("p1", "one"), password("p2", "two"), password("p1", "three")]),
            with_certificates("web", &["cn:web", "dns:*.web.internal", "uri:spiffe://prod/a"]),
            with_certificates("app", &["cn:app", "cn:web"]),
            with_certificates("job", &["dns:1.web.internal", "uri:spiffe://prod/*"]),
        ];
        let pattern = |text: &str| text.parse().unwrap();
        let shared = |client, certificate, text: &str, other| ClientsError::SharedCertificate {
            client,
            certificate,
            pattern: pattern(text),
            other,
        };
        assert_eq!(
            Clients::new(list, SaltRule::OnePerUser).unwrap_err(),
            [
                ClientsError::DuplicateId { client: 0, password: 2 },
                ClientsError::DuplicateUser { client: 2 },
                shared(2, 1, "cn:web", 1),
                shared(1, 2, "uri:spiffe://prod/*", 3),
                shared(3, 0, "dns:*.web.internal", 1),
            ]
        );
    }

    #[test]
    fn client_with_many_passwords_is_rejected() {
        let of = |count: usize| {
            let passwords = (0..count).map(|number| Password { id: format!("p{number}"), ..password("", "one") });
            Clients::new(vec![client("app", passwords)], SaltRule::OnePerUser)
        };
        assert!(of(MAX_PASSWORDS).is_ok());
        assert_eq!(of(MAX_PASSWORDS + 1).unwrap_err(), [ClientsError::ManyPasswords { client: 0 }]);
    }

    #[test]
    fn passwords_with_different_salts_are_rejected_only_where_one_proof_is_compared_with_all() {
        let other = Verifier::of("two", Parameters::mock("other", &[7; 32]));
        let app = || client("app", [password("p1", "one"), Password { verifier: other.clone(), ..password("p2", "") }]);
        assert!(Clients::new(vec![app()], SaltRule::Any).is_ok());
        let errors = Clients::new(vec![app()], SaltRule::OnePerUser).unwrap_err();
        assert_eq!(errors, [ClientsError::OtherParameters { client: 0, password: 1 }]);
    }

    #[test]
    fn user_name_has_a_length_and_no_control_characters() {
        let longest = "x".repeat(MAX_USER);
        for name in ["a", "default", "Ünïcode name", &longest] {
            assert_eq!(check_user(name), Ok(()), "{name}");
        }
        for (name, error) in [
            ("", UserNameError::Empty),
            ("a\0b", UserNameError::Control),
            ("a\n", UserNameError::Control),
            (&format!("{longest}x"), UserNameError::Long(MAX_USER + 1)),
        ] {
            assert_eq!(check_user(name), Err(error), "{name:?}");
        }
    }

    #[test]
    fn id_can_be_typed_and_is_short() {
        for id in ["p1", "2026-01-31", "A_b.c", &"x".repeat(32)] {
            assert!(is_id(id), "{id}");
        }
        for id in ["", "a b", "a/b", "é", "a\n", &"x".repeat(33)] {
            assert!(!is_id(id), "{id:?}");
        }
    }

    #[test]
    fn debug_output_has_no_part_of_a_verifier() {
        let app = client("app", [password("p1", "Passw0rd!")]);
        let text = app.passwords[0].verifier.to_string();
        let shown = format!("{:?}", clients([app]));
        for part in text.split(['$', ':']).skip(2) {
            assert!(!shown.contains(part), "{shown}");
        }
    }
}
