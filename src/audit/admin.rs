//! Events about callers of the admin API.

use std::net::IpAddr;

use crate::addr::ClientAddr;
use crate::audit::event::Event;
use crate::audit::suppression::FloodEvent;
use crate::printable;
use crate::token::Role;

/// Who calls the admin API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller<'a> {
    /// A user who may open the Unix socket, which has the role owner.
    Unix,
    Token {
        name: &'a str,
        role: Role,
        source: IpAddr,
    },
}

/// What a caller requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdminActionKind {
    CertsIssue,
    CertsPin,
    CertsUnpin,
    FleetAccept,
    FleetForget,
    PasswordAdd,
    PasswordRemove,
    Reload,
    SessionsClose,
    SourcesAppend,
    SourcesRemove,
    SourcesReplace,
    TokenNew,
    TokenRevoke,
    PanelSignIn,
    PanelSignOut,
}

/// A change that a caller requested and may make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdminAction<'a> {
    pub caller: Caller<'a>,
    pub kind: AdminActionKind,
    /// A listener, `LISTENER/UUID` of a rule, `LISTENER/SHA256` of a client certificate, `LISTENER/USER/ID` of a
    /// password, the name of a token, or the number of a session.
    pub target: Option<&'a str>,
    /// The `x-request-id` of the response.
    pub request_id: Option<&'a str>,
    /// What changes, in short: `2 rules`.
    pub detail: Option<&'a str>,
}

/// Why a request was denied. The codes are public (docs/AUDIT.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdminDenialReason {
    MissingToken,
    UnknownToken,
    ExpiredToken,
    /// The token may not be used from this address.
    WrongSource,
    /// The role of the token does not permit the request.
    Forbidden,
    /// The source has sent too many bad tokens.
    RateLimited,
    /// The cookie belongs to no open session of the panel.
    SessionEnded,
    /// Another page than the panel caused the request.
    CrossOrigin,
    /// The name in `Host` is not one of the panel.
    UnknownHost,
}

/// A request that was denied. On the Unix socket, only those of browsers are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdminDenial<'a> {
    pub source: ClientAddr,
    pub reason: AdminDenialReason,
    /// The name of the token, where the token is known.
    pub token: Option<&'a str>,
    /// As the caller sent it.
    pub method: &'a str,
    /// As the caller sent it. The query is not part of the event.
    pub path: &'a str,
    pub request_id: &'a str,
}

impl Caller<'_> {
    fn actor(self) -> String {
        match self {
            Self::Unix => "unix".to_owned(),
            Self::Token { name, .. } => token_actor(name),
        }
    }

    fn role(self) -> Role {
        match self {
            Self::Unix => Role::Owner,
            Self::Token { role, .. } => role,
        }
    }

    fn source(self) -> Option<IpAddr> {
        match self {
            Self::Unix => None,
            Self::Token { source, .. } => Some(source),
        }
    }
}

fn token_actor(name: &str) -> String {
    format!("token:{name}")
}

impl AdminActionKind {
    /// The name of the command, with a dot, or what a person did in the panel.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::CertsIssue => "certs.issue",
            Self::CertsPin => "certs.pin",
            Self::CertsUnpin => "certs.unpin",
            Self::FleetAccept => "fleet.accept",
            Self::FleetForget => "fleet.forget",
            Self::PasswordAdd => "password.add",
            Self::PasswordRemove => "password.remove",
            Self::Reload => "reload",
            Self::SessionsClose => "sessions.close",
            Self::SourcesAppend => "sources.append",
            Self::SourcesRemove => "sources.remove",
            Self::SourcesReplace => "sources.replace",
            Self::TokenNew => "token.new",
            Self::TokenRevoke => "token.revoke",
            Self::PanelSignIn => "panel.sign_in",
            Self::PanelSignOut => "panel.sign_out",
        }
    }
}

impl AdminDenialReason {
    /// Whether the caller could not be identified, in contrast to one that may not do what it requests.
    pub(crate) const fn is_failed_authentication(self) -> bool {
        match self {
            Self::MissingToken
            | Self::UnknownToken
            | Self::ExpiredToken
            | Self::WrongSource
            | Self::RateLimited
            | Self::SessionEnded => true,
            Self::Forbidden | Self::CrossOrigin | Self::UnknownHost => false,
        }
    }

    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::MissingToken => "missing_token",
            Self::UnknownToken => "unknown_token",
            Self::ExpiredToken => "expired_token",
            Self::WrongSource => "wrong_source",
            Self::Forbidden => "forbidden",
            Self::RateLimited => "rate_limited",
            Self::SessionEnded => "session_ended",
            Self::CrossOrigin => "cross_origin",
            Self::UnknownHost => "unknown_host",
        }
    }
}

impl AdminAction<'_> {
    pub(crate) fn event(&self) -> Event {
        let Self { caller, kind, target, request_id, detail } = *self;
        Event::new("admin.action")
            .with("actor", caller.actor())
            .with("role", caller.role().code())
            .with_some("source", caller.source().map(shown))
            .with("action", kind.code())
            .with_some("target", target.map(without_tokens))
            .with_some("request_id", request_id)
            .with_some("detail", detail)
    }
}

impl AdminDenial<'_> {
    pub(crate) fn event(&self) -> Event {
        let Self { source, reason, token, method, path, request_id } = *self;
        let path = path.split(['?', '#']).next().unwrap_or_default();
        Event::new("admin.denied")
            .with("source", source.source())
            .with("reason", reason.code())
            .with_some("actor", token.map(token_actor))
            .with("method", printable::cut(method, MAX_METHOD))
            .with("path", without_tokens(path))
            .with("request_id", request_id)
    }

    /// How the event counts in a flood.
    pub(crate) fn flood_event(&self) -> FloodEvent<'static> {
        FloodEvent { source: self.source.source_key(), listener: None, reason: Some(self.reason.code()) }
    }
}

