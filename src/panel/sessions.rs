//! The sessions of people who have signed in to the control panel.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::error::Unspecified;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::addr::SourceKey;
use crate::digest::{Sha256, sha256};
use crate::token::{Token, TokenDigest};

/// All sessions, in memory only: a restart ends them.
#[derive(Debug, Default)]
pub(crate) struct PanelSessions {
    sessions: Mutex<HashMap<SessionKey, PanelSession>>,
    /// Notified when sessions have been removed.
    removed: watch::Sender<()>,
}

/// Identifies a session. The text of the cookie is not kept, so that a dump of the memory opens no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey(Sha256);

/// A session that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PanelSession {
    /// The token with which the person signed in.
    pub(crate) token_name: String,
    pub(crate) token_digest: TokenDigest,
    /// The session is valid from here only: a stolen cookie is of no use elsewhere.
    source: SourceKey,
    started_at: Instant,
    active_at: Instant,
}

/// The text of a cookie. It is shown to nobody but the browser.
#[derive(PartialEq, Eq)]
pub(crate) struct SessionSecret(String);

/// Whether a person has caused a request, or a timer of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    Person,
    Background,
}

impl SessionSecret {
    fn generate() -> Result<Self, Unspecified> {
        let mut random = [0; SECRET_BYTES];
        aws_lc_rs::rand::fill(&mut random)?;
        Ok(Self(URL_SAFE_NO_PAD.encode(random)))
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSecret(…)")
    }
}

impl SessionKey {
    /// The key of the session whose cookie has this text.
    pub(crate) fn of(cookie: &str) -> Self {
        Self(sha256(cookie.as_bytes()))
    }
}

impl PanelSession {
    /// When the session ends if no person does anything.
    pub(crate) fn ends_at(&self) -> Instant {
        (self.active_at + IDLE_TIMEOUT).min(self.started_at + MAX_DURATION)
    }
}

