//! Dates at the far ends of time, and a wall clock that is set while the program runs.

use crate::harness::portcullis::executable;
use crate::harness::{Listener, Portcullis, Site, Upstream, program};
use crate::reload::ON_SIGHUP;
use crate::revocation::assert_lives;

/// How rules that never end are written west of Greenwich, and one that ended long ago east of it.
const ENDS: [(&str, &str); 4] = [
    ("127.0.0.1", "9999-12-31T23:59:59-05:00"),
    ("127.0.0.2", "9999-12-31 23:59:59.999999999-23:59"),
    ("127.0.0.3", "9999-12-31T23:59:59Z"),
    ("127.0.0.4", "0000-01-01T00:00:00+23:59"),
];

fn rules() -> String {
    let rule = |(source, end)| format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"{source}\"\nexpires_at = {end}\n");
    ENDS.map(rule).concat()
}

fn with_sources_file(upstream: &Upstream) -> String {
    format!("{ON_SIGHUP}{}", Listener::redis(upstream).trusting(&["127.0.1.1"]).key("sources_file = \"sources.toml\""))
}

#[test]
fn expiry_beyond_the_year_9999_in_a_reload_trusts_the_source() {
    let upstream = Upstream::echo();
    let site = Site::new();
    site.write("sources.toml", "rule = []\n");
    let mut portcullis = Portcullis::start(site, with_sources_file(&upstream));
    let from = |source: &str| portcullis.client().from(source).attempt();
    let before = from("127.0.1.1").1.unwrap();
    for rules in [rules(), "rule = []\n".to_owned(), rules()] {
        // Removed again too, since the audit names the rules that come and those that go.
        portcullis.applies(|| {
            portcullis.site.replace("sources.toml", rules);
            portcullis.process.signal("HUP");
        });
    }
    assert_lives(before);
    for source in ["127.0.0.1", "127.0.0.2", "127.0.0.3"] {
        assert_lives(from(source).1.unwrap());
    }
    let (port, expired) = from("127.0.0.4");
    expired.unwrap_err();
    let denied = portcullis.ending(port);
    assert_eq!(denied.reason(), "untrusted_source");
    assert!(denied.text("detail").contains("0000-01-01T00:00:00Z"), "{}", denied.0);
    assert_eq!(portcullis.stop().0, Some(0));
}

#[test]
fn expiry_beyond_the_year_9999_in_check_is_shown_in_utc() {
    let site = Site::new();
    site.write("sources.toml", rules());
    site.write("portcullis.toml", with_sources_file(&Upstream::echo()));
    let check = |options: &[&str]| {
        let mut command = executable();
        command.arg("check").args(options).arg("-c").arg(site.path("portcullis.toml"));
        program::run(&mut command).success()
    };
    let table = check(&[]);
    assert_eq!(table.matches("until 9999-12-31T23:59:59Z").count(), 3, "{table}");
    assert!(table.contains("EXPIRED 0000-01-01T00:00:00Z"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&check(&["--json"])).unwrap();
    let expired: Vec<_> =
        json["listeners"][0]["sources"].as_array().unwrap().iter().map(|rule| &rule["expired"]).collect();
    assert_eq!(expired, [false, false, false, false, true], "{json}");
}

#[test]
fn longest_durations_in_use_serve_sessions() {
    const LONGEST: &str = "3650d";
    let upstream = Upstream::echo();
    let limits = ["handshake_timeout", "idle_timeout", "half_close_timeout"];
    let listener = limits
        .iter()
        .fold(Listener::redis(&upstream), |listener, key| listener.limit(&format!("{key} = \"{LONGEST}\"")))
        .upstream(&format!("connect_timeout = \"{LONGEST}\""));
    let whole = format!("reload.poll = \"{LONGEST}\"\nshutdown.drain = \"{LONGEST}\"\n");
    let mut portcullis = Portcullis::start(Site::new(), format!("{whole}{listener}"));
    assert_lives(portcullis.client().connect());
    assert_eq!(portcullis.stop().0, Some(0));
}
