//! A new password of a client: its ID, and the verifier that is stored in its place.

use time::OffsetDateTime;

use crate::credential::clients::{Client, Password};
use crate::credential::verifier::{Parameters, Verifier};

/// What is known of a password beside its text, before it is added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPassword {
    /// `None` for the next free one.
    pub(crate) id: Option<String>,
    pub(crate) created_at: OffsetDateTime,
    /// `None` means that it does not expire.
    pub(crate) expires_at: Option<OffsetDateTime>,
}

/// Why a password is not added. Completes "the user …", without any of the password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NewPasswordError {
    #[error("has a password with the ID {0} already; choose another ID, or none for the next free one")]
    TakenId(String),
    #[error("has this password already, with the ID {0}; choose another one")]
    Known(String),
    #[error("gets no password, because the system provides no random bytes; try again")]
    NoRandom,
}

impl NewPassword {
    /// The password with this text of a client, or of a new client. It has the salt and the iterations of the others: a SCRAM
    /// client computes one proof, which is compared with every password.
    ///
    /// # Errors
    /// If the client has the ID or the password already, or the system provides no random bytes.
    pub(crate) fn of(self, client: Option<&Client>, text: &str) -> Result<Password, NewPasswordError> {
        let Self { id, created_at, expires_at } = self;
        if let Some(id) = id.as_ref().filter(|id| client.is_some_and(|client| client.password(id).is_some())) {
            return Err(NewPasswordError::TakenId(id.clone()));
        }
        let parameters = match client.and_then(Client::parameters) {
            Some(known) => known.clone(),
            None => Parameters::random().ok_or(NewPasswordError::NoRandom)?,
        };
        let verifier = Verifier::of(text, parameters);
        if let Some(known) = client.and_then(|client| same_password(client, text, &verifier)) {
            return Err(NewPasswordError::Known(known.id.clone()));
        }
        Ok(Password { id: id.unwrap_or_else(|| next_id(client)), verifier, created_at: Some(created_at), expires_at })
    }
}

/// The password of a client that has this text. Its key is derived again only for another salt, because that takes long.
fn same_password<'c>(client: &'c Client, text: &str, verifier: &Verifier) -> Option<&'c Password> {
    let is_same = |known: &&Password| {
        let is_comparable = known.verifier.parameters == verifier.parameters;
        if is_comparable { known.verifier == *verifier } else { known.verifier.verifies(text) }
    };
    client.passwords.iter().map(|password| &**password).find(is_same)
}

/// The number after the highest in an ID of this form.
fn next_id(client: Option<&Client>) -> String {
    let ids = client.into_iter().flat_map(|client| &client.passwords);
    let numbers = ids.filter_map(|password| password.id.strip_prefix('p')?.parse::<u32>().ok());
    // With the highest number taken, the count of passwords is free: there are few.
    let next = numbers.max().map_or(Some(1), |highest| highest.checked_add(1));
    format!("p{}", next.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::credential::clients::fixtures::{client, password};

    fn new(id: Option<&str>) -> NewPassword {
        NewPassword { id: id.map(str::to_owned), created_at: OffsetDateTime::UNIX_EPOCH, expires_at: None }
    }

    #[test]
    fn next_id_follows_the_highest_number() {
        let next = |ids: &[&str]| next_id(Some(&client("app", ids.iter().map(|id| password(id, "x")))));
        assert_eq!(next_id(None), "p1");
        assert_eq!(next(&[]), "p1");
        assert_eq!(next(&["p2", "p1", "main", "p", "px"]), "p3");
        assert_eq!(next(&["p9", "p10"]), "p11");
        assert_eq!(next(&["p4294967295"]), "p0");
        assert_eq!(next(&["p4294967296"]), "p1");
    }

    #[test]
    fn password_shares_the_salt_of_the_others_and_is_added_once() {
        let app = client("app", [password("p1", "one")]);
        let second = new(None).of(Some(&app), "two").unwrap();
        assert_eq!((second.id.as_str(), second.created_at), ("p2", Some(OffsetDateTime::UNIX_EPOCH)));
        assert_eq!(Some(&second.verifier.parameters), app.parameters());
        assert!(second.verifier.verifies("two"));
        assert_eq!(new(Some("p1")).of(Some(&app), "two"), Err(NewPasswordError::TakenId("p1".to_owned())));
        let known = new(Some("x")).of(Some(&app), "one").unwrap_err();
        assert_eq!(known, NewPasswordError::Known("p1".to_owned()));

        let other_salt = Verifier::of("three", Parameters::mock("other", &[7; 32]));
        let mut mixed = app;
        mixed.passwords.push(Arc::new(Password { verifier: other_salt, ..password("p9", "") }));
        assert_eq!(new(None).of(Some(&mixed), "three"), Err(NewPasswordError::Known("p9".to_owned())));
    }

    #[test]
    fn first_password_of_a_client_has_a_salt_of_its_own() {
        let [one, other] = [new(None), new(None)].map(|new| new.of(None, "one").unwrap());
        assert_eq!((one.id.as_str(), other.id.as_str()), ("p1", "p1"));
        assert_ne!(one.verifier.parameters, other.verifier.parameters);
    }
}
