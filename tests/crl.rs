//! Certificate revocation lists: a revoked certificate is denied, and its sessions end.

use std::fs;
use std::path::Path;

use rustls::AlertDescription;
use rustls::version::{TLS12, TLS13};
use time::{Duration, OffsetDateTime};

use crate::harness::client::alert;
use crate::harness::openssl::s_client;
use crate::harness::portcullis::{ADMIN, executable, refused};
use crate::harness::program::{Outcome, run};
use crate::harness::{Authority, CrlContent, Event, Leaf, Listener, Portcullis, Request, TestDir, Upstream};
use crate::reload::{ON_CHANGE, ON_SIGHUP};
use crate::revocation::{MAX_REVOCATION_TIME, assert_ended, assert_lives, session, wanting, while_busy};

/// A listener that uses the CRLs in `clients.crl`.
fn checking(upstream: &Upstream) -> Listener {
    wanting(upstream, &["client_ca = \"clients.pem\"", "client_crl = \"clients.crl\""])
}

/// A directory with one CA in `clients.pem` and its CRL in `clients.crl`, which revokes no certificate.
fn site() -> (TestDir, Authority) {
    let (site, clients) = (TestDir::new(), Authority::new("Clients CA"));
    site.write("clients.pem", clients.pem());
    site.write("clients.crl", clients.list(CrlContent::nothing(1)).pem());
    (site, clients)
}

fn app(authority: &Authority) -> Leaf {
    authority.issue(Request::client("app"))
}

/// Puts a file in place and has it read.
fn put(portcullis: &Portcullis, file: &str, text: &str) -> Event {
    portcullis.applies(|| {
        portcullis.site.replace(file, text);
        portcullis.hang_up();
    })
}

/// The output of `explain` for a client with this certificate.
fn explain(portcullis: &Portcullis, leaf: &Leaf) -> Outcome {
    let site = &portcullis.site;
    site.install("explained", leaf);
    let mut command = executable();
    command.args(["explain", "--listener", "main", "--source", "127.0.0.1"]);
    command.arg("-c").arg(site.path("portcullis.toml"));
    run(command.arg("--client-cert").arg(site.path("explained.crt")))
}

fn assert_explained(portcullis: &Portcullis, leaf: &Leaf, code: i32, words: &[&str]) {
    let explained = explain(portcullis, leaf);
    assert_eq!(explained.code, Some(code), "{}{}", explained.text(), explained.stderr);
    for word in words {
        assert!(explained.text().contains(word), "no {word} in {}", explained.text());
    }
}

#[test]
fn revoked_certificate_ends_its_sessions_and_is_denied() {
    let upstream = Upstream::echo();
    let (site, clients) = site();
    let (taken, other) = (app(&clients), app(&clients));
    site.install("taken", &taken);
    let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{}", checking(&upstream)));
    let (gone, mut kept) = (session(&portcullis, &taken), session(&portcullis, &other));
    let list = clients.list(CrlContent::nothing(2).and(taken.der())).pem();
    while_busy(&mut kept, || {
        put(&portcullis, "clients.crl", &list);
        assert_ended(&portcullis, gone, "credential_revoked");
    });
    assert_lives(kept);

    for version in [&TLS12, &TLS13] {
        let (port, attempt) = portcullis.client().speaking(version).showing(&taken).attempt();
        assert_eq!(alert(&attempt.unwrap_err()), Some(AlertDescription::CertificateRevoked), "{version:?}");
        let denied = portcullis.ending(port);
        assert_eq!(portcullis.refusal(port), "client_certificate_revoked");
        assert_eq!(denied.text("client_sha256"), taken.sha256());
        assert!(denied.text("detail").contains("client_crl"), "{}", denied.0);
    }
    for version in ["-tls1_2", "-tls1_3"] {
        let (address, seen) = (portcullis.address("main"), portcullis.seen());
        let options = [version, "-cert", "taken.crt", "-key", "taken.key"];
        let stderr = run(&mut s_client(&portcullis.site, address, &options)).stderr;
        assert!(stderr.contains("alert certificate revoked"), "{version}: {stderr}");
        let denied = portcullis.event_after(seen, "a refusal", |event| event.is("connection.denied"));
        assert_eq!(denied.reason(), "client_certificate_revoked");
    }
    assert_explained(&portcullis, &taken, 3, &["client_crl", "refused (client_certificate_revoked)"]);
    assert_explained(&portcullis, &other, 0, &["chains to CN=Clients CA"]);
    assert_lives(session(&portcullis, &other));
}

