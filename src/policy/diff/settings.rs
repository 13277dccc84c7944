//! A policy as a flat list of keys with their effective values.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use crate::addr::{ListenAddr, UpstreamAddr};
use crate::config::admin::{Admin, AdminTls};
use crate::config::files::Location;
use crate::config::tls::FLEET;
use crate::config::{
    CertificateFiles, Config, Limits, Listener, Log, LogFormat, Reload, Revoke, SharedTicketKeys, Shield, SourcedFile,
    Tls, Upstream, UpstreamTls,
};
use crate::identity::settings::ClientAuth;
use crate::limit::rate::Rate;
use crate::policy::ListenerPolicy;
use crate::policy::diff::credentials::of_credentials;
use crate::policy::diff::setting::{Setting, graded, list, optional, plain};
use crate::policy::diff::value::{Exposure, Value, duration, milliseconds, path};
use crate::policy::diff::{fleet, resolvers};
use crate::protocol::{MinTlsVersion, Negotiation, Protocol, Verification};
use crate::source::group::RuleOwner;
use crate::source::trusted::{Enforcement, SourcePolicy};
use crate::timestamp;
use crate::token::Token;
use crate::transport::unix_socket::Access;
use crate::x509::chain::settings::{AnchorValidity, CrlExpired};
use crate::x509::crl::key_digest;

/// The settings of the process.
pub(crate) fn of_process(config: &Config) -> Vec<Setting> {
    let Config {
        file: _,
        log,
        state_directory,
        admin,
        reload,
        drain,
        resolvers,
        fleet,
        source_groups,
        listeners: _,
        positions: _,
    } = config;
    let Log { level, format, audit_file } = log;
    let Reload { watch, poll, revoke } = reload;
    let mut settings = vec![
        plain("log.level", level),
        plain("log.format", log_format(*format)),
        optional("log.audit_file", audit_file.as_deref().map(path)),
        plain("state.directory", path(state_directory)),
        plain("reload.watch", watch),
        plain("reload.poll", duration(poll.unwrap_or_default())),
        graded("reload.revoke", revoke_word(*revoke), u64::from(*revoke == Revoke::Keep)),
        plain("shutdown.drain", duration(*drain)),
    ];
    settings.extend(resolvers::of_resolvers(resolvers));
    settings.extend(fleet.iter().flat_map(fleet::of_fleet));
    // Without a group the setting is absent, so that the hash of such a configuration does not depend on the version.
    let groups: Vec<_> = source_groups.iter().map(|group| group.name.to_string()).collect();
    settings.extend((!groups.is_empty()).then(|| list("source_group", groups)));
    settings.extend(of_admin(admin.as_ref()));
    settings
}

/// The settings of a group. Rules are compared in [`super::sources`].
pub(crate) fn of_group(config: &Config, owner: RuleOwner<'_>) -> Vec<Setting> {
    vec![optional("sources_file", config.sources_file(owner).map(path))]
}

fn of_admin(admin: Option<&Admin>) -> Vec<Setting> {
    let Some(Admin { listen, metrics, hosts, tls, tokens, tokens_file }) = admin else {
        return vec![optional("admin.listen", None::<String>)];
    };
    let AdminTls { certificates, client_ca } = &tls.clone().unwrap_or_default();
    vec![
        list("admin.listen", listen.iter().map(address).collect()),
        optional("admin.metrics", metrics.map(|address| address.to_string())),
        list("admin.hosts", hosts.clone()),
        list("admin.tls.certificates", certificates.iter().map(certificate).collect()),
        list("admin.tls.client_ca", files(client_ca)),
        list("admin.token", tokens.iter().map(token).collect()),
        optional("admin.tokens_file", tokens_file.as_deref().map(path)),
    ]
}

/// An address, with the absolute path of a Unix socket.
fn address(address: &ListenAddr) -> String {
    match address {
        ListenAddr::Tcp(address) => address.to_string(),
        ListenAddr::Unix(file) => format!("unix:{}", path(file)),
    }
}

/// Of the digest, only the beginning is shown: enough to see that the token is another one.
fn token(token: &Token) -> String {
    let Token { name, role, digest, created_at: _, expires_at, sources, origin: _ } = token;
    let mut shown = format!("{name} ({}, sha256 {digest:.8}…", role.code());
    if let Some(end) = expires_at {
        shown += &format!(", expires {}", timestamp::seconds(*end));
    }
    if !sources.is_empty() {
        let networks: Vec<_> = sources.iter().map(ToString::to_string).collect();
        shown += &format!(", from {}", networks.join(" "));
    }
    shown + ")"
}

