//! SCRAM between a PostgreSQL client and Portcullis.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::addr::ClientAddr;
use crate::audit::Audit;
use crate::audit::event::ConnectionFields;
use crate::credential::clients::Client;
use crate::credential::credentials::Credentials;
use crate::credential::login::{Login, Proof};
use crate::credential::scram;
use crate::credential::verifier::Verifier;
use crate::login::postgres::client::{Claim, ClientLogin, ClientStep, FailedClient, ProvenClient};
use crate::login::postgres::parameters::StartupParameters;
use crate::outcome::{Outcome, Reason};
use crate::proxy::phase::authenticate::certificate::owner;
use crate::proxy::phase::authenticate::{Access, Opening, lost, wait_for_turn};
use crate::proxy::phase::authorize::AuthorizedClient;
use crate::proxy::phase::close::Close;
use crate::proxy::phase::startup::SessionRequest;
use crate::x509::channel_binding::end_point;
use crate::x509::fingerprint::CertificateFingerprint;

/// Authenticates a client that has sent its StartupMessage.
pub(crate) async fn authenticate(
    request: SessionRequest,
    credentials: Arc<Credentials>,
    audit: &Audit,
    fields: &mut ConnectionFields,
) -> Result<SessionRequest, Close> {
    let SessionRequest { mut authorized, buffered: packet, access: _ } = request;
    let parameters = match StartupParameters::parse(&packet) {
        Ok(parameters) => parameters,
        Err(error) => {
            let outcome = Outcome::new(Reason::ProtocolViolation, error);
            return Err(Close::with_message(outcome, authorized.client, error.message()));
        }
    };
    fields.user = Some(parameters.shown_user().into());
    let handshake_timeout = authorized.policy.limits.handshake_timeout;
    let attempt = Attempt {
        authorized: &mut authorized,
        credentials: &credentials,
        parameters: &parameters,
        from: fields.client,
    };
    let end = match timeout(handshake_timeout, attempt.run()).await {
        Ok(Ok(end)) => end,
        Ok(Err(error)) => End::Lost(lost(&error)),
        Err(_) => End::Lost(Outcome::new(
            Reason::HandshakeTimeout,
            "the client did not authenticate within handshake_timeout",
        )),
    };
    match end {
        End::Admitted(login, rest) => {
            fields.user = Some(login.client.user.as_str().into());
            match parameters.rewritten(&login.upstream_user) {
                Ok(startup) => {
                    let access = Access { login, opening: Opening::Postgres(startup), credentials };
                    Ok(SessionRequest { authorized, buffered: rest, access: Some(Box::new(access)) })
                }
                Err(error) => {
                    let outcome = Outcome::new(Reason::ProtocolViolation, error);
                    Err(Close::with_message(outcome, authorized.client, error.message()))
                }
            }
        }
        End::Failed(FailedClient { why, message }) => {
            let reason = if why.is_violation() { Reason::ProtocolViolation } else { Reason::AuthenticationFailed };
            if reason == Reason::AuthenticationFailed {
                audit.authentication_failed(fields, why);
            }
            Err(Close::with_message(Outcome::new(reason, why), authorized.client, message))
        }
        End::Lost(outcome) => Err(authorized.refuse(outcome)),
    }
}

/// One client that authenticates.
struct Attempt<'a> {
    authorized: &'a mut AuthorizedClient,
    credentials: &'a Credentials,
    parameters: &'a StartupParameters,
    from: ClientAddr,
}

enum End {
    /// With the bytes of the client after its last message.
    Admitted(Login, Vec<u8>),
    Failed(FailedClient),
    Lost(Outcome),
}

