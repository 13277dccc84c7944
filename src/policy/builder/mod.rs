//! Builds the policy of one listener: reads every file, validates every part and records every problem.

pub(crate) mod chains;
pub(crate) mod proxies;
pub(crate) mod server;
pub(crate) mod sources;
pub(crate) mod upstream;

use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::addr::ListenAddr;
use crate::config::files::{Files, Location, is_in_volume};
use crate::config::problem::Problem;
use crate::config::{Listener, Shield, SourcedFile, SourcedPem};
use crate::identity::settings::ClientAuth;
use crate::limit::handshakes::built_in_limit;
use crate::limit::rate::Rate;
use crate::limit::rate_limiter::RateLimiter;
use crate::policy::builder::server::Server;
use crate::policy::history::{CertificateHistory, GenerationStamp};
use crate::policy::{BindAddr, ListenerPolicy, with_roles};
use crate::protocol::Protocol;
use crate::source::host::AddressBook;
use crate::source::trusted::{Enforcement, SourcePolicy};
use crate::timestamp;
use crate::tls::server::ServerTls;
use crate::upstream::Upstream;
use crate::x509::certificate::Certificate;
use crate::x509::crl::KnownCrls;
use crate::x509::expiry::{days_left, expiry_milestone};
use crate::x509::pem::PemError;

/// Certificates as DER, with their parsed form.
type Certificates = Vec<(CertificateDer<'static>, Certificate)>;

/// Builds one listener's policy and records its problems and warnings.
pub(crate) struct Builder<'a> {
    pub(crate) listener: &'a Listener,
    pub(crate) files: &'a mut Files,
    pub(crate) problems: &'a mut Vec<Problem>,
    pub(crate) warnings: &'a mut Vec<String>,
    /// The known addresses of the hosts in rules.
    pub(crate) book: &'a AddressBook,
    /// The generation being built.
    pub(crate) now: GenerationStamp,
    /// The CRLs of the previous policy, and those that other listeners have read.
    pub(crate) known_lists: &'a mut KnownCrls,
}

