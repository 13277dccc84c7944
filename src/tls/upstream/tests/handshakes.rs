//! Handshakes in memory with rustls servers.

use std::io::ErrorKind;

use rcgen::KeyPair;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{Acceptor, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};

use super::*;

static VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A server with this chain and key, which need not belong together.
fn server(
    version: &'static SupportedProtocolVersion,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clients: Option<&Authority>,
) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[version]).unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.der()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let key = provider().key_provider.load_private_key(key).unwrap();
    builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))))
}

fn good_server(
    version: &'static SupportedProtocolVersion,
    root: &Authority,
    clients: Option<&Authority>,
) -> ServerConfig {
    let issued_cert = issued(root, "x", &["db.test"]);
    server(version, vec![issued_cert.der()], issued_cert.key_der(), clients)
}

/// Both sides of a connection.
struct Pair {
    ours: TlsEngine<Client>,
    server: ServerConnection,
}

impl Pair {
    fn new(handshake: &UpstreamHandshake, server: &Arc<ServerConfig>) -> Self {
        Self { ours: handshake.engine().unwrap(), server: ServerConnection::new(Arc::clone(server)).unwrap() }
    }

    /// Delivers all data in both directions.
    fn exchange(&mut self) -> io::Result<()> {
        loop {
            let mut output = Vec::new();
            self.ours.take_pending(&mut output);
            let mut flight = Vec::new();
            while self.server.wants_write() {
                self.server.write_tls(&mut flight).unwrap();
            }
            if output.is_empty() && flight.is_empty() {
                return Ok(());
            }
            let mut room = [vec![0; self.ours.unopened()], flight].concat();
            let opened = self.ours.open(&mut room, |_| panic!("no data was sent"), &mut output);
            let mut rest = output.as_slice();
            while !rest.is_empty() {
                self.server.read_tls(&mut rest).unwrap();
                // An error of the server arrives as an alert.
                let _ = self.server.process_new_packets();
            }
            opened.map_err(refused)?;
        }
    }
}

/// Runs and verifies a handshake, including the first records after it.
fn shake(handshake: &UpstreamHandshake, server: &Arc<ServerConfig>) -> io::Result<TlsEngine<Client>> {
    let mut pair = Pair::new(handshake, server);
    pair.exchange()?;
    assert!(!pair.ours.is_handshaking());
    handshake.verify(&pair.ours, OffsetDateTime::now_utc())?;
    Ok(pair.ours)
}

fn error_text(handshake: &UpstreamHandshake, server: &Arc<ServerConfig>) -> String {
    handshake.explain(&shake(handshake, server).unwrap_err())
}

#[test]
fn server_without_the_key_of_its_certificate_is_rejected_in_every_mode() {
    let root = Authority::new("CA");
    let good = issued(&root, "x", &["db.test"]);
    let (old, old_key) = version_1("db.test");
    let untrusted = KeyPair::generate().unwrap();
    let key = |key: &KeyPair| PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let bundle = Anchors::Bundle(vec![root.der(), old.clone()]);
    let modes = [
        (Verification::Require, Anchors::None),
        (Verification::Require, bundle.clone()),
        (Verification::VerifyCa, bundle.clone()),
        (Verification::VerifyFull, bundle),
    ];
    for (verification, anchors) in modes {
        let tls = tls(&UpstreamTlsSettings { anchors, ..parts(verification, &[]) });
        let handshake = tls.handshake("db.test").unwrap();
        for version in VERSIONS {
            for (der, own) in [(good.der(), good.key_der()), (old.clone(), key(&old_key))] {
                let right = Arc::new(server(version, vec![der.clone()], own, None));
                assert!(shake(&handshake, &right).is_ok(), "{verification:?}, {version:?}");
                let wrong = Arc::new(server(version, vec![der], key(&untrusted), None));
                // This server cannot resume a session of the other one, either.
                assert!(shake(&handshake, &wrong).is_err(), "{verification:?}, {version:?}");
            }
        }
    }
}

#[test]
fn rejected_server_certificate_is_explained_with_its_names_and_issuer() {
    let root = Authority::new("CA");
    for version in VERSIONS {
        let server = Arc::new(good_server(version, &root, None));
        let tls = |verification, root: &Authority| tls(&parts(verification, &[root]));
        let misnamed = error_text(&tls(Verification::VerifyFull, &root).handshake("other.test").unwrap(), &server);
        assert!(misnamed.contains("it is not for \"other.test\"; its names are dns:db.test"), "{misnamed}");
        let unknown =
            error_text(&tls(Verification::VerifyCa, &Authority::new("CA")).handshake("db.test").unwrap(), &server);
        assert!(unknown.contains("CN=x (issued by CN=CA, valid until "), "{unknown}");
        assert!(unknown.contains("not issued by any CA in ca"), "{unknown}");
    }
}

