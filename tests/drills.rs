//! The drills of docs/ROTATION.md, executed exactly as they are written, with a real Redis.
//!
//! A drill is a section whose title begins with `Drill:`. Only the two ports differ from the guide, so that drills can run at
//! the same time.

use crate::harness::Redis;
use crate::harness::guide::{Rehearsal, blocks, document};
use crate::harness::program::free_port;

macro_rules! drills {
    ($($test:ident: $title:literal,)*) => {
        $(#[test]
        fn $test() {
            rehearse($title, None);
        })*

        const TITLES: &[&str] = &[$($title),*];
    };
}

drills! {
    server_certificate_is_replaced: "the server certificate",
    client_ca_is_replaced: "the CA of the clients",
    client_certificate_of_a_ca_is_replaced: "a client's certificate, by a CA",
    uploaded_client_certificate_is_replaced: "a client's certificate, uploaded",
    certificate_is_revoked_by_a_list: "a revocation list",
    source_is_replaced: "the list of sources",
    ticket_key_is_replaced: "the ticket keys",
    rejected_reload_is_fixed: "a reload that is rejected",
}

#[test]
fn every_drill_of_the_guide_has_a_test() {
    let guide = document(GUIDE);
    let titles: Vec<&str> = guide.lines().filter_map(|line| line.strip_prefix(DRILL)).collect();
    assert_eq!(titles, TITLES);
}

/// The beginning of the title of a drill.
const DRILL: &str = "## Drill: ";

#[test]
fn drills_work_before_a_redis_that_has_a_password() {
    for title in ["a client's certificate, by a CA", "the ticket keys", "a reload that is rejected"] {
        rehearse(title, Some("a long password"));
    }
}

/// Executes a drill, and compares its output.
fn rehearse(title: &str, password: Option<&str>) {
    let redis = match password {
        Some(password) => Redis::with(&["--requirepass", password]),
        None => Redis::start(),
    };
    let guide = document(GUIDE).replace("127.0.0.1:6379", &redis.to_string()).replace("6380", &free_port().to_string());
    let blocks = blocks(&guide, |section| section.strip_prefix("Drill: ") == Some(title));
    for block in &blocks {
        assert!(["sh", "toml", "ini", "text"].contains(&block.language.as_str()), "{} is not executed", block.language);
    }
    let rehearsal = Rehearsal::of(blocks);
    match password {
        Some(password) => rehearsal.with_variable("REDISCLI_AUTH", password),
        None => rehearsal,
    }
    .run();
}

const GUIDE: &str = "docs/ROTATION.md";
