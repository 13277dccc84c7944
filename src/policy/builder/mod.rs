//! Builds the policy of one listener: reads every file, validates every part and records every problem.

pub(crate) mod admin;
pub(crate) mod chains;
pub(crate) mod credentials;
pub(crate) mod fleet;
pub(crate) mod groups;
pub(crate) mod issuing;
pub(crate) mod proxies;
pub(crate) mod reader;
pub(crate) mod resolver;
pub(crate) mod server;
pub(crate) mod sources;
pub(crate) mod upstream;

use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use rustls::pki_types::CertificateDer;

use crate::addr::ListenAddr;
use crate::config::{Listener, Shield};
use crate::identity::settings::ClientAuth;
use crate::limit::handshakes::built_in_limit;
use crate::limit::rate::Rate;
use crate::limit::rate_limiter::RateLimiter;
use crate::metrics::listener::ListenerMetrics;
use crate::policy::builder::reader::Reader;
use crate::policy::builder::server::Server;
use crate::policy::fleet::FleetSecrets;
use crate::policy::history::{CertificateHistory, GenerationStamp};
use crate::policy::{BindAddr, ListenerPolicy, with_roles};
use crate::protocol::Protocol;
use crate::source::addresses::AddressBook;
use crate::source::group::SourceGroup;
use crate::source::trusted::{Enforcement, SourcePolicy, TrustedSources};
use crate::tls::server::ServerTls;
use crate::upstream::Upstream;
use crate::x509::certificate::Certificate;
use crate::x509::pem::public_certificates;

/// Certificates as DER, with their parsed form.
type Certificates = Vec<(CertificateDer<'static>, Certificate)>;

/// Builds one listener's policy and records its problems and warnings.
pub(crate) struct Builder<'a> {
    pub(crate) listener: &'a Listener,
    pub(crate) reader: Reader<'a>,
    /// The known addresses of the hosts and cloud sources in rules.
    pub(crate) book: &'a AddressBook,
    /// The groups that rules name.
    pub(crate) groups: &'a [Arc<SourceGroup>],
    /// The generation being built.
    pub(crate) now: GenerationStamp,
    /// The counters of a removed listener that had this name.
    pub(crate) former_metrics: Option<Arc<ListenerMetrics>>,
    /// What the members of the fleet keep secret.
    pub(crate) fleet: &'a FleetSecrets,
}

impl Builder<'_> {
    pub(crate) fn policy(&mut self, before: Option<&ListenerPolicy>) -> Option<ListenerPolicy> {
        let listener = self.listener;
        let server = self.server(before);
        let inputs = server.as_ref().and_then(|server| server.inputs.as_ref());
        let shown = inputs.map(|inputs| inputs.chains.as_slice()).unwrap_or_default();
        let upstream_tls = self.upstream(before, shown);
        let ca_bundle = self.ca_bundle();
        let credentials = self.credentials(before);
        let (Server { tls, anchors, pins, issuing, inputs }, upstream_tls) = (server?, upstream_tls?);
        let sources = self.sources();
        self.warn_about_listener(&sources.trusted);
        self.warn_about_proxies(&sources.trusted);
        let name: Arc<str> = listener.name.as_str().into();
        let server = tls.as_deref().map(ServerTls::certificates).unwrap_or_default();
        let history =
            CertificateHistory::after(before, self.now, with_roles(server, &anchors, &pins), &sources.trusted);
        let credentials = credentials?;
        let former = before.map(|before| &*before.upstream);
        let upstream = Upstream::new(listener, upstream_tls, credentials.as_deref(), former);
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
            pins,
            issuing,
            upstream: Arc::new(upstream),
            credentials,
            limits: listener.limits,
            handshakes: before.map_or_else(Arc::default, |before| Arc::clone(&before.handshakes)),
            max_handshakes: listener.limits.max_handshakes.unwrap_or_else(|| built_in_limit(limit_of_open_files())),
            sessions: before.map_or_else(Arc::default, |before| Arc::clone(&before.sessions)),
            attempts: before.map_or_else(Arc::default, |before| Arc::clone(&before.attempts)),
            right_passwords: before.map_or_else(Arc::default, |before| Arc::clone(&before.right_passwords)),
            rate_limiter: rate_limiter(listener.limits.connection_rate_per_source, before),
            revoke: listener.revoke,
            plaintext_cancel: listener.plaintext_cancel,
            history,
            usage: before.map_or_else(Arc::default, |before| Arc::clone(&before.usage)),
            metrics: before
                .map(|before| Arc::clone(&before.metrics))
                .or_else(|| self.former_metrics.clone())
                .unwrap_or_default(),
            ca_bundle: ca_bundle?,
            has_fleet_rules: listener.fleet_rules.is_some(),
            tls_inputs: inputs.map(Arc::new),
        };
        self.warn_about_shield(&policy);
        Some(policy)
    }

    /// Reads `ca_bundle`; `Some(None)` if it is not set.
    fn ca_bundle(&mut self) -> Option<Option<Arc<[u8]>>> {
        let Some(file) = &self.listener.ca_bundle else { return Some(None) };
        self.reader.parse(file, public_certificates).map(Some)
    }

    fn sources(&self) -> SourcePolicy {
        let sources = self.listener.sources.clone();
        match sources.trusted.updated(self.book, self.groups) {
            Some(trusted) => SourcePolicy { trusted: Arc::new(trusted), ..sources },
            None => sources,
        }
    }

    fn warn_about_listener(&mut self, trusted: &TrustedSources) {
        let listener = self.listener;
        for upstream in &listener.upstream.addresses {
            if listener.listen.iter().any(|address| upstream.reaches(address)) {
                self.reader
                    .warn(format_args!("upstream {upstream} is the listener itself; set upstream to the database"));
            }
        }
        if listener.sources.enforcement == Enforcement::Observe {
            self.reader.warn("enforcement = \"observe\" admits untrusted sources; set \"enforce\" to reject them");
        } else if !self.waits_for_fleet()
            && trusted.count() == 0
            && listener.listen.iter().any(|address| matches!(address, ListenAddr::Tcp(_)))
        {
            let fix = match listener.sources_file {
                Some(_) => format!("add one with: portcullis sources append {} SOURCE", listener.name),
                None => "add rules to trusted_sources".to_owned(),
            };
            self.reader.warn(format_args!("no source is trusted, so every TCP connection is rejected; {fix}"));
        }
        for (path, access) in listener.socket_files.iter().filter(|(_, access)| access.mode & 0o002 != 0) {
            let (path, mode) = (path.display(), access.mode);
            self.reader.warn(format_args!(
                "every user of this machine can connect to unix:{path} (mode {mode:04o}); set a narrower mode"
            ));
        }
        if self.waits_for_fleet() {
            self.reader.warn(
                "there is no copy of the fleet's rules yet, so no source of theirs is admitted; they are fetched when the \
                 program runs and the store answers",
            );
        }
        self.warn_about_sources();
        if listener.protocol == Protocol::Postgres
            && listener.plaintext_cancel
            && listener.tls.as_ref().is_some_and(|tls| tls.client_auth == ClientAuth::Required)
        {
            self.reader.warn("a plaintext CancelRequest is accepted without a client certificate (libpq before 17 sends no other); set postgres.plaintext_cancel = false to reject them");
        }
    }

    fn warn_about_shield(&mut self, policy: &ListenerPolicy) {
        if policy.shield != Shield::Off
            && let Err(unavailable) = policy.packet_filter(None, self.now.at)
        {
            self.reader.warn(format_args!("shield = \"{}\" has no effect: {unavailable}", policy.shield));
        }
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