impl Builder<'_> {
    pub(crate) fn policy(&mut self, before: Option<&ListenerPolicy>) -> Option<ListenerPolicy> {
        let listener = self.listener;
        let server = self.server(before);
        let inputs = server.as_ref().and_then(|server| server.inputs.as_ref());
        let shown = inputs.map(|inputs| inputs.chains.as_slice()).unwrap_or_default();
        let upstream_tls = self.upstream(before, shown);
        let (Server { tls, anchors, pinned, inputs }, upstream_tls) = (server?, upstream_tls?);
        self.warn_about_listener();
        self.warn_about_proxies();
        let name: Arc<str> = listener.name.as_str().into();
        let server = tls.as_deref().map(ServerTls::certificates).unwrap_or_default();
        let sources = self.sources();
        let history =
            CertificateHistory::after(before, self.now, with_roles(server, &anchors, &pinned), &sources.trusted);
        let policy = ListenerPolicy {
            bind_addrs: bind_addrs(listener, &name),
            socket_files: listener.socket_files.clone(),
            name,
            protocol: listener.protocol,
            sources,
            proxies: listener.proxies.clone(),
            shield: listener.shield,
            tls,
            anchors,
            pinned,
            upstream: Arc::new(Upstream::new(listener, upstream_tls, before.map(|before| &*before.upstream))),
            limits: listener.limits,
            handshakes: before.map_or_else(Arc::default, |before| Arc::clone(&before.handshakes)),
            max_handshakes: listener.limits.max_handshakes.unwrap_or_else(|| built_in_limit(limit_of_open_files())),
            sessions: before.map_or_else(Arc::default, |before| Arc::clone(&before.sessions)),
            rate_limiter: rate_limiter(listener.limits.connection_rate_per_source, before),
            revoke: listener.revoke,
            plaintext_cancel: listener.plaintext_cancel,
            history,
            usage: before.map_or_else(Arc::default, |before| Arc::clone(&before.usage)),
            tls_inputs: inputs.map(Arc::new),
        };
        self.warn_about_shield(&policy);
        Some(policy)
    }

    fn sources(&self) -> SourcePolicy {
        let sources = self.listener.sources.clone();
        match sources.trusted.with_addresses(self.book) {
            Some(trusted) => SourcePolicy { trusted: Arc::new(trusted), ..sources },
            None => sources,
        }
    }

    fn warn_about_readers(&mut self, what: &str, location: &Location) {
        if self.files.is_open_to_others(location) {
            // File modes in a volume cannot be changed.
            let in_volume = matches!(location, Location::File(path) if is_in_volume(path));
            if in_volume {
                self.warn(format_args!(
                    "every user in the pod can read the {what} {location}; set defaultMode: 0400 on the volume of the Secret \
                     (0440 with fsGroup)"
                ));
            } else {
                self.warn(format_args!("group or others can read the {what} {location}; run: chmod 600 {location}"));
            }
        }
    }

    /// Returns the files that match a pattern.
    fn matching(&mut self, pattern: &SourcedFile) -> Option<Vec<SourcedFile>> {
        let paths = self.files.matching(&pattern.path).map_err(|error| self.problems.push(pattern.problem(error)));
        Some(paths.ok()?.into_iter().map(|path| SourcedFile { path, ..pattern.clone() }).collect())
    }

    fn parse<T, E: std::fmt::Display>(
        &mut self,
        file: &SourcedFile,
        parse: impl FnOnce(&[u8]) -> Result<T, E>,
    ) -> Option<T> {
        let bytes = self.files.read(&file.path).map_err(|error| self.problems.push(file.unreadable(&error))).ok()?;
        parse(&bytes).map_err(|error| self.problems.push(file.problem(error))).ok()
    }

    fn pem<T>(&mut self, text: &SourcedPem, parse: fn(&[u8]) -> Result<T, PemError>) -> Option<T> {
        let bytes =
            self.files.read(&text.location).map_err(|error| self.problems.push(text.unreadable(&error))).ok()?;
        parse(&bytes).map_err(|error| self.problems.push(text.problem(error))).ok()
    }

    fn warn_about_listener(&mut self) {
        let listener = self.listener;
        for upstream in &listener.upstream.addresses {
            if listener.listen.iter().any(|address| upstream.reaches(address)) {
                self.warn(format_args!("upstream {upstream} is the listener itself; set upstream to the database"));
            }
        }
        if listener.sources.enforcement == Enforcement::Observe {
            self.warn("enforcement = \"observe\" admits untrusted sources; set \"enforce\" to reject them");
        } else if listener.sources.trusted.rules().is_empty()
            && listener.listen.iter().any(|address| matches!(address, ListenAddr::Tcp(_)))
        {
            self.warn("no source is trusted, so every TCP connection is rejected; add rules to trusted_sources");
        }
        for (path, access) in listener.socket_files.iter().filter(|(_, access)| access.mode & 0o002 != 0) {
            let (path, mode) = (path.display(), access.mode);
            self.warn(format_args!(
                "every user of this machine can connect to unix:{path} (mode {mode:04o}); set a narrower mode"
            ));
        }
        self.warn_about_sources();
        if listener.protocol == Protocol::Postgres
            && listener.plaintext_cancel
            && listener.tls.as_ref().is_some_and(|tls| tls.client_auth == ClientAuth::Required)
        {
            self.warn("a plaintext CancelRequest is accepted without a client certificate (libpq before 17 sends no other); set postgres.plaintext_cancel = false to reject them");
        }
    }

    fn warn_about_shield(&mut self, policy: &ListenerPolicy) {
        if policy.shield != Shield::Off
            && let Err(unavailable) = policy.packet_filter(None, self.now.at)
        {
            self.warn(format_args!("shield = \"{}\" has no effect: {unavailable}", policy.shield));
        }
    }

    fn warn_about_dates(&mut self, what: &str, certificate: &Certificate) {
        let now = OffsetDateTime::now_utc();
        let Certificate { subject, not_before, not_after, .. } = certificate;
        if now > *not_after {
            self.warn(format_args!("the {what} {subject} expired at {}; replace it", timestamp::seconds(*not_after)));
        } else if now < *not_before {
            self.warn(format_args!(
                "the {what} {subject} is not valid before {}; check the clock, or use a valid one",
                timestamp::seconds(*not_before)
            ));
        } else if expiry_milestone(*not_after, now).is_some() {
            let (left, end) = (days_left(*not_after, now), timestamp::seconds(*not_after));
            let days = if left == 1 { "day" } else { "days" };
            self.warn(format_args!("the {what} {subject} expires in {left} {days}, at {end}; replace it"));
        }
    }

    fn warn(&mut self, warning: impl std::fmt::Display) {
        self.warnings.push(format!("listener {}: {warning}", self.listener.name));
    }
}

fn bind_addrs(listener: &Listener, name: &Arc<str>) -> Vec<BindAddr> {
    let bind_addr = |(index, address): (usize, &ListenAddr)| BindAddr {
        address: address.clone(),
        ephemeral: address.is_ephemeral().then(|| (Arc::clone(name), index)),
    };
    listener.listen.iter().enumerate().map(bind_addr).collect()
}

/// Keeps the previous rate limiter with its state unless the rate has changed.
fn rate_limiter(rate: Option<Rate>, before: Option<&ListenerPolicy>) -> Option<Arc<RateLimiter>> {
    let rate = rate?;
    let former = before.and_then(|before| before.rate_limiter.clone()).filter(|former| former.rate() == rate);
    Some(former.unwrap_or_else(|| Arc::new(RateLimiter::new(rate))))
}

/// The maximum number of open files of the running program; `None` if it is unknown. The program raises its soft limit to the
/// hard limit, and `check` must print the same number.
fn limit_of_open_files() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard)
}
