//! Parses requests to `/v1/tokens`.

use serde::Deserialize;
use time::OffsetDateTime;

use crate::config::values::parse_positive_duration;
use crate::control::AdminRequest;
use crate::control::parameters::invalid;
use crate::control::request::{NewToken, json};
use crate::control::response::AdminResponse;
use crate::control::route::{Call, Operation};
use crate::source::rule::Network;
use crate::timestamp;
use crate::token::{NAME, Role, is_name};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    name: String,
    role: String,
    #[serde(default)]
    ttl: Option<String>,
    #[serde(default)]
    sources: Option<Vec<String>>,
}

/// # Errors
/// A response with status 400 or 422.
pub(crate) fn new(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    let Body { name, role, ttl, sources } = json::object(call.body)?;
    if !is_name(&name) {
        return Err(invalid(format_args!("name is {name:?}; expected {NAME}")));
    }
    let role = Role::from_code(&role)
        .ok_or_else(|| invalid(format_args!("role is {role:?}; expected \"viewer\", \"operator\" or \"owner\"")))?;
    let expires_at = match ttl {
        None => None,
        Some(ttl) => {
            let duration = parse_positive_duration(&ttl)
                .map_err(|error| invalid(format_args!("ttl is {ttl:?}; expected {error}")))?;
            Some(timestamp::after(OffsetDateTime::now_utc(), duration))
        }
    };
    let network =
        |text: &String| text.parse::<Network>().map_err(|error| invalid(format_args!("sources: {text:?} is {error}")));
    if sources.as_ref().is_some_and(Vec::is_empty) {
        return Err(invalid(
            "sources is empty, so the token could be used from nowhere; list networks, or leave it out",
        ));
    }
    let sources = sources.unwrap_or_default().iter().map(network).collect::<Result<_, _>>()?;
    Ok(Operation::Request(AdminRequest::NewToken(NewToken { name, role, expires_at, sources })))
}
