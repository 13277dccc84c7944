//! `certs issue --bundle`, `certs renew`, `certs inspect`: checked by openssl and by the ZIP reader of Python.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::harness::openssl::openssl;
use crate::harness::portcullis::executable;
use crate::harness::program::{Outcome, command, run};
use crate::harness::{Authority, Listener, Request, TestDir};

/// Portcullis, in a directory.
fn portcullis(site: &TestDir, arguments: &[&str]) -> Outcome {
    run(executable().args(arguments).current_dir(site.directory()))
}

/// A site with a development CA in `dev`.
fn site() -> TestDir {
    let site = TestDir::new();
    portcullis(&site, &["certs", "init", "dev"]).success();
    site
}

/// Renews a certificate by the CA in `dev`, into `new`.
fn renew(site: &TestDir, certificate: &str, more: &[&str]) -> Outcome {
    let arguments = ["certs", "renew", certificate, "--ca", "dev/ca.crt", "--ca-key", "dev/ca.key", "--out", "new"];
    portcullis(site, &[&arguments[..], more].concat())
}

/// Makes a certificate with openssl by the CA in `dev`: `NAME.crt`, `NAME.key`.
fn made_by_openssl(site: &TestDir, name: &str, subject: &str, extensions: &str) {
    let (key, request, certificate) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"));
    site.write("extensions", extensions);
    let subject = ["-subj", subject, "-utf8", "-multivalue-rdn"];
    let request_for = ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-out", &request];
    openssl(site, &[&request_for[..], &subject].concat());
    let authority = ["-CA", "dev/ca.crt", "-CAkey", "dev/ca.key", "-extfile", "extensions", "-days", "20"];
    openssl(site, &[&["x509", "-req", "-in", &request, "-out", &certificate][..], &authority].concat());
}

/// The fields of a certificate as openssl shows them.
fn shown(site: &TestDir, file: &str, fields: &[&str]) -> String {
    openssl(site, &[&["x509", "-in", file, "-noout", "-nameopt", "multiline,-esc_msb"][..], fields].concat())
}

