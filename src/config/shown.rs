//! How much of a configured value an error may show. Errors reach terminals and logs, so an error never shows a value that
//! holds or names a secret, and shortens every other value.

use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::path::Path;

use crate::config::files::Location;
use crate::printable;
use crate::source::rule::Source;

/// Keys whose values hold or name a secret, in any table. Everything below such a key is secret too. The list includes keys of
/// features that are not available yet, because operators may already write them.
const SECRET_KEYS: [&str; 16] = [
    "ca_key",
    "key",
    "key_file",
    "key_passphrase",
    "key_passphrase_file",
    "passphrase",
    "password",
    "password_file",
    "passwords",
    "scram",
    "secret",
    "ticket_keys",
    "token",
    "token_file",
    "tokens",
    "upstream_password_file",
];

/// Maximum length of a value or key name in an error, in characters.
const MAX_SHOWN: usize = 64;

/// The same for a number that is longer than any valid one, and may be a key in digits.
const MAX_SHOWN_DIGITS: usize = 12;

/// The longest valid numbers: `-9223372036854775808`, `-1.7976931348623157e308`.
const MAX_NUMBER: usize = 24;

/// Whether a key, such as `listener[0].tls.certificates[0].key`, is one of [`SECRET_KEYS`] or below one.
pub(crate) fn is_secret(path: &str) -> bool {
    path.split('.').any(|part| SECRET_KEYS.contains(&part.split('[').next().unwrap_or(part)))
}

/// A string as an error shows it. `written` is the literal in the file.
pub(crate) fn string(written: &str, text: &str) -> String {
    match redacted(text) {
        Redacted::Plain => bounded(written.lines().next().unwrap_or("")),
        Redacted::Part(part) => format!("\"{}\"", bounded(&part)),
        Redacted::Hidden(why) => format!("a string that is not shown ({why})"),
    }
}

/// The name of a key as an error shows it.
pub(crate) fn key_name(name: &str) -> String {
    match redacted(name) {
        Redacted::Plain => bounded(name),
        Redacted::Part(part) => bounded(&part),
        Redacted::Hidden(why) => format!("(not shown: {why})"),
    }
}

/// The first [`MAX_SHOWN`] characters of a text.
pub(crate) fn bounded(text: &str) -> String {
    cut(text, MAX_SHOWN)
}

/// A number as an error shows it.
pub(crate) fn number(written: &str) -> String {
    cut(written, if written.len() > MAX_NUMBER { MAX_SHOWN_DIGITS } else { MAX_NUMBER })
}

/// Whether an error shows only part of a text, so that no other message may show all of it.
pub(crate) fn is_cut(text: &str) -> bool {
    !matches!(redacted(text), Redacted::Plain) || text.chars().count() > MAX_SHOWN
}

/// The location that the value of `key` names. The path of an existing file is shown in full, because it cannot be a secret.
pub(crate) fn location(key: &str, location: &Location) -> String {
    match location {
        Location::Variable(name) if is_secret(key) && !is_variable(name) => {
            "the environment variable that it names".to_owned()
        }
        Location::Variable(name) => format!("the environment variable {}", key_name(name)),
        Location::File(file) => crate::config::shown::file(key, file),
    }
}

/// The name of a credential, if an error about `key` may show it. It may be a secret that was written there by mistake.
pub(crate) fn credential<'a>(key: &str, name: &'a str) -> Option<Cow<'a, str>> {
    let is_shown =
        matches!(redacted(name), Redacted::Plain) && (!is_secret(key) || is_file_name(name) || is_purpose(name));
    is_shown.then(|| bounded(name).into())
}

/// Whether a text only names the purpose of a credential, such as `key-passphrase`.
fn is_purpose(name: &str) -> bool {
    name.split(['-', '_', '.']).all(|word| PURPOSES.contains(&word))
}

const PURPOSES: [&str; 17] = [
    "client",
    "db",
    "digitalocean",
    "key",
    "keys",
    "kubernetes",
    "passphrase",
    "password",
    "passwords",
    "portcullis",
    "private",
    "server",
    "ticket",
    "tickets",
    "tls",
    "token",
    "upstream",
];