#[test]
fn revoked_intermediate_revokes_its_certificates() {
    let upstream = Upstream::echo();
    let (site, clients) = site();
    let [lost, team] = ["Lost CA", "Team CA"].map(|name| clients.intermediate(name));
    let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{}", checking(&upstream)));
    let [of_lost, of_team, direct] = [&lost, &team, &clients].map(app);
    let gone = session(&portcullis, &of_lost);
    let (kept, too) = (session(&portcullis, &of_team), session(&portcullis, &direct));
    put(&portcullis, "clients.crl", &clients.list(CrlContent::nothing(2).and(lost.der())).pem());
    assert_ended(&portcullis, gone, "credential_revoked");
    assert_eq!(refused(&portcullis, &app(&lost)).reason(), "client_certificate_revoked");
    assert_explained(&portcullis, &of_lost, 3, &["refused (client_certificate_revoked)"]);
    assert_lives(kept);
    assert_lives(too);
}

#[test]
fn crl_of_an_intermediate_covers_its_certificates() {
    let upstream = Upstream::echo();
    let (site, clients) = site();
    let team = clients.intermediate("Team CA");
    let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{}", checking(&upstream)));
    let [taken, other] = [&team, &team].map(app);
    let (gone, kept) = (session(&portcullis, &taken), session(&portcullis, &other));
    let lists = [clients.list(CrlContent::nothing(2)), team.list(CrlContent::nothing(1).and(taken.der()))];
    put(&portcullis, "clients.crl", &lists.map(|list| list.pem()).concat());
    assert_ended(&portcullis, gone, "credential_revoked");
    assert_eq!(refused(&portcullis, &taken).reason(), "client_certificate_revoked");
    assert_lives(kept);
    assert_lives(session(&portcullis, &other));
}

#[test]
fn two_cas_with_one_name_use_their_own_crls() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let [one, two] = ["Clients CA", "Clients CA"].map(Authority::new);
    let [of_one, other_of_one] = [&one, &one].map(app);
    let [of_two, other_of_two] = [&two, &two].map(app);
    site.write("clients.pem", format!("{}{}", one.pem(), two.pem()));
    let listener = wanting(&upstream, &["client_ca = \"clients.pem\"", "client_crl = [\"one.crl\", \"two.crl\"]"]);
    site.write("one.crl", one.list(CrlContent::nothing(1)).pem());
    site.write("two.crl", two.list(CrlContent::nothing(1)).pem());
    let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{listener}"));
    let kept = [&other_of_one, &of_two, &other_of_two].map(|leaf| session(&portcullis, leaf));
    let gone = session(&portcullis, &of_one);
    // It also revokes a serial number of the other CA with this name, without effect.
    let list = one.list(CrlContent::nothing(2).and(of_one.der()).and(of_two.der()));
    put(&portcullis, "one.crl", &list.pem());
    assert_ended(&portcullis, gone, "credential_revoked");
    assert_eq!(refused(&portcullis, &of_one).reason(), "client_certificate_revoked");
    let [first, gone, last] = kept;
    put(&portcullis, "two.crl", &two.list(CrlContent::nothing(2).and(of_two.der())).pem());
    assert_ended(&portcullis, gone, "credential_revoked");
    assert_eq!(refused(&portcullis, &of_two).reason(), "client_certificate_revoked");
    assert_lives(first);
    assert_lives(last);
    for leaf in [&other_of_one, &other_of_two] {
        assert_lives(session(&portcullis, leaf));
    }
}

