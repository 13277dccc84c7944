//! Whole handshakes of clients that try to make them expensive: CPU time of the server process in user and kernel mode.
//! `nginx` gets the same input if it is installed.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType, GeneralSubtree, IsCa, KeyPair,
    KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512,
    PKCS_RSA_SHA256, SanType, SignatureAlgorithm,
};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

use super::{Authority, Failure, authority, named};

/// The clients of one listener.
struct Case {
    name: &'static str,
    /// The listener's `client_ca`.
    anchors: String,
    /// The clients, which take turns.
    clients: Vec<Shown>,
    style: Style,
}

struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// How a client sends its certificates.
#[derive(Clone, Copy)]
struct Style {
    group: &'static dyn SupportedKxGroup,
    /// Maximum size of a record in bytes, if limited.
    records: Option<usize>,
}

const PLAIN: Style = Style { group: aws_lc_rs::kx_group::X25519MLKEM768, records: None };

/// Measures every case, and an ordinary handshake for comparison.
pub(super) fn run() -> Result<(), Failure> {
    let upstream = upstream()?;
    let mut cases = cases()?;
    if let Some(part) = after("--only").and_then(|part| part.into_string().ok()) {
        // The ordinary case is the reference and stays.
        let first = cases.first().map(|case| case.name);
        cases.retain(|case| Some(case.name) == first || case.name.contains(&part));
    }
    println!("\nWhole handshakes, CPU of the server process, mean of {HANDSHAKES}");
    println!("{:<66} {:>9} {:>11} {:>9} {:>11}", "", "µs", "÷ ordinary", "nginx µs", "÷ ordinary");
    let portcullis = Server::portcullis(&cases, upstream)?;
    let nginx = Server::nginx(&cases, upstream).ok();
    let mut ordinary: Option<(f64, Option<f64>)> = None;
    for (number, case) in cases.iter().enumerate() {
        let ours = portcullis.measure(case, number)?;
        let theirs = nginx.as_ref().map(|nginx| nginx.measure(case, number)).transpose()?;
        let (base, their_base) = *ordinary.get_or_insert((ours, theirs));
        print!("{:<66} {ours:>9.0} {:>11.2}", case.name, ours / base);
        if let (Some(theirs), Some(base)) = (theirs, their_base) {
            print!(" {theirs:>9.0} {:>11.2}", theirs / base);
        }
        println!();
    }
    Ok(())
}