#[test]
fn resumed_session_is_verified_at_the_current_time() {
    let root = Authority::new("CA");
    for version in VERSIONS {
        let parts = parts(Verification::VerifyFull, &[&root]);
        let tls = tls(&parts);
        let handshake = tls.handshake("db.test").unwrap();
        let server = Arc::new(good_server(version, &root, None));
        assert!(!shake(&handshake, &server).unwrap().is_resumed());
        assert!(shake(&handshake, &server).unwrap().is_resumed());
        // Another configuration does not resume it.
        assert!(!shake(&super::tls(&parts).handshake("db.test").unwrap(), &server).unwrap().is_resumed());
        let late = shake(&handshake, &server).unwrap();
        assert!(late.is_resumed());
        let error = handshake.verify(&late, tomorrow() + Duration::DAY).unwrap_err();
        let error_text = handshake.explain(&error);
        assert!(error_text.contains("it has expired; install a new one on the upstream"), "{error_text}");
        // The next handshake is a full one.
        assert!(!shake(&handshake, &server).unwrap().is_resumed());
    }
}

#[test]
fn client_certificate_is_sent_to_an_upstream_that_requires_one() {
    let (root, clients) = (Authority::new("CA"), Authority::new("Clients CA"));
    for version in VERSIONS {
        let server = Arc::new(good_server(version, &root, Some(&clients)));
        let with = |certificate| {
            let tls = tls(&UpstreamTlsSettings { certificate, ..parts(Verification::VerifyCa, &[&root]) });
            tls.handshake("db.test").unwrap()
        };
        assert!(shake(&with(Some(own(&clients, tomorrow()))), &server).is_ok());
        let none = error_text(&with(None), &server);
        assert!(none.contains("client certificate") && none.contains("upstream.cert and upstream.key"), "{none}");
        let unknown = error_text(&with(Some(own(&Authority::new("Clients CA"), tomorrow()))), &server);
        assert!(unknown.contains("may not accept our certificate CN=app"), "{unknown}");
        let unknown = error_text(&with(Some(own(&Authority::new("Unknown CA"), tomorrow()))), &server);
        assert!(unknown.contains("refused our certificate CN=app (issued by CN=Unknown CA, valid until "), "{unknown}");
        assert!(unknown.contains("does not know its CA"), "{unknown}");
        let late = error_text(&with(Some(own(&clients, OffsetDateTime::now_utc() - Duration::HOUR))), &server);
        assert!(late.contains("it has expired"), "{late}");
    }
}

#[test]
fn tls_1_3_rejection_of_the_client_certificate_is_reported_by_the_first_read() {
    let (root, clients) = (Authority::new("CA"), Authority::new("Clients CA"));
    let tls = tls(&parts(Verification::VerifyCa, &[&root]));
    let handshake = tls.handshake("db.test").unwrap();
    let mut pair = Pair::new(&handshake, &Arc::new(good_server(&TLS13, &root, Some(&clients))));
    let (mut hello, mut answer, mut last) = (Vec::new(), Vec::new(), Vec::new());
    pair.ours.take_pending(&mut hello);
    pair.server.read_tls(&mut hello.as_slice()).unwrap();
    pair.server.process_new_packets().unwrap();
    while pair.server.wants_write() {
        pair.server.write_tls(&mut answer).unwrap();
    }
    pair.ours.open(&mut answer, |_| {}, &mut last).unwrap();
    assert!(!pair.ours.is_handshaking(), "done, as far as we know");
    handshake.verify(&pair.ours, OffsetDateTime::now_utc()).unwrap();
    pair.server.read_tls(&mut last.as_slice()).unwrap();
    assert!(pair.server.process_new_packets().is_err());
    let error = pair.exchange().unwrap_err();
    let error_text = tls.explain(&error).unwrap();
    assert_eq!(error_text, "the upstream requires a client certificate; set upstream.cert and upstream.key");
}