#[test]
fn ca_without_a_crl_is_not_checked() {
    let upstream = Upstream::echo();
    let (site, listed) = site();
    let unlisted = Authority::new("Other CA");
    let taken = app(&listed);
    site.write("clients.pem", format!("{}{}", listed.pem(), unlisted.pem()));
    site.write("clients.crl", listed.list(CrlContent::nothing(1).and(taken.der())).pem());
    let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{}", checking(&upstream)));
    assert_eq!(refused(&portcullis, &taken).reason(), "client_certificate_revoked");
    for authority in [&listed, &unlisted, &unlisted.intermediate("Team CA")] {
        assert_lives(session(&portcullis, app(authority)));
        assert_explained(&portcullis, &app(authority), 0, &["chains to", "verdict   admitted"]);
    }
}

/// `openssl verify -crl_check` refuses both with "unable to get certificate CRL".
#[test]
fn crl_of_a_new_ca_key_does_not_cover_certificates_of_the_old_key() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let [old, new] = ["Clients CA", "Clients CA"].map(Authority::new);
    let [of_old, named, of_new] = [&old, &old, &new].map(app);
    site.write("clients.pem", format!("{}{}", old.pem(), new.pem()));
    site.write("clients.crl", new.list(CrlContent::nothing(1).and(named.der())).pem());
    let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{}", checking(&upstream)));
    let denied = refused(&portcullis, &of_old);
    assert_eq!(denied.reason(), "client_certificate_invalid");
    assert!(denied.text("detail").contains("another key of the CA signed the list"), "{}", denied.0);
    assert_eq!(refused(&portcullis, &named).reason(), "client_certificate_revoked", "by name and serial number");
    assert_explained(&portcullis, &of_old, 3, &["refused (client_certificate_invalid)"]);
    assert_lives(session(&portcullis, &of_new));
    let checked = check(&portcullis.site.path("portcullis.toml"));
    assert!(checked.contains("certificates issued by this CA are rejected"), "{checked}");

    // With a CRL of each key, each certificate is checked against that of its own issuer.
    let both = format!("{}{}", new.list(CrlContent::nothing(2)).pem(), old.list(CrlContent::nothing(1)).pem());
    put(&portcullis, "clients.crl", &both);
    let kept = [&of_old, &named, &of_new].map(|leaf| session(&portcullis, leaf));
    put(&portcullis, "clients.crl", &new.list(CrlContent::nothing(3)).pem());
    let [ended, too, lives] = kept;
    assert_ended(&portcullis, ended, "credential_revoked");
    assert_ended(&portcullis, too, "credential_revoked");
    assert_lives(lives);
}

#[test]
fn crls_are_read_in_pem_and_der() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let authorities = ["First CA", "Second CA", "Third CA"].map(Authority::new);
    let taken = [app(&authorities[0]), app(&authorities[1]), app(&authorities[2])];
    let [first, second, third] =
        [0, 1, 2].map(|index: usize| authorities[index].list(CrlContent::nothing(1).and(taken[index].der())));
    site.write("clients.pem", authorities.each_ref().map(Authority::pem).concat());
    fs::create_dir(site.path("lists")).unwrap();
    fs::write(site.path("lists/first.crl"), first.der()).unwrap();
    site.write("lists/others.crl", format!("# of two CAs\n{}{}", second.pem().replace('\n', "\r\n"), third.pem()));
    let listener = wanting(&upstream, &["client_ca = \"clients.pem\"", "client_crl = \"lists/*.crl\""]);
    let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{listener}"));
    for (authority, taken) in authorities.iter().zip(&taken) {
        assert_eq!(refused(&portcullis, taken).reason(), "client_certificate_revoked");
        assert_lives(session(&portcullis, app(authority)));
    }
}

