//! `portcullis check`: validates the configuration and the machine, and prints the effective policy.

use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::addr::ListenAddr;
use crate::cli::client::AdminClient;
use crate::cli::client::reload;
use crate::cli::output::moment::{NEAR, since};
use crate::cli::{Failure, credentials, difference, load, preflight, print, print_json, reachability, resolvers};
use crate::config::admin::Admin;
use crate::config::fleet::Fleet;
use crate::config::problem::Problems;
use crate::config::{Limits, Revoke, Shield, UpstreamTls};
use crate::fleet::settings::Engine;
use crate::identity::trusted_clients::TrustedClients;
use crate::policy::explain::describe_addresses;
use crate::policy::{BindAddr, Built, ListenerPolicy, Snapshot};
use crate::printable;
use crate::protocol::{MinTlsVersion, Negotiation, Protocol, Target, Verification};
use crate::resolution::cache::ResolutionCache;
use crate::source::addresses::MAX_HOST_ADDRESSES;
use crate::source::group::SourceGroup;
use crate::source::rule::{Network, Origin, Rule};
use crate::source::rule_set::RuleSet;
use crate::timestamp;
use crate::token::Token;
use crate::transport::unix_socket::Access;
use crate::x509::certificate::Certificate;
use crate::x509::chain::settings::{AnchorValidity, CrlExpired};
use crate::x509::crl::Crl;
use crate::x509::expiry::days_left;

#[derive(Clone, Copy, Debug)]
pub(crate) struct CheckOptions {
    pub(crate) as_json: bool,
    /// Treat a warning as a failure.
    pub(crate) strict: bool,
    /// Skip the checks that use the network.
    pub(crate) offline: bool,
}

pub(crate) fn check(file: &Path, options: CheckOptions) -> Result<(), Failure> {
    let built = load_and_check(file, options.offline)?;
    if options.as_json {
        print_json(&to_json(&built))?
    } else {
        print(&to_text(&built, options.offline))?
    }
    require_no_warnings(&built, options.strict)
}

/// Checks `file`, and then shows what would change if the running program loaded it.
pub(crate) fn check_against(file: &Path, socket: Option<&Path>, options: CheckOptions) -> Result<(), Failure> {
    let built = load_and_check(file, options.offline)?;
    let plan = || reload::plan_for(&AdminClient::at(socket, file)?, file);
    if options.as_json {
        let mut report = to_json(&built);
        if let Value::Object(fields) = &mut report {
            fields.insert("plan".to_owned(), plan()?);
        }
        print_json(&report)?;
    } else {
        print(&to_text(&built, options.offline))?;
        let plan = difference::to_text(&plan()?, OffsetDateTime::now_utc());
        print(&format!("\ncompared with the running program, {plan}"))?;
    }
    require_no_warnings(&built, options.strict)
}

fn require_no_warnings(built: &Built, strict: bool) -> Result<(), Failure> {
    match built.warnings.len() {
        1 if strict => Err(Failure::Failed("1 warning, which is a failure with --strict".to_owned())),
        count @ 2.. if strict => Err(Failure::Failed(format!("{count} warnings, which are failures with --strict"))),
        _ => Ok(()),
    }
}

/// Loads the configuration and checks what else a start needs.
fn load_and_check(file: &Path, offline: bool) -> Result<Built, Failure> {
    let resolutions = if offline { ResolutionCache::offline() } else { ResolutionCache::default() };
    let (mut built, _) = load(file, &resolutions)?;
    let problems = preflight::problems(&built.snapshot.config, offline);
    Problems::unless_any(problems, ()).map_err(Failure::Configuration)?;
    if !offline {
        built.warnings.extend(reachability::warnings(&built.snapshot.config.listeners));
    }
    Ok(built)
}

