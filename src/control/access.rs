//! Who a caller is: the user of the Unix socket, the holder of a token, or a person in the control panel.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Instant as TokioInstant, sleep_until};

use crate::addr::ClientAddr;
use crate::audit;
use crate::audit::admin::AdminDenialReason;
use crate::control::browser::{BrowserRequest, is_from_browser};
use crate::control::error::ErrorKind;
use crate::control::rejected::Rejected;
use crate::control::response::AdminResponse;
use crate::panel::sessions::{Activity, PanelSessions, SessionKey};
use crate::panel::site::HostNames;
use crate::token::authenticate::{TokenRefusal, authenticate, bearer};
use crate::token::failed_logins::{FailedLogin, FailedLogins};
use crate::token::last_use::LastUses;
use crate::token::{Role, Token, TokenDigest};

/// A caller that may use the API, as far as its role allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A user who may open the Unix socket, which has the role owner.
    Unix,
    Token {
        name: String,
        digest: TokenDigest,
        expires_at: Option<OffsetDateTime>,
        role: Role,
        source: IpAddr,
        /// The session of a person who has signed in with the token.
        panel_session: Option<SessionKey>,
    },
}

/// How a request reached the program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// [`ClientAddr::UNIX`] for a client of the Unix socket.
    pub(crate) addr: ClientAddr,
    pub(crate) is_tls: bool,
}

impl Caller {
    pub(crate) fn token_name(&self) -> Option<&str> {
        match self {
            Self::Unix => None,
            Self::Token { name, .. } => Some(name),
        }
    }

    pub(crate) fn role(&self) -> Role {
        match self {
            Self::Unix => Role::Owner,
            Self::Token { role, .. } => *role,
        }
    }

    /// `None` for a client of the Unix socket.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        match self {
            Self::Unix => None,
            Self::Token { source, .. } => Some(*source),
        }
    }

    /// The caller in an audit event.
    pub(crate) fn audited(&self) -> audit::admin::Caller<'_> {
        match self {
            Self::Unix => audit::admin::Caller::Unix,
            Self::Token { name, role, source, .. } => {
                audit::admin::Caller::Token { name, role: *role, source: *source }
            }
        }
    }
}

/// The tokens in force, and what is known of their use.
#[derive(Debug, Default)]
pub(crate) struct Access {
    tokens: watch::Sender<Arc<Vec<Token>>>,
    failures: FailedLogins,
    last_use: Arc<LastUses>,
    pub(super) panel: PanelSessions,
    pub(super) panel_hosts: watch::Sender<Arc<HostNames>>,
}

impl Access {
    /// Puts these tokens in force.
    pub(crate) fn set_tokens(&self, tokens: &Arc<Vec<Token>>) {
        self.last_use.keep_only(tokens);
        self.panel.keep_only(tokens);
        self.tokens.send_replace(Arc::clone(tokens));
    }

    pub(crate) fn last_uses(&self) -> Arc<LastUses> {
        Arc::clone(&self.last_use)
    }

    /// Sets the host names under which a browser may open the control panel.
    pub(crate) fn set_panel_hosts(&self, hosts: HostNames) {
        self.panel_hosts.send_replace(Arc::new(hosts));
    }

    /// Identifies the caller of a request. `is_stream` is for requests whose response lasts.
    ///
    /// # Errors
    /// A response with status 401, or 429 for a source with many invalid tokens. For a browser that sends a cookie, also 403,
    /// 415 and 421.
    pub(crate) fn identify(&self, peer: Peer, head: &Parts, is_stream: bool) -> Result<Caller, Box<Rejected>> {
        let Peer { addr, is_tls } = peer;
        let Some(source) = addr.ip() else {
            return if is_from_browser(head, &self.panel_hosts.borrow()) {
                Err(browser_on_unix_socket())
            } else {
                Ok(Caller::Unix)
            };
        };
        if head.headers.contains_key(AUTHORIZATION) {
            return self.authenticate(addr, source, token_in(&head.headers)).map(|token| caller(&token, source, None));
        }
        let request = BrowserRequest::new(head, is_tls);
        let keys = request.sessions();
        if keys.is_empty() {
            // The page asks whether it has a session each time it is opened. That is no failed authentication.
            let is_question = head.method == Method::GET && head.uri.path() == PANEL_SESSION_PATH;
            let response = || AdminResponse::error(ErrorKind::Unauthorized, "no session; sign in");
            return Err(if is_question {
                Rejected::failed(response())
            } else {
                self.rejected(addr, AdminDenialReason::MissingToken, None)
            });
        }
        request.check_host(&self.panel_hosts.borrow())?;
        request.check_origin()?;
        let activity = if is_stream { Activity::Background } else { request.activity() };
        self.find_session(addr, source, &keys, activity)
    }