fn shown(source: IpAddr) -> String {
    ClientAddr::from_ip(source).source()
}

/// Replaces a path segment that contains a token: callers confuse a token with its name.
fn without_tokens(path: &str) -> String {
    let mask = |segment| if str::contains(segment, TOKEN_PREFIX) { "[token]" } else { segment };
    path.split('/').map(mask).collect::<Vec<_>>().join("/")
}

/// Each generated token begins so.
const TOKEN_PREFIX: &str = "pcl_";

/// The longest standard method has 7 bytes. With the mark for longer ones.
const MAX_METHOD: usize = 32;

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The event without its time.
    fn line(event: &Event) -> String {
        let json = event.json(None);
        let (time, rest) = json.split_once(',').unwrap();
        assert!(time.starts_with("{\"ts\":\""), "{time}");
        rest.trim_end().to_owned()
    }

    fn denial<'a>(method: &'a str, path: &'a str) -> AdminDenial<'a> {
        AdminDenial {
            source: ClientAddr::from_ip("::ffff:192.0.2.7".parse().unwrap()),
            reason: AdminDenialReason::UnknownToken,
            token: None,
            method,
            path,
            request_id: "0f3a",
        }
    }

    #[test]
    fn action_of_a_token_names_actor_role_source_and_request() {
        let source = "2001:db8::7".parse().unwrap();
        let action = AdminAction {
            caller: Caller::Token { name: "ci", role: Role::Operator, source },
            kind: AdminActionKind::SourcesAppend,
            target: Some("cache"),
            request_id: Some("0f3a"),
            detail: Some("2 rules"),
        };
        assert_eq!(
            line(&action.event()),
            r#""event":"admin.action","actor":"token:ci","role":"operator","source":"2001:db8::7","action":"sources.append","target":"cache","request_id":"0f3a","detail":"2 rules"}"#
        );
    }

    #[test]
    fn action_over_the_unix_socket_is_that_of_an_owner_without_an_address() {
        let action = AdminAction {
            caller: Caller::Unix,
            kind: AdminActionKind::Reload,
            target: None,
            request_id: None,
            detail: None,
        };
        assert_eq!(line(&action.event()), r#""event":"admin.action","actor":"unix","role":"owner","action":"reload"}"#);
    }

    #[test]
    fn denial_names_source_reason_and_request() {
        let known = AdminDenial {
            reason: AdminDenialReason::Forbidden,
            token: Some("ci"),
            ..denial("DELETE", "/v1/tokens/dba")
        };
        assert_eq!(
            line(&known.event()),
            r#""event":"admin.denied","source":"192.0.2.7","reason":"forbidden","actor":"token:ci","method":"DELETE","path":"/v1/tokens/dba","request_id":"0f3a"}"#
        );
        assert_eq!(
            line(&denial("GET", "/v1/status").event()),
            r#""event":"admin.denied","source":"192.0.2.7","reason":"unknown_token","method":"GET","path":"/v1/status","request_id":"0f3a"}"#
        );
    }

    #[test]
    fn token_in_a_path_or_query_is_not_in_the_event() {
        for path in ["/v1/status?token=pcl_secret", "/v1/tokens/pcl_secret", "/v1/x#pcl_secret", "pcl_secret"] {
            let event = line(&denial("GET", path).event());
            assert!(!event.contains("secret"), "{event}");
        }
        let action = AdminAction {
            caller: Caller::Unix,
            kind: AdminActionKind::TokenRevoke,
            target: Some("pcl_secret"),
            request_id: None,
            detail: None,
        };
        assert!(line(&action.event()).contains(r#""target":"[token]""#));
    }

    #[test]
    fn method_and_path_are_escaped_and_cut() {
        let (method, path) = ("X".repeat(5_000), format!("/\"\n\u{202e}{}", "y".repeat(9_000)));
        let line = denial(&method, &path).event().json(None);
        assert!(line.len() < 1_024, "{}", line.len());
        let event: Value = serde_json::from_str(&line).unwrap();
        assert!(event["method"].as_str().unwrap().ends_with(printable::MARK), "{event}");
        assert!(event["path"].as_str().unwrap().starts_with("/\"\\n\\u{202e}yyy"), "{event}");
    }

    #[test]
    fn every_action_and_reason_is_in_the_reference() {
        use AdminActionKind as Kind;
        use AdminDenialReason as Reason;
        let reference = include_str!("../../docs/AUDIT.md");
        let actions = [
            Kind::Reload,
            Kind::SessionsClose,
            Kind::SourcesAppend,
            Kind::SourcesRemove,
            Kind::SourcesReplace,
            Kind::TokenNew,
            Kind::TokenRevoke,
        ];
        let reasons = [
            Reason::MissingToken,
            Reason::UnknownToken,
            Reason::ExpiredToken,
            Reason::WrongSource,
            Reason::Forbidden,
            Reason::RateLimited,
        ];
        for code in actions.map(AdminActionKind::code).iter().chain(&reasons.map(AdminDenialReason::code)) {
            assert!(reference.contains(&format!("`{code}`")), "{code}");
        }
    }

    #[test]
    fn addresses_of_one_64_are_one_source_in_a_flood() {
        let of = |source: &str| {
            AdminDenial { source: ClientAddr::from_ip(source.parse().unwrap()), ..denial("GET", "/") }.flood_event()
        };
        assert_eq!(of("2001:db8::1").source, of("2001:db8::2").source);
        assert_ne!(of("192.0.2.1").source, of("192.0.2.2").source);
    }
}