#[test]
fn required_alpn_that_the_upstream_does_not_confirm_is_rejected() {
    let root = Authority::new("CA");
    for version in VERSIONS {
        let speaking = |protocol: Option<&[u8]>| {
            let mut server = good_server(version, &root, None);
            server.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
            Arc::new(server)
        };
        let handshake = |alpn| {
            tls(&UpstreamTlsSettings { alpn, ..parts(Verification::VerifyCa, &[&root]) }).handshake("db.test").unwrap()
        };
        let (postgres, none, other) = (speaking(Some(b"postgresql")), speaking(None), speaking(Some(b"h2")));
        for alpn in [Alpn::Offered(b"postgresql"), Alpn::Required(b"postgresql")] {
            assert_eq!(shake(&handshake(alpn), &postgres).unwrap().alpn(), Some(&b"postgresql"[..]));
            let error_text = error_text(&handshake(alpn), &other);
            assert!(error_text.contains("does not support the protocol requested by ALPN"), "{error_text}");
        }
        assert_eq!(shake(&handshake(Alpn::Offered(b"postgresql")), &none).unwrap().alpn(), None);
        let error_text = error_text(&handshake(Alpn::Required(b"postgresql")), &none);
        assert!(error_text.contains("did not confirm \"postgresql\" by ALPN"), "{error_text}");
        assert!(shake(&handshake(Alpn::None), &postgres).is_ok());
    }
}

/// The SNI of the ClientHello to an upstream at `host`.
fn sni(server_name: Option<&str>, host: &str) -> Option<String> {
    let server_name = server_name.map(str::to_owned);
    let tls = tls(&UpstreamTlsSettings { server_name, ..parts(Verification::VerifyFull, &[]) });
    let mut hello = Vec::new();
    tls.handshake(host).unwrap().engine().unwrap().take_pending(&mut hello);
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut hello.as_slice()).unwrap();
    let accepted = acceptor.accept().unwrap().expect("a whole hello");
    accepted.client_hello().server_name().map(str::to_owned)
}

#[test]
fn sni_is_sent_for_host_names_but_not_for_addresses() {
    assert_eq!(sni(None, "db.test").as_deref(), Some("db.test"));
    assert_eq!(sni(None, "db_1.test").as_deref(), Some("db_1.test"));
    assert_eq!(sni(None, "10.0.0.1"), None);
    assert_eq!(sni(None, "::1"), None);
    assert_eq!(sni(Some("db.test"), "10.0.0.1").as_deref(), Some("db.test"));
    assert_eq!(sni(Some("10.0.0.1"), "db.test"), None);
    let tls = tls(&parts(Verification::VerifyFull, &[]));
    for host in ["", "bücher.test", "/run/redis.sock", "a b"] {
        let error = tls.handshake(host).unwrap_err().to_string();
        assert!(error.contains("is not a valid server name; set server_name"), "{error}");
    }
}

#[test]
fn response_without_tls_is_reported_as_not_tls() {
    let tls = tls(&parts(Verification::VerifyFull, &[]));
    for answer in [&b"-ERR Protocol error\r\n"[..], b"E\0\0\0\x40SFATAL", b"HTTP/1.1 400 Bad Request\r\n"] {
        let mut engine = tls.handshake("db.test").unwrap().engine().unwrap();
        let error = engine.open(&mut answer.to_vec(), |_| {}, &mut Vec::new()).unwrap_err();
        let error_text = tls.explain(&refused(error)).unwrap();
        assert!(error_text.contains("is not TLS; if this port does not use TLS"), "{error_text}");
    }
    let handshake = tls.handshake("db.test").unwrap();
    // On its plaintext port, Redis treats a ClientHello as an incomplete command.
    assert!(handshake.explain(&ErrorKind::TimedOut.into()).contains("did not finish the TLS handshake in time"));
    for gone in [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset] {
        assert!(handshake.explain(&gone.into()).contains("closed the connection during the TLS handshake"));
        assert_eq!(tls.explain(&gone.into()), None, "that may happen to a session at any time");
    }
}

#[test]
fn debug_output_contains_no_private_key() {
    let root = Authority::new("CA");
    let issued_cert = root.client("app", OffsetDateTime::now_utc(), tomorrow());
    let certificate = CertifiedKeyPair::new(vec![issued_cert.der()], issued_cert.key_der()).unwrap();
    let parts = UpstreamTlsSettings { certificate: Some(certificate), ..parts(Verification::VerifyFull, &[&root]) };
    let tls = tls(&parts);
    assert_eq!(tls.certificate().unwrap().subject, "CN=app");
    assert_eq!(tls.anchors()[0].subject, "CN=CA");
    let handshake = tls.handshake("db.test").unwrap();
    let key = format!("{:?}", issued_cert.key_der().secret_der());
    let shown = format!("{parts:?} {tls:?} {handshake:?} {:?}", handshake.engine().unwrap());
    assert!(shown.contains("CN=app"));
    // The first half contains the version and the curve, which are not secret.
    assert!(!shown.contains(&key[key.len() / 2..key.len() / 2 + 40]), "{shown}");
}
