//! Describes handshake errors of a peer in terms of the TLS specification instead of rustls types.

use rustls::{AlertDescription, Error, InvalidMessage, PeerIncompatible, PeerMisbehaved};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Client,
    Upstream,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "the client",
            Self::Upstream => "the upstream",
        }
    }
}

/// Describes a handshake error that is neither a certificate error nor an alert from the peer.
pub(crate) fn describe(error: &Error, peer: Peer) -> String {
    let who = peer.name();
    let what = match error {
        Error::PeerIncompatible(cause) => return incompatible(cause, peer),
        Error::PeerMisbehaved(cause) => misbehaved(cause),
        Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge | InvalidMessage::MessageTooLarge)
        | Error::PeerSentOversizedRecord => "sent a TLS message or record that is longer than TLS allows",
        Error::InvalidMessage(InvalidMessage::InvalidServerName) => "sent a server name (SNI) that is not a host name",
        Error::InvalidMessage(InvalidMessage::UnknownProtocolVersion) => "sent a TLS record of an unknown version",
        Error::InvalidMessage(InvalidMessage::UnsupportedCompression) => {
            "offers only TLS compression, which is not supported"
        }
        Error::InvalidMessage(_) => "sent a malformed TLS message",
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            "sent a TLS message out of order"
        }
        Error::InvalidEncryptedClientHello(_) => "sent an encrypted client hello that cannot be used",
        Error::NoCertificatesPresented => "sent no certificate",
        Error::DecryptError => "sent a TLS record that cannot be decrypted",
        Error::NoApplicationProtocol => "offers application protocols (ALPN), but not the required one",
        Error::UnsupportedNameType => "has a name of an unsupported type",
        // Portcullis itself creates these errors, with texts for operators.
        Error::General(text) => return text.clone(),
        _ => return "TLS failed because of an internal error of Portcullis, not of the peer".to_owned(),
    };
    format!("{who} {what}")
}

/// Describes a peer whose TLS parameters are too old or not supported.
fn incompatible(cause: &PeerIncompatible, peer: Peer) -> String {
    use PeerIncompatible as I;
    let who = peer.name();
    let verb = match peer {
        Peer::Client => "offers",
        Peer::Upstream => "chose",
    };
    let what = match cause {
        I::Tls12NotOffered
        | I::Tls12NotOfferedOrEnabled
        | I::ServerDoesNotSupportTls12Or13
        | I::ServerTlsVersionIsDisabledByOurConfig
        | I::SupportedVersionsExtensionRequired => {
            "no supported TLS version; supported: TLS 1.2 and 1.3, or only 1.3 with min_version = \"1.3\""
        }
        I::SignatureAlgorithmsExtensionRequired => {
            "no signature algorithms, like TLS 1.1 and older; TLS 1.2 or later is required"
        }
        I::NoCipherSuitesInCommon => {
            "no supported cipher suite; supported: AES-GCM or ChaCha20-Poly1305 with ECDHE and the key type of the \
             certificate; suites with CBC, RSA key exchange or DHE are too old"
        }
        I::NoKxGroupsInCommon | I::NamedGroupsExtensionRequired | I::KeyShareExtensionRequired => {
            "no supported key exchange; supported: X25519MLKEM768, X25519, P-256 or P-384; cipher suites with only RSA key \
             exchange or DHE are too old"
        }
        I::EcPointsExtensionRequired | I::NoEcPointFormatsInCommon | I::UncompressedEcPointsRequired => {
            "no uncompressed elliptic curve points; no other format is supported"
        }
        I::NoSignatureSchemesInCommon | I::NoCertificateRequestSignatureSchemesInCommon => {
            "no signature algorithm that fits the key of the certificate; supported: ECDSA or RSA with SHA-256 or stronger, Ed25519"
        }
        I::ExtendedMasterSecretExtensionRequired => "no extended master secret, which TLS 1.2 requires (RFC 7627)",
        I::NullCompressionRequired => "only TLS compression, which is not supported",
        _ => return format!("{who} and Portcullis support no common TLS parameters"),
    };
    format!("{who} {verb} {what}")
}

fn misbehaved(cause: &PeerMisbehaved) -> &'static str {
    use PeerMisbehaved as M;
    match cause {
        M::ServerNameMustContainOneHostName | M::DuplicateServerNameTypes => {
            "sent a server name (SNI) that is not exactly one host name"
        }
        M::ServerNameDifferedOnRetry => "sent another server name (SNI) in its second hello",
        M::AttemptedDowngradeToTls12WhenTls13IsSupported => "tried to downgrade to TLS 1.2",
        M::InvalidKeyShare => "sent a key share that is not a valid public key",
        M::SignedHandshakeWithUnadvertisedSigScheme | M::SignedKxWithWrongAlgorithm => {
            "signed the handshake with an algorithm that does not fit its certificate"
        }
        M::TooManyEmptyFragments | M::TooManyWarningAlertsReceived => "sent too many empty TLS records or warnings",
        M::TooManyKeyUpdateRequests => "requested new TLS keys too often",
        M::TooManyRenegotiationRequests => "requested renegotiation too often",
        M::TooMuchEarlyDataReceived => "sent early data, which is not accepted",
        _ => "violated the TLS protocol",
    }
}

