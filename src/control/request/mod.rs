//! What a request asks for, parsed and checked.

pub(crate) mod client_certificates;
pub(crate) mod explain;
pub(crate) mod json;
pub(crate) mod panel;
pub(crate) mod passwords;
pub(crate) mod reload;
pub(crate) mod sources;
pub(crate) mod tokens;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::addr::ClientAddr;
use crate::audit::recent::EventFilter;
use crate::config::edit::sources::SourcesChange;
use crate::credential::new_password::NewPassword;
use crate::credential::password::PasswordText;
use crate::issuing::client_request::ClientRequest;
use crate::source::rule::Network;
use crate::token::Role;
use crate::x509::fingerprint::CertificateFingerprint;
use crate::x509::pinned::ClientPem;

/// A parsed request of the admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminRequest {
    /// The state of the program.
    Status,
    /// The state of all listeners.
    Listeners,
    /// One listener, by its name.
    Listener(String),
    /// All source groups.
    SourceGroups,
    /// Certificates, CAs and sources with their use.
    Rotation,
    /// The same at all members of the fleet.
    FleetRotation,
    /// The members of the fleet and its store.
    Fleet,
    /// Accept the store of the fleet as it is.
    AcceptStore,
    /// Forget a member that is gone, by its name.
    ForgetMember(String),
    /// The sessions and denied connections of the last hour.
    History,
    /// All certificates with their expiry and use.
    Certificates,
    /// The sessions that a filter selects.
    Sessions(SessionFilter),
    /// Close one session, by its ID.
    CloseSession(u64),
    /// Close the sessions of a client or a source.
    CloseSessions(CloseSessions),
    /// Denied sources by listener, network and reason.
    Denials(DenialFilter),
    /// Reload the configuration.
    Reload,
    /// Show what a reload would change.
    Plan {
        /// Absolute path of another configuration file.
        file: Option<PathBuf>,
    },
    /// Explain whether a connection would be admitted.
    Explain {
        /// Name of the listener.
        listener: String,
        /// Address of the client.
        source: ClientAddr,
        /// Client certificate chain, leaf first; may be empty.
        chain: Vec<CertificateDer<'static>>,
    },
    /// The trusted sources of a listener or a group.
    Sources {
        /// Name or UUID of the listener, or `group:NAME`.
        listener: String,
    },
    /// Change the rules of a `sources_file`.
    ChangeSources(ChangeSources),
    /// The rules of a `sources_file` in the form of DigitalOcean's API.
    Firewall {
        /// Name or UUID of the listener, or `group:NAME`.
        listener: String,
    },
    /// The certificates that clients of a listener should trust, in the form of DigitalOcean's API.
    CaBundle {
        /// Name or UUID of the listener.
        listener: String,
    },
    /// The same as a file.
    CaBundleFile {
        /// Name or UUID of the listener.
        listener: String,
    },
    /// The pinned client certificates of a listener.
    ClientCertificates {
        /// Name or UUID of the listener.
        listener: String,
    },
    /// Pin a client certificate, or no longer.
    ChangePins(ChangePins),
    /// The clients of a listener with their passwords, without the passwords themselves.
    Clients {
        /// Name or UUID of the listener.
        listener: String,
    },
    /// Add or remove a password of a client.
    ChangePasswords(ChangePasswords),
    /// Issue a client certificate.
    IssueCertificate(IssueCertificate),
    /// All tokens, without their texts.
    Tokens,
    /// Create a token.
    NewToken(NewToken),
    /// Remove a token, by its name.
    RevokeToken(String),
    /// Follow audit events.
    Events {
        /// Which events the client wants.
        filter: EventFilter,
        /// How many past events come first.
        recent: usize,
        /// Whether later events follow.
        follow: bool,
    },
}

/// A change of the rules of a `sources_file`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeSources {
    /// Name or UUID of the listener, or `group:NAME`.
    pub listener: String,
    pub change: SourcesChange,
    /// The entity tag that the rules must have, without quotes; `None` for any.
    pub if_match: Option<String>,
    /// Whether to show only what would change.
    pub plan: bool,
    /// How long to wait until all members of the fleet have the change in force.
    pub wait: Option<Duration>,
}

/// Which sessions to close: those that have all that is set. A client or a source is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloseSessions {
    pub listener: Option<String>,
    /// An address or network that contains the client.
    pub source: Option<Network>,
    /// The subject of the client certificate.
    pub client: Option<String>,
    /// Whether to close them at all members of the fleet.
    pub fleet: bool,
    /// How long to wait for the members.
    pub wait: Option<Duration>,
}

/// A change of the pinned client certificates of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangePins {
    /// Name or UUID of the listener.
    pub listener: String,
    pub change: PinChange,
    /// The entity tag that the list must have, without quotes; `None` for any.
    pub if_match: Option<String>,
    /// Whether to show only what would change.
    pub plan: bool,
}

/// A change of one pinned client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinChange {
    Pin(Arc<ClientPem>),
    Unpin(CertificateFingerprint),
}

impl PinChange {
    /// The fingerprint of the certificate.
    pub(crate) fn sha256(&self) -> &CertificateFingerprint {
        match self {
            Self::Pin(client) => &client.certificate.sha256,
            Self::Unpin(sha256) => sha256,
        }
    }
}

/// A change of one password of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangePasswords {
    /// Name or UUID of the listener.
    pub listener: String,
    pub user: String,
    pub change: PasswordChange,
    /// The entity tag that the list must have, without quotes; `None` for any.
    pub if_match: Option<String>,
    /// Whether to show only what would change.
    pub plan: bool,
}

/// What changes. Its debug output has no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PasswordChange {
    Add(AddedPassword),
    Remove { id: String },
}

/// A password to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedPassword {
    /// `None` for a random one.
    pub text: Option<PasswordText>,
    pub new: NewPassword,
}

/// A client certificate to issue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssueCertificate {
    /// Name or UUID of the listener.
    pub listener: String,
    pub request: ClientRequest,
}

/// Which sessions to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionFilter {
    pub listener: Option<String>,
    /// An address or network that contains the client.
    pub source: Option<Network>,
    /// A part of the subject of the client certificate.
    pub client: Option<String>,
    pub offset: usize,
    /// `None` for all.
    pub limit: Option<usize>,
}

/// Which denials to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenialFilter {
    pub listener: Option<String>,
    /// Only denials of this last time; `None` for all that are known.
    pub since: Option<Duration>,
}

/// A token to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    pub name: String,
    pub role: Role,
    pub expires_at: Option<OffsetDateTime>,
    /// The networks from which it may be used; empty for all.
    pub sources: Vec<Network>,
}