#[test]
fn newer_of_two_crls_is_used() {
    let upstream = Upstream::echo();
    let (site, clients) = (TestDir::new(), Authority::new("Clients CA"));
    let [taken, later, other] = [&clients, &clients, &clients].map(app);
    site.write("clients.pem", clients.pem());
    fs::create_dir(site.path("lists")).unwrap();
    let old = clients.list(CrlContent::nothing(9).and(taken.der()));
    // Number ten comes after number nine, and its file before that of the old one.
    let new = clients.list(CrlContent::nothing(10).and(taken.der()).and(later.der()));
    site.write("lists/z.crl", old.pem());
    let listener = wanting(&upstream, &["client_ca = \"clients.pem\"", "client_crl = \"lists/*.crl\""]);
    let portcullis = Portcullis::start(site, format!("{ON_CHANGE}{listener}"));
    let (gone, kept) = (session(&portcullis, &later), session(&portcullis, &other));
    assert_eq!(refused(&portcullis, &taken).reason(), "client_certificate_revoked");
    portcullis.applies(|| portcullis.site.replace("lists/a.crl", new.pem()));
    assert_ended(&portcullis, gone, "credential_revoked");
    let both_refused = || {
        for leaf in [&taken, &later] {
            assert_eq!(refused(&portcullis, leaf).reason(), "client_certificate_revoked");
        }
    };
    both_refused();
    portcullis.applies(|| fs::remove_file(portcullis.site.path("lists/z.crl")).unwrap());
    both_refused();
    // The older CRL is not used although it was written last.
    portcullis.applies(|| portcullis.site.replace("lists/b.crl", old.pem()));
    both_refused();
    assert_lives(kept);
}

#[test]
fn expired_crl_denies_its_ca_until_it_is_replaced() {
    let upstream = Upstream::echo();
    let (site, clients) = site();
    let unlisted = Authority::new("Other CA");
    site.write("clients.pem", format!("{}{}", clients.pem(), unlisted.pem()));
    site.write("clients.crl", clients.list(CrlContent::nothing(1)).pem());
    // The same CRL at a listener that continues with it.
    let lenient = checking(&upstream).named("lenient").tls("crl_expired = \"allow\"");
    let portcullis = Portcullis::start(site, format!("{ON_CHANGE}{}{lenient}", checking(&upstream)));
    let leaf = app(&clients);
    let mut gone = session(&portcullis, &leaf);
    let kept = session(&portcullis, app(&unlisted));
    let allowed = || portcullis.client_of("lenient").showing(&leaf).attempt().1.unwrap();
    let allowed_before = allowed();

    // Only now, so that the sessions are open however slow the machine is.
    let brief = CrlContent::nothing(2).brief(4);
    let end = brief.ends();
    portcullis.applies(|| portcullis.site.replace("clients.crl", clients.list(brief).pem()));
    assert_eq!(gone.rest().unwrap(), b"");
    let late = OffsetDateTime::now_utc() - end;
    assert!(late >= Duration::ZERO && late < MAX_REVOCATION_TIME, "it ended {late} after its list");
    let port = gone.port();
    assert_ended(&portcullis, gone, "credential_revoked");
    let denied = refused(&portcullis, &leaf);
    assert_eq!(denied.reason(), "client_certificate_invalid");
    for event in [portcullis.ending(port), denied] {
        let detail = event.text("detail");
        assert!(detail.contains("the revocation list of its CA has expired"), "{detail}");
        assert!(detail.contains("crl_expired = \"allow\""), "{detail}");
    }
    assert_explained(&portcullis, &leaf, 3, &["has expired", "refused (client_certificate_invalid)"]);
    assert_lives(allowed_before);
    assert_lives(allowed());
    assert_lives(kept);
    assert_lives(session(&portcullis, app(&unlisted)));

    portcullis.applies(|| portcullis.site.replace("clients.crl", clients.list(CrlContent::nothing(3)).pem()));
    assert_lives(session(&portcullis, &leaf));
    assert_explained(&portcullis, &leaf, 0, &["verdict   admitted"]);
}