fn to_json(built: &Built) -> Value {
    let listeners = built.snapshot.listeners().iter().map(|policy| {
        let certificates = policy.certificates().map(|(role, certificate)| {
            let mut value = json!(certificate);
            if let Value::Object(fields) = &mut value {
                fields.insert("role".to_owned(), role.into());
            }
            value
        });
        json!({
            "name": &*policy.name,
            "protocol": policy.protocol.to_string(),
            "listen": addresses(policy),
            "socket_files": policy.socket_files().map(|(path, access)| socket_file(path, access)).collect::<Vec<_>>(),
            "upstream": &*policy.upstream.name,
            "upstream_tls": policy.upstream.settings.tls.as_ref().map(upstream_tls),
            "upstreams": upstreams(policy),
            "target": policy.upstream.settings.target.word(policy.protocol),
            "enforcement": policy.sources.enforcement.to_string(),
            "shield": policy.shield.to_string(),
            "min_version": min_version(policy),
            "client_auth": policy.client_auth().to_string(),
            "trusted_clients": patterns(policy),
            "anchor_validity": policy.anchor_validity().map(AnchorValidity::word),
            "crl_expired": policy.crl_expired().map(CrlExpired::word),
            "revocation_lists": policy.revocation_lists(),
            "revoke": revoke(policy),
            "limits": {
                "max_connections": policy.limits.max_connections,
                "max_connections_per_source": policy.limits.max_connections_per_source,
                "max_handshakes": policy.max_handshakes,
                "connection_rate_per_source": policy.limits.connection_rate_per_source.map(|rate| rate.to_string()),
                "connect_timeout_ms": milliseconds(Some(policy.upstream.settings.connect_timeout)),
                "dial_retry_ms": milliseconds(Some(policy.upstream.settings.dial_retry)),
                "handshake_timeout_ms": milliseconds(Some(policy.limits.handshake_timeout)),
                "idle_timeout_ms": milliseconds(policy.limits.idle_timeout),
                "half_close_timeout_ms": milliseconds(Some(policy.limits.half_close_timeout)),
                "dead_peer_timeout_ms": milliseconds(Some(policy.limits.dead_peer_timeout)),
            },
            "credentials": credentials::to_json(policy, &built.snapshot.config),
            "plaintext_cancel": (policy.protocol == Protocol::Postgres).then_some(policy.plaintext_cancel),
            "sources": sources(policy.sources.trusted.own()),
            "proxy_protocol": {
                "trusted": policy.proxies.networks().iter().map(ToString::to_string).collect::<Vec<_>>(),
                "health_checks": policy.proxies.health_checkers().iter().map(ToString::to_string).collect::<Vec<_>>(),
                "upstream": policy.upstream.settings.proxy_header.map(|version| version.to_string()),
            },
            "certificates": certificates.collect::<Vec<_>>(),
        })
    });
    let config = &built.snapshot.config;
    json!({
        "file": config.file,
        "valid": true,
        "audit_file": config.log.audit_file,
        "state_directory": config.state_directory,
        "fleet": config.fleet.as_ref().map(|fleet| json!({
            "name": fleet.name(),
            "member": fleet.member,
            "store": match fleet.store.engine { Engine::Etcd(_) => "etcd", Engine::Kubernetes { .. } => "kubernetes" },
            "directory": fleet.directory,
        })),
        "admin_socket": config.admin.as_ref().and_then(Admin::socket),
        "admin": config.admin.as_ref().map(|admin| admin_json(admin, &built.snapshot)),
        "resolvers": resolvers::to_json(&config.resolvers),
        "reload": { "watch": config.reload.watch, "poll_ms": milliseconds(config.reload.poll) },
        "drain_ms": milliseconds(Some(config.drain)),
        "source_groups": built.snapshot.groups().iter().map(|group| group_json(group, &built.snapshot)).collect::<Vec<_>>(),
        "listeners": listeners.collect::<Vec<_>>(),
        "warnings": built.warnings,
    })
}

fn socket_file(path: &Path, access: Access) -> Value {
    let Access { mode, owner, group } = access;
    json!({ "path": path, "mode": format!("{mode:04o}"), "owner": owner, "group": group })
}

fn upstream_tls(tls: &UpstreamTls) -> Value {
    json!({
        "verification": tls.verification.to_string(),
        "roots": if tls.ca.is_empty() { "system" } else { "ca" },
        "server_name": tls.server_name,
        "direct": tls.negotiation == Negotiation::Direct,
        "anchor_validity": upstream_anchor_validity(tls).map(AnchorValidity::word),
    })
}

/// Returns `None` if the certificate of the upstream is not verified.
fn upstream_anchor_validity(tls: &UpstreamTls) -> Option<AnchorValidity> {
    let is_verified = tls.verification != Verification::Require || !tls.ca.is_empty();
    is_verified.then_some(tls.anchor_validity)
}

