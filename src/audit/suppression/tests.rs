use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::addr::ClientAddr;

fn fields(client: ClientAddr) -> ConnectionFields {
    ConnectionFields::new(None, "main".into(), client)
}

fn v4(number: u32) -> ConnectionFields {
    fields(ClientAddr::from_ip(Ipv4Addr::from(number).into()))
}

fn denied(fields: &ConnectionFields, reason: Reason) -> FloodEvent<'_> {
    FloodEvent::of_connection(fields, Some(reason))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn logged(floods: &FloodLimiter, fields: &ConnectionFields, count: u64, at: Duration) -> u64 {
    (0..count).map(|_| u64::from(floods.allow_at(at, denied(fields, Reason::UntrustedSource)))).sum()
}

fn reports(floods: &FloodLimiter, at: Duration) -> Vec<Value> {
    floods.summaries_at(at, at).iter().map(|event| serde_json::from_str(&event.json(None)).unwrap()).collect()
}

fn sum(reports: &[Value]) -> u64 {
    reports.iter().map(|report| report["suppressed"].as_u64().unwrap()).sum()
}

#[test]
fn source_above_its_quota_is_logged_once_a_second_and_summarised() {
    let floods = FloodLimiter::new(&DENIALS);
    let untrusted = v4(1);
    assert_eq!(logged(&floods, &untrusted, 3_000, seconds(0)), 500);
    assert_eq!(logged(&floods, &untrusted, 50, seconds(1)), 1);
    assert_eq!(logged(&floods, &v4(2), 50, seconds(1)), 50, "another source has its own quota");
    assert_eq!(reports(&floods, seconds(2)), [0; 0], "the flood continues");
    let over = reports(&floods, seconds(3));
    assert_eq!(sum(&over), 2_549);
    assert_eq!(over[0]["event"], "denials.suppressed");
    assert_eq!(over[0]["source"], "0.0.0.1");
    assert_eq!(over[0]["listener"], "main");
    assert_eq!(over[0]["reason"], "untrusted_source");
    assert!(over[0]["detail"].as_str().unwrap().starts_with("2549 more suppressed"));
    assert_eq!(reports(&floods, seconds(30)), [0; 0]);
}

#[test]
fn long_lines_count_once_for_each_kib_begun() {
    let log = |floods: &FloodLimiter, fields: &ConnectionFields, bytes, count: u64, at| {
        let lines = (0..count).filter(|_| {
            let logged = floods.allow_at(at, denied(fields, Reason::HandshakeFailed));
            if logged {
                floods.count_line_at(at, denied(fields, Reason::HandshakeFailed), bytes);
            }
            logged
        });
        lines.count()
    };
    for (bytes, most) in [(1, 500), (1_024, 500), (1_025, 250), (3_000, 167), (16 << 10, 32)] {
        let floods = FloodLimiter::new(&DENIALS);
        assert_eq!(log(&floods, &v4(1), bytes, 1_000, seconds(0)), most, "{bytes}");
        let all = reports(&floods, seconds(3));
        assert_eq!(most as u64 + sum(&all), 1_000, "{bytes}");
    }
    // The limit of all sources together: 10,000 KiB.
    let floods = FloodLimiter::new(&DENIALS);
    let lines: usize = (0..100).map(|number| log(&floods, &v4(number), 16 << 10, 1_000, seconds(0))).sum();
    assert_eq!(lines, 625);
}

#[test]
fn endless_flood_is_summarised_every_ten_seconds() {
    let floods = FloodLimiter::new(&DENIALS);
    let untrusted = fields(ClientAddr::from_ip(Ipv6Addr::LOCALHOST.into()));
    let mut lines = 0;
    let mut all = Vec::new();
    for second in 0..60 {
        lines += logged(&floods, &untrusted, 1_000, seconds(second));
        all.extend(reports(&floods, seconds(second)));
    }
    assert_eq!(lines, 500 + 59);
    assert_eq!(all.len(), 5, "{all:?}");
    assert_eq!(all[0]["source"], "::/64");
    all.extend(reports(&floods, seconds(100)));
    assert_eq!(lines + sum(&all), 60_000);
}

#[test]
fn many_sources_are_logged_within_bounds_and_every_event_is_counted() {
    let floods = FloodLimiter::new(&DENIALS);
    let mut lines = 0;
    let mut all = Vec::new();
    // More sources in a second than the table holds.
    for number in 0..40_000 {
        lines += logged(&floods, &v4(number), 1, seconds(1));
    }
    assert_eq!(lines, 10_000);
    // Then many sources above their quota.
    for number in 0..5_000 {
        lines += logged(&floods, &v4(number), 600, seconds(2));
    }
    assert_eq!(lines, 10_100);
    for second in 3..30 {
        all.extend(reports(&floods, seconds(second)));
    }
    assert!(all.len() <= 1_300, "{}", all.len());
    assert!(all.iter().any(|report| report.get("source").is_none()));
    assert_eq!(lines + sum(&all), 40_000 + 3_000_000);
}

#[test]
fn clients_of_unix_sockets_are_one_source() {
    let floods = FloodLimiter::new(&DENIALS);
    assert_eq!(logged(&floods, &fields(ClientAddr::UNIX), 650, seconds(0)), 500);
    assert_eq!(reports(&floods, seconds(5))[0]["source"], "unix");
}

#[test]
fn cancels_have_their_own_summary_without_a_reason() {
    let floods = FloodLimiter::new(&CANCELS);
    let fields = v4(1);
    let forwarded = FloodEvent::of_connection(&fields, None);
    let lines = (0..150).filter(|_| floods.allow_at(seconds(0), forwarded)).count();
    assert_eq!(lines, 100);
    let over = reports(&floods, seconds(3));
    assert_eq!((&over[0]["event"], &over[0]["suppressed"]), (&"cancels.suppressed".into(), &50.into()));
    assert_eq!(over[0].get("reason"), None);
}

#[test]
fn denied_admin_requests_have_their_own_summary_without_a_listener() {
    let floods = FloodLimiter::new(&ADMIN_DENIALS);
    let denied = FloodEvent { source: v4(1).client.source_key(), listener: None, reason: Some("unknown_token") };
    let lines = (0..150).filter(|_| floods.allow_at(seconds(0), denied)).count();
    assert_eq!(lines, 100);
    let over = reports(&floods, seconds(3));
    assert_eq!((&over[0]["event"], &over[0]["suppressed"]), (&"admin_denials.suppressed".into(), &50.into()));
    assert_eq!((&over[0]["source"], &over[0]["reason"]), (&"0.0.0.1".into(), &"unknown_token".into()));
    assert_eq!(over[0].get("listener"), None);
    assert_eq!(over[0]["detail"], "50 more suppressed; the reason is that of the last one");
}

proptest! {
    #[test]
    fn logged_and_suppressed_events_add_up(
        crowd in prop::collection::vec((0_u32..8, 0_u64..900, 0_u64..4), 0..30),
    ) {
        let floods = FloodLimiter::new(&DENIALS);
        let (mut now, mut lines, mut count) = (0, 0, 0);
        let mut all = Vec::new();
        for (number, many, pause) in crowd {
            now += pause;
            lines += logged(&floods, &v4(number), many, seconds(now));
            count += many;
            all.extend(reports(&floods, seconds(now)));
        }
        all.extend(reports(&floods, seconds(now + 10)));
        prop_assert_eq!(lines + sum(&all), count);
    }
}
