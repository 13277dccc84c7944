//! Trust anchors: the requirements for a CA in a bundle, and the cost of its certificates.

use time::{Duration, OffsetDateTime};

use crate::harness::portcullis::{executable, refused};
use crate::harness::program::run;
use crate::harness::{
    Authority, ClockedPortcullis, CrlContent, Leaf, Listener, Portcullis, Request, TestDir, Upstream,
};
use crate::revocation::{assert_ended, assert_lives, config, session, start, wanting};

fn app(authority: &Authority) -> Leaf {
    authority.issue(Request::client("app"))
}

/// A listener that trusts one CA, with further lines of its TLS.
fn trusting(authority: &Authority, upstream: &Upstream, lines: &[&str]) -> Portcullis {
    let (site, listener) = trusting_site(authority, upstream, lines);
    start(site, &[&listener])
}

/// Its files and the listener itself.
fn trusting_site(authority: &Authority, upstream: &Upstream, lines: &[&str]) -> (TestDir, Listener) {
    let site = TestDir::new();
    site.write("clients.pem", authority.pem());
    let lines: Vec<_> = ["client_ca = \"clients.pem\""].iter().chain(lines).copied().collect();
    (site, wanting(upstream, &lines))
}

#[test]
fn expired_anchor_is_rejected_unless_its_dates_are_ignored() {
    let (upstream, old) = (Upstream::echo(), Authority::expired("Old CA"));
    let portcullis = trusting(&old, &upstream, &[]);
    let denied = refused(&portcullis, &app(&old));
    assert_eq!(denied.reason(), "client_certificate_expired", "{}", denied.0);
    assert!(denied.text("detail").contains("the CA certificate CN=Old CA expired at"), "{}", denied.0);
    let checked = run(executable().arg("check").arg("-c").arg(portcullis.site.path("portcullis.toml")));
    assert!(checked.text().contains("CN=Old CA authenticates no client: "), "{}", checked.text());

    let ignoring = trusting(&old, &upstream, &["anchor_validity = \"ignore\""]);
    assert_lives(session(&ignoring, app(&old)));
}

#[test]
fn session_ends_when_its_anchor_expires() {
    let end = OffsetDateTime::now_utc() + Duration::HOUR;
    let (upstream, brief) = (Upstream::echo(), Authority::expiring("Brief CA", end));
    let (site, listener) = trusting_site(&brief, &upstream, &[]);
    let portcullis = ClockedPortcullis::start(site, config(&[&listener]));
    let session = session(&portcullis, app(&brief));
    portcullis.set_shortly_before(end);
    portcullis.event("the anchor expires", |event| event.is("session.revoked"));
    assert_ended(&portcullis, session, "client_certificate_expired");
    assert_eq!(refused(&portcullis, &app(&brief)).reason(), "client_certificate_expired");
}

#[test]
fn client_that_no_crl_of_its_ca_covers_is_denied() {
    let (upstream, site, clients) = (Upstream::echo(), TestDir::new(), Authority::new("Clients CA"));
    let [named, unnamed] = [app(&clients), app(&clients)];
    let list = clients.list(CrlContent::nothing(1).and(named.der()).about_authorities());
    site.write("clients.pem", clients.pem());
    site.write("clients.crl", list.pem());
    let lines = ["client_ca = \"clients.pem\"", "client_crl = \"clients.crl\""];
    let portcullis = start(site, &[&wanting(&upstream, &lines)]);
    assert_eq!(refused(&portcullis, &named).reason(), "client_certificate_revoked");
    let denied = refused(&portcullis, &unnamed);
    assert_eq!(denied.reason(), "client_certificate_invalid");
    assert!(denied.text("detail").contains("covers this certificate"), "{}", denied.0);
    let checked = run(executable().arg("check").arg("-c").arg(portcullis.site.path("portcullis.toml")));
    assert!(checked.text().contains("covers only some of its certificates"), "{}", checked.text());
}

#[test]
fn looping_intermediates_are_rejected_and_other_clients_served() {
    let (upstream, clients) = (Upstream::echo(), Authority::new("Clients CA"));
    let portcullis = trusting(&clients, &upstream, &[]);
    for name in ["Loop CA", "Clients CA"] {
        let looping: Vec<_> = (0..6).map(|_| Authority::new(name)).collect();
        let leaf = app(&looping[0]).followed_by(&looping);
        let denied = refused(&portcullis, &leaf);
        assert_eq!(denied.reason(), "client_certificate_unknown_ca", "{}", denied.0);
    }
    let real = app(&clients).followed_by(&[Authority::new("Clients CA"), Authority::new("Loop CA")]);
    assert_lives(session(&portcullis, real));
}
