//! Checks a password that a client of Redis has sent. The work happens on another thread, so a worker never waits for it.

use std::sync::{Arc, LazyLock};
use std::thread::available_parallelism;
use std::time::Instant;

use time::OffsetDateTime;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::addr::ClientAddr;
use crate::credential::check::PasswordCheck;
use crate::credential::credentials::Credentials;
use crate::credential::login::{Login, Proof};
use crate::fault;
use crate::fault::record::Fault;
use crate::login::redis::attempt::Attempt;
use crate::policy::ListenerPolicy;
use crate::proxy::PART;
use crate::proxy::phase::authenticate::wait_for_turn;

/// What a client claims, and where that is checked. It owns everything, so that a session can wait for the result.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) policy: Arc<ListenerPolicy>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) from: ClientAddr,
    user: Vec<u8>,
    /// `None` if no password can be right.
    password: Option<Zeroizing<Vec<u8>>>,
}

/// Why a password is not accepted, for the log and the audit. The client does not learn the difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejection {
    #[error("wrong password")]
    WrongPassword,
    #[error("unknown user, or user without a valid password")]
    UnknownUser,
}

impl Claim {
    pub(crate) fn new(
        attempt: &Attempt,
        policy: Arc<ListenerPolicy>,
        credentials: Arc<Credentials>,
        from: ClientAddr,
    ) -> Self {
        let password = attempt.password().map(|password| Zeroizing::new(password.to_vec()));
        Self { policy, credentials, from, user: attempt.user().to_vec(), password }
    }

    /// Waits for a turn, then finds the client and the password.
    ///
    /// # Errors
    /// If the check panics.
    pub(crate) async fn check(self) -> Result<Result<Login, Rejection>, Fault> {
        let policy = Arc::clone(&self.policy);
        let turn = wait_for_turn(&policy, self.from, &self.user).await;
        let login = self.find().await?;
        match &login {
            Ok(_) => policy.attempts.succeeded(&turn, Instant::now()),
            Err(_) => policy.attempts.failed(&turn, Instant::now()),
        }
        Ok(login)
    }

    async fn find(self) -> Result<Result<Login, Rejection>, Fault> {
        let Self { policy, credentials, user, password, .. } = self;
        let Some(text) = password else { return Ok(Err(Rejection::WrongPassword)) };
        // A name that is not UTF-8 is that of no client.
        let client = str::from_utf8(&user).ok().and_then(|user| credentials.clients.by_user(user));
        let candidates = PasswordCheck::candidates(client, OffsetDateTime::now_utc());
        let has_password = !candidates.is_empty();
        let right = &policy.right_passwords;
        let mut found = right.find(&user, &text, &candidates);
        if found.is_none() {
            // Never closed.
            let permit = CHECKS.acquire().await.ok();
            // Another connection of the same client may have paid meanwhile.
            found = right.find(&user, &text, &candidates);
            if found.is_none() {
                let check = PasswordCheck::new(&credentials.clients, candidates, text.clone());
                // The permit is held until the work ends, even if the client has gone.
                found = fault::contained_blocking(PART, move || {
                    let _permit = permit;
                    check.run()
                })
                .await?;
                found.iter().for_each(|password| right.keep(&user, &text, password));
            }
        }
        Ok(match (client, found) {
            (Some(client), Some(password)) => Ok(credentials.login(client, Proof::Password(password))),
            _ if has_password => Err(Rejection::WrongPassword),
            _ => Err(Rejection::UnknownUser),
        })
    }
}

/// The checks that run at once in this process. More would only slow each other down, and the sessions too.
static CHECKS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(available_parallelism().map_or(1, usize::from)));