#[test]
fn expired_crl_gives_a_warning_in_each_mode() {
    for (meaning, words) in [("refuse", "certificates of this CA are rejected"), ("allow", "it is still used")] {
        let upstream = Upstream::echo();
        let (site, clients) = site();
        let [taken, other] = [&clients, &clients].map(app);
        site.write("clients.crl", clients.list(CrlContent::nothing(1).and(taken.der()).brief(-60)).pem());
        let listener = checking(&upstream).tls(&format!("crl_expired = \"{meaning}\""));
        let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{listener}"));
        let of_it = |event: &Event| event.0.to_string().contains(words);
        let warning = portcullis.event("the warning", of_it).0.to_string();
        assert!(warning.contains("WARN") && warning.contains("clients.crl"), "{warning}");
        let checked = check(&portcullis.site.path("portcullis.toml"));
        assert!(checked.contains(words) && checked.contains("(EXPIRED)"), "{checked}");
        assert!(checked.contains(&format!("crl_expired = {meaning}:")), "{checked}");
        assert!(checked.contains("anchor_validity = enforce:"), "{checked}");
        let mut json = executable();
        json.args(["check", "--json", "-c"]).arg(portcullis.site.path("portcullis.toml"));
        let json: serde_json::Value = serde_json::from_str(&run(&mut json).success()).unwrap();
        let listener = &json["listeners"][0];
        assert_eq!((&listener["crl_expired"], &listener["anchor_validity"]), (&meaning.into(), &"enforce".into()));
        let (port, attempt) = portcullis.client().showing(&other).attempt();
        if meaning == "allow" {
            assert_lives(attempt.unwrap());
            assert_eq!(refused(&portcullis, &taken).reason(), "client_certificate_revoked", "the list still applies");
            assert_explained(&portcullis, &taken, 3, &["refused (client_certificate_revoked)"]);
            assert_explained(&portcullis, &other, 0, &["verdict   admitted"]);
        } else {
            attempt.unwrap_err();
            assert_eq!(portcullis.refusal(port), "client_certificate_invalid");
            assert_explained(&portcullis, &other, 3, &["has expired"]);
        }
        // A reload reports it again.
        let seen = portcullis.seen();
        portcullis.hang_up();
        portcullis.event_after(seen, "the warning", of_it);
    }
}

fn check(file: &Path) -> String {
    run(executable().arg("check").arg("-c").arg(file)).success()
}

#[test]
fn unusable_crl_rejects_the_reload_until_it_is_fixed() {
    let upstream = Upstream::echo();
    let (site, clients) = site();
    let [taken, other] = [&clients, &clients].map(app);
    let good = clients.list(CrlContent::nothing(1).and(taken.der()));
    site.write("clients.crl", good.pem());
    let portcullis = Portcullis::start(site, format!("{ON_CHANGE}{}", checking(&upstream)));
    let mut inside = session(&portcullis, &other);
    let file = portcullis.site.path("clients.crl");
    let forged = Authority::new("Clients CA").list(CrlContent::nothing(2).and(other.der()));
    let half = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    let (pem, der) = (good.pem(), good.der());
    let two = format!("{pem}{}", &pem[..pem.len() / 2]);
    for (what, content, words) in [
        ("a list by another key", forged.pem().into_bytes(), "no certificate of that name in client_ca signed it"),
        ("half a list", half(pem.as_bytes()), "clients.crl"),
        ("one list and a half", two.into_bytes(), "clients.crl"),
        ("half a list in DER", half(der), "revocation list 1"),
        ("a certificate", clients.pem().into_bytes(), "clients.crl"),
        ("nothing", Vec::new(), "clients.crl"),
    ] {
        let rejected = while_busy(&mut inside, || portcullis.reload_after(|| fs::write(&file, content).unwrap()));
        assert!(rejected.is("reload.rejected"), "{what}: {}", rejected.0);
        let error = rejected.text("error");
        assert!(error.contains("clients.crl") && error.contains(words), "{what}: {error}");
        // The old CRL stays in force.
        assert_eq!(refused(&portcullis, &taken).reason(), "client_certificate_revoked", "{what}");
        assert_lives(session(&portcullis, &other));
        portcullis.applies(|| fs::write(&file, pem.as_bytes()).unwrap());
    }
    let missing = portcullis.reload_after(|| fs::remove_file(&file).unwrap());
    assert!(missing.is("reload.rejected"), "{}", missing.0);
    assert_eq!(refused(&portcullis, &taken).reason(), "client_certificate_revoked");
    let both = clients.list(CrlContent::nothing(2).and(taken.der()).and(other.der()));
    portcullis.applies(|| fs::write(&file, both.der()).unwrap());
    assert_ended(&portcullis, inside, "credential_revoked");
}