fn admin_json(admin: &Admin, snapshot: &Snapshot) -> Value {
    let certificate = |(role, certificate): (&str, &Certificate)| {
        json!({
            "role": role,
            "subject": certificate.subject,
            "sha256": certificate.sha256,
            "not_after": timestamp::seconds(certificate.not_after),
        })
    };
    let token = |token: &Token| json!({ "name": token.name, "role": token.role.code(), "expires_at": token.expires_at.map(timestamp::seconds) });
    json!({
        "listen": admin.listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "metrics": admin.metrics.map(|address| address.to_string()),
        "certificates": snapshot.admin_certificates().map(certificate).collect::<Vec<_>>(),
        "tokens": admin.tokens.iter().map(token).collect::<Vec<_>>(),
    })
}

fn group_json(group: &SourceGroup, snapshot: &Snapshot) -> Value {
    json!({
        "name": group.name.as_str(),
        "listeners": users(group, snapshot),
        "sources": sources(&group.sources),
    })
}

/// The names of the listeners that use a group.
fn users<'s>(group: &SourceGroup, snapshot: &'s Snapshot) -> Vec<&'s str> {
    snapshot.users_of(group).map(|policy| &*policy.name).collect()
}

fn sources(set: &RuleSet) -> Vec<Value> {
    set.rules().iter().map(|rule| source(set, rule)).collect()
}

fn source(set: &RuleSet, rule: &Rule) -> Value {
    let host = rule.source.host();
    let addresses = rule.source.resolvable();
    let addresses = addresses.as_ref().map(|source| set.addresses_of(source));
    json!({
        "rule": rule.to_string(),
        "type": rule.source.kind(),
        "value": rule.source.value(),
        "addresses": addresses.filter(|addresses| addresses.len() <= MAX_HOST_ADDRESSES),
        "addresses_count": addresses.map(<[_]>::len),
        "refresh_ms": host.and_then(|host| milliseconds(Some(host.refresh))),
        "description": rule.description.as_ref().map(printable::field),
        "expires_at": rule.expires_at.map(timestamp::seconds),
        "expired": !rule.is_live(OffsetDateTime::now_utc()),
        "configured": rule.origin == Origin::Configuration,
        "uuid": rule.uuid.to_string(),
    })
}

fn to_text(built: &Built, offline: bool) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{} is valid", built.snapshot.config.file.display());
    for policy in built.snapshot.listeners() {
        let _ = writeln!(out, "\nlistener {}", policy.name);
        let mut line = |key: &str, value: &str| writeln!(out, "  {key:<13} {value}");
        let _ = line("protocol", &policy.protocol.to_string());
        let _ = line("listen", &bind_addrs(policy).join(", "));
        let _ = line("upstream", &upstream(policy));
        if let Some(version) = policy.upstream.settings.proxy_header {
            let _ = line("proxy header", &format!("PROXY protocol {version} is sent to the upstream"));
        }
        if policy.upstream.settings.target == Target::Primary {
            let _ = line(
                "target",
                &format!(
                    "{} (servers in another role are skipped)",
                    policy.upstream.settings.target.word(policy.protocol)
                ),
            );
        }
        let tls = match min_version(policy) {
            Some(version) => format!("{version} or later, client certificates: {}", policy.client_auth()),
            None => "OFF: only local programs can connect".to_owned(),
        };
        let _ = line("tls", &tls);
        if let Some(validity) = policy.anchor_validity() {
            let _ = line("client CAs", anchor_validity(validity));
        }
        if let Some(validity) = policy.upstream.settings.tls.as_ref().and_then(upstream_anchor_validity) {
            let _ = line("upstream CAs", anchor_validity(validity));
        }
        if let Some(expired) = policy.crl_expired() {
            let _ = line("expired CRLs", crl_expired(expired));
        }
        let _ = line("enforcement", &policy.sources.enforcement.to_string());
        if policy.shield != Shield::Off {
            let _ = line("shield", shield(policy));
        }
        let _ = line("revocation", revocation(policy));
        let _ = line("connections", &connections(policy));
        let _ = line("handshakes", &handshakes(policy));
        let _ = line("limits", &limits(policy));
        credentials::write(&mut out, policy, &built.snapshot.config);
        write_proxies(&mut out, policy);
        write_sources(&mut out, policy, offline);
        write_certificates(&mut out, policy);
    }
    write_groups(&mut out, &built.snapshot, offline);
    resolvers::write(&mut out, &built.snapshot.config.resolvers);
    if let Some(fleet) = &built.snapshot.config.fleet {
        write_fleet(&mut out, fleet);
    }
    if let Some(admin) = &built.snapshot.config.admin {
        write_admin(&mut out, admin, &built.snapshot);
    }
    for (index, warning) in built.warnings.iter().enumerate() {
        let _ = writeln!(out, "{}warning: {warning}", if index == 0 { "\n" } else { "" });
    }
    out
}

