//! The drills of docs/ROTATION.md, executed exactly as they are written, with a real Redis.
//!
//! A drill is a section whose title begins with `Drill:`. Only the ports differ from the guide, so that drills can run at
//! the same time. Drills of passwords run with PostgreSQL, too.

use crate::harness::guide::{Block, Rehearsal, blocks, document};
use crate::harness::program::{free_port, run};
use crate::harness::{Event, Postgres, Redis};

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
    let mut titles: Vec<&str> = guide.lines().filter_map(|line| line.strip_prefix(DRILL)).collect();
    let mut tested = [TITLES, &[DATABASE, CLIENT, CERTIFICATE]].concat();
    titles.sort_unstable();
    tested.sort_unstable();
    assert_eq!(titles, tested);
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
    let redis = redis(password);
    let guide = document(GUIDE).replace("127.0.0.1:6379", &redis.to_string()).replace("6380", &free_port().to_string());
    let blocks = blocks(&guide, |section| section.strip_prefix("Drill: ") == Some(title));
    for block in &blocks {
        assert!(["sh", "toml", "ini", "text"].contains(&block.language.as_str()), "{} is not executed", block.language);
    }
    for_redis(Rehearsal::of(blocks), password).run();
}

fn redis(password: Option<&str>) -> Redis {
    match password {
        Some(password) => Redis::with(&["--requirepass", password]),
        None => Redis::start(),
    }
}

fn for_redis(rehearsal: Rehearsal, password: Option<&str>) -> Rehearsal {
    match password {
        Some(password) => rehearsal.with_variable("REDISCLI_AUTH", password),
        None => rehearsal,
    }
}

const GUIDE: &str = "docs/ROTATION.md";

const DATABASE: &str = "the password of the database";
const CLIENT: &str = "the password of a client";
const CERTIFICATE: &str = "a certificate instead of a password";

#[test]
fn password_of_the_database_is_replaced_under_load() {
    rehearse_before_redis(DATABASE, None, 0);
    rehearse_before_postgres(DATABASE, 0);
}

#[test]
fn password_of_a_client_is_replaced_under_load() {
    rehearse_before_redis(CLIENT, None, 1);
    rehearse_before_postgres(CLIENT, 1);
}

#[test]
fn password_of_a_client_is_replaced_by_a_certificate_under_load() {
    rehearse_before_redis(CERTIFICATE, Some("a long password"), 1);
    rehearse_before_postgres(CERTIFICATE, 1);
}

#[test]
fn password_of_a_redis_without_users_is_replaced_under_load() {
    let redis = Redis::start();
    run(redis.cli().args(["ACL", "SETUSER", "admin", "on", ">any", "+@all"])).success();
    let guide = document(GUIDE);
    let instead = "CONFIG SET requirepass \"$(cat \"$1\")\"";
    assert!(guide.contains(&format!("`{instead}`")));
    let guide = replaced(&guide, "upstream_user = \"portcullis\"\n", "");
    let guide = replaced(&guide, "ACL SETUSER portcullis on \">$(cat \"$1\")\" \"~*\" \"&*\" +@all -@admin", instead);
    let guide = replaced(&guide, "ACL SETUSER portcullis resetpass \">$(cat \"$1\")\"", instead);
    let guide = replaced(&guide, "redis-cli -u redis://127", "redis-cli --no-auth-warning -u redis://admin:any@127");
    let guide = replaced(&guide, "127.0.0.1:6379", &redis.to_string());
    assert_denials(&of_passwords(&guide, DATABASE, "# Redis").run(), 0);
}

fn rehearse_before_redis(title: &str, password: Option<&str>, refused: usize) {
    let redis = redis(password);
    let guide = replaced(&document(GUIDE), "127.0.0.1:6379", &redis.to_string());
    let rehearsal = for_redis(of_passwords(&guide, title, "# Redis"), password);
    assert_denials(&rehearsal.run(), refused);
}

fn rehearse_before_postgres(title: &str, refused: usize) {
    let postgres = Postgres::start();
    postgres.ask_by("portcullis", "scram-sha-256");
    let mut guide = document(GUIDE);
    for (redis, instead) in [
        ("protocol = \"redis\"", "protocol = \"postgres\""),
        ("upstream = \"127.0.0.1:6379\"", "upstream = \"127.0.0.1:5432\""),
    ] {
        assert!(guide.contains(&format!("`{instead}`")), "the guide has {instead}");
        guide = replaced(&guide, redis, instead);
    }
    let guide = replaced(&guide, "127.0.0.1:5432", &postgres.to_string());
    let rehearsal = of_passwords(&guide, title, "# PostgreSQL").with_variable("PGUSER", "app");
    assert_denials(&rehearsal.run(), refused);
}

/// A drill of passwords, with the functions whose block begins with this comment.
fn of_passwords(guide: &str, title: &str, functions: &str) -> Rehearsal {
    let guide = replaced(guide, "6380", &free_port().to_string());
    let is_used = |block: &Block| {
        let first = block.lines.first().expect("a block has lines");
        block.language != "sh" || !first.starts_with("# ") || first == functions
    };
    let mut all = blocks(&guide, |section| section == "Preparation for the drills of passwords");
    assert_eq!(all.iter().filter(|block| is_used(block)).count(), all.len() - 1, "two protocols have functions");
    all.retain(is_used);
    for block in blocks(&guide, |section| section.strip_prefix("Drill: ") == Some(title)) {
        if block.language == "sh" {
            all.push(Block { language: "sh".to_owned(), lines: vec![UNDER_LOAD.to_owned()] });
        }
        all.push(block);
    }
    Rehearsal::of(all)
}

/// Waits until the load has opened more connections. A person is slower than a script.
const UNDER_LOAD: &str = "opened() { grep -c connection.opened portcullis.log || true; }
seen=$(opened)
until [ $(opened) -ge $((seen + 20)) ]; do sleep 0.05; done";

fn replaced(guide: &str, text: &str, instead: &str) -> String {
    assert!(guide.contains(text), "the guide has {text}");
    guide.replace(text, instead)
}

/// Checks that clients were denied only because of a password in the drill, so many times. A load that is stopped closes
/// connections that are being set up.
fn assert_denials(log: &[Event], refused: usize) {
    let denied = log.iter().filter(|event| event.is("connection.denied"));
    let (expected, other): (Vec<_>, Vec<_>) = denied.partition(|event| event.reason() == "authentication_failed");
    assert_eq!(expected.len(), refused, "{expected:?}");
    let is_leaving = |event: &&Event| ["client_closed", "handshake_failed"].contains(&event.reason());
    assert!(other.iter().all(is_leaving), "{other:?}");
}
