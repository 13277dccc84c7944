use std::fs;
use std::path::Path;
use std::process::Command;

use rcgen::{CertificateRevocationListParams, SerialNumber};
use time::Duration;

use super::*;
use crate::tls::fixtures::{Authority, revoking};
use crate::x509::pem::certificates;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::days(20_000));

fn read(bytes: &[u8]) -> Crl {
    let mut lists = Crl::parse_all(bytes).unwrap();
    assert_eq!(lists.len(), 1);
    lists.remove(0)
}

fn list(authority: &Authority, params: &CertificateRevocationListParams) -> Crl {
    read(authority.list(params).der())
}

fn client(authority: &Authority) -> CertificateDer<'static> {
    authority.client("app", NOW, NOW + Duration::HOUR).der()
}

fn fault(bytes: &[u8]) -> CrlFault {
    match Crl::parse_all(bytes) {
        Err(CrlError::Unusable { position: 1, fault }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn list_in_pem_or_der_is_parsed_equally() {
    let authority = Authority::new("Clients CA");
    let revoked = [client(&authority), client(&authority)];
    let signed = authority.list(&revoking(&revoked, 4096, NOW));
    let list = read(signed.der());
    assert_eq!(list, read(signed.pem().unwrap().as_bytes()));
    assert_eq!((list.issuer.as_str(), list.revoked), ("CN=Clients CA", 2));
    assert_eq!((list.this_update, list.next_update), (NOW, NOW + Duration::DAY));
    let shown = serde_json::to_value(&list).unwrap();
    assert_eq!(shown["number"], "4096");
    assert_eq!(shown["next_update"], "2024-10-05T00:00:00Z");
    assert_eq!(shown["sha256"], sha256_hex(signed.der()));
    assert_eq!(shown.as_object().unwrap().len(), 6, "{shown}");
}

#[test]
fn truncated_pem_file_is_rejected_except_between_two_lists() {
    let authority = Authority::new("Clients CA");
    let block = authority.list(&revoking(&[], 1, NOW)).pem().unwrap().replace("\r\n", "\n");
    let whole = block.repeat(2);
    let ends = [block.len(), whole.len()];
    for cut in 0..=whole.len() {
        let count = Crl::parse_all(&whole.as_bytes()[..cut]).map(|lists| lists.len());
        // With the line break behind it or without.
        match ends.iter().position(|end| cut == *end || cut + 1 == *end) {
            Some(before) => assert_eq!(count, Ok(before + 1), "cut at {cut}"),
            None => assert!(count.is_err(), "cut at {cut}"),
        }
    }
}

#[test]
fn der_file_with_anything_but_one_list_is_rejected() {
    let authority = Authority::new("Clients CA");
    let signed = authority.list(&revoking(&[client(&authority)], 1, NOW));
    let der = signed.der();
    for cut in 0..der.len() {
        assert!(Crl::parse_all(&der[..cut]).is_err(), "cut at {cut}");
    }
    assert_eq!(fault(&[der, &b"\n"[..]].concat()), CrlFault::TrailingBytes(1));
    assert_eq!(fault(&[&der[..], der].concat()), CrlFault::TrailingBytes(der.len()));
    assert!(matches!(fault(&authority.der()), CrlFault::Malformed(_)));
    assert_eq!(Crl::parse_all(b""), Err(CrlError::Pem(PemError::Empty)));
    assert_eq!(Crl::parse_all(b"0 lists"), Err(CrlError::Pem(PemError::NoRevocationList)));
}

#[test]
fn invalid_list_of_several_is_reported_by_position() {
    let block = Authority::new("Clients CA").list(&revoking(&[], 1, NOW)).pem().unwrap();
    let text = format!("{block}-----BEGIN X509 CRL-----\nAAEC\n-----END X509 CRL-----\n{block}");
    let error = Crl::parse_all(text.as_bytes()).unwrap_err();
    assert!(error.to_string().starts_with("revocation list 2 is not an X.509 revocation list"), "{error}");
}

#[test]
fn list_belongs_to_the_ca_that_signed_it_not_to_one_of_the_same_name() {
    let [ours, impostor, other] = ["Clients CA", "Clients CA", "Another CA"].map(Authority::new);
    let list = list(&ours, &revoking(&[], 1, NOW));
    let matches = |authority: &Authority| (list.has_issuer(&authority.der()), list.is_signed_by(&authority.der()));
    assert_eq!(matches(&ours), (true, true));
    assert_eq!(matches(&impostor), (true, false));
    assert_eq!(matches(&other), (false, false));
    assert!(!list.is_signed_by(&CertificateDer::from(b"no certificate".to_vec())));
}

#[test]
fn altered_list_has_no_valid_signature() {
    let authority = Authority::new("Clients CA");
    let mut der = authority.list(&revoking(&[client(&authority)], 1, NOW)).der().to_vec();
    let last = der.len() - 1;
    der[last] ^= 1;
    let list = read(&der);
    assert!(list.has_issuer(&authority.der()) && !list.is_signed_by(&authority.der()));
}

#[test]
fn list_revokes_only_the_serial_numbers_it_contains() {
    let authority = Authority::new("Clients CA");
    let numbered = |serials: &[&[u8]]| {
        let mut params = revoking(&vec![client(&authority); serials.len()], 1, NOW);
        for (entry, serial) in params.revoked_certs.iter_mut().zip(serials) {
            entry.serial_number = SerialNumber::from_slice(serial);
        }
        list(&authority, &params)
    };
    let some = numbered(&[&[9], &[1, 2, 3], &[0x7f; 21], &[4], &[0x7f; 23]]);
    assert_eq!(some.revoked, 5);
    for (serial, expected) in [
        (&[9][..], true),
        (&[1, 2, 3], true),
        (&[0x7f; 21], true),
        (&[0x7f; 23], true),
        (&[1, 2], false),
        (&[0, 9], false),
        (&[0x7f; 20], false),
        (&[0x7f; 22], false),
    ] {
        assert_eq!(some.revokes(serial), expected, "{serial:?}");
    }
    assert!(!numbered(&[]).revokes(&[9]));
}

#[test]
fn list_without_next_update_is_rejected() {
    let authority = Authority::new("Clients CA");
    let revoked = vec![client(&authority); 20];
    let mut der = authority.list(&revoking(&revoked, 1, NOW)).der().to_vec();
    // Remove the second date, and correct the lengths of the list and of its signed part.
    let date = der.windows(2).enumerate().filter(|(_, begin)| *begin == b"\x17\x0d").nth(1).unwrap().0;
    der.drain(date..date + 15);
    for length in [2, 6] {
        let shorter = u16::from_be_bytes([der[length], der[length + 1]]) - 15;
        der[length..length + 2].copy_from_slice(&shorter.to_be_bytes());
    }
    assert_eq!(fault(&der), CrlFault::NoNextUpdate);
}

/// An openssl CA in a temporary directory.
struct OpensslCa(tempfile::TempDir);

impl OpensslCa {
    fn new(key: &[&str]) -> Self {
        let ca = Self(tempfile::tempdir().unwrap());
        let request = ["req", "-x509", "-nodes", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=Clients CA"];
        ca.run(&[&request, key].concat());
        fs::write(ca.path("crlnumber"), "1000\n").unwrap();
        fs::write(ca.path("index.txt"), "R\t360101000000Z\t250101000000Z,keyCompromise\t01\tunknown\t/CN=app\n")
            .unwrap();
        ca
    }

    /// The list that `openssl ca` creates with these configuration lines and extensions.
    fn list(&self, lines: &str, extensions: &str) -> Vec<u8> {
        let section = "[ca]\ndefault_ca = this\n[this]\ndatabase = index.txt\ndefault_md = sha256\n";
        let configuration = format!("{section}{lines}\n[extensions]\n{extensions}\n");
        fs::write(self.path("ca.cnf"), configuration).unwrap();
        let order = ["ca", "-gencrl", "-config", "ca.cnf", "-cert", "ca.crt", "-keyfile", "ca.key"];
        self.run(&[&order[..], &["-crldays", "30", "-out", "list.pem"]].concat());
        fs::read(self.path("list.pem")).unwrap()
    }

    fn der(&self) -> CertificateDer<'static> {
        certificates(&fs::read(self.path("ca.crt")).unwrap()).unwrap().remove(0)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        let directory: &Path = self.0.path();
        directory.join(name)
    }

    fn run(&self, arguments: &[&str]) {
        let done = Command::new("openssl").args(arguments).current_dir(self.0.path()).output().unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

const NUMBER: &str = "crlnumber = crlnumber";
const EC: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
const RSA: &[&str] = &["-newkey", "rsa:2048"];

#[test]
fn list_of_openssl_is_parsed_and_its_signature_verified() {
    for key in [EC, RSA, &["-newkey", "ed25519"]] {
        let ca = OpensslCa::new(key);
        let pem = ca.list(NUMBER, "");
        let numbered = read(&pem);
        assert_eq!(numbered.issuer, "CN=Clients CA");
        assert_eq!((numbered.number.as_ref().unwrap().to_string(), numbered.revoked), ("4096".to_owned(), 1));
        assert_eq!(numbered.next_update - numbered.this_update, Duration::days(30));
        assert!(numbered.is_signed_by(&ca.der()), "{key:?}");
        ca.run(&["crl", "-in", "list.pem", "-outform", "DER", "-out", "list.der"]);
        assert_eq!(read(&fs::read(ca.path("list.der")).unwrap()), numbered);
        ca.run(&["crl", "-in", "list.pem", "-text", "-out", "list.txt"]);
        assert_eq!(read(&fs::read(ca.path("list.txt")).unwrap()), numbered, "behind its text");
        let unnumbered = read(&ca.list("crl_extensions = extensions", "authorityKeyIdentifier = keyid"));
        assert_eq!(unnumbered.number, None);
        assert!(unnumbered.is_signed_by(&ca.der()), "{key:?}");
    }
}

#[test]
fn list_of_openssl_that_rustls_does_not_support_is_rejected_with_its_fault() {
    let ca = OpensslCa::new(RSA);
    let extended = format!("{NUMBER}\ncrl_extensions = extensions");
    let points = |more: &str| format!("issuingDistributionPoint = critical,@points\n[points]\n{more}");
    let cases = [
        ("", String::new(), CrlFault::NoExtensions),
        (&extended, "2.5.29.27 = critical,ASN1:INTEGER:1".to_owned(), CrlFault::Delta),
        (&extended, points("fullname = URI:http://ca.test/list\nindirectCRL = TRUE"), CrlFault::Indirect),
        (
            &extended,
            points("fullname = URI:http://ca.test/list\nonlysomereasons = keyCompromise"),
            CrlFault::Partitioned,
        ),
        (&extended, points("relativename = name\n[name]\nCN = list"), CrlFault::Partitioned),
        (&extended, points("onlyuser = TRUE"), CrlFault::Partitioned),
        (&extended, "1.2.3.4 = critical,ASN1:NULL".to_owned(), CrlFault::CriticalExtension),
        ("crl_extensions = extensions", "2.5.29.20 = ASN1:INTEGER:-1".to_owned(), CrlFault::Number),
        (
            "default_md = sha1\ncrlnumber = crlnumber",
            String::new(),
            CrlFault::Algorithm("1.2.840.113549.1.1.5".to_owned()),
        ),
    ];
    for (lines, extensions, expected) in cases {
        assert_eq!(fault(&ca.list(lines, &extensions)), expected, "{lines} {extensions}");
    }
    fs::write(ca.path("index.txt"), "").unwrap();
    assert_eq!(fault(&ca.list("", "")), CrlFault::Version(1), "without anything of version 2");
}

#[test]
fn known_list_is_shared_instead_of_parsed_again() {
    let authority = Authority::new("Clients CA");
    let [one, other] = [1, 2].map(|number| authority.list(&revoking(&[client(&authority)], number, NOW)));
    let known = read(one.der());
    let shared = |der: &[u8]| {
        let list = Crl::parse_all_knowing(der, &mut [known.clone()].into_iter().collect()).unwrap().remove(0);
        Arc::ptr_eq(&list.content, &known.content)
    };
    assert!(shared(one.der()));
    assert!(!shared(other.der()));
}
