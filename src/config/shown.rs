//! How much of a configured value an error may repeat. Errors go to terminals, logs and whoever reads these, so a value that
//! holds or names a secret is never part of one, and any other value only in part.

use std::path::Path;

use super::Location;
use crate::printable;

/// The keys whose values hold or name a secret, in whichever table they are. What is written below them is one, too. Keys of
/// features to come are among them: people write them already.
const SECRET_KEYS: [&str; 13] = [
    "ca_key",
    "key",
    "key_passphrase",
    "key_passphrase_file",
    "passphrase",
    "password",
    "password_file",
    "passwords",
    "secret",
    "ticket_keys",
    "token",
    "tokens",
    "upstream_password_file",
];

/// Longest part of a value, or of the name of a key, that an error repeats, in characters.
const MAX_SHOWN: usize = 64;

/// The same for the path of a file that is not there.
const MAX_PATH: usize = 128;

/// Whether a key, such as `listener[0].tls.certificates[0].key`, is one of [`SECRET_KEYS`] or below one.
pub(super) fn is_secret(path: &str) -> bool {
    path.split('.').any(|part| SECRET_KEYS.contains(&part.split('[').next().unwrap_or(part)))
}

/// A text as an error repeats it: `written` is how it stands in the file.
pub(super) fn string(written: &str, text: &str) -> String {
    match screened(text) {
        Screened::Plain => bounded(written.lines().next().unwrap_or("")),
        Screened::WithoutUser(rest) => format!("\"{}\"", bounded(&rest)),
        Screened::Hidden(why) => format!("a string that is not shown ({why})"),
    }
}

/// The name of a key. Unlike a value it is also in front of errors about what is below it.
pub(super) fn key_name(name: &str) -> String {
    match screened(name) {
        Screened::Plain => bounded(name),
        Screened::WithoutUser(rest) => bounded(&rest),
        Screened::Hidden(why) => format!("(not shown: {why})"),
    }
}

/// The beginning of a text.
pub(super) fn bounded(text: &str) -> String {
    cut(text, MAX_SHOWN)
}

/// Whether an error repeats less of a text than all, so that nothing else may repeat it either.
pub(super) fn is_cut(text: &str) -> bool {
    !matches!(screened(text), Screened::Plain) || text.chars().count() > MAX_SHOWN
}

/// The location that the value of `key` names. It is written as it is where something is there, since it cannot be a secret
/// itself then.
pub(super) fn location(key: &str, location: &Location) -> String {
    match location {
        Location::Variable(name) if is_secret(key) && !is_variable(name) => {
            "the environment variable that it names".to_owned()
        }
        Location::Variable(name) => format!("the environment variable {}", key_name(name)),
        Location::File(file) => self::file(key, file),
    }
}