#[allow(clippy::too_many_lines, reason = "it is a list")]
fn cases() -> Result<Vec<Case>, Failure> {
    let (p256, p384, p521) = (&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ECDSA_P521_SHA512);
    let root = authority("Root CA", None, p256)?;
    let team = authority("Team CA", Some(&root), p256)?;
    let below_team = |leaf: &CertificateParams, algorithm| client(leaf, &team, algorithm, &[&team]);
    let plain = named("client");
    let case = |name, anchors: &[&Authority], clients: Vec<Shown>| Case {
        name,
        anchors: anchors.iter().map(|one| one.pem()).collect(),
        clients,
        style: PLAIN,
    };
    let many =
        |make: &dyn Fn() -> Result<Shown, Failure>| (0..HANDSHAKES).map(|_| make()).collect::<Result<Vec<_>, _>>();
    let some = |make: &dyn Fn() -> Result<Shown, Failure>| {
        (0..REJECTED_CLIENTS).map(|_| make()).collect::<Result<Vec<_>, _>>()
    };
    let mut cases = vec![
        case(
            "ordinary: P-256, one intermediate, a new client each time",
            &[&root],
            many(&|| below_team(&plain, p256))?,
        ),
        case("ordinary, the same client each time", &[&root], vec![below_team(&plain, p256)?]),
    ];
    let ordinary = || many(&|| below_team(&plain, p256));
    let styled = |name, style, clients| Case { style, ..case(name, &[&root], clients) };
    let p384_group = Style { group: aws_lc_rs::kx_group::SECP384R1, ..PLAIN };
    cases.push(styled("ordinary, with P-384 as the key exchange", p384_group, ordinary()?));
    cases.push(styled("ordinary, in records of 64 bytes", Style { records: Some(64), ..PLAIN }, ordinary()?));

    for (name, named_name, algorithm) in [
        ("looping P-256, 62 anchors with their name", "Loop CA", p256),
        ("looping P-521, 62 anchors with other names", "Other CA", p521),
        ("looping P-384, 62 anchors with their name", "Loop CA", p384),
        ("looping P-521, 62 anchors with their name", "Loop CA", p521),
    ] {
        let anchors = (0..62).map(|_| authority(named_name, None, algorithm)).collect::<Result<Vec<_>, _>>()?;
        cases.push(case(name, &anchors.iter().collect::<Vec<_>>(), some(&|| looping(algorithm, 0))?));
    }
    let anchors = (0..62).map(|_| authority("Loop CA", None, p256)).collect::<Result<Vec<_>, _>>()?;
    let anchors: Vec<_> = anchors.iter().collect();
    cases.push(case("looping P-256, 60 KB, 62 anchors with their name", &anchors, some(&|| looping(p256, 9_000))?));
    let small = Style { records: Some(1_024), ..PLAIN };
    let padded = case("looping P-256, 60 KB, in records of 1 KiB", &anchors, some(&|| looping(p256, 9_000))?);
    cases.push(Case { style: small, ..padded });

    let big: Vec<_> = (0..2).map(big_authority).collect::<Result<_, _>>()?;
    let forged = || {
        let mut shown = client(&named("client"), big.first().ok_or("no key")?, p256, &[])?;
        if let Some(leaf) = shown.chain.first_mut() {
            *leaf = forge(leaf);
        }
        Ok(shown)
    };
    cases.push(case(
        "forged RSA-8192 signature, two anchors with its issuer's name",
        &big.iter().collect::<Vec<_>>(),
        some(&forged)?,
    ));
    let first_big = big.first().ok_or("no key")?;
    let crossed = CertifiedIssuer::signed_by(authority_params("Big CA 2"), second_big_key()?, first_big)?;
    let below = || client(&named("client"), &crossed, p256, &[&crossed]);
    cases.push(case("good: RSA-8192 anchor and intermediate", &[first_big], many(&below)?));

    cases.push(case(
        "good, and six unrelated certificates of 9 KB",
        &[&root],
        many(&|| {
            let mut shown = client(&plain, &root, p256, &[])?;
            shown.chain.extend(
                (0..6)
                    .map(|number| padded_authority(&format!("Junk {number}"), 9_000))
                    .collect::<Result<Vec<_>, _>>()?,
            );
            Ok(shown)
        })?,
    ));
    cases.push(case(
        "good, and six certificates of 9 KB with its issuer's name",
        &[&root],
        many(&|| {
            let mut shown = client(&plain, &root, p256, &[])?;
            shown.chain.extend((0..6).map(|_| padded_authority("Root CA", 9_000)).collect::<Result<Vec<_>, _>>()?);
            Ok(shown)
        })?,
    ));
    let namesakes = (0..8).map(|_| authority("Root CA", None, p521)).collect::<Result<Vec<_>, _>>()?;
    let beside: Vec<_> = [&root].into_iter().chain(&namesakes).collect();
    cases.push(case(
        "good, eight P-521 anchors with its issuer's name, looping",
        &beside,
        many(&|| {
            let mut shown = client(&plain, &root, p256, &[])?;
            shown.chain.extend(
                (0..6)
                    .map(|_| Ok(authority("Root CA", None, p256)?.der().clone()))
                    .collect::<Result<Vec<_>, Failure>>()?,
            );
            Ok(shown)
        })?,
    ));
    for (name, algorithm) in [("good, with a key on P-384", p384), ("good, with a key on P-521", p521)] {
        cases.push(case(name, &[&root], many(&|| below_team(&plain, algorithm))?));
    }
    let rsa = rsa_8192(2)?;
    cases.push(case(
        "good, with an RSA-8192 key",
        &[&root],
        some(&|| {
            let leaf = plain.signed_by(&rsa, &team)?.der().clone();
            Ok(Shown { chain: vec![leaf, team.der().clone()], key: private(&rsa)? })
        })?,
    ));

    let untrusted = authority("Unknown CA", None, p256)?;
    let mut subject = named("client");
    let mut extensions = named("client");
    for number in 0..MANY {
        subject.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, number]), "x");
        extensions.custom_extensions.push(CustomExtension::from_oid_content(&[1, 2, number], vec![5, 0]));
    }
    let wide = named(&"n".repeat(60_000));
    // As many as fit into an extension that is parsed.
    let mut just_short = named("client");
    just_short.subject_alt_names = (0..1_300).filter_map(|_| "a".try_into().ok().map(SanType::DnsName)).collect();
    for (name, params) in [
        ("of an unknown CA, 2,000 alternative names", with_names(2_000, "n")),
        ("of an unknown CA, 1,300 alternative names of one letter", just_short.clone()),
        ("of an unknown CA, 2,000 subject attributes", subject.clone()),
        ("of an unknown CA, 2,000 extensions", extensions.clone()),
        ("of an unknown CA, a common name of 60 KB", wide.clone()),
    ] {
        cases.push(case(name, &[&root], some(&|| client(&params, &untrusted, p256, &[]))?));
    }
    for (name, params) in [
        ("good, 2,000 alternative names", with_names(2_000, "n")),
        ("good, 2,000 subject attributes", subject),
        ("good, 2,000 extensions", extensions),
        ("good, a common name of 60 KB", wide),
    ] {
        cases.push(case(name, &[&root], many(&|| client(&params, &root, p256, &[]))?));
    }
    let limited = limited_authority("Limited CA", 50, Some(&root))?;
    let names = with_names(48, "n");
    cases.push(case(
        "good, 50 subtrees and 49 names",
        &[&root],
        many(&|| client(&names, &limited, p256, &[&limited]))?,
    ));
    let other_root = authority("Other Root CA", None, p256)?;
    let again = CertifiedIssuer::signed_by(limited_params("Limited CA", 50), team_key(&limited)?, &other_root)?;
    let ambiguous = many(&|| client(&names, &limited, p256, &[&limited, &again]))?;
    cases.push(case("good, the same by two paths", &[&root, &other_root], ambiguous));
    let too_many = with_names(2_000, "n");
    let wide_limits = limited_authority("Limited CA", 1_000, Some(&root))?;
    cases.push(case(
        "1,000 subtrees and 1,000 names",
        &[&root],
        some(&|| client(&with_names(1_000, "n"), &wide_limits, p256, &[&wide_limits]))?,
    ));
    let limited_root = limited_authority("Limited Root CA", 2_000, None)?;
    let inner = authority("Inner CA", Some(&limited_root), p256)?;
    cases.push(case(
        "good, 2,000 subtrees above its anchor, 2,000 names",
        &[&limited_root, &inner],
        many(&|| client(&too_many, &inner, p256, &[]))?,
    ));
    Ok(cases)
}