/// The source groups, and the listeners that use them.
fn write_groups(out: &mut String, snapshot: &Snapshot, offline: bool) {
    for group in snapshot.groups() {
        let users = users(group, snapshot);
        let users = if users.is_empty() { "NONE".to_owned() } else { users.join(", ") };
        let _ = writeln!(out, "\nsource group {}\n  {:<13} {users}", group.name, "listeners");
        write_rules(out, &group.sources, "sources_file", offline);
    }
}

/// The fleet, and where its store is.
fn write_fleet(out: &mut String, fleet: &Fleet) {
    let _ = writeln!(out, "\nfleet {}", fleet.name());
    let mut line = |key: &str, value: &str| writeln!(out, "  {key:<13} {value}");
    let _ = line("member", &fleet.member);
    let _ = match &fleet.store.engine {
        Engine::Etcd(etcd) => line("store", &format!("etcd at {} below {}", etcd.endpoints.join(", "), etcd.prefix)),
        Engine::Kubernetes { namespace, .. } => {
            let namespace = namespace.as_ref().map_or("of the pod".to_owned(), |name| format!("{name:?}"));
            line("store", &format!("Kubernetes, namespace {namespace}"))
        }
    };
    let _ = line("copies", &fleet.directory.display().to_string());
    if fleet.key_file.is_some() {
        let _ = line("ticket keys", &format!("rotated every {:?}", fleet.ticket_rotation));
    }
}

/// The addresses of the admin API, and what authenticates its callers.
fn write_admin(out: &mut String, admin: &Admin, snapshot: &Snapshot) {
    let _ = writeln!(out, "\nadmin API");
    let mut line = |key: &str, value: &str| writeln!(out, "  {key:<13} {value}");
    let addresses: Vec<_> = admin.listen.iter().map(ToString::to_string).collect();
    let _ = line("listen", &addresses.join(", "));
    if let Some(metrics) = admin.metrics {
        let _ = line("metrics", &metrics.to_string());
    }
    for (role, Certificate { subject, not_after, .. }) in snapshot.admin_certificates() {
        let what = if role == "admin" { "certificate" } else { "client CA" };
        let _ = line(what, &format!("{subject}, expires {}", timestamp::seconds(*not_after)));
    }
    for Token { name, role, expires_at, .. } in admin.tokens.iter() {
        let end = expires_at.map_or_else(|| "never".to_owned(), timestamp::seconds);
        let _ = line("token", &format!("{name}, {}, expires {end}", role.code()));
    }
}

const fn anchor_validity(validity: AnchorValidity) -> &'static str {
    match validity {
        AnchorValidity::Enforce => "anchor_validity = enforce: a CA outside its validity period is not trusted",
        AnchorValidity::Ignore => "anchor_validity = ignore: the validity period of a CA is not checked",
    }
}

const fn crl_expired(expired: CrlExpired) -> &'static str {
    match expired {
        CrlExpired::Refuse => "crl_expired = refuse: certificates of the CA are refused",
        CrlExpired::Allow => "crl_expired = allow: an expired CRL stays in force",
    }
}

/// The addresses; for a Unix socket with its mode, owner and group.
fn bind_addrs(policy: &ListenerPolicy) -> Vec<String> {
    let bind_addr = |bind_addr: &BindAddr| match &bind_addr.address {
        ListenAddr::Tcp(address) => address.to_string(),
        ListenAddr::Unix(path) => {
            let Access { mode, owner, group } = policy.access(path);
            let number = |what: &str, id: Option<u32>| id.map(|id| format!(", {what} {id}")).unwrap_or_default();
            format!("{} (mode {mode:04o}{}{})", bind_addr.address, number("owner", owner), number("group", group))
        }
    };
    policy.bind_addrs.iter().map(bind_addr).collect()
}

/// The address of the upstream and its TLS verification.
fn upstream(policy: &ListenerPolicy) -> String {
    let Some(tls) = &policy.upstream.settings.tls else { return policy.upstream.name.to_string() };
    let name = tls.server_name.as_ref().map(|name| format!(", as {name}")).unwrap_or_default();
    let direct = if tls.negotiation == Negotiation::Direct { ", direct" } else { "" };
    format!("{}, TLS ({}{name}{direct})", policy.upstream.name, tls.verification)
}

