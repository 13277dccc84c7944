//! Who a caller is: the user of the Unix socket, or the holder of a token.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Instant as TokioInstant, sleep_until};

use crate::addr::ClientAddr;
use crate::audit;
use crate::audit::admin::AdminDenialReason;
use crate::control::error::ErrorKind;
use crate::control::response::AdminResponse;
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
    },
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

/// A rejected caller.
#[derive(Debug)]
pub(crate) struct Rejected {
    pub(crate) reason: AdminDenialReason,
    /// The name of the token, if it is known.
    pub(crate) token: Option<String>,
    pub(crate) response: AdminResponse,
}

/// The tokens in force, and what is known of their use.
#[derive(Debug, Default)]
pub(crate) struct Access {
    tokens: watch::Sender<Arc<Vec<Token>>>,
    failures: FailedLogins,
    last_use: Arc<LastUses>,
}

impl Access {
    /// Puts these tokens in force.
    pub(crate) fn set_tokens(&self, tokens: &Arc<Vec<Token>>) {
        self.last_use.keep_only(tokens);
        self.tokens.send_replace(Arc::clone(tokens));
    }

    pub(crate) fn last_uses(&self) -> Arc<LastUses> {
        Arc::clone(&self.last_use)
    }

    /// Identifies the caller of a request. `peer` is [`ClientAddr::UNIX`] for a client of the Unix socket.
    ///
    /// # Errors
    /// A response with status 401, or 429 for a source with many invalid tokens.
    pub(crate) fn identify(&self, peer: ClientAddr, headers: &HeaderMap) -> Result<Caller, Box<Rejected>> {
        let Some(source) = peer.ip() else {
            return Ok(Caller::Unix);
        };
        let Some(presented) = token_in(headers) else {
            return Err(self.rejected(peer, AdminDenialReason::MissingToken, None));
        };
        let now = OffsetDateTime::now_utc();
        let tokens = Arc::clone(&self.tokens.borrow());
        match authenticate(&tokens, presented, source, now) {
            Ok(token) => {
                self.last_use.record(token, source, now);
                let Token { name, role, digest, expires_at, .. } = token;
                let (digest, expires_at, role) = (*digest, *expires_at, *role);
                Ok(Caller::Token { name: name.clone(), digest, expires_at, role, source })
            }
            Err(refusal) => {
                let reason = match refusal {
                    TokenRefusal::Unknown => AdminDenialReason::UnknownToken,
                    TokenRefusal::Expired { .. } => AdminDenialReason::ExpiredToken,
                    TokenRefusal::WrongSource { .. } => AdminDenialReason::WrongSource,
                };
                Err(self.rejected(peer, reason, refusal.token_name().map(str::to_owned)))
            }
        }
    }

    /// Returns when a caller that was identified is no longer one: its token was removed, changed or has expired.
    pub(crate) async fn ended(&self, caller: &Caller) {
        let Caller::Token { name, digest, expires_at, role, source } = caller else {
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
        }
    }

    fn rejected(&self, peer: ClientAddr, reason: AdminDenialReason, token: Option<String>) -> Box<Rejected> {
        let (reason, response) = match self.failures.record(peer, Instant::now()) {
            FailedLogin::Counted => {
                let message = "a valid token is required; send it as \"Authorization: Bearer TOKEN\"";
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
        Box::new(Rejected { reason, token, response })
    }
}

/// The token in the `Authorization` header. Several headers are none.
fn token_in(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    match (all.next(), all.next()) {
        (Some(one), None) => bearer(one.as_bytes()),
        _ => None,
    }
}

/// The longest time until a changed wall clock is noticed.
const CLOCK_CHECK: Duration = Duration::from_secs(60);