fn with_names(count: usize, prefix: &str) -> CertificateParams {
    let mut params = named("client");
    let name = |number| format!("{prefix}{number}.test").try_into().ok().map(SanType::DnsName);
    params.subject_alt_names = (0..count).filter_map(name).collect();
    params
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn limited_params(name: &str, subtrees: usize) -> CertificateParams {
    let mut params = authority_params(name);
    let excluded_subtrees = (0..subtrees).map(|number| GeneralSubtree::DnsName(format!("x{number}.example"))).collect();
    params.name_constraints = Some(NameConstraints { permitted_subtrees: Vec::new(), excluded_subtrees });
    params
}

fn limited_authority(name: &str, subtrees: usize, issuer: Option<&Authority>) -> Result<Authority, Failure> {
    let (params, key) = (limited_params(name, subtrees), KeyPair::generate()?);
    Ok(match issuer {
        Some(issuer) => CertifiedIssuer::signed_by(params, key, issuer)?,
        None => CertifiedIssuer::self_signed(params, key)?,
    })
}

/// A large certificate of a CA that is not trusted.
fn padded_authority(name: &str, padding: usize) -> Result<CertificateDer<'static>, Failure> {
    let mut params = authority_params(name);
    if padding > 0 {
        params.custom_extensions.push(CustomExtension::from_oid_content(&[1, 2, 3], vec![5; padding]));
    }
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?.der().clone())
}

/// A leaf and six self-issued certificates of one name with different keys, each of which may have issued every other.
fn looping(algorithm: &'static SignatureAlgorithm, padding: usize) -> Result<Shown, Failure> {
    let intermediates = (0..6)
        .map(|_| {
            let mut params = authority_params("Loop CA");
            if padding > 0 {
                params.custom_extensions.push(CustomExtension::from_oid_content(&[1, 2, 3], vec![5; padding]));
            }
            Ok(CertifiedIssuer::self_signed(params, KeyPair::generate_for(algorithm)?)?)
        })
        .collect::<Result<Vec<Authority>, Failure>>()?;
    let first = intermediates.first().ok_or("no intermediate")?;
    client(&named("client"), first, algorithm, &intermediates.iter().collect::<Vec<_>>())
}