#[test]
fn bundle_has_the_client_files_and_no_ca_key() {
    let site = site();
    let older = Authority::new("Older CA");
    let read = |name: &str| fs::read_to_string(site.path(name)).unwrap();
    // Some users keep the CA's key beside its certificate, and the CA that signs is not always the first.
    site.write("ca.pem", format!("# roots\r\n{}{}{}", older.pem(), read("dev/ca.key"), read("dev/ca.crt")));
    let issue = ["certs", "issue", "--ca", "ca.pem", "--ca-key", "dev/ca.key", "--name", "app", "--bundle"];
    let output = portcullis(&site, &[&issue[..], &["--email", "app@example.com", "--out", "out"]].concat()).success();
    assert!(output.contains("out/app.zip"), "{output}");
    assert_eq!(fs::metadata(site.path("out/app.zip")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(shown(&site, "out/app.crt", &["-ext", "subjectAltName"]).contains("email:app@example.com"));

    let unzip = "import zipfile, os\n\
                 z = zipfile.ZipFile('out/app.zip')\n\
                 assert z.testzip() is None\n\
                 print([(i.filename, oct(i.external_attr >> 16 & 0o777)) for i in z.infolist()])\n\
                 z.extractall('unzipped')";
    let listed = run(command("python3").args(["-c", unzip]).current_dir(site.directory())).success();
    let expected = "[('redis_user.crt', '0o644'), ('redis_user_private.key', '0o600'), ('redis_ca.pem', '0o644')]";
    assert_eq!(listed.trim(), expected);
    assert_eq!(read("unzipped/redis_user.crt"), read("out/app.crt"));
    assert_eq!(read("unzipped/redis_user_private.key"), read("out/app.key"));
    assert_eq!(read("unzipped/redis_ca.pem"), older.pem().replace("\r\n", "\n") + &read("dev/ca.crt"));
    let verify = ["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "unzipped/redis_ca.pem"];
    openssl(&site, &[&verify[..], &["unzipped/redis_user.crt"]].concat());
}

/// The files in `out/app.zip`, which end up in `unzipped`.
fn unzipped(site: &TestDir) -> String {
    let unzip = "import zipfile\nz = zipfile.ZipFile('out/app.zip')\nz.extractall('unzipped')\nprint(*z.namelist())";
    run(command("python3").args(["-c", unzip]).current_dir(site.directory())).success()
}

/// Issues a bundle for the client `app` by the CA in `dev`.
fn issue_bundle(site: &TestDir, more: &[&str]) -> Outcome {
    let issue = ["certs", "issue", "--ca", "dev/ca.crt", "--ca-key", "dev/ca.key", "--name", "app", "--bundle"];
    portcullis(site, &[&issue[..], &["--out", "out"], more].concat())
}

#[test]
fn bundle_has_the_ca_of_the_server_and_names_of_the_protocol() {
    let site = site();
    let output = issue_bundle(&site, &["--server-ca", "ca.crt", "--protocol", "postgres"]).success();
    assert!(!output.contains("--server-ca"), "{output}");
    assert_eq!(unzipped(&site).trim(), "postgres_user.crt postgres_user_private.key postgres_ca.pem");
    openssl(&site, &["verify", "-purpose", "sslserver", "-CAfile", "unzipped/postgres_ca.pem", "server.crt"]);
}

#[test]
fn bundle_without_a_server_ca_names_its_ca() {
    let site = site();
    assert!(issue_bundle(&site, &[]).success().contains("--server-ca FILE, or --listener NAME"));
}

#[test]
fn bundle_for_a_listener_has_the_ca_of_its_chain() {
    let site = site();
    let (leaf, ca) = (site.server(), site.ca.pem());
    site.write("chain.crt", format!("{}{ca}", leaf.pem()));
    site.write("chain.key", leaf.key_pem());
    let certificate = "cert = \"chain.crt\", key = \"nowhere.key\"";
    let listener = Listener::postgres("127.0.0.1:5432").named("db").certificate(certificate);
    site.write("portcullis.toml", listener);
    issue_bundle(&site, &["--listener", "db", "-c", "portcullis.toml"]).success();
    assert_eq!(unzipped(&site).trim(), "postgres_user.crt postgres_user_private.key postgres_ca.pem");
    openssl(&site, &["verify", "-purpose", "sslserver", "-CAfile", "unzipped/postgres_ca.pem", "chain.crt"]);
}

#[test]
fn bundle_for_a_listener_whose_chain_lacks_its_ca_needs_that_ca() {
    let site = site();
    let by = |cert: &str| {
        let certificate = format!("cert = \"{cert}\", key = \"any.key\"");
        site.write("portcullis.toml", Listener::redis("127.0.0.1:6379").named("cache").certificate(&certificate));
        issue_bundle(&site, &["--listener", "cache", "-c", "portcullis.toml"])
    };
    // Issued by the CA that also issues the client's.
    by("dev/server.crt").success();
    assert_eq!(unzipped(&site).trim(), "redis_user.crt redis_user_private.key redis_ca.pem");
    openssl(&site, &["verify", "-purpose", "sslserver", "-CAfile", "unzipped/redis_ca.pem", "dev/server.crt"]);
    fs::remove_dir_all(site.path("out")).unwrap();
    let refused = by("server.crt");
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("server.crt") && refused.stderr.contains("--server-ca"), "{}", refused.stderr);
    assert!(!site.path("out").exists());
    let refused = issue_bundle(&site, &["--listener", "other", "-c", "portcullis.toml"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
}

#[test]
fn server_certificate_is_for_its_names_and_verifies_with_the_root_alone() {
    let site = site();
    made_by_openssl(&site, "between", "/CN=Between", "basicConstraints = critical, CA:TRUE\nkeyUsage = keyCertSign\n");
    let issue = ["certs", "issue", "--server", "--ca", "between.crt", "--ca-key", "between.key", "--out", "out"];
    let names = ["--name", "db.test", "--dns", "*.db.test", "--ip", "10.1.2.3", "--days", "30"];
    portcullis(&site, &[&issue[..], &names].concat()).success();
    let shown = shown(&site, "out/db.test.crt", &["-ext", "subjectAltName,extendedKeyUsage"]);
    for words in ["DNS:db.test, DNS:*.db.test, IP Address:10.1.2.3", "TLS Web Server Authentication"] {
        assert!(shown.contains(words), "no {words} in {shown}");
    }
    assert!(!shown.contains("Client"), "{shown}");
    let verify = ["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "dev/ca.crt"];
    openssl(&site, &[&verify[..], &["-untrusted", "out/db.test.crt", "out/db.test.crt"]].concat());
    let refused = portcullis(&site, &[&issue[..], &["--name", "no host"]].concat());
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
}

#[test]
fn existing_bundle_is_not_overwritten() {
    let site = site();
    site.write("app.zip", "mine");
    let issue = ["certs", "issue", "--ca", "dev/ca.crt", "--ca-key", "dev/ca.key", "--name", "app", "--out", "."];
    let refused = portcullis(&site, &[&issue[..], &["--bundle"]].concat());
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("app.zip") && refused.stderr.contains("exists"), "{}", refused.stderr);
    assert_eq!(fs::read_to_string(site.path("app.zip")).unwrap(), "mine");
    assert!(!site.path("app.crt").exists() && !site.path("app.key").exists());
}

#[test]
fn renewed_certificate_differs_only_in_key_and_validity() {
    let site = site();
    let subject = "/DC=com/DC=example/O=Zoë/OU=One/OU=Two+UID=7/CN=db.test";
    let extensions = "subjectAltName = DNS:db.test, IP:10.1.2.3, URI:spiffe://prod/db, email:db@example.com\n\
                      extendedKeyUsage = critical, serverAuth, 1.2.3.4\n\
                      keyUsage = critical, digitalSignature, keyEncipherment\n\
                      basicConstraints = CA:FALSE\n\
                      crlDistributionPoints = URI:http://crl.test/\n";
    made_by_openssl(&site, "db", subject, extensions);
    let output = renew(&site, "db.crt", &["--days", "50"]).success();

    openssl(&site, &["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "dev/ca.crt", "new/db.crt"]);
    let same = ["-subject", "-issuer", "-ext", "subjectAltName,extendedKeyUsage,keyUsage"];
    assert_eq!(shown(&site, "new/db.crt", &same), shown(&site, "db.crt", &same));
    for (field, changes) in [("-pubkey", true), ("-serial", true), ("-enddate", true)] {
        assert_eq!(shown(&site, "new/db.crt", &[field]) != shown(&site, "db.crt", &[field]), changes, "{field}");
    }
    let certified = openssl(&site, &["x509", "-in", "new/db.crt", "-noout", "-pubkey"]);
    assert_eq!(certified, openssl(&site, &["pkey", "-in", "new/db.key", "-pubout"]));
    assert!(openssl(&site, &["pkey", "-in", "new/db.key", "-noout", "-text"]).contains("2048 bit"));
    assert_eq!(fs::metadata(site.path("new/db.key")).unwrap().permissions().mode() & 0o777, 0o600);

    for words in ["CN=db.test,OU=Two+UID=7,OU=One,O=Zoë,DC=example,DC=com", "20 days left", "50 days left", "2.5.29.31"]
    {
        assert!(output.contains(words), "no {words} in {output}");
    }
    for file in ["db.crt", "new/db.crt"] {
        let sha256 = shown(&site, file, &["-fingerprint", "-sha256"]);
        let sha256 = sha256.trim().rsplit('=').next().unwrap().replace(':', "").to_lowercase();
        assert!(output.contains(&sha256), "no {sha256} in {output}");
    }

    let again = renew(&site, "db.crt", &[]);
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("already exists"), "{}", again.stderr);
}

#[test]
fn renewed_certificate_keeps_its_lifetime_by_default() {
    let site = site();
    site.install("app", &site.ca.issue(Request::client("app").valid(-40, -10)));
    let output = renew(&site, "app.crt", &[]).success();
    assert!(output.contains("EXPIRED") && output.contains("30 days left"), "{output}");
    // The issuer was another CA, and its name is no secret.
    assert!(output.contains("CN=Portcullis development CA; the old one by CN=Test CA"), "{output}");
    openssl(&site, &["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "dev/ca.crt", "new/app.crt"]);
}

#[test]
fn renewed_certificate_keeps_intermediates_of_its_ca() {
    let site = site();
    let read = |name: &str| fs::read_to_string(site.path(name)).unwrap();
    let (leaf, authority) = (read("dev/server.crt"), read("dev/ca.crt"));
    site.write("kept.pem", format!("{leaf}{authority}"));
    site.write("other.pem", format!("{leaf}{}", site.ca.pem()));
    assert!(!renew(&site, "kept.pem", &[]).success().contains("not carried over"));
    assert!(read("new/kept.crt").ends_with(&authority));
    assert!(renew(&site, "other.pem", &[]).success().contains("not carried over"));
    assert_eq!(read("new/other.crt").matches("BEGIN").count(), 1);
}

#[test]
fn name_with_repeated_attributes_is_kept_in_the_issuer() {
    let site = TestDir::new();
    let request = "[req]\ndistinguished_name = name\nprompt = no\nx509_extensions = ca\n\
                   [name]\n0.DC = com\n1.DC = example\n0.OU = One\n1.OU = Two\nCN = Odd CA\n\
                   [ca]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = keyCertSign\nsubjectKeyIdentifier = hash\n";
    site.write("request", request);
    let key = ["-newkey", "rsa:2048", "-nodes", "-keyout", "odd.key", "-out", "odd.crt"];
    openssl(&site, &[&["req", "-x509", "-config", "request"][..], &key].concat());
    let issue = ["certs", "issue", "--ca", "odd.crt", "--ca-key", "odd.key", "--name", "app", "--out", "."];
    portcullis(&site, &issue).success();
    openssl(&site, &["verify", "-x509_strict", "-CAfile", "odd.crt", "app.crt"]);
}

#[test]
fn renewing_a_ca_certificate_is_rejected() {
    let site = site();
    let refused = renew(&site, "dev/ca.crt", &[]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("is a CA") && refused.stderr.contains("dev/ca.crt"), "{}", refused.stderr);
    assert!(!site.path("new").exists());
}

#[test]
fn issue_rejects_a_key_that_does_not_match_the_ca() {
    let site = site();
    let arguments = ["certs", "renew", "dev/client.crt", "--ca", "dev/ca.crt", "--ca-key", "dev/server.key"];
    let refused = portcullis(&site, &[&arguments[..], &["--out", "new"]].concat());
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("dev/server.key"), "{}", refused.stderr);
    let arguments = ["certs", "renew", "dev/client.crt", "--ca", "dev/server.crt", "--ca-key", "dev/server.key"];
    let refused = portcullis(&site, &[&arguments[..], &["--out", "new"]].concat());
    assert!(refused.stderr.contains("is not a CA"), "{}", refused.stderr);
    assert!(!site.path("new").exists());
}

#[test]
fn inspect_prints_validity_and_keys() {
    let site = TestDir::new();
    let leaf = site.ca.issue(Request::client("app").valid(-1, 12));
    site.write("both.pem", format!("{}{}", leaf.key_pem(), leaf.pem()));
    let output = portcullis(&site, &["certs", "inspect", "both.pem", "server.key"]).success();
    for words in ["both.pem: 1 certificate, 1 private key", "12 days left", "server.key: 0 certificates, 1 private key"]
    {
        assert!(output.contains(words), "no {words} in {output}");
    }
    let secret = leaf.key_pem();
    assert!(!secret.lines().skip(1).any(|line| output.contains(line)));
}
