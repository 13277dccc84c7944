//! Trusted sources that are host names, with real DNS servers: TTLs and failures.

use portcullis::internals::timestamp;
use serde_json::{Value, json};

use crate::dns_sources::{STATE, is_admitted};
use crate::harness::dns::{DnsAnswer, Dnsmasq, FakeDnsServer, alone};
use crate::harness::hosts::{name, resolve_by_dns, start};
use crate::harness::portcullis::ADMIN;
use crate::harness::{Event, Listener, Portcullis, TestDir, Upstream, eventually};
use crate::reload::ON_SIGHUP;

fn config(upstream: &Upstream, value: &str, refresh: &str) -> String {
    let rule = format!("[{{ type = \"dns\", value = \"{value}\", refresh = \"{refresh}\" }}]");
    let listener = Listener::redis(upstream).trusting(&[]).to_string();
    format!(
        "{STATE}{ADMIN}{ON_SIGHUP}{}",
        listener.replace("trusted_sources = []", &format!("trusted_sources = {rule}"))
    )
}

fn site(options: &str) -> TestDir {
    let site = TestDir::new();
    resolve_by_dns(&site, options);
    site
}

/// The name in `status`.
fn status(portcullis: &Portcullis) -> Value {
    portcullis.status()["dns_sources"][0].clone()
}

/// Waits until `status` has this state.
fn status_when(portcullis: &Portcullis, what: &str, like_that: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || Some(status(portcullis)).filter(&like_that))
}

/// Seconds from the last lookup to the next.
fn wait(status: &Value) -> Option<f64> {
    let time = |key: &str| timestamp::parse(status[key].as_str()?);
    Some((time("next_lookup_at")? - time("resolved_at")?).as_seconds_f64())
}

fn source_event(portcullis: &Portcullis, seen: usize, event: &str, addresses: &str) -> Event {
    let words = format!("{event} with {addresses}");
    portcullis.event_after(seen, &words, |line| line.is(event) && line.0["addresses"] == addresses)
}

fn warned(portcullis: &Portcullis, seen: usize, words: &str) -> Event {
    let texts = ["message", "detail", "error", "warning"];
    let has_words =
        |line: &Event| texts.iter().any(|field| line.0[field].as_str().is_some_and(|text| text.contains(words)));
    portcullis.event_after(seen, words, has_words)
}

/// dnsmasq gives these records a TTL of a second, so a refresh time of an hour has no effect.
fn follows(value: &str, resolver_options: &str, options: &[&str], record: &str) {
    alone(|| {
        let (upstream, site) = (Upstream::echo(), site(resolver_options));
        let dns = Dnsmasq::start(&site, options, &[(record, &["127.0.0.5"])]);
        let Some(portcullis) = start(site, config(&upstream, value, "1h")) else { return };
        let (_, inside) = portcullis.client().from("127.0.0.5").attempt();
        let (mut inside, seen) = (inside.unwrap(), portcullis.seen());
        dns.have(&portcullis.site, &[(record, &["127.0.0.5", "127.0.0.6"])]);
        source_event(&portcullis, seen, "source.added", "127.0.0.6");
        assert!(is_admitted(&portcullis, "127.0.0.6"));
        inside.ask(b"still here", b"still here");
        let seen = portcullis.seen();
        dns.have(&portcullis.site, &[(record, &["127.0.0.6"])]);
        source_event(&portcullis, seen, "source.removed", "127.0.0.5");
        assert_eq!(portcullis.ending(inside.port()).reason(), "source_revoked");
        assert!(!is_admitted(&portcullis, "127.0.0.5"));
        assert!(is_admitted(&portcullis, "127.0.0.6"));
    });
}

#[test]
fn records_with_a_ttl_of_a_second_are_followed() {
    follows("app.test", "", &["local-ttl=1"], "app.test");
}

#[test]
fn alias_with_a_short_ttl_limits_the_ttl_of_its_address() {
    follows("app.test", "", &["local-ttl=86400", "cname=app.test,host.test,1"], "host.test");
}

#[test]
fn name_in_a_search_domain_is_resolved() {
    follows("app", "search none.test test", &["local-ttl=1"], "app.test");
}

#[test]
fn ttl_above_the_refresh_time_has_no_effect() {
    alone(|| {
        let (upstream, site) = (Upstream::echo(), site(""));
        let dns = Dnsmasq::start(&site, &["local-ttl=86400"], &[("app.test", &["127.0.0.5"])]);
        let Some(portcullis) = start(site, config(&upstream, "app.test", "2s")) else { return };
        let planned = status_when(&portcullis, "the next look is planned", |status| wait(status).is_some());
        assert!((1.0..=3.0).contains(&wait(&planned).unwrap()), "{planned}");
        let seen = portcullis.seen();
        dns.have(&portcullis.site, &[("app.test", &["127.0.0.5", "127.0.0.6"])]);
        source_event(&portcullis, seen, "source.added", "127.0.0.6");
    });
}