/// Whether a text is a conventional name of an environment variable, and not a secret written after `env:` by mistake. Base32
/// keys contain no underscore.
fn is_variable(name: &str) -> bool {
    name.len() <= MAX_SHOWN
        && name.contains('_')
        && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// The path of a file that the value of `key` names. If the file is missing, the directories that exist are shown in full and the
/// rest like any other value.
pub(crate) fn file(key: &str, file: &Path) -> String {
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    if exists(file) {
        return file.display().to_string();
    }
    let existing = file.ancestors().find(|directory| exists(directory)).unwrap_or(Path::new(""));
    let missing = file.strip_prefix(existing).unwrap_or(file).to_string_lossy();
    // Checks each component too, because an address after a directory path would not be recognised.
    let is_plain = |part: &str| matches!(redacted(part), Redacted::Plain);
    let is_shown = is_plain(&missing)
        && missing.split('/').all(is_plain)
        && (!is_secret(key) || is_file_name(&file.to_string_lossy()));
    if is_shown { existing.join(bounded(&missing)).display().to_string() } else { "the file that it names".to_owned() }
}

/// Whether a text is certainly a file name, so that an error can name the missing file. It has the extension of a key file and
/// only the characters of one; a passphrase or key written there by mistake does not.
fn is_file_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    let extension = Path::new(text).extension().and_then(|extension| extension.to_str());
    text.bytes().all(is_plain) && extension.is_some_and(|extension| KEY_FILES.contains(&extension))
}

const KEY_FILES: [&str; 9] = ["crt", "key", "keys", "pass", "passphrase", "password", "pem", "token", "txt"];

/// Whether a text is PEM content instead of a file name.
pub(crate) fn is_pem(text: &str) -> bool {
    text.contains("-----")
}

/// How much of a text may be shown.
enum Redacted {
    Plain,
    /// This part, without user information.
    Part(String),
    /// Nothing, for this reason.
    Hidden(&'static str),
}

fn redacted(text: &str) -> Redacted {
    if is_pem(text) {
        return Redacted::Hidden("it looks like PEM");
    }
    if names_a_password(text) {
        return Redacted::Hidden("it looks like a password");
    }
    if has_encoded_key(text) {
        return Redacted::Hidden("it looks like a key");
    }
    let mut decoded = text.to_owned();
    for _ in 0..MAX_ENCODINGS {
        match percent_decoded(&decoded) {
            Some(plain) => decoded = plain,
            None => break,
        }
    }
    if percent_decoded(&decoded).is_some() {
        return Redacted::Hidden("it is encoded several times");
    }
    if is_pem(&decoded) || names_a_password(&decoded) || has_encoded_key(&decoded) {
        return Redacted::Hidden("it looks like a secret");
    }
    match address_part(&decoded) {
        Some(part) => Redacted::Part(part),
        None => Redacted::Plain,
    }
}

/// Texts with more levels of percent-encoding are hidden.
const MAX_ENCODINGS: usize = 3;

/// Decodes percent-encoding (RFC 3986, section 2.1); `None` if the text has no percent-encoding.
fn percent_decoded(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('%') {
        decoded.extend(before.bytes());
        let digits = behind.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                rest = behind.get(2..).unwrap_or("");
            }
            None => {
                decoded.push(b'%');
                rest = behind;
            }
        }
    }
    decoded.extend(rest.bytes());
    let decoded = String::from_utf8_lossy(&decoded).into_owned();
    Some(decoded).filter(|decoded| decoded != text)
}

/// The part of an address or URL that may be shown; `None` if all of it may be. Omits user information, an invalid port and
/// everything after it.
fn address_part(text: &str) -> Option<String> {
    let is_kind = |kind: &str| KINDS.iter().any(|known| known.eq_ignore_ascii_case(kind));
    let (kind, rest) = text.split_once(':').filter(|(kind, _)| is_kind(kind)).unwrap_or(("", text));
    let is_name = match kind.to_ascii_lowercase().as_str() {
        "email" => is_email(rest),
        "cn" | "credential" | "env" | "sha256" | "unix" => !rest.contains('@'),
        _ => is_path(rest) || is_date(rest),
    };
    if is_name {
        return None;
    }
    let (scheme, rest) = match rest.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => (format!("{scheme}://"), rest),
        Some((_, rest)) => ("…".to_owned(), rest),
        None => (String::new(), rest),
    };
    // The last `@`: passwords may contain one, hosts may not.
    let (before, rest) = rest.rsplit_once('@').map_or((None, rest), |(before, rest)| (Some(before), rest));
    let is_url = !scheme.is_empty();
    let (authority, path) = match rest.find(['/', '?', '#']) {
        Some(end) if is_url || before.is_some() => rest.split_at(end),
        Some(_) | None => (rest, ""),
    };
    let (host, port) = split_port(authority);
    let has_port = port.is_none_or(is_port);
    // The address may precede the `@`, and the password follow it.
    let is_reversed = before.is_some_and(|before| split_port(before).1.is_some_and(is_port));
    let shows_path = path.is_empty() || kind == "uri";
    if before.is_none() && has_port && shows_path {
        return None;
    }
    let user = before.map_or("", |_| "…@");
    let address = match port {
        _ if is_reversed => "…".to_owned(),
        Some(_) if !has_port => match host.split_once('/') {
            // Not a host: the text after the slash may belong to a password.
            Some((first, _)) => format!("{first}/…"),
            None => format!("{host}:…"),
        },
        Some(_) | None if path.is_empty() => authority.to_owned(),
        Some(_) | None => format!("{authority}/…"),
    };
    let kind = if kind.is_empty() { String::new() } else { format!("{kind}:") };
    Some(format!("{kind}{scheme}{user}{address}"))
}