impl PanelSessions {
    /// Opens a session for the holder of a token.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub(crate) fn open(&self, token: &Token, source: SourceKey, now: Instant) -> Result<SessionSecret, Unspecified> {
        let secret = SessionSecret::generate()?;
        let session = PanelSession {
            token_name: token.name.clone(),
            token_digest: token.digest,
            source,
            started_at: now,
            active_at: now,
        };
        let mut sessions = self.lock();
        sessions.retain(|_, session| session.ends_at() > now);
        make_room(&mut sessions, token);
        sessions.insert(SessionKey::of(secret.reveal()), session);
        drop(sessions);
        self.removed.send_replace(());
        Ok(secret)
    }

    /// The session, if it is open and used from its source. Activity of a person extends it.
    pub(crate) fn find(
        &self,
        key: SessionKey,
        source: SourceKey,
        activity: Activity,
        now: Instant,
    ) -> Option<PanelSession> {
        let mut sessions = self.lock();
        let session = sessions.get_mut(&key).filter(|session| session.ends_at() > now && session.source == source)?;
        if activity == Activity::Person {
            session.active_at = now;
        }
        Some(session.clone())
    }

    /// How long a session lasts if no person does anything.
    pub(crate) fn time_left(&self, key: SessionKey, now: Instant) -> Option<Duration> {
        self.lock().get(&key).map(|session| session.ends_at().saturating_duration_since(now))
    }

    /// Ends a session.
    pub(crate) fn close(&self, key: SessionKey) {
        self.lock().remove(&key);
        self.removed.send_replace(());
    }

    /// Ends the sessions of all tokens that are not in `tokens`.
    pub(crate) fn keep_only(&self, tokens: &[Token]) {
        let is_kept = |session: &PanelSession| {
            tokens.iter().any(|token| token.name == session.token_name && token.digest == session.token_digest)
        };
        self.lock().retain(|_, session| is_kept(session));
        self.removed.send_replace(());
    }

    /// Returns when a session has ended.
    pub(crate) async fn ended(&self, key: SessionKey) {
        let mut removed = self.removed.subscribe();
        loop {
            removed.mark_unchanged();
            let ends_at = self.lock().get(&key).map(PanelSession::ends_at);
            let Some(ends_at) = ends_at.filter(|ends_at| *ends_at > Instant::now()) else { return };
            // Activity extends the session meanwhile, so its end is read again.
            tokio::select! {
                () = sleep_until(ends_at) => {}
                // Fails only if this value is dropped.
                _ = removed.changed() => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionKey, PanelSession>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes the least recently active session of a token that has many, or of all.
fn make_room(sessions: &mut HashMap<SessionKey, PanelSession>, token: &Token) {
    let is_own = |session: &PanelSession| session.token_digest == token.digest;
    let own = sessions.values().filter(|session| is_own(session)).count();
    let is_candidate = |session: &PanelSession| own < MAX_SESSIONS_OF_TOKEN || is_own(session);
    if own >= MAX_SESSIONS_OF_TOKEN || sessions.len() >= MAX_SESSIONS {
        let candidates = sessions.iter().filter(|(_, session)| is_candidate(session));
        if let Some(key) = candidates.min_by_key(|(_, session)| session.active_at).map(|(key, _)| *key) {
            sessions.remove(&key);
        }
    }
}

/// A session ends after this time without a request of a person.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A session ends after this time at the latest.
pub(crate) const MAX_DURATION: Duration = Duration::from_secs(12 * 60 * 60);

const SECRET_BYTES: usize = 32;

/// A person with several browsers has a few.
const MAX_SESSIONS_OF_TOKEN: usize = 16;

const MAX_SESSIONS: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::ClientAddr;
    use crate::token::fixtures::token;

    const SECOND: Duration = Duration::from_secs(1);

    fn source(ip: &str) -> SourceKey {
        ClientAddr::from_ip(ip.parse().unwrap()).source_key().unwrap()
    }

    fn open(sessions: &PanelSessions, token: &Token, now: Instant) -> SessionKey {
        SessionKey::of(sessions.open(token, source("10.0.0.1"), now).unwrap().reveal())
    }

    fn is_open(sessions: &PanelSessions, key: SessionKey, activity: Activity, now: Instant) -> bool {
        sessions.find(key, source("10.0.0.1"), activity, now).is_some()
    }

    #[test]
    fn session_without_activity_of_a_person_ends_after_half_an_hour() {
        let (sessions, start) = (PanelSessions::default(), Instant::now());
        let key = open(&sessions, &token("ci", "text"), start);
        assert!(is_open(&sessions, key, Activity::Person, start + 20 * 60 * SECOND));
        for minute in 21..50 {
            assert!(is_open(&sessions, key, Activity::Background, start + minute * 60 * SECOND), "{minute}");
        }
        assert!(!is_open(&sessions, key, Activity::Background, start + 50 * 60 * SECOND));
        assert!(!is_open(&sessions, key, Activity::Person, start + 50 * 60 * SECOND));
    }

    #[test]
    fn active_session_ends_after_twelve_hours() {
        let (sessions, start) = (PanelSessions::default(), Instant::now());
        let key = open(&sessions, &token("ci", "text"), start);
        for minute in (0..12 * 60).step_by(10) {
            assert!(is_open(&sessions, key, Activity::Person, start + minute * 60 * SECOND), "{minute}");
        }
        assert!(!is_open(&sessions, key, Activity::Person, start + MAX_DURATION));
    }

    #[test]
    fn session_is_valid_from_its_source_only() {
        let (sessions, now) = (PanelSessions::default(), Instant::now());
        let key = open(&sessions, &token("ci", "text"), now);
        assert!(sessions.find(key, source("10.0.0.2"), Activity::Person, now).is_none());
        assert!(sessions.find(SessionKey::of("x"), source("10.0.0.1"), Activity::Person, now).is_none());
        assert!(sessions.find(key, source("10.0.0.1"), Activity::Person, now).is_some());
        // Privacy addresses (RFC 8981) change within their /64.
        let secret = sessions.open(&token("ci", "text"), source("2001:db8::1"), now).unwrap();
        let key = SessionKey::of(secret.reveal());
        assert!(sessions.find(key, source("2001:db8::2"), Activity::Person, now).is_some());
        assert!(sessions.find(key, source("2001:db8:0:1::1"), Activity::Person, now).is_none());
    }

    #[test]
    fn sessions_end_with_their_token_and_at_sign_out() {
        let (sessions, now) = (PanelSessions::default(), Instant::now());
        let (one, two) = (token("one", "first"), token("two", "second"));
        let keys = [open(&sessions, &one, now), open(&sessions, &one, now), open(&sessions, &two, now)];
        let open_now = || keys.map(|key| is_open(&sessions, key, Activity::Person, now));
        sessions.close(keys[0]);
        assert_eq!(open_now(), [false, true, true]);
        sessions.keep_only(&[token("one", "other"), two]);
        assert_eq!(open_now(), [false, false, true]);
    }

    #[test]
    fn number_of_sessions_is_limited() {
        let (sessions, start) = (PanelSessions::default(), Instant::now());
        let one = token("one", "first");
        let first = open(&sessions, &one, start);
        let second = open(&sessions, &one, start + SECOND);
        assert!(is_open(&sessions, first, Activity::Person, start + 2 * SECOND));
        for _ in 2..=MAX_SESSIONS_OF_TOKEN {
            open(&sessions, &one, start + 3 * SECOND);
        }
        let now = start + 4 * SECOND;
        assert!(is_open(&sessions, first, Activity::Background, now), "it was active last");
        assert!(!is_open(&sessions, second, Activity::Background, now));
        for number in 0..2 * MAX_SESSIONS {
            open(&sessions, &token("many", &number.to_string()), now);
        }
        assert_eq!(sessions.lock().len(), MAX_SESSIONS);
    }

    #[test]
    fn cookie_has_256_random_bits_that_are_never_shown() {
        let (sessions, now) = (PanelSessions::default(), Instant::now());
        let secrets: Vec<_> =
            (0..2).map(|_| sessions.open(&token("ci", "text"), source("::1"), now).unwrap()).collect();
        assert_ne!(secrets[0], secrets[1]);
        assert_eq!(URL_SAFE_NO_PAD.decode(secrets[0].reveal()).unwrap().len(), SECRET_BYTES);
        assert!(!format!("{sessions:?} {secrets:?}").contains(secrets[0].reveal()));
    }

    #[tokio::test(start_paused = true)]
    async fn end_of_a_session_is_noticed() {
        let sessions = PanelSessions::default();
        let start = Instant::now();
        let key = open(&sessions, &token("ci", "text"), start);
        let active_later = async {
            sleep_until(start + 20 * 60 * SECOND).await;
            assert!(is_open(&sessions, key, Activity::Person, Instant::now()));
        };
        tokio::join!(sessions.ended(key), active_later);
        assert_eq!(start.elapsed().as_secs(), 50 * 60);

        let key = open(&sessions, &token("ci", "text"), Instant::now());
        let before = Instant::now();
        tokio::join!(sessions.ended(key), async { sessions.close(key) });
        assert_eq!(before.elapsed(), Duration::ZERO);
    }
}
