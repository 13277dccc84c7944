//! Session tickets with keys that several replicas share, so that a client can resume its session at any replica.
//!
//! A ticket contains the client's identity, so it must be valid only for the listener and the client authentication settings
//! under which it was issued. A ticket is therefore encrypted with a key derived from a key of the file, the listener and these
//! settings. This command creates the file, or adds a key:
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

/// The keys of one file, in order. The first encrypts, all decrypt.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKeys(Vec<TicketKey>);

/// Why a file of ticket keys cannot be used. The texts contain nothing of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketKeysError {
    /// The file has no line with a key.
    #[error("holds no key, or is not completely written; create a key with openssl rand -base64 48")]
    NoKey,
    /// A line is not a key.
    #[error("line {line}: not base64, or truncated; create a key with openssl rand -base64 48")]
    NotBase64 {
        /// Its number, from 1.
        line: usize,
    },
    /// A key is too short or too long.
    #[error(
        "line {line}: {found} bytes in base64, but a key has {KEY_LENGTH}; create one with openssl rand -base64 48"
    )]
    Length {
        /// Its number, from 1.
        line: usize,
        /// Its length in bytes.
        found: usize,
    },
    /// A key is repeated.
    #[error("line {line}: same key as line {first}; remove one of them")]
    Repeated {
        /// Its number, from 1.
        line: usize,
        /// The number of the line that has the same key.
        first: usize,
    },
    /// More than 16 keys.
    #[error("line {line}: too many keys (at most {MAX_KEYS}); remove keys that are no longer used by any ticket")]
    TooMany {
        /// The number of the first line above the limit, from 1.
        line: usize,
    },
}

impl TicketKeys {
    /// Parses a file with one key per line: 48 random bytes in base64. `#` starts a comment.
    ///
    /// # Errors
    /// If a line is not a key, or the file holds none.
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

impl TicketKeys {
    /// Keys that are not in a file, in order. `None` if there is none, or one has another length.
    pub(crate) fn from_raw<'k>(keys: impl IntoIterator<Item = &'k [u8]>) -> Option<Self> {
        let key = |key: &[u8]| (key.len() == KEY_LENGTH).then(|| TicketKey::new(key));
        let keys = keys.into_iter().map(key).collect::<Option<Vec<_>>>()?;
        (1..=MAX_KEYS).contains(&keys.len()).then_some(Self(keys))
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TicketKeys").field("count", &self.0.len()).finish_non_exhaustive()
    }
}

/// A key of the file. It only derives other keys.
#[derive(Clone)]
struct TicketKey {
    root: Prk,
    /// Identifies the key.
    sha256: String,
}

impl TicketKey {
    fn parse(text: &[u8], line: usize) -> Result<Self, TicketKeysError> {
        // The error of the decoder contains a part of the key.
        let key = STANDARD.decode(text).map_err(|_| TicketKeysError::NotBase64 { line })?;
        if key.len() != KEY_LENGTH {
            return Err(TicketKeysError::Length { line, found: key.len() });
        }
        Ok(Self::new(&key))
    }

    fn new(key: &[u8]) -> Self {
        Self { root: Salt::new(HKDF_SHA256, SALT).extract(key), sha256: sha256_hex(key) }
    }

    /// Derives a key by HKDF (RFC 5869) with `label` and `binding` as info.
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

/// Encrypts and decrypts the tickets of one listener with one set of client authentication settings. A ticket consists of the
/// name of its key, a nonce, and the encrypted time of issue and session state.
///
/// The cipher is AES-256-GCM-SIV because replicas choose nonces independently. If two replicas choose the same nonce, an attacker
/// learns only whether two states are equal.
#[derive(Debug)]
pub struct SharedTicketer {
    /// The first encrypts, all decrypt.
    keys: Vec<DerivedKey>,
}

impl SharedTicketer {
    /// Derives the keys for one `binding`, which must identify the listener and all its client authentication settings. Only a
    /// ticketer with one of these keys and the same `binding` can decrypt the tickets.
    ///
    /// # Errors
    /// [`BuildError::Tickets`] if the provider cannot derive the keys.
    pub fn new(keys: &TicketKeys, binding: &[u8]) -> Result<Self, BuildError> {
        let derived = keys.0.iter().map(|key| DerivedKey::new(key, binding)).collect::<Result<_, _>>();
        Ok(Self { keys: derived.map_err(|Unspecified| BuildError::Tickets)? })
    }

    fn seal(&self, state: &[u8], now: UnixTime) -> Option<Vec<u8>> {
        let DerivedKey { name, key } = self.keys.first()?;
        let mut sealed = [&now.as_secs().to_be_bytes(), state].concat();
        let nonce = key.seal_in_place_append_tag(Aad::from(name), &mut sealed).ok()?;
        let ticket = [name, nonce.as_ref().as_slice(), &sealed].concat();
        // The length field of TLS has two bytes. A client with a very large certificate gets no ticket.
        u16::try_from(ticket.len()).is_ok().then_some(ticket)
    }