fn client(
    params: &CertificateParams,
    issuer: &Authority,
    algorithm: &'static SignatureAlgorithm,
    along: &[&Authority],
) -> Result<Shown, Failure> {
    let key = KeyPair::generate_for(algorithm)?;
    let leaf = params.signed_by(&key, issuer)?.der().clone();
    let along = along.iter().map(|one| one.der().clone());
    Ok(Shown { chain: [leaf].into_iter().chain(along).collect(), key: private(&key)? })
}

fn private(key: &KeyPair) -> Result<PrivateKeyDer<'static>, Failure> {
    Ok(PrivateKeyDer::try_from(key.serialize_der())?)
}

/// A copy of the key of an authority.
fn team_key(authority: &Authority) -> Result<KeyPair, Failure> {
    Ok(KeyPair::from_pem(&authority.key().serialize_pem())?)
}

fn big_authority(number: usize) -> Result<Authority, Failure> {
    Ok(CertifiedIssuer::self_signed(authority_params("Big CA"), rsa_8192(number)?)?)
}

fn second_big_key() -> Result<KeyPair, Failure> {
    rsa_8192(1)
}

/// Generating a key takes half a minute, so keys are cached.
fn rsa_8192(number: usize) -> Result<KeyPair, Failure> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rsa-8192-{number}.der"));
    if !path.exists() {
        let key = ::aws_lc_rs::rsa::KeyPair::generate(::aws_lc_rs::rsa::KeySize::Rsa8192)?;
        let der: ::aws_lc_rs::encoding::Pkcs8V1Der<'_> = ::aws_lc_rs::encoding::AsDer::as_der(&key)?;
        std::fs::write(&path, der.as_ref())?;
    }
    let der = PrivateKeyDer::try_from(std::fs::read(&path)?)?;
    Ok(KeyPair::from_der_and_sign_algo(&der, &PKCS_RSA_SHA256)?)
}

/// The certificate with an invalid signature.
fn forge(der: &CertificateDer<'_>) -> CertificateDer<'static> {
    let mut bytes = der.to_vec();
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    bytes.into()
}

/// Accepts connections and closes them with the client.
fn upstream() -> Result<u16, Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || (&stream).read_to_end(&mut Vec::new()));
        }
    });
    Ok(port)
}

/// A proxy with a listener for each case.
struct Server {
    child: Child,
    ports: Vec<u16>,
    _directory: tempfile::TempDir,
}

impl Server {
    fn portcullis(cases: &[Case], upstream: u16) -> Result<Self, Failure> {
        let (directory, ports) = site(cases)?;
        let mut config = String::new();
        for (number, port) in ports.iter().enumerate() {
            writeln!(
                config,
                "[[listener]]\nname = \"c{number}\"\nprotocol = \"tcp\"\nlisten = \"127.0.0.1:{port}\"\n\
                 upstream = \"127.0.0.1:{upstream}\"\ntrusted_sources = [\"127.0.0.1\"]\n\
                 tls.certificates = [{{ cert = \"server.crt\", key = \"server.key\" }}]\n\
                 tls.client_auth = \"required\"\ntls.client_ca = \"{number}.pem\"\n"
            )?;
        }
        let path = directory.path().join("portcullis.toml");
        std::fs::write(&path, config)?;
        let mut command = Command::new(binary());
        command.arg("run").arg("-c").arg(path);
        Self::start(command, ports, directory)
    }

    fn nginx(cases: &[Case], upstream: u16) -> Result<Self, Failure> {
        let (directory, ports) = site(cases)?;
        let mut servers = String::new();
        for (number, port) in ports.iter().enumerate() {
            writeln!(
                servers,
                "server {{ listen 127.0.0.1:{port} ssl; proxy_pass 127.0.0.1:{upstream}; ssl_certificate server.crt; \
                 ssl_certificate_key server.key; ssl_verify_client on; ssl_verify_depth 8; \
                 ssl_session_tickets off; ssl_protocols TLSv1.3; ssl_ecdh_curve X25519:P-384; \
                 ssl_client_certificate {number}.pem; }}"
            )?;
        }
        let modules = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
        let load = if modules.exists() { format!("load_module {};\n", modules.display()) } else { String::new() };
        let here = directory.path().display().to_string();
        let config = format!(
            "{load}daemon off;\nmaster_process off;\nerror_log /dev/null crit;\npid {here}/nginx.pid;\n\
             events {{ worker_connections 4096; }}\nstream {{\n{servers}\n}}\n"
        );
        let path = directory.path().join("nginx.conf");
        std::fs::write(&path, config)?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(directory.path()).arg("-c").arg(path);
        Self::start(command, ports, directory)
    }

