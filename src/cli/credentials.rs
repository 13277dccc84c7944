//! What `portcullis check` prints of `[listener.credentials]`: counts and names, and nothing of a password.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::config::Config;
use crate::config::credentials::CredentialSettings;
use crate::credential::clients::Clients;
use crate::credential::credentials::Credentials;
use crate::policy::ListenerPolicy;
use crate::printable;

/// `null` if clients authenticate to the database themselves.
pub(crate) fn to_json(policy: &ListenerPolicy, config: &Config) -> Value {
    let Some((settings, credentials)) = of(policy, config) else { return Value::Null };
    json!({
        "clients_file": settings.clients_file.path,
        "clients": credentials.clients.iter().len(),
        "passwords": passwords(&credentials.clients),
        "upstream_user": credentials.upstream_user,
        "upstream_password_file": settings.upstream_password_file.as_ref().map(|file| &file.path),
        "upstream_passwords": credentials.upstream_passwords.count(),
    })
}

pub(crate) fn write(out: &mut String, policy: &ListenerPolicy, config: &Config) {
    let Some((settings, credentials)) = of(policy, config) else { return };
    let clients = counted(credentials.clients.iter().len(), "client");
    let passwords = counted(passwords(&credentials.clients), "password");
    let file = settings.clients_file.path.display();
    let _ = writeln!(out, "  {:<13} {clients} with {passwords} in {file}", "credentials");
    let user = credentials.upstream_user.as_ref();
    let user =
        user.map_or_else(|| "the user of each client".to_owned(), |user| format!("{:?}", printable::quoted(user)));
    let passwords = match &settings.upstream_password_file {
        Some(file) => {
            let count = counted(credentials.upstream_passwords.count(), "password");
            format!("with {count} in {}", file.path.display())
        }
        None => "without a password".to_owned(),
    };
    let _ = writeln!(out, "  {:<13} {user}, {passwords}", "database user");
}

fn of<'a>(policy: &'a ListenerPolicy, config: &'a Config) -> Option<(&'a CredentialSettings, &'a Credentials)> {
    let listener = config.listeners.iter().find(|listener| *listener.name == *policy.name)?;
    Some((listener.credentials.as_ref()?, policy.credentials.as_deref()?))
}

fn passwords(clients: &Clients) -> usize {
    clients.iter().map(|client| client.passwords.len()).sum()
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