/// The name and number of an alert in RFC 8446 §6.
pub(crate) fn alert_name(alert: AlertDescription) -> String {
    let number = u8::from(alert);
    let name = match alert {
        AlertDescription::CloseNotify => "close_notify",
        AlertDescription::UnexpectedMessage => "unexpected_message",
        AlertDescription::BadRecordMac => "bad_record_mac",
        AlertDescription::RecordOverflow => "record_overflow",
        AlertDescription::HandshakeFailure => "handshake_failure",
        AlertDescription::BadCertificate => "bad_certificate",
        AlertDescription::UnsupportedCertificate => "unsupported_certificate",
        AlertDescription::CertificateRevoked => "certificate_revoked",
        AlertDescription::CertificateExpired => "certificate_expired",
        AlertDescription::CertificateUnknown => "certificate_unknown",
        AlertDescription::IllegalParameter => "illegal_parameter",
        AlertDescription::UnknownCA => "unknown_ca",
        AlertDescription::AccessDenied => "access_denied",
        AlertDescription::DecodeError => "decode_error",
        AlertDescription::DecryptError => "decrypt_error",
        AlertDescription::ProtocolVersion => "protocol_version",
        AlertDescription::InsufficientSecurity => "insufficient_security",
        AlertDescription::InternalError => "internal_error",
        AlertDescription::InappropriateFallback => "inappropriate_fallback",
        AlertDescription::UserCanceled => "user_canceled",
        AlertDescription::NoRenegotiation => "no_renegotiation",
        AlertDescription::MissingExtension => "missing_extension",
        AlertDescription::UnsupportedExtension => "unsupported_extension",
        AlertDescription::UnrecognisedName => "unrecognized_name",
        AlertDescription::BadCertificateStatusResponse => "bad_certificate_status_response",
        AlertDescription::UnknownPSKIdentity => "unknown_psk_identity",
        AlertDescription::CertificateRequired => "certificate_required",
        AlertDescription::NoApplicationProtocol => "no_application_protocol",
        _ => return format!("{number}"),
    };
    format!("{name} ({number})")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a text contains an identifier from code.
    fn contains_identifier(text: &str) -> bool {
        let is_code = |word: &str| {
            let inner_capitals = word.char_indices().filter(|(at, letter)| *at > 0 && letter.is_uppercase()).count();
            let known = ["PROXY", "ECDHE", "ChaCha20", "X25519MLKEM768", "Poly1305", "GCM", "Ed25519", "min_version"];
            word.contains("::")
                || inner_capitals > 0
                    && word.chars().any(char::is_lowercase)
                    && !known.iter().any(|known| word.contains(known))
        };
        text.split(|letter: char| letter.is_whitespace() || ",;:()\"".contains(letter)).any(is_code)
    }

    #[test]
    fn handshake_error_texts_contain_no_identifiers() {
        use PeerIncompatible as I;
        use PeerMisbehaved as M;
        let errors = [
            Error::PeerIncompatible(I::NoKxGroupsInCommon),
            Error::PeerIncompatible(I::SignatureAlgorithmsExtensionRequired),
            Error::PeerIncompatible(I::Tls12NotOfferedOrEnabled),
            Error::PeerIncompatible(I::NoCipherSuitesInCommon),
            Error::PeerIncompatible(I::NoSignatureSchemesInCommon),
            Error::PeerIncompatible(I::ExtendedMasterSecretExtensionRequired),
            Error::PeerIncompatible(I::Tls13RequiredForQuic),
            Error::PeerMisbehaved(M::ServerNameMustContainOneHostName),
            Error::PeerMisbehaved(M::IncorrectBinder),
            Error::InvalidMessage(InvalidMessage::MissingData("ClientHello")),
            Error::InvalidMessage(InvalidMessage::InvalidServerName),
            Error::InappropriateMessage { expect_types: Vec::new(), got_type: rustls::ContentType::Alert },
            Error::DecryptError,
            Error::PeerSentOversizedRecord,
            Error::HandshakeNotComplete,
        ];
        for error in errors {
            for peer in [Peer::Client, Peer::Upstream] {
                let text = describe(&error, peer);
                assert!(!contains_identifier(&text), "{text}");
            }
        }
        assert!(contains_identifier("peer is incompatible: NoKxGroupsInCommon"));
    }

    #[test]
    fn alert_name_is_that_of_the_specification() {
        assert_eq!(alert_name(AlertDescription::UnknownCA), "unknown_ca (48)");
        assert_eq!(alert_name(AlertDescription::from(200)), "200");
    }
}
