//! Handshakes with `openssl s_server`: Redis and PostgreSQL use OpenSSL too.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration as StdDuration;

use rcgen::KeyPair;
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;

use super::*;
use crate::tls::engine::max_overhead;

/// A server that responds to every request with a page about its TLS session.
struct Server {
    process: Child,
    /// Kept open, so that writing to it does not end the process.
    _output: BufReader<ChildStdout>,
    address: String,
    _files: TempDir,
}

impl Server {
    /// `chain` has the leaf first; `clients` is the CA of the clients.
    fn start(chain: &[&str], key: &str, clients: &Authority, options: &[&str]) -> Self {
        let files = TempDir::new().unwrap();
        let write = |name: &str, text: &str| fs::write(files.path().join(name), text).unwrap();
        write("server.crt", chain[0]);
        write("chain.crt", &chain[1..].concat());
        write("server.key", key);
        write("clients.crt", &pem("CERTIFICATE", &clients.der()));
        let mut command = Command::new("openssl");
        command
            .args("s_server -accept 127.0.0.1:0 -www -cert server.crt -key server.key -CAfile clients.crt".split(' '));
        if chain.len() > 1 {
            command.args(["-cert_chain", "chain.crt"]);
        }
        command.args(options).current_dir(files.path());
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null()).spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let line = output.by_ref().lines().map(Result::unwrap).find(|line| line.starts_with("ACCEPT "));
        let address = line.expect("it listens").replace("ACCEPT ", "");
        Self { process, _output: output, address, _files: files }
    }

    /// The page, after a complete handshake.
    fn page(&self, handshake: &UpstreamHandshake) -> io::Result<String> {
        let socket = TcpStream::connect(&self.address)?;
        socket.set_read_timeout(Some(StdDuration::from_secs(20)))?;
        let mut wire = Wire { socket, engine: handshake.engine().unwrap(), received: Vec::new() };
        let mut text = Vec::new();
        wire.engine.take_pending(&mut text);
        wire.socket.write_all(&text)?;
        while wire.engine.is_handshaking() {
            wire.receive()?;
        }
        handshake.verify(&wire.engine, OffsetDateTime::now_utc())?;
        let request = b"GET / HTTP/1.0\r\n\r\n";
        let mut sealed = vec![0; request.len() + max_overhead(request.len())];
        let taken = wire.engine.seal(request, &mut sealed).unwrap();
        // The server may have rejected the client already; then the alert can be read.
        let _ = wire.socket.write_all(&sealed[..taken]);
        while !wire.engine.has_ended() && wire.receive()? > 0 {}
        Ok(String::from_utf8_lossy(&wire.received).into_owned())
    }

    fn text(&self, handshake: &UpstreamHandshake) -> String {
        handshake.explain(&self.page(handshake).unwrap_err())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Wire {
    socket: TcpStream,
    engine: TlsEngine<Client>,
    received: Vec<u8>,
}

impl Wire {
    fn receive(&mut self) -> io::Result<usize> {
        let kept = self.engine.unopened();
        let mut room = vec![0; kept + 4000];
        let count = self.socket.read(&mut room[kept..])?;
        if count == 0 && self.engine.is_handshaking() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut answer = Vec::new();
        let Self { engine, received, .. } = self;
        let opened = engine.open(&mut room[..kept + count], |plain| received.extend(plain), &mut answer);
        let _ = self.socket.write_all(&answer);
        opened.map_err(refused)?;
        Ok(count)
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    ::pem::encode(&::pem::Pem::new(label, der))
}

const VERSIONS: [(&str, &str); 2] = [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")];

#[test]
fn chain_of_openssl_server_is_verified_and_session_resumed() {
    let (root, clients) = (Authority::new("CA"), Authority::new("Clients CA"));
    let between = root.intermediate("Between");
    let leaf = issued(&between, "x", &["db.test"]);
    for (option, version) in VERSIONS {
        let chain = [leaf.pem(), pem("CERTIFICATE", &between.der())];
        let server = Server::start(&[&chain[0], &chain[1]], &leaf.key_pem(), &clients, &[option]);
        let handshake = tls(&parts(Verification::VerifyFull, &[&root])).handshake("db.test").unwrap();
        let first = server.page(&handshake).unwrap();
        assert!(first.contains(&format!("New, {version}")), "{first}");
        let second = server.page(&handshake).unwrap();
        assert!(second.contains(&format!("Reused, {version}")), "{second}");
        let other = tls(&parts(Verification::VerifyFull, &[&root])).handshake("other.test").unwrap();
        let text = server.text(&other);
        assert!(text.contains("it is not for \"other.test\"; its names are dns:db.test"), "{text}");
    }
}

#[test]
fn server_without_intermediate_or_with_expired_certificate_is_rejected() {
    let (root, clients) = (Authority::new("CA"), Authority::new("Clients CA"));
    let between = root.intermediate("Between");
    let alone = issued(&between, "x", &["db.test"]);
    let mut params = params("x", &["db.test"]);
    params.not_after = OffsetDateTime::now_utc() - Duration::HOUR;
    let late = root.issue(&params, KeyPair::generate().unwrap());
    for (option, _) in VERSIONS {
        let handshake = tls(&parts(Verification::VerifyFull, &[&root])).handshake("db.test").unwrap();
        let text = Server::start(&[&alone.pem()], &alone.key_pem(), &clients, &[option]).text(&handshake);
        assert!(text.contains("(issued by CN=Between, valid until"), "{text}");
        assert!(text.contains("not issued by any CA in ca"), "{text}");
        let text = Server::start(&[&late.pem()], &late.key_pem(), &clients, &[option]).text(&handshake);
        assert!(text.contains("it has expired; install a new one on the upstream"), "{text}");
    }
}

#[test]
fn client_certificate_rejected_by_openssl_server_is_explained() {
    let (root, clients) = (Authority::new("CA"), Authority::new("Clients CA"));
    let leaf = issued(&root, "x", &["db.test"]);
    for (option, _) in VERSIONS {
        let options = [option, "-Verify", "1", "-verify_return_error"];
        let server = Server::start(&[&leaf.pem()], &leaf.key_pem(), &clients, &options);
        let with = |certificate| {
            let parts = UpstreamTlsSettings { certificate, ..parts(Verification::VerifyFull, &[&root]) };
            tls(&parts).handshake("db.test").unwrap()
        };
        assert!(server.page(&with(Some(own(&clients, tomorrow())))).is_ok());
        let none = server.text(&with(None));
        assert!(none.contains("client certificate") && none.contains("upstream.cert and upstream.key"), "{none}");
        let unknown = server.text(&with(Some(own(&Authority::new("Unknown CA"), tomorrow()))));
        assert!(unknown.contains("refused our certificate CN=app (issued by CN=Unknown CA"), "{unknown}");
        assert!(unknown.contains("does not know its CA"), "{unknown}");
        let late = server.text(&with(Some(own(&clients, OffsetDateTime::now_utc() - Duration::HOUR))));
        assert!(late.contains("it has expired, or is not valid yet, by the upstream's clock"), "{late}");
    }
}

#[test]
fn pinned_version_1_certificate_of_server_is_accepted() {
    let clients = Authority::new("Clients CA");
    let (der, key) = version_1("db.test");
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    for (option, version) in VERSIONS {
        let server =
            Server::start(&[&pem("CERTIFICATE", &der)], &pem("PRIVATE KEY", key.secret_der()), &clients, &[option]);
        let anchors = Anchors::Bundle(vec![der.clone()]);
        let handshake =
            tls(&UpstreamTlsSettings { anchors, ..parts(Verification::VerifyFull, &[]) }).handshake("db.test").unwrap();
        let page = server.page(&handshake).unwrap();
        assert!(page.contains(version), "{page}");
    }
}

#[test]
fn alpn_and_versions_are_negotiated_or_reported() {
    let (root, clients) = (Authority::new("CA"), Authority::new("Clients CA"));
    let leaf = issued(&root, "x", &["db.test"]);
    let handshake = |alpn| {
        let parts = UpstreamTlsSettings { alpn, ..parts(Verification::VerifyFull, &[&root]) };
        tls(&parts).handshake("db.test").unwrap()
    };
    let start = |options: &[&str]| Server::start(&[&leaf.pem()], &leaf.key_pem(), &clients, options);
    assert!(start(&["-alpn", "postgresql"]).page(&handshake(Alpn::Required(b"postgresql"))).is_ok());
    assert!(start(&[]).page(&handshake(Alpn::Offered(b"postgresql"))).is_ok());
    let text = start(&[]).text(&handshake(Alpn::Required(b"postgresql")));
    assert!(text.contains("did not confirm \"postgresql\" by ALPN"), "{text}");
    let text = start(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]).text(&handshake(Alpn::None));
    assert!(text.contains("it supports neither TLS 1.2 nor TLS 1.3"), "{text}");
}
