//! Session tickets under keys that several replicas share, so that a client is known again at any of them.
//!
//! A ticket says who its client is, so one that was issued under other terms must not open here. No key of the file
//! therefore seals a ticket itself: from each of them a key is derived for one listener under one trust, and nothing else
//! derives the same. The file is made, and gets another key, by
//!
//! ```text
//! (umask 077; openssl rand -base64 48 >> tickets.keys)
//! ```

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::UnixTime;
use rustls::server::ProducesTickets;

use crate::x509::crypto::sha256_hex;
use crate::x509::error::BuildError;

/// The keys of one file, in its order.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKeys(Vec<TicketKey>);

/// Why a file of ticket keys cannot be used. Says nothing of what is in a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketKeysError {
    /// No line with a key.
    #[error("holds no key, or is not completely written; create a key with openssl rand -base64 48")]
    NoKey,
    /// A line that is something else.
    #[error("line {line}: not base64, or truncated; create a key with openssl rand -base64 48")]
    NotBase64 {
        /// Its number, from 1.
        line: usize,
    },
    /// A key that is too short or too long.
    #[error(
        "line {line}: {found} bytes in base64, but a key has {KEY_LENGTH}; create one with openssl rand -base64 48"
    )]
    Length {
        /// Its number, from 1.
        line: usize,
        /// How many bytes it holds.
        found: usize,
    },
    /// A key that is there already.
    #[error("line {line}: same key as line {first}; remove one of them")]
    Repeated {
        /// Its number, from 1.
        line: usize,
        /// The number of the line that has the same key.
        first: usize,
    },
    /// More keys than anybody rotates through.
    #[error("line {line}: too many keys (at most {MAX_KEYS}); remove keys that are no longer used by any ticket")]
    TooMany {
        /// The number of the first line that is too many, from 1.
        line: usize,
    },
}

impl TicketKeys {
    /// Reads a file of keys: one a line, base64 of 48 random bytes. What follows a `#` is a comment.
    ///
    /// # Errors
    /// When a line is no key, or there is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, TicketKeysError> {
        let mut keys: Vec<(usize, TicketKey)> = Vec::new();
        for (line, text) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
            let text = text.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
            if text.is_empty() {
                continue;
            }
            let key = TicketKey::parse(text, line)?;
            if let Some((first, _)) = keys.iter().find(|(_, other)| *other == key) {
                return Err(TicketKeysError::Repeated { line, first: *first });
            }
            if keys.len() == MAX_KEYS {
                return Err(TicketKeysError::TooMany { line });
            }
            keys.push((line, key));
        }
        if keys.is_empty() {
            Err(TicketKeysError::NoKey)
        } else {
            Ok(Self(keys.into_iter().map(|(_, key)| key).collect()))
        }
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TicketKeys").field("count", &self.0.len()).finish_non_exhaustive()
    }
}

/// A key of the file, good for deriving others only.
#[derive(Clone)]
struct TicketKey {
    root: Prk,
    /// By which it is told from others.
    sha256: String,
}

impl TicketKey {
    fn parse(text: &[u8], line: usize) -> Result<Self, TicketKeysError> {
        // The decoder's own words show a piece of the key.
        let key = STANDARD.decode(text).map_err(|_| TicketKeysError::NotBase64 { line })?;
        if key.len() != KEY_LENGTH {
            return Err(TicketKeysError::Length { line, found: key.len() });
        }
        Ok(Self { root: Salt::new(HKDF_SHA256, SALT).extract(&key), sha256: sha256_hex(&key) })
    }

    /// What `label` and `binding` make of it.
    fn derive<const LENGTH: usize>(&self, label: &[u8], binding: &[u8]) -> Result<[u8; LENGTH], Unspecified> {
        let mut derived = [0; LENGTH];
        self.root.expand(&[label, binding], Length::<LENGTH>)?.fill(&mut derived)?;
        Ok(derived)
    }
}

impl PartialEq for TicketKey {
    fn eq(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
    }
}

impl Eq for TicketKey {}

struct Length<const BYTES: usize>;

impl<const BYTES: usize> KeyType for Length<BYTES> {
    fn len(&self) -> usize {
        BYTES
    }
}

/// Issues and opens the tickets of one listener under one trust. A ticket is the name of its key, a nonce, and the sealed
/// time of issue and state of the session.
///
/// AES-256-GCM-SIV, because replicas under one key know nothing of each other's nonces: should two ever choose the same one,
/// no more is lost than that two equal states look equal.
#[derive(Debug)]
pub struct SharedTicketer {
    /// The first seals, all open.
    keys: Vec<DerivedKey>,
}

