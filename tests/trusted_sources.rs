//! Trusted sources: the first check of every connection.

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::harness::client::port;
use crate::harness::program::free_port;
use crate::harness::{ClockedPortcullis, Listener, Portcullis, TestDir, Upstream, eventually, wire};

#[test]
fn untrusted_source_is_closed_before_the_first_byte() {
    let upstream = Upstream::silent();
    for listener in [Listener::redis(&upstream), Listener::postgres(&upstream), Listener::tcp(&upstream)] {
        let portcullis = Portcullis::before(listener);
        let mut untrusted = portcullis.client().from("127.0.0.2").dial();
        // It has sent nothing, and it is closed at once all the same.
        assert_eq!(wire::read_until_closed(&mut untrusted), b"");
        let denied = portcullis.ending(port(&untrusted));
        assert_eq!(denied.reason(), "untrusted_source");
        assert_eq!(denied.text("source"), "127.0.0.2");
        assert_eq!(denied.text("listener"), "main");
        assert!(!denied.has("rule"), "no rule matched: {}", denied.0);
    }
    upstream.assert_untouched();
}

#[test]
fn untrusted_source_gets_no_answer_to_a_tls_handshake() {
    let upstream = Upstream::silent();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    let untrusted = portcullis.client().from("127.0.0.2");
    let mut stream = untrusted.dial();
    // The connection may be gone before the hello is written.
    let _ = untrusted.tls().write_tls(&mut stream);
    assert_eq!(wire::read_until_closed(&mut stream), b"");
    assert_eq!(portcullis.refusal(port(&stream)), "untrusted_source");
    upstream.assert_untouched();
}

#[test]
fn empty_source_list_admits_no_client() {
    let upstream = Upstream::silent();
    let portcullis = Portcullis::before(Listener::redis(&upstream).trusting(&[]));
    let mut stream = portcullis.client().dial();
    assert_eq!(wire::read_until_closed(&mut stream), b"");
    assert_eq!(portcullis.refusal(port(&stream)), "untrusted_source");
    upstream.assert_untouched();
}

#[test]
fn audit_names_the_longest_matching_rule() {
    let upstream = Upstream::echo();
    let sources = ["127.0.0.0/8", "127.0.0.1", "0.0.0.0/0"];
    let portcullis = Portcullis::before(Listener::redis(&upstream).trusting(&sources));
    for (source, rule) in [("127.0.0.1", "ip_addr:127.0.0.1"), ("127.9.0.1", "ip_addr:127.0.0.0/8")] {
        let mut client = portcullis.client().from(source).connect();
        client.ask(b"hello", b"hello");
        let opened = portcullis.opened(client.port());
        assert_eq!(opened.text("rule"), rule);
        assert_eq!(opened.text("source"), source);
    }
}

#[test]
fn ipv4_mapped_source_is_judged_as_ipv4() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream).on(&["[::]:0"]));
    let mut here = portcullis.address("main");
    here.set_ip("127.0.0.1".parse().unwrap());
    let mut client = portcullis.client().at(here).connect();
    client.ask(b"hello", b"hello");
    let opened = portcullis.opened(client.port());
    assert_eq!(opened.text("source"), "127.0.0.1");
    assert_eq!(opened.text("rule"), "ip_addr:127.0.0.1");

    let mut untrusted = portcullis.client().at(here).from("127.0.0.2").dial();
    assert_eq!(wire::read_until_closed(&mut untrusted), b"");
    assert_eq!(portcullis.ending(port(&untrusted)).text("source"), "127.0.0.2");
}

#[test]
fn rule_for_a_mapped_address_means_the_ipv4_one() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream).trusting(&["::ffff:127.0.0.0/120"]));
    portcullis.client().connect().ask(b"hello", b"hello");
    let mut untrusted = portcullis.client().from("127.0.1.1").dial();
    assert_eq!(wire::read_until_closed(&mut untrusted), b"");
}

#[test]
fn all_of_ipv6_does_not_include_ipv4() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).on(&["[::]:0"]).trusting(&["::/0"]);
    let portcullis = Portcullis::before(listener);
    let mut address = portcullis.address("main");
    address.set_ip("127.0.0.1".parse().unwrap());
    let mut ipv4 = portcullis.client().at(address).dial();
    assert_eq!(wire::read_until_closed(&mut ipv4), b"");
    assert_eq!(portcullis.refusal(port(&ipv4)), "untrusted_source");

    address.set_ip("::1".parse().unwrap());
    let mut ipv6 = portcullis.client().at(address).connect();
    ipv6.ask(b"hello", b"hello");
    assert_eq!(portcullis.opened(ipv6.port()).text("source"), "::1");
}

#[test]
fn ipv6_only_listener_does_not_answer_ipv4() {
    let upstream = Upstream::echo();
    // Another server may have a port that the kernel chooses, at the address of IPv4.
    let listener = Listener::redis(&upstream).on(&[&format!("[::]:{}", free_port())]).trusting(&["::1", "127.0.0.1"]);
    let portcullis = Portcullis::before(listener.key("ipv6_only = true"));
    let mut address = portcullis.address("main");
    address.set_ip("::1".parse().unwrap());
    portcullis.client().at(address).connect().ask(b"hello", b"hello");
    address.set_ip("127.0.0.1".parse().unwrap());
    let refused = portcullis.client().at(address).try_dial().unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn observe_mode_admits_an_untrusted_source_and_logs_would_deny() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).key("enforcement = \"observe\"");
    let mut portcullis = Portcullis::before(listener);
    let mut untrusted = portcullis.client().from("127.0.0.2").connect();
    untrusted.ask(b"hello", b"hello");
    assert_eq!(portcullis.opened(untrusted.port()).text("would_deny"), "untrusted_source");

    let mut trusted = portcullis.client().connect();
    trusted.ask(b"hello", b"hello");
    assert!(!portcullis.opened(trusted.port()).has("would_deny"));
    drop((untrusted, trusted));
    let (_, events) = portcullis.stop();
    assert!(!events.iter().any(|event| event.is("connection.denied")));
}