    /// The caller of the first of these sessions that is open, if its token is still valid.
    fn find_session(
        &self,
        addr: ClientAddr,
        source: IpAddr,
        keys: &[SessionKey],
        activity: Activity,
    ) -> Result<Caller, Box<Rejected>> {
        let (from, now) = (addr.source_key(), TokioInstant::now());
        let open = |key: &SessionKey| Some((*key, self.panel.find(*key, from?, activity, now)?));
        let Some((key, session)) = keys.iter().find_map(open) else {
            return Err(self.rejected(addr, AdminDenialReason::SessionEnded, None));
        };
        let now = OffsetDateTime::now_utc();
        let tokens = Arc::clone(&self.tokens.borrow());
        let is_own = |token: &&Token| token.name == session.token_name && token.digest == session.token_digest;
        let is_usable = |token: &&Token| !token.is_expired(now) && token.is_usable_from(source);
        match tokens.iter().find(is_own).filter(is_usable) {
            Some(token) => {
                self.last_use.record(token, source, now);
                Ok(caller(token, source, Some(key)))
            }
            None => {
                self.panel.close(key);
                Err(self.rejected(addr, AdminDenialReason::SessionEnded, Some(session.token_name)))
            }
        }
    }

    /// The token with this text, if it may be used now and from this source.
    pub(super) fn authenticate(
        &self,
        addr: ClientAddr,
        source: IpAddr,
        presented: Option<&[u8]>,
    ) -> Result<Token, Box<Rejected>> {
        let Some(presented) = presented else {
            return Err(self.rejected(addr, AdminDenialReason::MissingToken, None));
        };
        let now = OffsetDateTime::now_utc();
        let tokens = Arc::clone(&self.tokens.borrow());
        match authenticate(&tokens, presented, source, now) {
            Ok(token) => {
                self.last_use.record(token, source, now);
                Ok(token.clone())
            }
            Err(refusal) => {
                let reason = match refusal {
                    TokenRefusal::Unknown => AdminDenialReason::UnknownToken,
                    TokenRefusal::Expired { .. } => AdminDenialReason::ExpiredToken,
                    TokenRefusal::WrongSource { .. } => AdminDenialReason::WrongSource,
                };
                Err(self.rejected(addr, reason, refusal.token_name().map(str::to_owned)))
            }
        }
    }

    /// Returns when a caller that was identified is no longer one: its token was removed, changed or has expired, or its
    /// session of the panel has ended.
    pub(crate) async fn ended(&self, caller: &Caller) {
        let Caller::Token { name, digest, expires_at, role, source, panel_session } = caller else {
            return std::future::pending().await;
        };
        let mut tokens = self.tokens.subscribe();
        let is_gone = |tokens: &Arc<Vec<Token>>| {
            let is_same = |token: &Token| {
                (&token.name, token.digest, token.expires_at, token.role) == (name, *digest, *expires_at, *role)
                    && token.is_usable_from(*source)
            };
            !tokens.iter().any(is_same)
        };
        let expired = async {
            match expires_at {
                // The wall clock may be set, so it is read again every minute.
                Some(end) => loop {
                    let left = *end - OffsetDateTime::now_utc();
                    let Ok(left) = Duration::try_from(left) else { return };
                    sleep_until(TokioInstant::now() + left.min(CLOCK_CHECK)).await;
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Fails only if this value is dropped, which ends the connection too.
            _ = tokens.wait_for(is_gone) => {}
            () = expired => {}
            () = async {
                match panel_session {
                    Some(key) => self.panel.ended(*key).await,
                    None => std::future::pending().await,
                }
            } => {}
        }
    }

    fn rejected(&self, addr: ClientAddr, reason: AdminDenialReason, token: Option<String>) -> Box<Rejected> {
        let (reason, response) = match self.failures.record(addr, Instant::now()) {
            FailedLogin::Counted => {
                let message = match reason {
                    AdminDenialReason::SessionEnded => "the session has ended; sign in again",
                    _ => "a valid token is required; send it as \"Authorization: Bearer TOKEN\"",
                };
                let response = AdminResponse::error(ErrorKind::Unauthorized, message)
                    .with_header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                (reason, response)
            }
            FailedLogin::Limited { retry_after } => {
                let message = "too many requests with invalid tokens from this address; try again later";
                let response = AdminResponse::error(ErrorKind::TooManyRequests, message)
                    .with_header(RETRY_AFTER, HeaderValue::from(retry_after.get()));
                (AdminDenialReason::RateLimited, response)
            }
        };
        Box::new(Rejected { reason: Some(reason), token, response })
    }
}

pub(super) fn caller(token: &Token, source: IpAddr, panel_session: Option<SessionKey>) -> Caller {
    let Token { name, role, digest, expires_at, .. } = token;
    let (digest, expires_at, role) = (*digest, *expires_at, *role);
    Caller::Token { name: name.clone(), digest, expires_at, role, source, panel_session }
}

fn browser_on_unix_socket() -> Box<Rejected> {
    let message = "the Unix socket needs no token, so it accepts no requests of browsers; open the panel at a TCP address \
                   of [admin] listen";
    let response = AdminResponse::error(ErrorKind::Forbidden, message);
    Rejected::denied(AdminDenialReason::CrossOrigin, response)
}

/// The token in the `Authorization` header. Several headers are none.
pub(crate) fn token_in(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    match (all.next(), all.next()) {
        (Some(one), None) => bearer(one.as_bytes()),
        _ => None,
    }
}

/// Where the page of the panel asks for its session.
const PANEL_SESSION_PATH: &str = "/ui/session";

/// The longest time until a changed wall clock is noticed.
const CLOCK_CHECK: Duration = Duration::from_secs(60);