#[test]
fn status_shows_the_next_lookup_from_the_ttl() {
    alone(|| {
        let (upstream, site) = (Upstream::echo(), site(""));
        let _dns = FakeDnsServer::start(DnsAnswer::Good(&["127.0.0.5"], 600));
        let Some(portcullis) = start(site, config(&upstream, "app.test", "1h")) else { return };
        let planned = status_when(&portcullis, "the next look is planned", |status| wait(status).is_some());
        assert!((590.0..=601.0).contains(&wait(&planned).unwrap()), "{planned}");
    });
}

#[test]
fn addresses_of_both_families_are_used() {
    alone(|| {
        let (upstream, site) = (Upstream::echo(), site(""));
        let dns = Dnsmasq::start(&site, &["local-ttl=1"], &[("app.test", &["127.0.0.5"])]);
        let Some(portcullis) = start(site, config(&upstream, "app.test", "1h")) else { return };
        let has = |addresses: &[&str]| {
            dns.have(&portcullis.site, &[("app.test", addresses)]);
            let status = status_when(&portcullis, "the addresses", |status| status["addresses"] == json!(addresses));
            assert_eq!(status["stale"], false, "{status}");
        };
        has(&["127.0.0.5"]);
        has(&["127.0.0.5", "::1"]);
        has(&["::1"]);
        assert!(!is_admitted(&portcullis, "127.0.0.5"));
        has(&["127.0.0.5"]);
        assert!(is_admitted(&portcullis, "127.0.0.5"));
    });
}

/// After any other answer the last good answer stays in force, is reported as stale, and is replaced by the next good one.
fn keeps(way: DnsAnswer) {
    alone(|| {
        let (upstream, site) = (Upstream::echo(), site(""));
        let dns = FakeDnsServer::start(DnsAnswer::Good(&["127.0.0.5"], 1));
        let Some(portcullis) = start(site, config(&upstream, "app.test", "1h")) else { return };
        let mut inside = portcullis.client().from("127.0.0.5").attempt().1.unwrap();
        let seen = portcullis.seen();
        dns.answer(way);
        let status = status_when(&portcullis, "it is stale", |status| status["stale"] == true);
        assert_eq!(status["addresses"], json!(["127.0.0.5"]), "{way:?}: {status}");
        assert!(status["error"].is_string() && status["resolved_at"].is_string(), "{way:?}: {status}");
        warned(&portcullis, seen, "Z: 127.0.0.5");
        // And after one more look that fails, which is the first one that is tried again.
        let questions = dns.questions();
        eventually("it is tried again", || (dns.questions() > questions + 1).then_some(()));
        inside.ask(b"still here", b"still here");
        assert!(is_admitted(&portcullis, "127.0.0.5"), "{way:?}");
        let seen = portcullis.seen();
        dns.answer(DnsAnswer::Good(&["127.0.0.7"], 1));
        source_event(&portcullis, seen, "source.removed", "127.0.0.5");
        warned(&portcullis, seen, "can be resolved again");
        assert!(is_admitted(&portcullis, "127.0.0.7"));
        // The last answers had no TTL, and the name is looked up again all the same.
        let seen = portcullis.seen();
        dns.answer(DnsAnswer::Good(&["127.0.0.7", "127.0.0.8"], 1));
        source_event(&portcullis, seen, "source.added", "127.0.0.8");
    });
}

#[test]
fn name_after_nxdomain_keeps_its_addresses() {
    keeps(DnsAnswer::Code(3));
}

#[test]
fn name_after_servfail_keeps_its_addresses() {
    keeps(DnsAnswer::Code(2));
}

#[test]
fn name_after_refused_keeps_its_addresses() {
    keeps(DnsAnswer::Code(5));
}

#[test]
fn name_after_an_empty_answer_keeps_its_addresses() {
    keeps(DnsAnswer::Code(0));
}

#[test]
fn name_after_a_timeout_keeps_its_addresses() {
    keeps(DnsAnswer::Silent);
}

#[test]
fn name_after_a_truncated_answer_keeps_its_addresses() {
    keeps(DnsAnswer::Truncated);
}

#[test]
fn name_after_a_garbled_answer_keeps_its_addresses() {
    keeps(DnsAnswer::Garbled);
}

