//! All series, in the order of a scrape. `docs/METRICS.md` is generated from this table.

use prometheus_client::metrics::MetricType;

/// A family of series with `LABELS` labels.
#[derive(Debug)]
pub(crate) struct Series<const LABELS: usize> {
    /// The name in queries. That of a counter ends in `_total`.
    pub(crate) name: &'static str,
    kind: Kind,
    pub(crate) labels: [&'static str; LABELS],
    help: &'static str,
    /// When the family is present. Empty for always.
    presence: &'static str,
}

/// A [`Series`] with any number of labels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
    pub(crate) presence: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub(crate) const fn metric_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
            Self::Histogram => MetricType::Histogram,
        }
    }
}

impl<const LABELS: usize> Series<LABELS> {
    const fn row(&'static self) -> Row {
        Row { name: self.name, kind: self.kind, labels: &self.labels, help: self.help, presence: self.presence }
    }
}

impl Row {
    /// The name of the family in OpenMetrics, which has no `_total`.
    pub(crate) fn family_name(&self) -> &'static str {
        self.name.strip_suffix("_total").filter(|_| self.kind == Kind::Counter).unwrap_or(self.name)
    }
}

macro_rules! catalog {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal, $presence:literal;)*) => {
        $(pub(crate) static $constant: Series<{ <[&str]>::len(&[$($label),*]) }> = Series {
            name: $name,
            kind: Kind::$kind,
            labels: [$($label),*],
            help: $help,
            presence: $presence,
        };)*

        /// The whole table.
        pub(crate) static ALL: &[Row] = &[$($constant.row()),*];
    };
}

catalog! {
    OPENED: Counter "portcullis_connections_opened_total" ["listener"]
        "Connections that became sessions.", "";
    DENIED: Counter "portcullis_connections_denied_total" ["listener", "reason"]
        "Connections denied before they became sessions, by reason. Health checks of load balancers are not counted.", "";
    ACTIVE: Gauge "portcullis_connections_active" ["listener"]
        "Open sessions.", "";
    LIMIT: Gauge "portcullis_connections_limit" ["listener"]
        "Maximum number of open sessions.", "with `limits.max_connections`";
    RELAYED: Counter "portcullis_relayed_bytes_total" ["listener", "direction"]
        "Plaintext bytes relayed: in is from clients to the upstream, out is from the upstream to clients.", "";
    HANDSHAKE_SECONDS: Histogram "portcullis_handshake_seconds" ["listener"]
        "Seconds from accept to the end of a successful TLS handshake, including PROXY header and SSLRequest.",
        "with `[listener.tls]`";
    HANDSHAKES: Counter "portcullis_tls_handshakes_total" ["listener", "version", "resumed"]
        "Successful TLS handshakes with clients.", "with `[listener.tls]`";
    REVOKED: Counter "portcullis_sessions_revoked_total" ["listener", "reason"]
        "Sessions closed because the policy no longer admits them, by reason.", "";
    CERTIFICATE_EXPIRY: Gauge "portcullis_certificate_expiry_timestamp_seconds" ["listener", "role", "subject", "sha256"]
        "End of the validity of a configured certificate. Kept after expiry.", "with certificates";
    CREDENTIAL_SESSIONS: Gauge "portcullis_credential_sessions" ["listener", "kind", "sha256"]
        "Open sessions that depend on a configured certificate.", "with certificates";
    TRUSTED_SOURCES: Gauge "portcullis_trusted_sources" ["listener"]
        "Rules for trusted sources, including expired ones and those of source groups.", "";
    SOURCE_STALE: Gauge "portcullis_source_stale" ["listener", "rule"]
        "Whether the last lookup of a source failed, so that its previous addresses are in use.", "with `dns` and cloud sources";
    SOURCE_LAST_SUCCESS: Gauge "portcullis_source_last_success_timestamp_seconds" ["listener", "rule"]
        "Time of the last successful lookup of a source.", "with `dns` and cloud sources, after the first success";
    AGENT_UP: Gauge "portcullis_agent_up" []
        "Whether the process that resolves cloud sources and reaches the store of the fleet answers.",
        "with cloud sources and with `[fleet]`";
    FLEET_MEMBERS: Gauge "portcullis_fleet_members" ["state"]
        "Members of the fleet by state: live, or unknown if their lease has expired.", "with `[fleet]`";
    FLEET_REVISION: Gauge "portcullis_fleet_revision" []
        "Revision of the store at the last contact.", "with `[fleet]`, after the first contact";
    UPSTREAM_UP: Gauge "portcullis_upstream_up" ["listener", "address"]
        "Whether an upstream address has a healthy endpoint.", "after the first dial of the address";
    SHIELD_DROPPED: Counter "portcullis_shield_dropped_packets_total" ["listener"]
        "Packets of untrusted sources dropped by the kernel. Read every second during a flood, otherwise every 10 seconds.",
        "with `shield`";
    RELOADS: Counter "portcullis_reloads_total" ["result"]
        "Reloads of the configuration: applied or rejected.", "";
    RELOAD_SUCCESSFUL: Gauge "portcullis_config_last_reload_successful" []
        "Whether the last reload was applied. 1 before the first reload.", "";
    CONFIG_HASH: Gauge "portcullis_config_hash" ["hash"]
        "Always 1. Equal configurations have equal hashes, also on different machines.", "";
    AUDIT_DROPPED: Counter "portcullis_audit_dropped_total" []
        "Lines of the log and the audit file that could not be written.", "";
    ADMIN_REQUESTS: Counter "portcullis_admin_requests_total" ["role", "code"]
        "Requests of the admin API by role and status code. The role is none without a valid token.",
        "after the first request";
    ADMIN_AUTH_FAILURES: Counter "portcullis_admin_auth_failures_total" []
        "Requests of the admin API without a valid token.", "";
    BUILD_INFO: Gauge "portcullis_build_info" ["version"]
        "Always 1.", "";
    CPU_SECONDS: Counter "process_cpu_seconds_total" []
        "User and system CPU time in seconds.", "";
    OPEN_FDS: Gauge "process_open_fds" []
        "Open file descriptors.", "";
    MAX_FDS: Gauge "process_max_fds" []
        "Maximum number of open file descriptors.", "";
    VIRTUAL_MEMORY: Gauge "process_virtual_memory_bytes" []
        "Virtual memory in bytes.", "";
    RESIDENT_MEMORY: Gauge "process_resident_memory_bytes" []
        "Resident memory in bytes.", "";
    START_TIME: Gauge "process_start_time_seconds" []
        "Start of the process in seconds since 1970.", "";
}