#[test]
fn sources_file_adds_to_the_configured_rules() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    site.write(
        "sources.toml",
        r#"
        [[rule]]
        type = "ip_addr"
        value = "127.0.0.3"
        description = "the office"
        uuid = "5b4a4d0c-3f3c-4c31-9f29-0a5d6b0f2a11"
        created_at = 2026-01-31T12:00:00Z

        [[rule]]
        type = "ip_addr"
        value = "127.0.4.0/24"
        "#,
    );
    let listener = Listener::redis(&upstream).key("sources_file = \"sources.toml\"");
    let portcullis = Portcullis::start(site, listener);
    for (source, rule) in
        [("127.0.0.1", "ip_addr:127.0.0.1"), ("127.0.0.3", "ip_addr:127.0.0.3"), ("127.0.4.9", "ip_addr:127.0.4.0/24")]
    {
        let mut client = portcullis.client().from(source).connect();
        client.ask(b"hello", b"hello");
        assert_eq!(portcullis.opened(client.port()).text("rule"), rule);
    }
    let mut untrusted = portcullis.client().from("127.0.0.2").dial();
    assert_eq!(wire::read_until_closed(&mut untrusted), b"");
}

#[test]
fn rule_table_accepts_description_and_expiry() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).trusting(&[]).to_string().replace(
        "trusted_sources = []",
        r#"trusted_sources = [
            "ip_addr:127.0.0.1",
            { type = "ip_addr", value = "127.0.0.2", description = "office", expires_at = 2999-01-31T00:00:00Z },
            { type = "ip_addr", value = "127.0.0.3", description = "left", expires_at = 2020-01-31T00:00:00Z },
        ]"#,
    );
    let portcullis = Portcullis::start(TestDir::new(), listener);
    for source in ["127.0.0.1", "127.0.0.2"] {
        portcullis.client().from(source).connect().ask(b"hello", b"hello");
    }
    let mut expired = portcullis.client().from("127.0.0.3").dial();
    assert_eq!(wire::read_until_closed(&mut expired), b"");
    assert_eq!(portcullis.refusal(port(&expired)), "untrusted_source");
}

#[test]
fn rule_admits_until_it_expires() {
    let upstream = Upstream::echo();
    let end = OffsetDateTime::now_utc() + Duration::HOUR;
    let expires_at = end.format(&Rfc3339).unwrap();
    let listener = Listener::redis(&upstream).trusting(&[]).to_string().replace(
        "trusted_sources = []",
        &format!(r#"trusted_sources = [{{ type = "ip_addr", value = "127.0.0.1", expires_at = {expires_at} }}]"#),
    );
    let portcullis = ClockedPortcullis::start(TestDir::new(), listener);
    let client = portcullis.client();
    client.connect().ask(b"hello", b"hello");
    portcullis.set_shortly_before(end);
    let refused = eventually("the rule expires", || {
        let (port, connection) = client.attempt();
        connection.is_err().then_some(port)
    });
    // It may have been admitted just before the expiry and closed just after it: in its handshake, or as a session.
    let ending = portcullis.ending(refused);
    assert!(matches!(ending.reason(), "untrusted_source" | "rule_expired"), "{}", ending.0);
}

#[test]
fn listener_serves_all_its_addresses() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).on(&["127.0.0.1:0", "127.0.0.2:0", "[::1]:0"]).trusting(&[
        "127.0.0.1",
        "127.0.0.2",
        "::1",
    ]);
    let portcullis = Portcullis::before(listener);
    let addresses = portcullis.addresses("main");
    assert_eq!(addresses.len(), 3);
    for address in addresses {
        portcullis.client().at(address).connect().ask(b"hello", b"hello");
    }
}

#[test]
fn each_listener_has_its_own_sources_and_upstream() {
    let (one, two) = (Upstream::sending(b"one"), Upstream::sending(b"two"));
    let config = format!(
        "{}{}",
        Listener::redis(&one).named("one").trusting(&["127.0.0.1"]),
        Listener::tcp(&two).named("two").trusting(&["127.0.0.2"]),
    );
    let portcullis = Portcullis::start(TestDir::new(), config);
    assert_eq!(portcullis.client_of("one").connect().receive(3), b"one");
    assert_eq!(portcullis.client_of("two").from("127.0.0.2").connect().receive(3), b"two");
    for (listener, source) in [("one", "127.0.0.2"), ("two", "127.0.0.1")] {
        let mut untrusted = portcullis.client_of(listener).from(source).dial();
        assert_eq!(wire::read_until_closed(&mut untrusted), b"");
        assert_eq!(portcullis.ending(port(&untrusted)).text("listener"), listener);
    }
}

#[test]
fn twenty_thousand_rules_load_and_match() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let rules = (0..20_000_u32).map(|number| {
        let [_, high, middle, low] = number.to_be_bytes();
        format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.{high}.{middle}.{low}\"\n")
    });
    let last = "[[rule]]\ntype = \"ip_addr\"\nvalue = \"127.0.0.2\"\n".to_owned();
    site.write("sources.toml", rules.chain([last]).collect::<String>());
    let listener = Listener::redis(&upstream).key("sources_file = \"sources.toml\"");
    let portcullis = Portcullis::start(site, listener);
    portcullis.client().from("127.0.0.2").connect().ask(b"hello", b"hello");
    let mut untrusted = portcullis.client().from("127.0.0.3").dial();
    assert_eq!(wire::read_until_closed(&mut untrusted), b"");
}