    /// The session state, if the ticket is younger than [`LIFETIME`]. rustls expects key rotation to end old tickets; it limits
    /// the sessions that a stolen key reveals. Here the operator rotates the keys, so tickets also expire by the clock. A ticket
    /// of a replica whose clock is ahead is accepted.
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

/// A key derived from a key of the file for one binding.
#[derive(Debug)]
struct DerivedKey {
    /// Identifies the key in a ticket. Meaningless without the file.
    name: [u8; 16],
    key: RandomizedNonceKey,
}

impl DerivedKey {
    fn new(key: &TicketKey, binding: &[u8]) -> Result<Self, Unspecified> {
        let sealing: [u8; 32] = key.derive(KEY_LABEL, binding)?;
        Ok(Self { name: key.derive(NAME_LABEL, binding)?, key: RandomizedNonceKey::new(&AES_256_GCM_SIV, &sealing)? })
    }
}

/// Bytes of a key in the file, before base64.
pub(crate) const KEY_LENGTH: usize = 48;

/// Rotation needs two.
const MAX_KEYS: usize = 16;

/// Seconds; equal to the lifetime of tickets with keys generated by rustls.
const LIFETIME: u32 = 12 * 60 * 60;

/// Increase the number when the ticket format changes, so that an older Portcullis beside a newer one cannot misread tickets.
const SALT: &[u8] = b"portcullis session tickets 1";

/// No label is a prefix of the other, so no binding makes their outputs equal.
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

    /// The line of a key that repeats one byte.
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
    fn file_with_keys_and_comments_is_parsed_in_order() {
        let (a, b) = (line(1), line(2));
        for text in [
            format!("{a}\n{b}\n"),
            format!("{a}\n{b}"),
            format!("# those of May\r\n\r\n  {a}\r\n{b}  # from June on\r\n#\n"),
        ] {
            assert_eq!(TicketKeys::parse(text.as_bytes()), Ok(keys(&[1, 2])), "{text}");
        }
        assert_ne!(keys(&[1, 2]), keys(&[2, 1]), "the first one encrypts");
        assert_ne!(keys(&[1, 2]), keys(&[1]));
        let most: Vec<u8> = (0..16).collect();
        assert_eq!(keys(&most).0.len(), MAX_KEYS);
    }

    #[test]
    fn invalid_line_is_rejected_with_its_number() {
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
    fn truncated_key_is_rejected() {
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
    fn debug_output_and_errors_contain_no_key() {
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
    fn first_key_encrypts_and_all_keys_decrypt() {
        let replica = ticketer(&[1, 2, 3], "main");
        let ticket = replica.seal(b"state", NOW).unwrap();
        assert_eq!(replica.open(&ticket, NOW).as_deref(), Some(&b"state"[..]));
        for (others, opens) in [(&[1][..], true), (&[3, 1], true), (&[2, 3], false)] {
            assert_eq!(ticketer(others, "main").open(&ticket, NOW).is_some(), opens, "{others:?}");
        }
    }

    #[test]
    fn replicas_during_a_rotation_decrypt_tickets_of_each_other() {
        let (before, after) = (ticketer(&[1, 2], "main"), ticketer(&[2, 1], "main"));
        for (one, other) in [(&before, &after), (&after, &before)] {
            let ticket = one.seal(b"state", NOW).unwrap();
            assert_eq!(other.open(&ticket, NOW).as_deref(), Some(&b"state"[..]));
        }
    }

    #[test]
    fn ticket_of_another_binding_is_rejected() {
        let (one, other) = (ticketer(&[1], "one"), ticketer(&[1], "other"));
        let ticket = one.seal(b"state", NOW).unwrap();
        assert_eq!(other.open(&ticket, NOW), None);
        // Not even under the name of the other's key.
        let renamed = [&other.keys[0].name, &ticket[16..]].concat();
        assert_eq!(other.open(&renamed, NOW), None);
        assert_ne!(one.keys[0].name, other.keys[0].name);
    }

    #[test]
    fn altered_ticket_is_rejected() {
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
    fn tickets_of_the_same_state_share_only_the_key_name() {
        let replica = ticketer(&[1], "main");
        let [one, other] = [(); 2].map(|()| replica.seal(&[0; 64], NOW).unwrap());
        assert_eq!(one[..16], other[..16]);
        assert_ne!(one[16..28], other[16..28], "the nonce");
        assert_ne!(one[28..], other[28..]);
    }

    #[test]
    fn ticket_expires_after_twelve_hours() {
        let replica = ticketer(&[1], "main");
        let ticket = replica.seal(b"state", NOW).unwrap();
        assert_eq!(replica.lifetime(), 43_200);
        assert!(replica.open(&ticket, later(43_199)).is_some());
        assert_eq!(replica.open(&ticket, later(43_200)), None);
        let ahead = replica.seal(b"state", later(60)).unwrap();
        assert!(replica.open(&ahead, NOW).is_some(), "encrypted by a replica whose clock is ahead");
        let wrong_clock = replica.seal(b"state", later(43_200)).unwrap();
        assert_eq!(replica.open(&wrong_clock, NOW), None);
    }

    #[test]
    fn state_above_the_maximum_ticket_size_gets_no_ticket() {
        let replica = ticketer(&[1], "main");
        let overhead = replica.seal(b"", NOW).unwrap().len();
        assert_eq!(replica.seal(&vec![0; 65_535 - overhead], NOW).map(|ticket| ticket.len()), Some(65_535));
        assert_eq!(replica.seal(&vec![0; 65_536 - overhead], NOW), None);
    }

    /// Runs a handshake, and returns its kind and TLS version.
    fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> (HandshakeKind, ProtocolVersion) {
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
    fn client_resumes_only_at_a_replica_with_the_same_keys_and_binding() {
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
                let results = [&here, &there, &here].map(|server| handshake(&client, server));
                assert_eq!(results, [full, resumed, resumed], "{options:?}");
                for unrelated in [replica(&[1, 2], "other"), replica(&[3], "main")] {
                    let client = options.client_config();
                    let results = [&here, &unrelated].map(|server| handshake(&client, server));
                    assert_eq!(results, [full, full], "{options:?}");
                }
            }
        }
    }
}