impl Attempt<'_> {
    /// # Errors
    /// If the client cannot be read or written.
    async fn run(mut self) -> io::Result<End> {
        let greeting = self.parameters.negotiation().unwrap_or_default();
        if let Some(client) = self.certified() {
            send(self.authorized, &greeting).await?;
            return Ok(End::Admitted(self.credentials.login(&client, Proof::Certificate), Vec::new()));
        }
        let Some(nonce) = scram::nonce() else {
            return Ok(End::Lost(Outcome::new(Reason::IoError, "the system has no random numbers")));
        };
        let clients = &self.credentials.clients;
        // A name that is not UTF-8 is that of no client.
        let client = self.parameters.user().and_then(|user| clients.by_user(user));
        let now = OffsetDateTime::now_utc();
        let passwords: Vec<_> = client.into_iter().flat_map(|client| client.valid_passwords(now)).collect();
        let verifiers: Vec<_> = passwords.iter().map(|password| password.verifier.clone()).collect();
        match self.exchange(&greeting, &verifiers, nonce).await? {
            Exchanged::Proven(ProvenClient { index, message, rest }) => {
                send(self.authorized, &message).await?;
                Ok(match (client, passwords.get(index)) {
                    (Some(client), Some(password)) => {
                        End::Admitted(self.credentials.login(client, Proof::Password(Arc::clone(password))), rest)
                    }
                    // Cannot happen: the index is that of a verifier.
                    _ => End::Lost(Reason::IoError.into()),
                })
            }
            Exchanged::Failed(failed) => Ok(End::Failed(failed)),
            Exchanged::Closed(detail) => Ok(End::Lost(Outcome::new(Reason::ClientClosed, detail))),
        }
    }

    /// The client whose user the certificate proves, if that is the user in the StartupMessage.
    fn certified(&self) -> Option<Arc<Client>> {
        let owner = owner(self.authorized, self.credentials)?;
        (self.parameters.user() == Some(owner.user.as_str())).then(|| Arc::clone(owner))
    }

    /// Exchanges the messages of SCRAM.
    async fn exchange(&mut self, greeting: &[u8], verifiers: &[Verifier], nonce: String) -> io::Result<Exchanged> {
        let user = self.parameters.user_bytes();
        let mock = self.credentials.clients.parameters(&String::from_utf8_lossy(user));
        let mut login = ClientLogin::new(Claim { user, verifiers, mock }, binding(self.authorized), nonce);
        send(self.authorized, &[greeting, &login.first()].concat()).await?;
        let mut turn = None;
        let mut bytes = [0; 1024];
        loop {
            let count = self.authorized.client.read(&mut bytes).await?;
            if count == 0 {
                return Ok(Exchanged::Closed(if login.has_answered() { LEFT_EARLY } else { NO_PASSWORD }));
            }
            if turn.is_none() && login.awaits_proof() {
                turn = Some(wait_for_turn(&self.authorized.policy, self.from, user).await);
            }
            let (mut out, policy) = (Vec::new(), &self.authorized.policy);
            match login.follow(bytes.get(..count).unwrap_or_default(), &mut out) {
                ClientStep::Ongoing => send(self.authorized, &out).await?,
                ClientStep::Proven(proven) => {
                    turn.inspect(|turn| policy.attempts.succeeded(turn, Instant::now()));
                    return Ok(Exchanged::Proven(proven));
                }
                ClientStep::Failed(failed) => {
                    turn.inspect(|turn| policy.attempts.failed(turn, Instant::now()));
                    return Ok(Exchanged::Failed(failed));
                }
            }
        }
    }
}

/// How an exchange ends.
enum Exchanged {
    Proven(ProvenClient),
    Failed(FailedClient),
    /// The client disconnected.
    Closed(&'static str),
}

/// The data of tls-server-end-point for the certificate that the client has received, if it has any.
fn binding(authorized: &AuthorizedClient) -> Option<Vec<u8>> {
    let shown = authorized.server_certificate.as_ref()?;
    let mut leaves = authorized.policy.server_chains().iter().filter_map(|chain| chain.first());
    end_point(leaves.find(|leaf| CertificateFingerprint::from_der(leaf) == shown.sha256)?)
}

async fn send(authorized: &mut AuthorizedClient, bytes: &[u8]) -> io::Result<()> {
    authorized.client.write_all(bytes).await?;
    authorized.client.flush().await
}

/// psql does so to ask its user for the password, and connects again.
const NO_PASSWORD: &str = "the client disconnected when it was asked for a password; it may have none";

const LEFT_EARLY: &str = "the client disconnected before it proved a password";