/// The settings of a listener. Rules are compared in [`super::sources`], certificates by their fingerprints.
pub(crate) fn of_listener(listener: &Listener, policy: &ListenerPolicy) -> Vec<Setting> {
    let Listener {
        name,
        protocol,
        listen,
        socket_files,
        sources: SourcePolicy { trusted: _, enforcement },
        sources_file,
        fleet_rules,
        ca_bundle,
        proxies,
        shield,
        tls,
        upstream,
        credentials,
        limits,
        revoke,
        plaintext_cancel,
    } = listener;
    let (trusted, checkers) = (proxies.networks().iter(), proxies.health_checkers().iter());
    let mut all = vec![
        plain("name", name),
        plain("protocol", protocol),
        addresses(listen, socket_files),
        optional("ipv6_only", ipv6_only(listen)),
        graded("enforcement", enforcement, u64::from(*enforcement == Enforcement::Observe)),
        // The copy of rules in the store is not what an operator configures.
        optional("sources_file", sources_file.as_deref().filter(|_| fleet_rules.is_none()).map(path)),
        optional("sources_store", fleet_rules.as_ref().map(|_| FLEET)),
        optional("ca_bundle", ca_bundle.as_ref().map(|file| path(&file.path))),
        graded("shield", shield, shield_degree(*shield)),
        graded("revoke", revoke_word(*revoke), u64::from(*revoke == Revoke::Keep)),
        list("proxy_protocol.trusted", trusted.clone().map(ToString::to_string).collect())
            .exposing(Exposure::Networks(trusted.map(|network| network.net()).collect())),
        list("proxy_protocol.health_checks", checkers.map(ToString::to_string).collect()),
        graded("tls", if tls.is_some() { "on" } else { "off" }, u64::from(tls.is_none())),
    ];
    all.extend(tls.iter().flat_map(|tls| of_tls(tls, policy)));
    all.extend(of_upstream(upstream, *protocol));
    all.extend(of_credentials(credentials.as_ref(), policy));
    all.extend(of_limits(limits, policy));
    if *protocol == Protocol::Postgres {
        all.push(graded("postgres.plaintext_cancel", plaintext_cancel, u64::from(*plaintext_cancel)));
    }
    all
}

fn of_tls(tls: &Tls, policy: &ListenerPolicy) -> Vec<Setting> {
    let Tls {
        certificates,
        min_version,
        client_auth,
        client_ca,
        client_crl,
        crl_expired,
        anchor_validity,
        client_certificates,
        trusted_clients,
        issuing_ca,
        ticket_keys,
    } = tls;
    let (version, version_degree) = match min_version {
        MinTlsVersion::Tls12 => ("1.2", 1),
        MinTlsVersion::Tls13 => ("1.3", 0),
    };
    let auth_degree = match client_auth {
        ClientAuth::Required => 0,
        ClientAuth::Optional => 1,
        ClientAuth::None => 2,
    };
    let patterns = trusted_clients.patterns();
    vec![
        list("tls.certificates", certificates.iter().map(certificate).collect()),
        graded("tls.min_version", version, version_degree),
        graded("tls.client_auth", client_auth, auth_degree),
        list("tls.client_ca", files(client_ca)),
        revocation_lists(client_crl, policy),
        graded("tls.crl_expired", crl_expired.word(), u64::from(*crl_expired == CrlExpired::Allow)),
        of_anchor_validity("tls.anchor_validity", *anchor_validity),
        list("tls.client_certificates", files(client_certificates)),
        list("tls.trusted_clients", patterns.iter().map(ToString::to_string).collect())
            .exposing(Exposure::Clients(patterns.to_vec())),
        issuing(issuing_ca.as_ref(), policy),
        tickets(ticket_keys.as_ref(), policy),
    ]
}

