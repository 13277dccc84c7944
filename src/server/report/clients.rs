//! The JSON of the clients of a listener and of their passwords. Nothing of a password or a verifier is in it.

use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::credential::clients::{Client, Password};
use crate::credential::credentials::Credentials;
use crate::credential::login::UsedPassword;
use crate::digest::hex;
use crate::policy::usage::Item;
use crate::policy::{ListenerPolicy, Snapshot};
use crate::server::passwords;
use crate::server::report::{ActiveUse, EndedSessions};
use crate::session::registry::ConnectionRegistry;
use crate::timestamp::seconds;

/// The clients with the use of their passwords. `file` is `None` for a listener that does not authenticate its clients.
pub(crate) fn list(policy: &ListenerPolicy, file: Option<&Path>, registry: &ConnectionRegistry) -> Value {
    let (active_use, now) = (ActiveUse::from_registry(registry), OffsetDateTime::now_utc());
    let reason = match file {
        Some(file) => passwords::obstacle(file),
        None => Some(passwords::no_credentials(&policy.name)),
    };
    let client = |credentials: &Credentials, client: &Client| {
        let Client { user, passwords, certificates, upstream_user: _, is_disabled } = client;
        let passwords = passwords.iter().filter_map(|password| one(policy, user, &password.id, &active_use, now));
        json!({
            "user": user,
            "disabled": is_disabled,
            "certificates": certificates.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "upstream_user": credentials.upstream_user(client),
            "passwords": passwords.collect::<Vec<_>>(),
        })
    };
    let of_listener =
        |credentials: &Credentials| credentials.clients.iter().map(|one| client(credentials, one)).collect::<Vec<_>>();
    json!({
        "clients_file": file.map(|file| file.display().to_string()),
        "writable": reason.is_none(),
        "reason": reason,
        "clients": policy.credentials.as_deref().map(of_listener).unwrap_or_default(),
    })
}

/// A password that was added, with the listeners whose clients that has changed. `generated` is its text, if it is to be shown.
pub(crate) fn added(
    policy: &ListenerPolicy,
    [user, id]: [&str; 2],
    listeners: &[String],
    generated: Option<&str>,
    registry: &ConnectionRegistry,
) -> Option<Value> {
    let mut body = one(policy, user, id, &ActiveUse::from_registry(registry), OffsetDateTime::now_utc())?;
    if let Some(fields) = body.as_object_mut() {
        fields.insert("user".to_owned(), json!(user));
        fields.insert("listeners".to_owned(), json!(listeners));
        fields.insert("password".to_owned(), json!(generated));
    }
    Some(body)
}

/// One password with its use; `None` if there is none of this ID.
fn one(policy: &ListenerPolicy, user: &str, id: &str, active_use: &ActiveUse, now: OffsetDateTime) -> Option<Value> {
    let client = find(policy, user)?;
    let password = client.password(id)?;
    let facts = json!({
        "id": id,
        "created_at": password.created_at.map(seconds),
        "expires_at": password.expires_at.map(seconds),
        "state": state(client, password, now),
    });
    Some(active_use.with_use(facts, policy, Item::Password(UsedPassword::new(client, password))))
}

fn find<'p>(policy: &'p ListenerPolicy, user: &str) -> Option<&'p Client> {
    policy.credentials.as_ref()?.clients.by_user(user).map(|client| &**client)
}

fn state(client: &Client, password: &Password, now: OffsetDateTime) -> &'static str {
    match (client.is_disabled, password.is_expired(now)) {
        (true, _) => "disabled",
        (false, true) => "expired",
        (false, false) => "valid",
    }
}

/// The entity tag of the clients. It depends on what the list shows, and on no verifier: a reader who knows the salt, which every
/// client learns, could test passwords against it.
pub(crate) fn etag(policy: &ListenerPolicy) -> String {
    let mut context = Context::new(&SHA256);
    // With its length, no text can be mistaken for two.
    let mut add = |text: &str| {
        context.update(&text.len().to_be_bytes());
        context.update(text.as_bytes());
    };
    for client in policy.credentials.iter().flat_map(|credentials| credentials.clients.iter()) {
        let Client { user, passwords, certificates, upstream_user, is_disabled } = &**client;
        add(user);
        add(upstream_user.as_deref().unwrap_or_default());
        add(if *is_disabled { "disabled" } else { "enabled" });
        add(&certificates.len().to_string());
        certificates.iter().for_each(|pattern| add(&pattern.to_string()));
        add(&passwords.len().to_string());
        for Password { id, verifier: _, created_at, expires_at } in passwords.iter().map(|password| &**password) {
            add(id);
            [created_at, expires_at].into_iter().for_each(|at| add(&at.map(seconds).unwrap_or_default()));
        }
    }
    hex(context.finish().as_ref().get(..ETAG_BYTES).unwrap_or_default())
}

/// A change of one password that is not in force.
pub(crate) struct PlannedPassword<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) before: &'a ListenerPolicy,
    pub(crate) after: &'a ListenerPolicy,
    pub(crate) user: &'a str,
    pub(crate) id: &'a str,
    /// The listeners whose clients change. Several may name one file.
    pub(crate) listeners: &'a [String],
}

/// What a change does.
pub(crate) fn plan(planned: &PlannedPassword<'_>, registry: &ConnectionRegistry) -> Value {
    let PlannedPassword { snapshot, before, after, user, id, listeners } = *planned;
    let is_added = find(after, user).is_some_and(|client| client.password(id).is_some());
    let holder = if is_added { after } else { before };
    let ended = EndedSessions::from_registry(snapshot, registry);
    let now = OffsetDateTime::now_utc();
    json!({
        "user": user,
        "password": one(holder, user, id, &ActiveUse::from_registry(registry), now),
        "is_new_client": find(before, user).is_none(),
        "listeners": listeners,
        "sessions_ended": ended.listed(),
        "sessions_ended_count": ended.0.len(),
        "warnings": find(after, user).and_then(|client| warning(client, now)).into_iter().collect::<Vec<_>>(),
    })
}

/// Why a client could not authenticate after a change.
fn warning(client: &Client, now: OffsetDateTime) -> Option<String> {
    let user = &client.user;
    if client.is_disabled {
        return Some(format!("the client {user:?} is disabled; enable it with portcullis password enable"));
    }
    let is_usable = client.valid_passwords(now).next().is_some() || !client.certificates.is_empty();
    (!is_usable)
        .then(|| format!("{user:?} has no other valid password and no certificate, so it can no longer authenticate"))
}

/// Bytes of the digest that an entity tag shows.
const ETAG_BYTES: usize = 16;
