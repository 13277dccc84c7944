use std::collections::BTreeSet;
use std::sync::Arc;

use hyper::Method;
use time::OffsetDateTime;
use tokio::sync::watch;

use prometheus_client::registry::Registry;

use super::*;
use crate::metrics::exposition::answer::respond;
use crate::metrics::exposition::catalog::{ALL, CERTIFICATE_EXPIRY, Kind};
use crate::policy::fixtures::{ConfigDir, listener};

fn encoded(families: Families, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(families));
    format.encode(&registry).unwrap()
}

#[test]
fn hostile_label_values_are_escaped_and_equal_labels_make_one_series() {
    let mut families = Families::default();
    for end in [1.0, 2.0] {
        families.set(&CERTIFICATE_EXPIRY, ["main", "server", "CN=\"a\"} 1\n# b\\", "ab"], end);
    }
    for format in [Format::Prometheus, Format::OpenMetrics] {
        let text = encoded(std::mem::take(&mut families), format);
        let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        if format == Format::Prometheus {
            let escaped = r#"{listener="main",role="server",subject="CN=\"a\"} 1\n# b\\",sha256="ab"} 2.0"#;
            assert_eq!(samples, [format!("portcullis_certificate_expiry_timestamp_seconds{escaped}")]);
        } else {
            assert_eq!(text, "# EOF\n", "a family without samples is absent");
        }
    }
}

#[test]
fn names_follow_the_conventions_and_are_unique() {
    let names: BTreeSet<_> = ALL.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), ALL.len());
    for row in ALL {
        assert_eq!(row.name.ends_with("_total"), row.kind == Kind::Counter, "{}", row.name);
        assert!(!row.help.contains(['\n', '\\']) && row.help.ends_with('.'), "{}", row.name);
        for forbidden in ["source", "client", "port", "sni", "session"] {
            assert!(!row.labels.contains(&forbidden), "{} has the label {forbidden}", row.name);
        }
    }
}

#[tokio::test]
async fn process_is_not_ready_until_its_listeners_are_bound() {
    let site = ConfigDir::new();
    site.install("main", OffsetDateTime::now_utc() + time::Duration::days(30));
    let snapshot = site.snapshot(listener("main", 1, ""), None);
    let sources = Arc::new(Sources {
        fleet: Box::new(|| None),
        current: watch::channel(Arc::new(snapshot)).1,
        registry: Arc::default(),
        resolutions: Arc::default(),
        agent: Arc::default(),
        process: Arc::default(),
        audit_dropped: Box::new(|| 7),
    });
    let status = async |path: &str| respond(&sources, &Method::GET, path, None).await.status().as_u16();
    assert_eq!((status("/readyz").await, status("/healthz").await, status("/metrics").await), (503, 200, 200));
    sources.process.readiness.set_ready();
    assert_eq!(status("/readyz").await, 200);
    let body = respond(&sources, &Method::GET, "/metrics", None).await.into_body();
    assert!(body.contains("\nportcullis_audit_dropped_total 7\n"), "{body}");
    assert!(!body.contains("portcullis_admin_"), "the API is off");
}

#[test]
fn counters_of_a_removed_listener_return_with_it() {
    let site = ConfigDir::new();
    for name in ["main", "other"] {
        site.install(name, OffsetDateTime::now_utc() + time::Duration::days(30));
    }
    let (main, other) = (listener("main", 1, ""), listener("other", 2, ""));
    let both = site.snapshot([main.clone(), other.clone()].concat(), None);
    both.named("main").unwrap().metrics.note_opened();
    let one = site.snapshot(&other, Some(&both));
    assert_eq!(one.removed_listeners().len(), 1);
    let planned = site.snapshot([main.clone(), other.clone()].concat(), Some(&one));
    assert_eq!(one.removed_listeners().len(), 1, "a plan changes nothing");
    assert_eq!(planned.named("main").unwrap().metrics.opened(), 1);
    assert!(planned.removed_listeners().is_empty());
    let returned = site.snapshot([main, other].concat(), Some(&site.snapshot(listener("other", 3, ""), Some(&one))));
    assert_eq!(returned.named("main").unwrap().metrics.opened(), 1, "it was absent for two generations");
}