/// Type prefixes of sources, client names, keys and addresses. Any other text before a colon may be a user name, and the text
/// after it a password. So "app" is not among them, which many users are called.
const KINDS: [&str; 15] = [
    "cn",
    "credential",
    Source::DNS,
    "droplet",
    "email",
    "env",
    Source::GROUP,
    "ip",
    Source::IP_ADDR,
    "k8s",
    "kubernetes",
    "sha256",
    "tag",
    "unix",
    "uri",
];

/// Splits a host from the text after the colon, if any. A bare IPv6 address or network has no port.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    if let Some(end) = authority.strip_prefix('[').and_then(|inner| inner.find(']')) {
        let (host, rest) = authority.split_at(end + "[]".len());
        return (host, Some(rest.strip_prefix(':').unwrap_or(rest)).filter(|_| !rest.is_empty()));
    }
    match authority.split_once(':') {
        Some((host, port)) if !is_ipv6(authority) => (host, Some(port)),
        Some(_) | None => (authority, None),
    }
}

/// Whether a text has the form of an IPv6 address, valid or not, with an optional zone, prefix length or port.
fn is_ipv6(text: &str) -> bool {
    let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
    let (address, zone) = address.split_once('%').unwrap_or((address, ""));
    let is_group = |group: &str| {
        let is_hexadecimal = group.len() <= 4 && group.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hexadecimal || is_port(group) || group.parse::<Ipv4Addr>().is_ok()
    };
    (address.contains("::") || address.matches(':').count() >= 7)
        && address.split(':').all(is_group)
        && zone.len() <= MAX_ZONE
        && zone.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && prefix.bytes().all(|byte| byte.is_ascii_digit())
}

/// Maximum length of an interface name (`IFNAMSIZ` of netdevice(7)).
const MAX_ZONE: usize = 15;

/// Whether a text is a number of at most five digits, possibly out of range, with an optional prefix length.
fn is_port(text: &str) -> bool {
    let (port, prefix) = text.split_once('/').unwrap_or((text, ""));
    let is_number = |text: &str| text.len() <= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number(port) && is_number(prefix)
}