#[test]
fn failed_lookup_of_one_family_uses_the_ttl_of_the_other() {
    alone(|| {
        let (upstream, site) = (Upstream::echo(), site(""));
        let dns = FakeDnsServer::start(DnsAnswer::Half(&["127.0.0.5"], 1));
        let Some(portcullis) = start(site, config(&upstream, "app.test", "1h")) else { return };
        assert!(is_admitted(&portcullis, "127.0.0.5"));
        let seen = portcullis.seen();
        dns.answer(DnsAnswer::Half(&["127.0.0.5", "127.0.0.6"], 1));
        source_event(&portcullis, seen, "source.added", "127.0.0.6");
    });
}

#[test]
fn answer_too_long_for_a_datagram_uses_the_refresh_time() {
    alone(|| {
        let (upstream, site) = (Upstream::echo(), site(""));
        let ips: Vec<_> = (1..=120).map(|last| format!("127.0.1.{last}")).collect();
        let ips: Vec<_> = ips.iter().map(String::as_str).collect();
        let _dns = Dnsmasq::start(&site, &["local-ttl=1"], &[("app.test", &ips)]);
        let Some(portcullis) = start(site, config(&upstream, "app.test", "1h")) else { return };
        assert!(is_admitted(&portcullis, "127.0.1.120"));
        let planned = status_when(&portcullis, "the next look is planned", |status| wait(status).is_some());
        assert!(wait(&planned).unwrap() > 3_000.0, "{planned}");
    });
}

#[test]
fn cached_addresses_are_used_if_no_server_answers_at_start() {
    alone(|| {
        let (upstream, site) = (Upstream::echo(), site(""));
        let dns = Dnsmasq::start(&site, &["local-ttl=1"], &[("app.test", &["127.0.0.5"])]);
        let config = config(&upstream, "app.test", "1h");
        let Some(mut portcullis) = start(site, &config) else { return };
        assert!(is_admitted(&portcullis, "127.0.0.5"));
        drop(dns);
        let old = status_when(&portcullis, "it is stale", |status| status["stale"] == true);
        portcullis.stop();
        let site = std::mem::replace(&mut portcullis.site, TestDir::new());
        let again = start(site, &config).unwrap();
        assert!(is_admitted(&again, "127.0.0.5"));
        warned(&again, 0, "Z: 127.0.0.5");
        let new = status(&again);
        assert_eq!(new["stale"], true, "{new}");
        let age = |status: &Value| timestamp::parse(status["resolved_at"].as_str().unwrap()).unwrap();
        assert!(age(&new) <= age(&old), "it is as old as it is: {new} {old}");
        let seen = again.seen();
        let _dns = Dnsmasq::start(&again.site, &["local-ttl=1"], &[("app.test", &["127.0.0.6"])]);
        source_event(&again, seen, "source.removed", "127.0.0.5");
        assert!(is_admitted(&again, "127.0.0.6"));
    });
}

#[test]
fn silent_server_is_queried_with_backoff() {
    for way in [DnsAnswer::Silent, DnsAnswer::Code(3)] {
        alone(|| {
            let (upstream, site) = (Upstream::echo(), site(""));
            // The name is in /etc/hosts and nowhere else.
            name(&site, &[("app.test", &["127.0.0.5"])]);
            site.write("resolv.conf", "nameserver 127.0.0.1\n");
            let dns = FakeDnsServer::start(way);
            let Some(portcullis) = start(site, config(&upstream, "app.test", "1s")) else { return };
            assert!(is_admitted(&portcullis, "127.0.0.5"));
            for looks in 0..5 {
                let now = status(&portcullis)["resolved_at"].clone();
                status_when(&portcullis, &format!("look {looks}"), |status| status["resolved_at"] != now);
            }
            // One query for each family, and no more.
            assert_eq!(dns.questions(), 4, "{way:?}");
        });
    }
}

#[test]
fn changed_resolv_conf_is_used() {
    alone(|| {
        let (upstream, site) = (Upstream::echo(), site(""));
        let dns = FakeDnsServer::start(DnsAnswer::Good(&["127.0.0.5"], 1));
        // The first server does not exist, and the next one is queried.
        site.write("resolv.conf", "nameserver 127.0.0.9\nnameserver 127.0.0.1\noptions timeout:1 attempts:1\n");
        let Some(portcullis) = start(site, config(&upstream, "app.test", "1h")) else { return };
        assert!(is_admitted(&portcullis, "127.0.0.5"));
        let seen = portcullis.seen();
        dns.answer(DnsAnswer::Good(&["127.0.0.5", "127.0.0.6"], 1));
        source_event(&portcullis, seen, "source.added", "127.0.0.6");
    });
}
