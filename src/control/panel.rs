//! Signing in to the control panel, and the sessions of those who have.

use hyper::header::{HeaderValue, SET_COOKIE};
use hyper::http::request::Parts;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::control::access::{Access, Caller, Peer, caller};
use crate::control::browser::BrowserRequest;
use crate::control::error::ErrorKind;
use crate::control::rejected::Rejected;
use crate::control::response::AdminResponse;
use crate::panel::sessions::{IDLE_TIMEOUT, SessionKey};
use crate::timestamp;

impl Access {
    /// Checks a request for a file of the panel, or for signing in.
    ///
    /// # Errors
    /// A response with status 404 on the Unix socket, 421, and, if `is_change`, 403 or 415.
    pub(crate) fn check_browser(&self, peer: Peer, head: &Parts, is_change: bool) -> Result<(), Box<Rejected>> {
        if peer.addr.ip().is_none() {
            return Err(panel_on_unix_socket());
        }
        let request = BrowserRequest::new(head, peer.is_tls);
        request.check_host(&self.panel_hosts.borrow())?;
        if is_change { request.check_origin() } else { Ok(()) }
    }

    /// Opens a session of the panel for the holder of a token. Returns the caller and the response that sets the cookie.
    ///
    /// # Errors
    /// As for [`Self::identify`].
    pub(crate) fn sign_in(
        &self,
        peer: Peer,
        head: &Parts,
        token: &str,
    ) -> Result<(Caller, AdminResponse), Box<Rejected>> {
        let Peer { addr, is_tls } = peer;
        let (Some(source), Some(key)) = (addr.ip(), addr.source_key()) else { return Err(panel_on_unix_socket()) };
        let token = self.authenticate(addr, source, Some(token.trim_ascii().as_bytes()))?;
        let opened = self.panel.open(&token, key, Instant::now());
        let (Some(cookie), Ok(secret)) = (BrowserRequest::new(head, is_tls).cookie_name(), opened) else {
            let response = AdminResponse::error(ErrorKind::ServerError, "the system has no random numbers");
            return Err(Rejected::failed(response));
        };
        let caller = caller(&token, source, Some(SessionKey::of(secret.reveal())));
        let response = AdminResponse::ok(self.panel_session(&caller));
        let response = match HeaderValue::from_str(&cookie.set(secret.reveal())) {
            Ok(value) => response.with_header(SET_COOKIE, value),
            Err(_) => response,
        };
        Ok((caller, response))
    }

    /// Ends the session of the panel that the caller uses, and makes the browser forget its cookie.
    pub(crate) fn sign_out(&self, peer: Peer, head: &Parts, caller: &Caller) -> AdminResponse {
        if let Caller::Token { panel_session: Some(key), .. } = caller {
            self.panel.close(*key);
        }
        let cookie = BrowserRequest::new(head, peer.is_tls).cookie_name();
        match cookie.and_then(|cookie| HeaderValue::from_str(&cookie.clear()).ok()) {
            Some(value) => AdminResponse::no_content().with_header(SET_COOKIE, value),
            None => AdminResponse::no_content(),
        }
    }

    /// Who the caller is, and until when.
    pub(crate) fn panel_session(&self, caller: &Caller) -> Value {
        let (expires_at, session) = match caller {
            Caller::Unix => (None, None),
            Caller::Token { expires_at, panel_session, .. } => (*expires_at, *panel_session),
        };
        let left = session.and_then(|key| self.panel.time_left(key, Instant::now()));
        let ends_at = left.map(|left| timestamp::after(OffsetDateTime::now_utc(), left));
        json!({
            "name": caller.token_name(),
            "role": caller.role().code(),
            "expires_at": expires_at.map(timestamp::seconds),
            "source": caller.source(),
            "idle_timeout_seconds": IDLE_TIMEOUT.as_secs(),
            "ends_at": ends_at.map(timestamp::seconds),
        })
    }
}

fn panel_on_unix_socket() -> Box<Rejected> {
    let message = "the panel is not served on the Unix socket; open it at a TCP address of [admin] listen";
    let response = AdminResponse::error(ErrorKind::PathNotFound, message);
    Rejected::failed(response)
}