fn is_scheme(text: &str) -> bool {
    text.len() <= MAX_SCHEME && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

const MAX_SCHEME: usize = 16;

/// Whether a text is certainly a file path and not an address.
fn is_path(text: &str) -> bool {
    let is_rooted = ["/", "./", "../"].iter().any(|root| text.starts_with(root));
    let is_first = |(before, _): (&str, &str)| before.contains('/');
    is_rooted && !text.contains(['@']) && !text.contains("://") && text.split_once(':').is_some_and(is_first)
}

/// Whether a text is a mail address or has no `@`, so that it holds no user information of a URL.
fn is_email(text: &str) -> bool {
    let is_address = |(local, domain): (&str, &str)| !local.is_empty() && !local.contains('@') && !domain.is_empty();
    !text.contains([':', '/']) && text.rsplit_once('@').is_none_or(is_address)
}

/// Whether a text has the form of a date, with an optional time.
fn is_date(text: &str) -> bool {
    let year = text.split_once('-').map_or("", |(year, _)| year);
    let is_part = |byte: u8| byte.is_ascii_digit() || b"-:.+TZtz ".contains(&byte);
    year.len() == 4 && year.bytes().all(|byte| byte.is_ascii_digit()) && text.bytes().all(is_part)
}

/// Detects `password=…` as in URLs, connection strings and configuration files.
fn names_a_password(text: &str) -> bool {
    let text = text.to_lowercase();
    let words = ["auth", "cred", "pass", "pw", "secret", "token"];
    words.iter().filter_map(|word| text.split_once(word)).any(|(_, rest)| rest.contains(['=', ' ', '\t']))
}

/// Detects a key of at least 16 bytes in base64, base64url, base32 or hexadecimal, and the parts of a JSON Web Token. Paths and
/// names consist of the same characters, but only of [ordinary words](is_ordinary).
fn has_encoded_key(text: &str) -> bool {
    if text.strip_prefix("sha256:").is_some_and(|digest| digest.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        return false;
    }
    let is_separator = |character: char| "+/=_-".contains(character);
    let is_encoded = |character: char| character.is_ascii_alphanumeric() || is_separator(character);
    let mut runs = text.split(|character| !is_encoded(character)).filter(|run| run.len() >= MIN_ENCODED_KEY);
    runs.any(|run| !run.split(is_separator).all(is_ordinary))
}

/// Whether a text without separators may be a word or number of a name, such as `production`, `Alice`, `TLS`, `projects2`,
/// `2026`, `1st` or `k8s`. Fewer than 1 in 100,000 random keys of 16 bytes in base64 consist only of such words.
fn is_ordinary(word: &str) -> bool {
    let is = |range: &str, class: fn(&u8) -> bool| range.bytes().all(|byte| class(&byte));
    let stem = word.trim_end_matches(|character: char| character.is_ascii_digit());
    let suffix = word.trim_start_matches(|character: char| character.is_ascii_digit());
    let tail = stem.strip_prefix(|first: char| first.is_ascii_uppercase()).unwrap_or(stem);
    let is_short = word.len() <= MAX_ABBREVIATION && !word.bytes().any(|byte| byte.is_ascii_uppercase());
    let is_word = is(tail, u8::is_ascii_lowercase) || is(stem, u8::is_ascii_uppercase);
    word.len() <= MAX_WORD && (is_word || is(suffix, u8::is_ascii_lowercase) || is_short)
}

/// 16 bytes in base64url without padding.
const MIN_ENCODED_KEY: usize = 22;

/// Longer words are parts of keys in base32 or hexadecimal.
const MAX_WORD: usize = 19;

/// Words of at most this length may mix letters and digits.
const MAX_ABBREVIATION: usize = 3;

fn cut(text: &str, limit: usize) -> String {
    let mut short: String = text.chars().take(limit).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    printable::lines(&short).replace('\n', "\\n")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        string(&format!("{text:?}"), text)
    }

    #[test]
    fn secret_key_is_detected_at_every_depth() {
        for path in ["key", "listener[0].tls.certificates[3].key", "listener[0].tls.ticket_keys[1]", "admin.token.x"] {
            assert!(is_secret(path), "{path}");
        }
        for path in ["", "listener[0].tls.certificates", "listener[0].name", "monkey", "listener[0].tls.cert"] {
            assert!(!is_secret(path), "{path}");
        }
    }

    #[test]
    fn plain_value_is_shown_as_written_up_to_the_maximum() {
        assert_eq!(shown("10.1.2.3/8"), "\"10.1.2.3/8\"");
        assert_eq!(shown("redis://127.0.0.1:6379"), "\"redis://127.0.0.1:6379\"");
        assert_eq!(shown("/etc/portcullis/certs/production/eu-west-1/server-2027.crt").len(), 60);
        let long = shown(&"long ".repeat(2_000));
        assert_eq!(long.chars().count(), MAX_SHOWN + 1);
        // A fingerprint is not a key.
        assert!(shown(&format!("sha256:{}", "0a".repeat(32))).starts_with("\"sha256:0a0a"));
        assert!(shown("/home/Alice/projects2/portcullis/certs/server").contains("Alice"));
    }

    #[test]
    fn user_information_is_omitted_wherever_it_ends() {
        for (text, expected) in [
            ("redis://user:hunter2@db.internal:6379", "\"redis://…@db.internal:6379\""),
            ("redis://:hunter2@db.internal", "\"redis://…@db.internal\""),
            ("user:hunter2@db.internal:5432", "\"…@db.internal:5432\""),
            ("postgres://u:hunter2@hunter2/@db:5432/x", "\"postgres://…@db:5432/…\""),
            ("redis://user:hunter2%40db.internal:6379", "\"redis://…@db.internal:6379\""),
            ("redis%3A%2F%2Fuser%3Ahunter2%2540db:6379", "\"redis://…@db:6379\""),
            ("db:6379@hunter2", "\"…@…\""),
        ] {
            assert_eq!(shown(text), expected);
        }
        assert_eq!(shown("email:app@example.com"), "\"email:app@example.com\"");
        assert_eq!(shown("email:app:hunter2@example.com"), "\"email:…@example.com\"");
        let far = format!("redis://{}:hunter2@db", "user ".repeat(100));
        assert_eq!(shown(&far), "\"redis://…@db\"");
        // An escaped `@` does not appear in the text of the file.
        assert_eq!(string(r#""redis://u:hunter2\u0040db""#, "redis://u:hunter2@db"), "\"redis://…@db\"");
    }

    #[test]
    fn invalid_port_is_omitted() {
        for (text, expected) in [
            ("db:hunter2", "\"db:…\""),
            ("db:6379:hunter2", "\"db:…\""),
            ("0.0.0.0:7734077340", "\"0.0.0.0:…\""),
            ("[::1]:hunter2", "\"[::1]:…\""),
            ("[::1]hunter2", "\"[::1]:…\""),
            ("user@db:hunter2", "\"…@db:…\""),
            ("db:1,db:hunter2", "\"db:…\""),
            ("db:hun/ter2", "\"db:…\""),
            ("'db:hunter2'", "\"'db:…\""),
            ("redis://db:hunter2/0", "\"redis://db:…\""),
            ("redis://db:6379/0?x=hunter2", "\"redis://db:6379/…\""),
            ("dns:db:hunter2", "\"dns:db:…\""),
            ("uri:redis://db:hunter2", "\"uri:redis://db:…\""),
            ("app/hunter2:hunter2", "\"app/…\""),
            ("email:hunter2@", "\"email:…@\""),
        ] {
            assert_eq!(shown(text), expected);
        }
        for text in [
            "db:99999",
            "redis",
            "2001:db8::1/64",
            "2001:db8:::1",
            "fe80::1%eth0",
            "CN:app",
            "ip:10.0.0.1",
            "::1:6379",
            "10.1.2.3:80/8",
            "uri:spiffe://cluster/ns/app",
            "cn:app:blue",
            "unix:/run/redis.sock",
            "2027-01-31T00:00:00",
            "/etc/a:b.crt",
            "50%/s",
        ] {
            assert_eq!(shown(text), format!("{text:?}"));
        }
    }

    #[test]
    fn pem_keys_and_passwords_are_never_shown() {
        for text in [
            "-----BEGIN PRIVATE KEY-----\nhunter2",
            "hunter2\n-----END PRIVATE KEY-----",
            "postgres://db/x?user=u&password=hunter2",
            "host=db PassWord = hunter2",
            "requirepass hunter2",
            "host=db pw=hunter2",
            "%2525252540hunter2",
            "hunter2/MC4CAQAwBQYDK2VwBCIEIE0eLRLNu0p1",
        ] {
            assert!(!shown(text).contains("hunter2"), "{}", shown(text));
            assert!(!key_name(text).contains("hunter2"), "{}", key_name(text));
        }
    }

    /// `count` random keys of each length and encoding, the same in every run.
    pub(crate) fn random_keys(count: usize) -> Vec<String> {
        use base64::Engine as _;
        use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            // xorshift64 (Marsaglia 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()
        };
        let mut keys = Vec::new();
        for size in [16, 24, 32, 48, 64] {
            for _ in 0..count {
                let bytes: Vec<u8> = (0..size / 8).flat_map(|_| random()).collect();
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                let base32 = base32(&bytes);
                keys.extend([STANDARD.encode(&bytes), URL_SAFE_NO_PAD.encode(&bytes), hex.to_uppercase(), hex]);
                keys.extend([base32.to_lowercase(), base32]);
            }
        }
        keys
    }

    /// RFC 4648, section 6, without padding.
    fn base32(bytes: &[u8]) -> String {
        let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
        let digit = |bits: &[u8]| {
            let value = (0..5).fold(0, |value, index| value << 1 | bits.get(index).copied().unwrap_or(0));
            char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[usize::from(value)])
        };
        bits.chunks(5).map(digit).collect()
    }

    /// Whether a text repeats more than 12 characters of a key.
    pub(crate) fn repeats(text: &str, key: &str) -> bool {
        key.as_bytes().windows(13).any(|part| text.contains(std::str::from_utf8(part).unwrap()))
    }

    #[test]
    fn random_key_is_never_shown() {
        for key in random_keys(2_000) {
            let missing = Path::new("/etc/portcullis-missing").join(&key);
            for text in [
                shown(&key),
                shown(&format!("/etc/ssl/{key}.pem")),
                shown(&format!("h/{key}:6379")),
                shown(&format!("Bearer {key}")),
                key_name(&key),
                file("x.client_ca", &missing),
                file("x.key", &missing.with_extension("key")),
                location("x.cert", &Location::Variable(key.clone())),
                credential("x.cert", &key).unwrap_or_default().into_owned(),
            ] {
                assert!(!repeats(&text, &key), "{key}: {text}");
            }
            assert!(is_cut(&key), "{key}");
        }
        let token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U";
        assert!(!repeats(&shown(token), token), "{}", shown(token));
    }

    #[test]
    fn ordinary_name_is_shown() {
        for text in [
            "certs/server.crt",
            "./tls/k8s/production/eu-west-1/client-ca-2026.pem",
            "../shared/x509/intermediate-certificates/bundle2.pem",
            "/etc/letsencrypt/live/db.example.com/fullchain.pem",
            "redis-primary-0.redis-headless.production.svc.cluster.local",
            "internal-load-balancer-1234567890.us-west-2.elb.amazonaws.com",
            "uri:spiffe://prod/ns/payments-production/sa/backend",
            "cn:Portcullis-Production-Client-CA",
            "PORTCULLIS_PRODUCTION_TLS_CERTIFICATE",
        ] {
            assert_eq!(shown(text), format!("{text:?}"));
        }
        let long = "/etc/portcullis/a-rather-long-directory-name/client-ca-bundle-2026.pem";
        assert_eq!(shown(long), format!("\"{}…", &long[..MAX_SHOWN - 1]));
        assert!(file("x.client_ca", Path::new(long)).starts_with(&long[..MAX_SHOWN]));
    }

    #[test]
    fn long_number_is_shown_only_in_part() {
        assert_eq!(number("-9223372036854775808"), "-9223372036854775808");
        assert_eq!(number(&"7".repeat(32)), format!("{}…", "7".repeat(12)));
    }

    #[test]
    fn credential_name_is_shown_only_if_it_cannot_be_a_secret() {
        assert_eq!(credential("x.key", "orders.key").as_deref(), Some("orders.key"));
        assert_eq!(credential("x.cert", "orders").as_deref(), Some("orders"));
        assert_eq!(credential("x.key_passphrase_file", "key-passphrase").as_deref(), Some("key-passphrase"));
        for (key, name) in [
            ("x.key_passphrase_file", "hunter2"),
            ("x.key", "hunter 2.key"),
            ("x.key", "hunter2-key"),
            ("x.cert", "u:p@db"),
        ] {
            assert_eq!(credential(key, name), None, "{key} {name}");
        }
    }

    #[test]
    fn location_is_shown_if_it_exists_or_cannot_be_a_secret() {
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().join("server.key");
        std::fs::write(&there, "").unwrap();
        assert_eq!(file("listener[0].tls.certificates[0].key", &there), there.display().to_string());
        assert_eq!(file("x.key_passphrase_file", Path::new("/etc/hunter2")), "the file that it names");
        assert_eq!(file("x.key", Path::new("/etc/server.key")), "/etc/server.key");
        for secret in ["/etc/hunter 2.key", "/etc/hunter2.", "/etc/hunter2.x", "/etc/.key", "/etc/hünter2.key"] {
            assert_eq!(file("x.key", Path::new(secret)), "the file that it names", "{secret}");
        }
        assert_eq!(file("x.client_ca", Path::new("/etc/hunter2")), "/etc/hunter2");
        // The name of an existing directory is no key, however it looks.
        let random = directory.path().join("Zk3vQ9xTn2LpW8rYb5Mc");
        std::fs::create_dir(&random).unwrap();
        let missing = random.join("ca.pem");
        assert_eq!(file("x.client_ca", &missing), missing.display().to_string());
        assert_eq!(file("x.cert", Path::new("/etc/-----BEGIN CERTIFICATE-----")), "the file that it names");
        let variable = |name: &str| Location::Variable(name.to_owned());
        assert!(!location("x.key", &variable("hunter2")).contains("hunter2"));
        assert!(location("x.cert", &variable("hunter2")).contains("hunter2"));
        assert!(location("x.key", &variable("TLS_KEY")).contains("TLS_KEY"));
        assert!(!location("x.key", &variable("HUNTER2")).contains("HUNTER2"));
    }
}