    fn start(mut command: Command, ports: Vec<u16>, directory: tempfile::TempDir) -> Result<Self, Failure> {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Self { child: quiet.spawn()?, ports, _directory: directory };
        let began = Instant::now();
        for port in server.ports.clone() {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
                if began.elapsed() > TIMEOUT || server.child.try_wait()?.is_some() {
                    return Err("the server did not start".into());
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(server)
    }

    /// Microseconds of CPU for one handshake of a case.
    fn measure(&self, case: &Case, number: usize) -> Result<f64, Failure> {
        let port = *self.ports.get(number).ok_or("no port")?;
        let configs: Vec<_> = case.clients.iter().map(|shown| config(case, shown)).collect::<Result<_, _>>()?;
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(i32::try_from(self.child.id())?))?;
        let cpu = || -> Result<Duration, Failure> { Ok(clock_gettime(clock)?.into()) };
        let before = cpu()?;
        for config in configs.iter().cycle().take(HANDSHAKES) {
            handshake(Arc::clone(config), port);
        }
        // The work after a rejected connection belongs to it.
        thread::sleep(Duration::from_millis(50));
        Ok((cpu()? - before).as_secs_f64() * 1e6 / f64::from(u32::try_from(HANDSHAKES)?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program of `--binary FILE`, or the one that cargo has built.
fn binary() -> PathBuf {
    after("--binary").map_or_else(|| env!("CARGO_BIN_EXE_portcullis").into(), PathBuf::from)
}

/// The argument after this one.
fn after(option: &str) -> Option<std::ffi::OsString> {
    std::env::args_os().skip_while(|argument| argument != option).nth(1)
}

/// A directory with the certificates, and a port for each case.
fn site(cases: &[Case]) -> Result<(tempfile::TempDir, Vec<u16>), Failure> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| -> PathBuf { directory.path().join(name) };
    let key = KeyPair::generate()?;
    let server = CertificateParams::new(["localhost".to_owned()])?.self_signed(&key)?;
    std::fs::write(path("server.crt"), server.pem())?;
    std::fs::write(path("server.key"), key.serialize_pem())?;
    for (number, case) in cases.iter().enumerate() {
        std::fs::write(path(&format!("{number}.pem")), &case.anchors)?;
    }
    let reserved: Vec<_> =
        cases.iter().map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<_, _>>()?;
    let ports = reserved.iter().map(|one| Ok(one.local_addr()?.port())).collect::<Result<_, Failure>>()?;
    Ok((directory, ports))
}

/// Does one full handshake, and waits until the server closes.
fn handshake(config: Arc<ClientConfig>, port: u16) {
    let attempt = || -> Result<(), Failure> {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut tls = ClientConnection::new(config, ServerName::try_from("localhost")?)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        tls.writer().write_all(b"x")?;
        tls.send_close_notify();
        while tls.wants_write() {
            tls.write_tls(&mut stream)?;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut rest = [0; 4096];
        while stream.read(&mut rest)? > 0 {}
        Ok(())
    };
    // Most are rejected.
    let _ = attempt();
}

fn config(case: &Case, shown: &Shown) -> Result<Arc<ClientConfig>, Failure> {
    let provider = CryptoProvider {
        kx_groups: vec![case.style.group, aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let key = aws_lc_rs::sign::any_supported_type(&shown.key)?;
    let certified = Arc::new(CertifiedKey::new(shown.chain.clone(), key));
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_client_cert_resolver(Arc::new(Always(certified)));
    config.resumption = rustls::client::Resumption::disabled();
    config.max_fragment_size = case.style.records;
    Ok(Arc::new(config))
}

/// Always presents the same certificates.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

const HANDSHAKES: usize = 100;

/// Number of different clients of a case that is rejected, and therefore never cached.
const REJECTED_CLIENTS: usize = 10;

/// Number of names, attributes or extensions of a large certificate.
const MANY: u64 = 2_000;

const TIMEOUT: Duration = Duration::from_secs(20);