#[test]
fn crl_of_an_unknown_issuer_gives_a_warning() {
    let upstream = Upstream::echo();
    let (site, clients) = site();
    let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{}", checking(&upstream)));
    let inside = session(&portcullis, app(&clients));
    let untrusted = Authority::new("Other CA").list(CrlContent::nothing(1));
    let seen = portcullis.seen();
    put(&portcullis, "clients.crl", &untrusted.pem());
    portcullis.event_after(seen, "the warning", |event| {
        event.0.to_string().contains("CN=Other CA, which is not in client_ca")
    });
    assert_lives(inside);
}

#[test]
fn plan_distinguishes_two_crls_of_one_issuer() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let [one, two] = ["Clients CA", "Clients CA"].map(Authority::new);
    let [of_one, of_two] = [app(&one), app(&two)];
    site.write("clients.pem", format!("{}{}", one.pem(), two.pem()));
    site.write("one.crl", one.list(CrlContent::nothing(1).and(of_one.der())).pem());
    site.write("two.crl", two.list(CrlContent::nothing(1).and(of_two.der())).pem());
    let listener = wanting(&upstream, &["client_ca = \"clients.pem\"", "client_crl = [\"one.crl\", \"two.crl\"]"]);
    let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{ADMIN}{listener}"));
    portcullis.address("main");
    // Another list with the number and the count of the former.
    let replaced = one.list(CrlContent::nothing(1).and(of_two.der())).pem();
    portcullis.site.replace("one.crl", &replaced);
    let (status, plan) = portcullis.ask("POST", "/v1/reload?plan=true");
    assert_eq!(status, 200, "{plan}");
    let difference = &plan["differences"][0];
    assert_eq!(difference["key"], "tls.client_crl", "{plan}");
    assert!(difference["new"].as_str().unwrap().contains("CRL number 1 of CN=Clients CA"), "{plan}");
    assert_ne!(difference["old"], difference["new"]);

    // The list of one key is older, and that of the other is not.
    let older = one.list(CrlContent::nothing(1).and(of_one.der()).brief(-60)).pem();
    portcullis.site.replace("one.crl", &older);
    let (_, plan) = portcullis.ask("POST", "/v1/reload?plan=true");
    assert_eq!(plan["differences"][0]["weakens"], true, "{plan}");
}

#[test]
fn replaced_large_crls_are_in_memory_twice_at_most() {
    const LISTS: usize = 10;
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let names: Vec<_> = (0..LISTS).map(|number| format!("CA {number}")).collect();
    let authorities: Vec<_> = names.iter().map(|name| Authority::new(name)).collect();
    site.write("clients.pem", authorities.iter().map(Authority::pem).collect::<String>());
    fs::create_dir(site.path("lists")).unwrap();
    let lists = |number| -> Vec<String> {
        authorities.iter().map(|one| one.list(CrlContent::nothing(number).and_many(20_000)).pem()).collect()
    };
    let versions = [lists(1), lists(2)];
    let put = |site: &TestDir, version: &[String]| {
        for (number, list) in version.iter().enumerate() {
            site.replace(&format!("lists/{number}.crl"), list);
        }
    };
    put(&site, &versions[0]);
    let listener = wanting(&upstream, &["client_ca = \"clients.pem\"", "client_crl = \"lists/*.crl\""]);
    let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{listener}"));
    let taken = app(&authorities[0]);
    assert_lives(session(&portcullis, &taken));
    let started = portcullis.peak_resident();
    for version in versions.iter().rev().cycle().take(8) {
        portcullis.applies(|| {
            put(&portcullis.site, version);
            portcullis.hang_up();
        });
    }
    let grown = portcullis.peak_resident() - started;
    // One more copy of ten megabytes of lists, and what the allocator loses. A copy for each thread took 80 MiB.
    assert!(grown < 48 * 1024, "{started} KiB at the start, {grown} KiB more after the reloads");
    assert_lives(session(&portcullis, &taken));
}