fn of_upstream(upstream: &Upstream, protocol: Protocol) -> Vec<Setting> {
    let Upstream { addresses, connect_timeout, dial_retry, tls, proxy_header, target } = upstream;
    let is_remote = addresses.iter().any(|address| address.host().is_some());
    let mode = tls.as_ref().map_or_else(|| "disable".to_owned(), |tls| tls.verification.to_string());
    let unverified = match tls {
        _ if !is_remote => 0,
        Some(UpstreamTls { verification: Verification::VerifyFull, .. }) => 0,
        Some(UpstreamTls { verification: Verification::VerifyCa, .. }) => 1,
        // Like libpq, `require` verifies the CA if one is set.
        Some(UpstreamTls { verification: Verification::Require, ca, .. }) if !ca.is_empty() => 1,
        Some(UpstreamTls { verification: Verification::Require, .. }) => 2,
        None => 3,
    };
    let proxy_protocol = proxy_header.map_or_else(|| "off".to_owned(), |version| version.to_string());
    let in_clear = tls.is_none() && addresses.iter().any(|address| !is_local(address));
    let mut all = vec![
        list("upstream.address", addresses.iter().map(ToString::to_string).collect())
            .exposing(Exposure::degree(in_clear)),
        plain("upstream.connect_timeout", duration(*connect_timeout)),
        plain("upstream.dial_retry", duration(*dial_retry)),
        plain("upstream.target", target.word(protocol)),
        plain("upstream.proxy_protocol", proxy_protocol),
        graded("upstream.tls", mode, unverified),
    ];
    if let Some(tls) = tls {
        let UpstreamTls { position: _, verification, ca, anchor_validity, identity, server_name, negotiation } = tls;
        let is_verified = *verification != Verification::Require || !ca.is_empty();
        let identity = identity.as_ref().map(|CertificateFiles { cert, key, key_passphrase_file }| {
            [
                location(&cert.location),
                location(&key.location),
                key_passphrase_file.as_ref().map(|file| path(&file.path)).unwrap_or_default(),
            ]
        });
        let [cert, key, passphrase] = identity.map_or([None, None, None], |all| all.map(Some));
        all.extend([
            list("upstream.ca", files(ca)).exposing(Exposure::Degrees(vec![
                u64::from(!is_verified),
                // The system roots authenticate more upstreams than a file does.
                u64::from(ca.is_empty()),
            ])),
            of_anchor_validity("upstream.anchor_validity", *anchor_validity),
            optional("upstream.cert", cert),
            optional("upstream.key", key),
            optional("upstream.key_passphrase_file", passphrase.filter(|file| !file.is_empty())),
            optional("upstream.server_name", server_name.clone()),
        ]);
        if protocol == Protocol::Postgres {
            let word = match negotiation {
                Negotiation::Postgres => "postgres",
                Negotiation::Direct => "direct",
            };
            all.push(plain("upstream.negotiation", word));
        }
    }
    all
}

fn of_limits(limits: &Limits, policy: &ListenerPolicy) -> [Setting; 8] {
    let Limits {
        max_connections,
        max_connections_per_source,
        max_handshakes,
        connection_rate_per_source,
        handshake_timeout,
        idle_timeout,
        half_close_timeout,
        dead_peer_timeout,
    } = limits;
    let number = |key, limit: &Option<NonZeroU32>| {
        let degree = limit.map_or(u64::MAX, |limit| limit.get().into());
        graded(key, limit.map_or(0, NonZeroU32::get), degree)
    };
    let rate = |rate: &Option<Rate>| match rate {
        Some(rate) => {
            let per_hour = HOUR.checked_div(rate.interval().as_nanos()).unwrap_or(u128::MAX);
            Exposure::Degrees(vec![u64::try_from(per_hour).unwrap_or(u64::MAX), rate.burst().into()])
        }
        None => Exposure::Degrees(vec![u64::MAX, u64::MAX]),
    };
    let rate_word = connection_rate_per_source.as_ref().map(ToString::to_string);
    let built_in = if max_handshakes.is_none() { " (built-in limit)" } else { "" };
    let handshakes = format!("{}{built_in}", policy.max_handshakes);
    let idle = idle_timeout.map_or(u64::MAX, milliseconds);
    [
        number("limits.max_connections", max_connections),
        number("limits.max_connections_per_source", max_connections_per_source),
        graded("limits.max_handshakes", handshakes, policy.max_handshakes.get().into()),
        optional("limits.connection_rate_per_source", rate_word).exposing(rate(connection_rate_per_source)),
        graded("limits.handshake_timeout", duration(*handshake_timeout), milliseconds(*handshake_timeout)),
        graded("limits.idle_timeout", duration(idle_timeout.unwrap_or_default()), idle),
        graded("limits.half_close_timeout", duration(*half_close_timeout), milliseconds(*half_close_timeout)),
        graded("limits.dead_peer_timeout", duration(*dead_peer_timeout), milliseconds(*dead_peer_timeout)),
    ]
}

/// The listen addresses, with owner and permissions of Unix sockets.
fn addresses(listen: &[ListenAddr], socket_files: &BTreeMap<PathBuf, Access>) -> Setting {
    let shown = |listen: &ListenAddr| match listen {
        ListenAddr::Tcp(_) => address(listen),
        ListenAddr::Unix(file) => {
            let Access { mode, owner, group } = socket_files.get(file).copied().unwrap_or(Access::PRIVATE);
            let number = |what: &str, id: Option<u32>| id.map(|id| format!(", {what} {id}")).unwrap_or_default();
            format!("{} (mode {mode:04o}{}{})", address(listen), number("owner", owner), number("group", group))
        }
    };
    // Measures whether other machines can connect, and whether group or other users of this machine can.
    let is_public = listen.iter().any(|address| !address.is_local());
    let opens = |bit: u32| u64::from(socket_files.values().any(|access| access.mode & bit != 0));
    list("listen", listen.iter().map(shown).collect()).exposing(Exposure::Degrees(vec![
        u64::from(is_public),
        opens(GROUP_WRITES),
        opens(OTHERS_WRITE),
    ]))
}

