//! Parses requests about passwords of clients. No error repeats a part of a body here.

use serde::Deserialize;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::config::values::parse_positive_duration;
use crate::control::AdminRequest;
use crate::control::parameters::invalid;
use crate::control::request::{AddedPassword, ChangePasswords, PasswordChange, json};
use crate::control::response::AdminResponse;
use crate::control::route::{Call, Operation};
use crate::credential::clients::{ID, check_user, is_id};
use crate::credential::new_password::NewPassword;
use crate::credential::password::PasswordText;
use crate::timestamp;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    expires_at: Option<String>,
    #[serde(default)]
    ttl: Option<String>,
}

/// `POST …/clients/{user}/passwords`
///
/// # Errors
/// A response with status 400, 412 or 422.
pub(crate) fn add(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    let is_empty = call.body.trim_ascii().is_empty();
    let body = if is_empty { Body::default() } else { json::confidential(call.body, EXPECTED)? };
    change(call, PasswordChange::Add(added(body, OffsetDateTime::now_utc())?))
}

/// `DELETE …/clients/{user}/passwords/{id}`
///
/// # Errors
/// A response with status 412 or 422.
pub(crate) fn remove(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    change(call, PasswordChange::Remove { id: call.segment(2) })
}

fn added(body: Body, now: OffsetDateTime) -> Result<AddedPassword, AdminResponse> {
    let Body { password, id, expires_at, ttl } = body;
    let text = password.map(Zeroizing::new).map(PasswordText::new).transpose();
    let text = text.map_err(|weak| invalid(format_args!("password: the password {weak}")))?;
    if id.as_deref().is_some_and(|id| !is_id(id)) {
        return Err(invalid(format_args!("id: expected {ID}")));
    }
    let expires_at = match (expires_at, ttl) {
        (Some(_), Some(_)) => return Err(invalid("ttl: expires_at is set as well; send one of them")),
        (None, Some(ttl)) => {
            let ttl = parse_positive_duration(&ttl).map_err(|error| invalid(format_args!("ttl: expected {error}")))?;
            Some(timestamp::after(now, ttl))
        }
        (Some(text), None) => {
            Some(timestamp::parse(&text).filter(|end| *end > now).ok_or_else(|| invalid(EXPIRES_AT))?)
        }
        (None, None) => None,
    };
    // The file has whole seconds.
    let created_at = now.replace_nanosecond(0).unwrap_or(now);
    Ok(AddedPassword { text, new: NewPassword { id, created_at, expires_at } })
}

fn change(call: &Call<'_>, change: PasswordChange) -> Result<Operation, AdminResponse> {
    let user = call.segment(1);
    check_user(&user).map_err(|error| invalid(format_args!("the user in the path: expected {error}")))?;
    Ok(Operation::Request(AdminRequest::ChangePasswords(ChangePasswords {
        listener: call.segment(0),
        user,
        change,
        if_match: call.if_match()?,
        plan: call.query.flag("plan", false)?,
    })))
}

const EXPECTED: &str = "the body must be {\"password\": \"…\", \"id\": \"p2\", \"ttl\": \"90d\"}; all fields are optional, and expires_at \
                        may stand in place of ttl";

const EXPIRES_AT: &str =
    "expires_at: must be a date and time in the future with its offset such as \"2036-01-31T00:00:00Z\"";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::response::Content;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn read(body: &str) -> Result<AddedPassword, String> {
        let message = |response: AdminResponse| match response.content {
            Content::Error { message, .. } => message,
            other => panic!("{other:?}"),
        };
        json::confidential(body.as_bytes(), EXPECTED).and_then(|body| added(body, NOW)).map_err(message)
    }

    #[test]
    fn every_field_is_optional() {
        let AddedPassword { text, new } = read("{}").unwrap();
        assert_eq!((text, new), (None, NewPassword { id: None, created_at: NOW, expires_at: None }));
        let AddedPassword { text, new } = read(r#"{"password": "Passw0rd!", "id": "spare", "ttl": "1h"}"#).unwrap();
        let end = timestamp::parse("1970-01-01T01:00:00Z");
        assert_eq!(text.unwrap().reveal(), "Passw0rd!");
        assert_eq!((new.id.as_deref(), new.expires_at), (Some("spare"), end));
        let exact = read(r#"{"expires_at": "1970-01-01T02:00:00+01:00", "password": null, "ttl": null}"#).unwrap();
        assert_eq!(exact.new.expires_at, end);
    }

    #[test]
    fn error_names_the_field_and_repeats_no_part_of_the_body() {
        for (body, word) in [
            (r#"{"password": "hunter2"}"#, "password: the password has 7 characters"),
            (r#"{"password": "Hunter2hunter2"}"#, "password: the password has no special character"),
            (r#"{"password": "Hunter2-\u0000"}"#, "control character"),
            (r#"{"password": ["hunter2"]}"#, "the body must be"),
            (r#"{"hunter2": 1}"#, "the body must be"),
            (r#"["hunter2"]"#, "the body must be"),
            (r#""hunter2""#, "the body must be"),
            (r#"{"password": "hunter2"#, "not JSON"),
            (r#"{"id": "hunter2 hunter2"}"#, "id: expected an ID"),
            (r#"{"ttl": "hunter2"}"#, "ttl: expected"),
            (r#"{"expires_at": "hunter2"}"#, "expires_at: must be"),
            (r#"{"expires_at": "1970-01-01T00:00:00Z"}"#, "in the future"),
            (r#"{"expires_at": "2036-01-01T00:00:00Z", "ttl": "1h"}"#, "send one of them"),
        ] {
            let message = read(body).unwrap_err();
            assert!(message.contains(word) && !message.contains("unter2"), "{body}: {message}");
        }
    }
}