fn write_sources(out: &mut String, policy: &ListenerPolicy, offline: bool) {
    let rules = policy.sources.trusted.rules();
    if policy.bind_addrs.iter().all(|bind_addr| matches!(bind_addr.address, ListenAddr::Unix(_))) && rules.is_empty() {
        let _ = writeln!(out, "  trusted sources (none needed): access is controlled by the permissions of the socket");
        return;
    }
    let file = if policy.has_fleet_rules { "fleet" } else { "sources_file" };
    write_rules(out, policy.sources.trusted.own(), file, offline);
}

/// `file` says where the rules are that are not in the configuration.
fn write_rules(out: &mut String, set: &RuleSet, file: &str, offline: bool) {
    let rules = set.rules();
    let _ = writeln!(out, "  trusted sources ({})", rules.len());
    for rule in rules.iter().take(MAX_RULES) {
        let is_looked_up = !offline || rule.source.cloud().is_some();
        let source = rule.source.resolvable().filter(|_| is_looked_up);
        let addresses = source.map(|source| describe_addresses(set.addresses_of(&source))).unwrap_or_default();
        let _ = write!(out, "    {rule}{addresses}");
        let expired = if rule.is_live(OffsetDateTime::now_utc()) { "until" } else { "EXPIRED" };
        let _ = rule.expires_at.map_or(Ok(()), |end| write!(out, "  {expired} {}", timestamp::seconds(end)));
        let _ = rule.description.as_ref().map_or(Ok(()), |text| write!(out, "  ({})", printable::field(text)));
        let _ = match rule.origin {
            Origin::Configuration => writeln!(out),
            Origin::SourcesFile { .. } => writeln!(out, "  [{file}]"),
        };
    }
    if rules.len() > MAX_RULES {
        let _ = writeln!(out, "    and {} more; --json lists all", rules.len() - MAX_RULES);
    }
}

fn write_proxies(out: &mut String, policy: &ListenerPolicy) {
    let networks = policy.proxies.networks();
    if networks.is_empty() {
        return;
    }
    let _ = writeln!(out, "  trusted proxies, which must send a PROXY header ({})", networks.len());
    for network in networks {
        let covers = |source: &Network| source.net().contains(&network.net());
        let mut live = policy.sources.trusted.live_rules(OffsetDateTime::now_utc());
        let rule = live.find(|rule| rule.source.network().is_some_and(covers));
        let own = rule.map_or("(health checks from this address are refused: no rule trusts it)".to_owned(), |rule| {
            format!("(health checks from this address are admitted by {rule})")
        });
        let _ = writeln!(out, "    {network}  {own}");
    }
}

fn write_certificates(out: &mut String, policy: &ListenerPolicy) {
    for (role, certificate) in policy.certificates() {
        let what = match role {
            "server" => "server certificate",
            "client_ca" => "client CA certificate",
            "upstream_ca" => "upstream CA certificate",
            "upstream_certificate" => "client certificate for the upstream",
            _ => "pinned client certificate",
        };
        let _ = writeln!(out, "  {what}");
        let _ = write!(out, "{}", describe(certificate, "    "));
    }
    for list in policy.revocation_lists() {
        let Crl { issuer, revoked, this_update, next_update, .. } = list;
        let [from, until] = [this_update, next_update].map(|moment| timestamp::seconds(*moment));
        let late = if list.is_expired_at(OffsetDateTime::now_utc()) { " (EXPIRED)" } else { "" };
        let _ = writeln!(out, "  CRL of {issuer}: {revoked} revoked, {from} to {until}{late}");
    }
    if !patterns(policy).is_empty() {
        let _ = writeln!(out, "  trusted clients: {}", patterns(policy).join(", "));
    }
}

/// Describes a certificate in several lines, each after `indent`.
pub(crate) fn describe(certificate: &Certificate, indent: &str) -> String {
    let Certificate { subject, issuer, self_signed, ca, sans, key, sha256, .. } = certificate;
    let mut out = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(out, "{indent}{key:<8} {value}");
    };
    line("subject", subject);
    line("issuer", if *self_signed { "self-signed" } else { issuer });
    if !sans.is_empty() {
        line("names", &sans.iter().map(printable::field).collect::<Vec<_>>().join(", "));
    }
    line("key", &format!("{key}{}", if *ca { ", CA" } else { "" }));
    line("valid", &lifetime(certificate, OffsetDateTime::now_utc()));
    line("sha256", sha256.as_str());
    out
}