/// The value for the IPv6 addresses; `None` without any.
fn ipv6_only(listen: &[ListenAddr]) -> Option<bool> {
    let mut v6 = listen.iter().filter_map(|address| match address {
        ListenAddr::Tcp(address) if address.socket.is_ipv6() => Some(address.ipv6_only),
        ListenAddr::Tcp(_) | ListenAddr::Unix(_) => None,
    });
    v6.next().map(|first| first || v6.any(|only| only))
}

/// The files of `client_crl` and the CRLs in them, because a file may be replaced under its old name.
fn revocation_lists(named: &[SourcedFile], policy: &ListenerPolicy) -> Setting {
    let lists = policy.revocation_lists();
    // Two CRLs of one issuer may differ in the digest only.
    let shown = lists.iter().map(|list| {
        let number = list.number.as_ref().map(|number| format!(" number {number}")).unwrap_or_default();
        let (issued, sha256) = (timestamp::seconds(list.this_update), list.sha256.get(..SHORT).unwrap_or(&list.sha256));
        format!("CRL{number} of {} issued {issued} ({} revoked, sha256 {sha256})", list.issuer, list.revoked)
    });
    let anchors = policy.anchor_ders();
    let mut newest = BTreeMap::new();
    for list in lists {
        let issued = newest.entry(list.series(anchors)).or_insert(list.this_update);
        *issued = list.this_update.max(*issued);
    }
    let anchors = anchors.iter().filter_map(|anchor| key_digest(anchor)).collect();
    list("tls.client_crl", files(named).into_iter().chain(shown).collect())
        .exposing(Exposure::Revocation { lists: newest, anchors })
}

/// The files of the CA, and the CA in them, because a file may be replaced under its old name.
fn issuing(named: Option<&CertificateFiles>, policy: &ListenerPolicy) -> Setting {
    let sha256 = policy.issuing.as_ref().map(|issuing| issuing.authority.facts().sha256.short()).unwrap_or_default();
    let shown = named.map(|files| format!("{} (sha256 {sha256})", certificate(files)));
    // Whoever gets the key can issue certificates for every client.
    optional("tls.issuing_ca", shown).exposing(Exposure::degree(named.is_some()))
}

fn tickets(named: Option<&SharedTicketKeys>, policy: &ListenerPolicy) -> Setting {
    let keys = policy.tls_inputs.as_ref().and_then(|inputs| inputs.tickets.as_ref());
    let value = match (named, keys) {
        (Some(SharedTicketKeys::File(file)), Some(keys)) => {
            Value::TicketKeys { file: path(&file.path), keys: keys.clone() }
        }
        (Some(SharedTicketKeys::File(file)), None) => Value::One(path(&file.path)),
        // The fleet rotates the keys, which is no change of the configuration.
        (Some(SharedTicketKeys::Fleet), _) => Value::One(FLEET.to_owned()),
        (None, _) => Value::Unset,
    };
    Setting { key: "tls.ticket_keys", value, exposure: Exposure::None }
}

fn certificate(files: &CertificateFiles) -> String {
    let CertificateFiles { cert, key, key_passphrase_file } = files;
    let passphrase = key_passphrase_file.as_ref();
    let passphrase = passphrase.map(|file| format!(" with key_passphrase_file {}", path(&file.path)));
    format!("{} with key {}{}", location(&cert.location), location(&key.location), passphrase.unwrap_or_default())
}

fn location(location: &Location) -> String {
    match location {
        Location::File(file) => path(file),
        Location::Variable(name) => format!("env:{name}"),
    }
}

fn files(named: &[SourcedFile]) -> Vec<String> {
    named.iter().map(|file| path(&file.path)).collect()
}

fn of_anchor_validity(key: &'static str, validity: AnchorValidity) -> Setting {
    graded(key, validity.word(), u64::from(validity == AnchorValidity::Ignore))
}

/// Whether a connection to the address stays on this machine. Host names other than `localhost` count as remote.
fn is_local(address: &UpstreamAddr) -> bool {
    let is_loopback = |host: &str| host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    address.host().is_none_or(|host| host == "localhost" || is_loopback(host))
}

const fn shield_degree(shield: Shield) -> u64 {
    match shield {
        Shield::On => 0,
        Shield::Auto => 1,
        Shield::Off => 2,
    }
}

const fn revoke_word(revoke: Revoke) -> &'static str {
    match revoke {
        Revoke::Disconnect => "disconnect",
        Revoke::Keep => "keep",
    }
}

const fn log_format(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Auto => "auto",
        LogFormat::Json => "json",
        LogFormat::Text => "text",
    }
}

/// Length of a digest prefix that distinguishes two CRLs, in hex digits.
const SHORT: usize = 16;

/// In nanoseconds.
const HOUR: u128 = 3_600_000_000_000;

const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
