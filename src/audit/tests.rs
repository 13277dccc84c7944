use crate::addr::ClientAddr;
use crate::audit::recent::EventFilter;

use super::*;

fn fields(address: &str) -> ConnectionFields {
    ConnectionFields::new(None, "main".into(), ClientAddr::new(address.parse().unwrap()))
}

fn deny(audit: &Audit, fields: &ConnectionFields) {
    audit.denied(fields, Reason::UntrustedSource, "", Duration::ZERO);
}

/// An audit with its file.
fn start(directory: &tempfile::TempDir) -> (Audit, PathBuf) {
    let path = directory.path().join("audit.log");
    (Audit::start(LineFormat::Json, Some(open_audit_file(path.clone()).unwrap())), path)
}

#[tokio::test]
async fn recent_events_are_the_lines_of_the_audit_file() {
    let directory = tempfile::tempdir().unwrap();
    let (audit, path) = start(&directory);
    audit.record_recent(true);
    deny(&audit, &fields("192.0.2.1:1"));
    audit.reload_rejected(1, "a\nb");
    audit.flush();
    let batch = audit.recent_events().reader(9, EventFilter::default()).next().await.unwrap();
    let recorded: Vec<_> = batch.events.iter().map(|event| &*event.json).collect();
    assert_eq!(recorded, std::fs::read_to_string(path).unwrap().lines().collect::<Vec<_>>());
    assert_eq!(batch.events[0].listener.as_deref(), Some("main"));
    assert_eq!((batch.events[1].name, &batch.events[1].listener), ("reload.rejected", &None));
}

#[test]
fn nothing_is_kept_without_an_admin_api() {
    let directory = tempfile::tempdir().unwrap();
    let (audit, _) = start(&directory);
    let kept = |audit: &Audit| {
        let mut reader = audit.recent_events().reader(9, EventFilter::default());
        let events = reader.take().map_or(0, |batch| batch.events.len());
        (events, audit.denials().list(None, None).len())
    };
    deny(&audit, &fields("192.0.2.1:1"));
    assert_eq!(kept(&audit), (0, 0));
    audit.record_recent(true);
    deny(&audit, &fields("192.0.2.1:1"));
    assert_eq!(kept(&audit), (1, 1));
    audit.record_recent(true);
    assert_eq!(kept(&audit), (1, 1), "a reload that keeps [admin] forgets nothing");
    audit.record_recent(false);
    assert_eq!(kept(&audit), (0, 0));
}

#[test]
fn suppressed_denials_are_grouped_and_health_checks_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let (audit, path) = start(&directory);
    audit.record_recent(true);
    for _ in 0..700 {
        deny(&audit, &fields("192.0.2.1:1"));
    }
    let check = ConnectionFields { is_health_checker: true, ..fields("10.9.0.5:1") };
    deny(&audit, &check);
    audit.flush();
    let groups = audit.denials().list(Some("main"), None);
    assert_eq!(groups.iter().map(|group| group.count).collect::<Vec<_>>(), [700]);
    let lines = std::fs::read_to_string(path).unwrap();
    assert_eq!(lines.matches("connection.denied").count(), 501, "500 and the first health check");
}

#[test]
fn flood_of_denied_admin_requests_is_suppressed_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let (audit, path) = start(&directory);
    let denial = AdminDenial {
        source: ClientAddr::from_ip("192.0.2.1".parse().unwrap()),
        reason: admin::AdminDenialReason::UnknownToken,
        token: None,
        method: "GET",
        path: "/v1/status",
        request_id: "0f3a",
    };
    (0..1_000).for_each(|_| audit.admin_denied(&denial));
    audit.flush();
    let lines = std::fs::read_to_string(path).unwrap();
    assert_eq!(lines.matches("\"admin.denied\"").count(), 100);
    assert!(lines.contains("\"event\":\"admin_denials.suppressed\",\"source\":\"192.0.2.1\""), "{lines}");
    assert!(lines.contains("\"suppressed\":900"), "{lines}");
}

#[test]
fn dropped_lines_are_counted() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let audit = Audit::start(LineFormat::Json, Some(Destination::file("/dev/full".into(), full)));
    deny(&audit, &fields("192.0.2.1:1"));
    audit.flush();
    deny(&audit, &fields("192.0.2.1:1"));
    audit.flush();
    assert_eq!(audit.dropped(), 2);
}