/// The validity period of a certificate and the remaining time.
pub(crate) fn lifetime(certificate: &Certificate, now: OffsetDateTime) -> String {
    let Certificate { not_before, not_after, .. } = certificate;
    let state = match (certificate.is_valid_at(now), days_left(*not_after, now)) {
        (true, _) if *not_after - now < NEAR => format!("{} left", since(now, *not_after)),
        (true, days) => format!("{days} days left"),
        (false, _) if now < *not_before => "NOT YET VALID".to_owned(),
        (false, _) => "EXPIRED".to_owned(),
    };
    format!("{} to {} ({state})", timestamp::seconds(*not_before), timestamp::seconds(*not_after))
}

/// Session limits and the connection rate.
fn connections(policy: &ListenerPolicy) -> String {
    let Limits { max_connections, max_connections_per_source, connection_rate_per_source, .. } = &policy.limits;
    let number = |max: &Option<NonZeroU32>| max.map_or("unlimited".to_owned(), |max| max.to_string());
    let rate = connection_rate_per_source.map_or("any rate".to_owned(), |rate| rate.to_string());
    format!("{}; per source {}, {rate}", number(max_connections), number(max_connections_per_source))
}

/// The limit of concurrent handshakes.
fn handshakes(policy: &ListenerPolicy) -> String {
    let built_in = if policy.limits.max_handshakes.is_none() { " (default)" } else { "" };
    format!("{} concurrent{built_in}", policy.max_handshakes)
}

fn limits(policy: &ListenerPolicy) -> String {
    let limits = &policy.limits;
    let idle = limits.idle_timeout.map_or("none".to_owned(), |idle| format!("{idle:?}"));
    format!(
        "connect {:?}, dial retry {:?}, handshake {:?}, idle {idle}, half-closed {:?}, dead peer {:?}{}",
        policy.upstream.settings.connect_timeout,
        policy.upstream.settings.dial_retry,
        limits.handshake_timeout,
        limits.half_close_timeout,
        limits.dead_peer_timeout,
        match (policy.protocol, policy.plaintext_cancel) {
            (Protocol::Postgres, true) => "; plaintext CancelRequests are accepted",
            (Protocol::Postgres | Protocol::Redis | Protocol::Tcp, _) => "",
        }
    )
}

/// `None` for no limit.
fn milliseconds(duration: Option<Duration>) -> Option<u64> {
    duration.map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn addresses(policy: &ListenerPolicy) -> Vec<String> {
    policy.bind_addrs.iter().map(|bind_addr| bind_addr.address.to_string()).collect()
}

/// The upstream addresses in dial order.
fn upstreams(policy: &ListenerPolicy) -> Vec<String> {
    policy.upstream.settings.addresses.iter().map(ToString::to_string).collect()
}

/// Returns `None` if TLS is off.
fn min_version(policy: &ListenerPolicy) -> Option<&'static str> {
    policy.min_version().map(|version| match version {
        MinTlsVersion::Tls12 => "TLS 1.2",
        MinTlsVersion::Tls13 => "TLS 1.3",
    })
}

/// The patterns of `trusted_clients`; empty if every verified client is admitted.
fn patterns(policy: &ListenerPolicy) -> Vec<String> {
    policy.trusted_clients().map(TrustedClients::patterns).unwrap_or_default().iter().map(ToString::to_string).collect()
}

/// The configured mode. A warning reports a shield that is not available.
const fn shield(policy: &ListenerPolicy) -> &'static str {
    match policy.shield {
        Shield::Off => "off",
        Shield::Auto => "auto: the kernel drops packets of untrusted sources during a flood",
        Shield::On => "on: the kernel drops packets of untrusted sources",
    }
}

const fn revoke(policy: &ListenerPolicy) -> &'static str {
    match policy.revoke {
        Revoke::Disconnect => "disconnect",
        Revoke::Keep => "keep",
    }
}

const fn revocation(policy: &ListenerPolicy) -> &'static str {
    match policy.revoke {
        Revoke::Disconnect => "closes open sessions that the policy no longer admits",
        Revoke::Keep => "OFF: open sessions stay open when their rule or certificate is removed",
    }
}

/// Rules per listener shown as text.
const MAX_RULES: usize = 50;