/// Whether a text is the name of an environment variable as everybody writes them, and no secret behind `env:` by mistake.
fn is_variable(name: &str) -> bool {
    name.len() <= MAX_SHOWN
        && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// The same for a file.
pub(super) fn file(key: &str, file: &Path) -> String {
    if file.symlink_metadata().is_ok() {
        return file.display().to_string();
    }
    let text = file.to_string_lossy();
    match screened(&text) {
        Screened::Plain if !is_secret(key) => cut(&text, MAX_PATH),
        _ => "the file that it names".to_owned(),
    }
}

/// Whether a text is the content of a PEM file rather than the name of one.
pub(super) fn is_pem(text: &str) -> bool {
    text.contains("-----")
}

/// What of a text may be shown.
enum Screened {
    Plain,
    /// All but the user information of a URL.
    WithoutUser(String),
    /// Nothing, and why.
    Hidden(&'static str),
}

fn screened(text: &str) -> Screened {
    if is_pem(text) {
        return Screened::Hidden("it looks like PEM");
    }
    if names_a_password(text) {
        return Screened::Hidden("it looks like a password");
    }
    if has_encoded_key(text) {
        return Screened::Hidden("it looks like a key");
    }
    let is_address = |rest: &str| !rest.contains([':', '/']);
    if text.strip_prefix("email:").is_some_and(is_address) {
        return Screened::Plain;
    }
    // The last one: passwords hold the sign, too, and hosts do not.
    match text.rsplit_once('@') {
        Some((before, host)) => {
            let scheme = before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
            Screened::WithoutUser(format!("{}…@{host}", bounded(&scheme)))
        }
        None => Screened::Plain,
    }
}

/// `password=…`, as parameters of URLs and connection strings have it.
fn names_a_password(text: &str) -> bool {
    let text = text.to_lowercase();
    let words = ["password", "passwd", "passphrase", "pwd", "secret", "token"];
    words.iter().filter_map(|word| text.split_once(word)).any(|(_, rest)| rest.contains('='))
}

/// A long run of base64, as private keys and ticket keys are. Slashes divide paths, too, so that a part between two of them has
/// to look like it. Host names and fingerprints have no such part.
fn has_encoded_key(text: &str) -> bool {
    let is_base64 = |character: char| character.is_ascii_alphanumeric() || "+/=".contains(character);
    let is_random = |part: &str| {
        part.len() >= MIN_RANDOM_PART
            && part.bytes().any(|byte| byte.is_ascii_uppercase())
            && part.bytes().any(|byte| byte.is_ascii_lowercase())
            && part.bytes().any(|byte| byte.is_ascii_digit())
    };
    let mut runs = text.split(|character| !is_base64(character)).filter(|run| run.len() >= MIN_ENCODED_KEY);
    runs.any(|run| run.split('/').any(is_random))
}

/// 24 bytes in base64.
const MIN_ENCODED_KEY: usize = 32;
const MIN_RANDOM_PART: usize = 20;

fn cut(text: &str, limit: usize) -> String {
    let mut short: String = text.chars().take(limit).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    printable::lines(&short).replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        string(&format!("{text:?}"), text)
    }

    #[test]
    fn secret_keys_are_found_at_every_depth() {
        for path in ["key", "listener[0].tls.certificates[3].key", "listener[0].tls.ticket_keys[1]", "admin.token.x"] {
            assert!(is_secret(path), "{path}");
        }
        for path in ["", "listener[0].tls.certificates", "listener[0].name", "monkey", "listener[0].tls.cert"] {
            assert!(!is_secret(path), "{path}");
        }
    }

    #[test]
    fn plain_values_are_repeated_as_they_are_written_up_to_a_bound() {
        assert_eq!(shown("10.1.2.3/8"), "\"10.1.2.3/8\"");
        assert_eq!(shown("redis://127.0.0.1:6379"), "\"redis://127.0.0.1:6379\"");
        assert_eq!(shown("/etc/portcullis/certs/production/eu-west-1/server-2027.crt").len(), 60);
        let long = shown(&"x".repeat(10_000));
        assert_eq!(long.chars().count(), MAX_SHOWN + 1);
        // A fingerprint is no key.
        assert!(shown(&format!("sha256:{}", "0a".repeat(32))).starts_with("\"sha256:0a0a"));
        assert!(shown("/home/Alice/projects2/portcullis/certs/server").contains("Alice"));
    }

    #[test]
    fn user_information_is_left_out_wherever_it_ends() {
        for (text, expected) in [
            ("redis://user:hunter2@db.internal:6379", "\"redis://…@db.internal:6379\""),
            ("redis://:hunter2@db.internal", "\"redis://…@db.internal\""),
            ("user:hunter2@db.internal:5432", "\"…@db.internal:5432\""),
            ("postgres://u:hunter2@hunter2/@db:5432/x", "\"postgres://…@db:5432/x\""),
        ] {
            assert_eq!(shown(text), expected);
        }
        assert_eq!(shown("email:app@example.com"), "\"email:app@example.com\"");
        assert_eq!(shown("email:app:hunter2@example.com"), "\"…@example.com\"");
        let far = format!("redis://{}:hunter2@db", "u".repeat(500));
        assert_eq!(shown(&far), "\"redis://…@db\"");
        // Written by its number it is not in the text of the file.
        assert_eq!(string(r#""redis://u:hunter2\u0040db""#, "redis://u:hunter2@db"), "\"redis://…@db\"");
    }

    #[test]
    fn pem_keys_and_passwords_are_never_repeated() {
        for text in [
            "-----BEGIN PRIVATE KEY-----\nhunter2",
            "hunter2\n-----END PRIVATE KEY-----",
            "postgres://db/x?user=u&password=hunter2",
            "host=db PassWord = hunter2",
            "hunter2/MC4CAQAwBQYDK2VwBCIEIE0eLRLNu0p1",
        ] {
            assert!(!shown(text).contains("hunter2"), "{}", shown(text));
            assert!(!key_name(text).contains("hunter2"), "{}", key_name(text));
        }
    }

    #[test]
    fn locations_are_named_where_they_are_no_secret_or_are_there() {
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().join("server.key");
        std::fs::write(&there, "").unwrap();
        assert_eq!(file("listener[0].tls.certificates[0].key", &there), there.display().to_string());
        assert_eq!(file("x.key_passphrase_file", Path::new("/etc/hunter2")), "the file that it names");
        assert_eq!(file("x.client_ca", Path::new("/etc/hunter2")), "/etc/hunter2");
        assert_eq!(file("x.cert", Path::new("/etc/-----BEGIN CERTIFICATE-----")), "the file that it names");
        let variable = |name: &str| Location::Variable(name.to_owned());
        assert!(!location("x.key", &variable("hunter2")).contains("hunter2"));
        assert!(location("x.cert", &variable("hunter2")).contains("hunter2"));
        assert!(location("x.key", &variable("TLS_KEY")).contains("TLS_KEY"));
    }
}
