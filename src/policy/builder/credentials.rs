//! The files of `[listener.credentials]`.

use std::fmt::Display;
use std::sync::Arc;

use crate::config::SourcedFile;
use crate::config::credentials::{CredentialSettings, clients};
use crate::config::files::Location;
use crate::config::problem::{Position, Problem};
use crate::credential::clients::{Client, Clients, SaltRule};
use crate::credential::credentials::Credentials;
use crate::credential::upstream_passwords::{PasswordFileError, UpstreamPasswords};
use crate::identity::settings::ClientAuth;
use crate::policy::ListenerPolicy;
use crate::policy::builder::Builder;
use crate::printable;
use crate::protocol::Protocol;
use crate::timestamp;

impl Builder<'_> {
    /// Reads the clients and the passwords of the database; `Some(None)` if the section is not set. Keeps the previous
    /// credentials if nothing has changed.
    pub(crate) fn credentials(&mut self, before: Option<&ListenerPolicy>) -> Option<Option<Arc<Credentials>>> {
        let Some(settings) = &self.listener.credentials else { return Some(None) };
        let CredentialSettings { clients_file, upstream_user, upstream_password_file } = settings;
        // Reads both before returning, so that all problems are reported.
        let clients = self.database_clients(clients_file);
        let passwords = match upstream_password_file {
            Some(file) => self.upstream_passwords(file),
            None => Some(UpstreamPasswords::default()),
        };
        let known = before.and_then(|before| before.credentials.as_ref());
        let upstream_passwords = match known.map(|known| &known.upstream_passwords) {
            // With what is known about them.
            Some(known) if passwords.as_ref() == Some(known) => known.clone(),
            Some(known) => passwords?.with_evidence_of(known),
            None => passwords?,
        };
        let upstream_user = upstream_user.clone();
        let credentials = Credentials { clients: clients?, upstream_user, upstream_passwords };
        self.warn_about_credentials(&credentials.clients);
        self.warn_about_open_sessions(before);
        let known = known.filter(|known| ***known == credentials);
        Some(Some(known.map_or_else(|| Arc::new(credentials), Arc::clone)))
    }

    fn database_clients(&mut self, file: &SourcedFile) -> Option<Clients> {
        let salts = match self.listener.protocol {
            Protocol::Postgres => SaltRule::OnePerUser,
            Protocol::Redis | Protocol::Tcp => SaltRule::Any,
        };
        match clients::from_file(file, salts, self.reader.files) {
            Ok(clients) => {
                self.reader.warn_about_readers("clients", &Location::from(&file.path));
                Some(clients)
            }
            Err(problems) => {
                // Several listeners may have the same file.
                let new = problems.into_iter().filter(|problem| !self.reader.problems.contains(problem));
                let new: Vec<_> = new.collect();
                self.reader.problems.extend(new);
                None
            }
        }
    }

    fn upstream_passwords(&mut self, file: &SourcedFile) -> Option<UpstreamPasswords> {
        let bytes = self.reader.files.read(&file.path);
        let bytes = bytes.map_err(|why| self.reader.problems.push(file.unreadable(&why))).ok()?;
        self.reader.warn_about_readers("passwords", &Location::from(&file.path));
        let problem = |PasswordFileError { line, why }| {
            let position = Position { file: file.path.clone(), position: line.map(|line| (line, 1)) };
            Problem { position, key: String::new(), message: why.to_string() }
        };
        UpstreamPasswords::from_file(&bytes).map_err(|error| self.reader.problems.push(problem(error))).ok()
    }

    fn warn_about_credentials(&mut self, clients: &Clients) {
        if clients.iter().len() == 0 {
            self.reader
                .warn("clients_file lists no client, so every client is denied; add one with portcullis password add");
        }
        let has_auth = self.listener.tls.as_ref().is_some_and(|tls| tls.client_auth != ClientAuth::None);
        if !has_auth && clients.iter().any(|client| !client.certificates.is_empty()) {
            self.reader.warn(
                "clients_file has certificates, but client_auth = \"none\" does not request them; set tls.client_auth to \
                 \"optional\" or \"required\"",
            );
        }
        let is_useless = |client: &&Arc<Client>| {
            !client.is_disabled && client.passwords.is_empty() && client.certificates.is_empty()
        };
        self.warn_about_each(clients.iter().filter(is_useless).map(|client| {
            let user = printable::quoted(&client.user);
            format!(
                "the client \"{user}\" has neither a password nor a certificate, so it cannot authenticate; add a password \
                 with portcullis password add"
            )
        }));
        let now = self.now.at;
        let passwords =
            clients.iter().flat_map(|client| client.passwords.iter().map(move |password| (client, password)));
        self.warn_about_each(passwords.filter(|(_, password)| password.is_expired(now)).map(|(client, password)| {
            let (user, id) = (printable::quoted(&client.user), &password.id);
            let end = password.expires_at.map(timestamp::seconds).unwrap_or_default();
            format!("the password {id} of \"{user}\" expired at {end}; remove it with portcullis password remove")
        }));
    }

    /// There may be thousands.
    fn warn_about_each(&mut self, warnings: impl Iterator<Item = impl Display>) {
        let mut warnings = warnings;
        warnings.by_ref().take(MAX_REPORTED).for_each(|warning| self.reader.warn(warning));
        let more = warnings.count();
        if more > 0 {
            self.reader.warn(format_args!("the same holds for {more} more in clients_file"));
        }
    }

    /// Sessions from before the section was added have not authenticated here.
    fn warn_about_open_sessions(&mut self, before: Option<&ListenerPolicy>) {
        let open = before.filter(|before| before.credentials.is_none()).map_or(0, |before| before.metrics.active());
        if open > 0 {
            self.reader.warn(format_args!(
                "{open} open sessions have not authenticated here and continue; close them with portcullis sessions close"
            ));
        }
    }
}

const MAX_REPORTED: usize = 10;
