use time::{Duration, OffsetDateTime};

use super::*;
use crate::policy::fixtures::{ConfigDir, listener};
use crate::source::rule::Rule;

fn client(number: u8) -> ClientAddr {
    ClientAddr::new(([10, 0, 0, number], 1000 + u16::from(number)).into())
}

fn later(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)
}

/// The authorization of a client by the first rule of a listener.
fn authorization(listener_policy: &ListenerPolicy) -> Authorization {
    Authorization {
        rule: listener_policy.sources.trusted.rules().first().cloned().map(Into::into),
        ..Authorization::default()
    }
}

fn policy(sources: &str) -> crate::policy::Snapshot {
    let dir = ConfigDir::new();
    dir.install("db", OffsetDateTime::now_utc() + Duration::days(365));
    dir.snapshot(listener("db", 1001, sources), None)
}

#[test]
fn last_users_are_kept_latest_first_and_bounded() {
    let snapshot = policy(r#""10.0.0.0/8""#);
    let listener_policy = snapshot.named("db").unwrap();
    let (usage, authorization) = (&listener_policy.usage, authorization(listener_policy));
    let item = authorization.items().next().unwrap();
    for number in 1..=20 {
        usage.note(&authorization, client(number), later(number.into()));
    }
    // A known user that returns does not add a user.
    usage.note(&authorization, ClientAddr::new(([10, 0, 0, 15], 9).into()), later(30));
    let uses = usage.of(&item).unwrap();
    assert_eq!((uses.first, uses.last), (later(1), later(30)));
    let users: Vec<_> = uses.users.iter().map(|user| (user.source(), user.last)).collect();
    let expected = [(15, 30), (20, 20), (19, 19), (18, 18), (17, 17), (16, 16), (14, 14), (13, 13)];
    assert_eq!(users, expected.map(|(number, at)| (format!("10.0.0.{number}"), later(at))));
}

#[test]
fn end_of_a_session_is_a_use_unless_the_item_was_removed() {
    let snapshot = policy(r#""10.0.0.0/8""#);
    let listener_policy = snapshot.named("db").unwrap();
    let (usage, authorization) = (&listener_policy.usage, authorization(listener_policy));
    let item = authorization.items().next().unwrap();
    usage.note_end(&authorization, client(1), later(1));
    assert_eq!(usage.of(&item), None);
    usage.note(&authorization, client(1), later(2));
    usage.note_end(&authorization, client(1), later(3_600));
    assert_eq!(usage.of(&item).unwrap().last, later(3_600));
    usage.keep_only(policy(r#""192.0.2.1""#).named("db").unwrap());
    usage.note_end(&authorization, client(1), later(3_601));
    assert_eq!(usage.of(&item), None);
}

#[test]
fn users_of_many_rules_are_bounded_and_their_times_are_kept() {
    let snapshot = policy(r#""10.0.0.0/8""#);
    let usage = Usage::default();
    let template = authorization(snapshot.named("db").unwrap());
    let rule = |number: usize| {
        let [.., a, b, c] = u32::try_from(number).unwrap().to_be_bytes();
        let source = Source::Network(format!("10.{a}.{b}.{c}").parse().unwrap());
        let rule = Rule { source, ..Rule::clone(&template.rule.as_ref().unwrap().rule) };
        Authorization { rule: Some(Arc::new(rule).into()), ..Authorization::default() }
    };
    let most = MAX_USERS_OF_RULES + 100;
    for number in 0..most {
        usage.note(&rule(number), client(1), later(1));
    }
    let kept = (0..most).map(|number| usage.of(&rule(number).items().next().unwrap()).unwrap().users.len());
    assert_eq!(kept.sum::<usize>(), MAX_USERS_OF_RULES);
}