impl SharedTicketer {
    /// Derives the keys of the tickets that only a ticketer with one of these keys and this `binding` can open, which is to
    /// name the listener and all that its trust is made of.
    ///
    /// # Errors
    /// When the provider cannot derive them.
    pub fn new(keys: &TicketKeys, binding: &[u8]) -> Result<Self, BuildError> {
        let derived = keys.0.iter().map(|key| DerivedKey::new(key, binding)).collect::<Result<_, _>>();
        Ok(Self { keys: derived.map_err(|Unspecified| BuildError::Tickets)? })
    }

    fn seal(&self, state: &[u8], now: UnixTime) -> Option<Vec<u8>> {
        let DerivedKey { name, key } = self.keys.first()?;
        let mut sealed = [&now.as_secs().to_be_bytes(), state].concat();
        let nonce = key.seal_in_place_append_tag(Aad::from(name), &mut sealed).ok()?;
        let ticket = [name, nonce.as_ref().as_slice(), &sealed].concat();
        // TLS has two bytes for its length; a client with an enormous certificate goes without one.
        u16::try_from(ticket.len()).is_ok().then_some(ticket)
    }

    /// The state of the session, while the ticket is fresh. rustls wants old tickets to be stopped by changing keys, because
    /// nothing else keeps their sessions secret from who steals a key later. When that is done is for the operator to
    /// say here, so a ticket ends by the clock too; one of a replica whose clock runs ahead is taken.
    fn open(&self, ticket: &[u8], now: UnixTime) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let DerivedKey { name, key } = self.keys.iter().find(|key| key.name == *name)?;
        let mut sealed = sealed.to_vec();
        let opened = key.open_in_place(Nonce::from(nonce), Aad::from(name), &mut sealed).ok()?;
        let (issued, state) = opened.split_first_chunk()?;
        let age = now.as_secs().abs_diff(u64::from_be_bytes(*issued));
        (age < u64::from(LIFETIME)).then(|| state.to_vec())
    }
}

impl ProducesTickets for SharedTicketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, UnixTime::now())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher, UnixTime::now())
    }
}

/// A key of the file as it is for one binding.
#[derive(Debug)]
struct DerivedKey {
    /// Tells which key a ticket is under, to who has the file and to nobody else.
    name: [u8; 16],
    key: RandomizedNonceKey,
}

impl DerivedKey {
    fn new(key: &TicketKey, binding: &[u8]) -> Result<Self, Unspecified> {
        let sealing: [u8; 32] = key.derive(KEY_LABEL, binding)?;
        Ok(Self { name: key.derive(NAME_LABEL, binding)?, key: RandomizedNonceKey::new(&AES_256_GCM_SIV, &sealing)? })
    }
}

/// A key of the file, before base64.
const KEY_LENGTH: usize = 48;

/// Two are enough to rotate.
const MAX_KEYS: usize = 16;

/// In seconds; that of the tickets rustls makes under keys of its own.
const LIFETIME: u32 = 12 * 60 * 60;

/// Has a new number when a ticket is made otherwise, so that an older Portcullis beside a newer one cannot misread its
/// tickets.
const SALT: &[u8] = b"portcullis session tickets 1";

