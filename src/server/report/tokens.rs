//! The JSON of tokens. It never contains the text or the digest of a token.

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::policy::Snapshot;
use crate::timestamp::seconds;
use crate::token::last_use::{LastUse, LastUses};
use crate::token::{Token, TokenOrigin};

pub(crate) fn list(current: &Snapshot, last_uses: &LastUses) -> Value {
    let tokens = current.config.admin.iter().flat_map(|admin| admin.tokens.iter());
    let tokens: Vec<_> = tokens.map(|each| token(each, last_uses.of(each))).collect();
    json!({ "tokens": tokens })
}

pub(crate) fn token(token: &Token, last_use: Option<LastUse>) -> Value {
    let Token { name, role, digest: _, created_at, expires_at, sources, origin } = token;
    let state = if token.is_expired(OffsetDateTime::now_utc()) { "expired" } else { "valid" };
    json!({
        "name": name,
        "role": role.code(),
        "created_at": created_at.map(seconds),
        "expires_at": expires_at.map(seconds),
        "last_used_at": last_use.map(|last| seconds(last.at)),
        "last_used_from": last_use.map(|last| last.source),
        "sources": sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "state": state,
        "origin": match origin {
            TokenOrigin::Configuration => "config",
            TokenOrigin::TokensFile => "file",
        },
    })
}