/// Neither begins as the other does, so no binding can make them meet.
const NAME_LABEL: &[u8] = b"name of ";
const KEY_LABEL: &[u8] = b"key for ";

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rustls::server::NoServerSessionStorage;
    use rustls::{
        ClientConfig, ClientConnection, Connection, HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection,
    };

    use super::*;
    use crate::tls::fixtures::TlsOptions;

    const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));

    /// The line of a key that is all the same byte.
    fn line(byte: u8) -> String {
        STANDARD.encode([byte; KEY_LENGTH])
    }

    fn keys(bytes: &[u8]) -> TicketKeys {
        let lines: Vec<_> = bytes.iter().map(|byte| line(*byte)).collect();
        TicketKeys::parse(lines.join("\n").as_bytes()).unwrap()
    }

    fn ticketer(bytes: &[u8], binding: &str) -> SharedTicketer {
        SharedTicketer::new(&keys(bytes), binding.as_bytes()).unwrap()
    }

    fn later(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(NOW.as_secs() + seconds))
    }

    #[test]
    fn a_file_has_a_key_a_line_and_may_have_comments() {
        let (a, b) = (line(1), line(2));
        for text in [
            format!("{a}\n{b}\n"),
            format!("{a}\n{b}"),
            format!("# those of May\r\n\r\n  {a}\r\n{b}  # from June on\r\n#\n"),
        ] {
            assert_eq!(TicketKeys::parse(text.as_bytes()), Ok(keys(&[1, 2])), "{text}");
        }
        assert_ne!(keys(&[1, 2]), keys(&[2, 1]), "the first one seals");
        assert_ne!(keys(&[1, 2]), keys(&[1]));
        let most: Vec<u8> = (0..16).collect();
        assert_eq!(keys(&most).0.len(), MAX_KEYS);
    }

    #[test]
    fn every_other_file_is_an_error_that_names_the_line() {
        let of = |text: &str| TicketKeys::parse(text.as_bytes()).unwrap_err();
        let (a, b) = (line(1), line(2));
        assert_eq!(of(""), TicketKeysError::NoKey);
        assert_eq!(of("# nothing yet\n\n"), TicketKeysError::NoKey);
        assert_eq!(of(&format!("{a}\nk{b}")), TicketKeysError::NotBase64 { line: 2 });
        assert_eq!(of(&format!("{a} {b}")), TicketKeysError::NotBase64 { line: 1 });
        assert_eq!(of(&format!("\n{a}\n\n{a}")), TicketKeysError::Repeated { line: 4, first: 2 });
        assert_eq!(of(&format!("{a}{b}")), TicketKeysError::Length { line: 1, found: 96 });
        assert_eq!(of(&STANDARD.encode([1; 32])), TicketKeysError::Length { line: 1, found: 32 });
        let many: Vec<_> = (0..17).map(line).collect();
        assert_eq!(of(&many.join("\n")), TicketKeysError::TooMany { line: 17 });
    }

    #[test]
    fn a_key_cut_off_anywhere_is_an_error() {
        let text = format!("{}\n{}", line(1), line(2));
        let begun = line(1).len() + 1;
        for cut in (begun + 1)..text.len() {
            let error = TicketKeys::parse(&text.as_bytes()[..cut]).unwrap_err();
            assert!(
                matches!(error, TicketKeysError::NotBase64 { line: 2 } | TicketKeysError::Length { line: 2, .. }),
                "cut at {cut}: {error}"
            );
        }
    }

    #[test]
    fn nothing_shows_a_key() {
        let key = [b"abcdefghijklmnopqrstuvwxyz".as_slice(), &[b'!'; 22]].concat();
        let text = STANDARD.encode(&key);
        let keys = TicketKeys::parse(text.as_bytes()).unwrap();
        let derived = SharedTicketer::new(&keys, b"main").unwrap();
        let wrong = TicketKeys::parse(format!("{text}A\n").as_bytes()).unwrap_err();
        let twice = TicketKeys::parse(format!("{text}\n{text}").as_bytes()).unwrap_err();
        let shown = format!("{keys:?} {derived:?} {wrong:?} {wrong} {twice:?} {twice}");
        let bytes = format!("{key:?}");
        assert!(!shown.contains(bytes.trim_matches(['[', ']'])), "{shown}");
        for piece in text.as_bytes().windows(6) {
            assert!(!shown.contains(str::from_utf8(piece).unwrap()), "{shown}");
        }
        assert!(!shown.contains(&sha256_hex(&key)), "{shown}");
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let replica = ticketer(&[1, 2, 3], "main");
        let ticket = replica.seal(b"state", NOW).unwrap();
        assert_eq!(replica.open(&ticket, NOW).as_deref(), Some(&b"state"[..]));
        for (others, opens) in [(&[1][..], true), (&[3, 1], true), (&[2, 3], false)] {
            assert_eq!(ticketer(others, "main").open(&ticket, NOW).is_some(), opens, "{others:?}");
        }
    }

    #[test]
    fn replicas_in_the_middle_of_a_rotation_open_each_others_tickets() {
        let (before, after) = (ticketer(&[1, 2], "main"), ticketer(&[2, 1], "main"));
        for (one, other) in [(&before, &after), (&after, &before)] {
            let ticket = one.seal(b"state", NOW).unwrap();
            assert_eq!(other.open(&ticket, NOW).as_deref(), Some(&b"state"[..]));
        }
    }

    #[test]
    fn a_ticket_of_another_binding_cannot_be_opened() {
        let (one, other) = (ticketer(&[1], "one"), ticketer(&[1], "other"));
        let ticket = one.seal(b"state", NOW).unwrap();
        assert_eq!(other.open(&ticket, NOW), None);
        // Not even under the name of the other's key.
        let renamed = [&other.keys[0].name, &ticket[16..]].concat();
        assert_eq!(other.open(&renamed, NOW), None);
        assert_ne!(one.keys[0].name, other.keys[0].name);
    }

    #[test]
    fn no_altered_ticket_is_opened() {
        let replica = ticketer(&[1, 2], "main");
        let ticket = replica.seal(b"state", NOW).unwrap();
        for bit in 0..ticket.len() * 8 {
            let mut altered = ticket.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(replica.open(&altered, NOW), None, "bit {bit}");
        }
        for cut in 0..ticket.len() {
            assert_eq!(replica.open(&ticket[..cut], NOW), None, "the first {cut}");
            assert_eq!(replica.open(&ticket[ticket.len() - cut..], NOW), None, "the last {cut}");
        }
        assert_eq!(replica.open(&[&ticket[..], &[0]].concat(), NOW), None);
        assert_eq!(replica.decrypt(&[0; 70_000]), None);
    }

    #[test]
    fn two_tickets_of_the_same_state_differ_in_all_but_the_name_of_the_key() {
        let replica = ticketer(&[1], "main");
        let [one, other] = [(); 2].map(|()| replica.seal(&[0; 64], NOW).unwrap());
        assert_eq!(one[..16], other[..16]);
        assert_ne!(one[16..28], other[16..28], "the nonce");
        assert_ne!(one[28..], other[28..]);
    }

    #[test]
    fn a_ticket_is_good_for_half_a_day() {
        let replica = ticketer(&[1], "main");
        let ticket = replica.seal(b"state", NOW).unwrap();
        assert_eq!(replica.lifetime(), 43_200);
        assert!(replica.open(&ticket, later(43_199)).is_some());
        assert_eq!(replica.open(&ticket, later(43_200)), None);
        let ahead = replica.seal(b"state", later(60)).unwrap();
        assert!(replica.open(&ahead, NOW).is_some(), "sealed by a clock that runs ahead");
        let astray = replica.seal(b"state", later(43_200)).unwrap();
        assert_eq!(replica.open(&astray, NOW), None);
    }

    #[test]
    fn a_state_that_no_ticket_can_hold_gets_none() {
        let replica = ticketer(&[1], "main");
        let overhead = replica.seal(b"", NOW).unwrap().len();
        assert_eq!(replica.seal(&vec![0; 65_535 - overhead], NOW).map(|ticket| ticket.len()), Some(65_535));
        assert_eq!(replica.seal(&vec![0; 65_536 - overhead], NOW), None);
    }

    /// Carries everything that both have to say, and tells how the client was greeted, and in which version.
    fn meet(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> (HandshakeKind, ProtocolVersion) {
        let client = ClientConnection::new(Arc::clone(client), "db.test".try_into().unwrap()).unwrap();
        let mut client = Connection::from(client);
        let mut server = Connection::from(ServerConnection::new(Arc::clone(server)).unwrap());
        while client.wants_write() || server.wants_write() {
            deliver(&mut client, &mut server);
            deliver(&mut server, &mut client);
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        (client.handshake_kind().unwrap(), client.protocol_version().unwrap())
    }

    fn deliver(from: &mut Connection, to: &mut Connection) {
        let mut flight = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut flight).unwrap();
        }
        let mut rest = flight.as_slice();
        while !rest.is_empty() {
            to.read_tls(&mut rest).unwrap();
            to.process_new_packets().unwrap();
        }
    }

    #[test]
    fn a_client_resumes_at_another_replica_and_nowhere_else() {
        for (suite, version) in [(0, ProtocolVersion::TLSv1_3), (5, ProtocolVersion::TLSv1_2)] {
            let [full, resumed] = [HandshakeKind::Full, HandshakeKind::Resumed].map(|kind| (kind, version));
            for client_auth in [false, true] {
                let options = TlsOptions { suite, record: None, client_auth };
                let replica = |bytes: &[u8], binding: &str| {
                    let mut config = (*options.server_config()).clone();
                    config.session_storage = Arc::new(NoServerSessionStorage {});
                    config.ticketer = Arc::new(ticketer(bytes, binding));
                    Arc::new(config)
                };
                let (here, there) = (replica(&[1, 2], "main"), replica(&[2, 1], "main"));
                let client = options.client_config();
                let met = [&here, &there, &here].map(|server| meet(&client, server));
                assert_eq!(met, [full, resumed, resumed], "{options:?}");
                for untrusted in [replica(&[1, 2], "other"), replica(&[3], "main")] {
                    let client = options.client_config();
                    let met = [&here, &untrusted].map(|server| meet(&client, server));
                    assert_eq!(met, [full, full], "{options:?}");
                }
            }
        }
    }
}
