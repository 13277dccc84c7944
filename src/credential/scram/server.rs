//! The server's side of an exchange.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::credential::scram::{END_POINT, MAX_MESSAGE, Mechanism, attribute, is_nonce};
use crate::credential::verifier::{Key, Parameters, Verifier, mac};
use crate::digest::sha256;

/// An exchange whose first messages have been sent.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// The channel binding that the last message of the client must repeat: header and data.
    binding: Vec<u8>,
    /// Of the client and of the server.
    nonce: String,
    /// client-first-message-bare and server-first-message, which the proof covers.
    first_messages: String,
}

/// Why an exchange fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ServerError {
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    #[error("the client asks to act as another user, which is not supported")]
    AuthorizationIdentity,
    #[error("the client requires a SCRAM extension that is not supported")]
    Extension,
    #[error("the client requires the channel binding type that is not tls-server-end-point")]
    BindingType,
    /// The client saw a list of mechanisms without channel binding, as an attacker would have sent it.
    #[error("the client supports channel binding and believes that the server does not")]
    Downgrade,
    #[error("the channel binding is not that of this TLS connection")]
    Binding,
    #[error("wrong password")]
    WrongProof,
}

/// A proof that was accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Proven {
    /// The position of the verifier that it fits.
    pub(crate) index: usize,
    /// server-final-message.
    pub(crate) message: String,
}

impl Exchange {
    /// Takes the first message of the client and returns that of the server. `binding` is the data of tls-server-end-point if the
    /// server offers SCRAM-SHA-256-PLUS. `nonce` is a new one.
    ///
    /// # Errors
    /// If the message is not one, or asks for something that is not supported.
    pub(crate) fn begin(
        mechanism: Mechanism,
        client_first: &[u8],
        binding: Option<&[u8]>,
        parameters: &Parameters,
        nonce: &str,
    ) -> Result<(Self, String), ServerError> {
        let text = text(client_first)?;
        let (header, bare) = gs2_header(text)?;
        let binding = chosen_binding(mechanism, header, binding)?;
        if bare.starts_with("m=") {
            return Err(ServerError::Extension);
        }
        let (_user, rest) = attribute(bare, 'n').ok_or(ServerError::Malformed("no user name"))?;
        let (client_nonce, extensions) = attribute(rest, 'r').ok_or(ServerError::Malformed("no nonce"))?;
        if !is_nonce(client_nonce) {
            return Err(ServerError::Malformed("invalid nonce"));
        }
        // RFC 5802 §5.1: unknown optional extensions are ignored.
        if extensions.starts_with("m=") {
            return Err(ServerError::Extension);
        }
        let nonce = format!("{client_nonce}{nonce}");
        let salt = STANDARD.encode(&parameters.salt);
        let message = format!("r={nonce},s={salt},i={}", parameters.iterations);
        let first_messages = format!("{bare},{message}");
        Ok((Self { binding, nonce, first_messages }, message))
    }

    /// Takes the last message of the client. All verifiers have the parameters that the client received; their number is that of
    /// the passwords, and all are tried, so that the time does not tell which one fits.
    ///
    /// # Errors
    /// If the message is not one, is bound to another connection, or proves no password.
    pub(crate) fn finish<'v>(
        self,
        client_final: &[u8],
        verifiers: impl IntoIterator<Item = &'v Verifier>,
    ) -> Result<Proven, ServerError> {
        let text = text(client_final)?;
        let (bound, rest) = attribute(text, 'c').ok_or(ServerError::Malformed("no channel binding"))?;
        let (nonce, _) = attribute(rest, 'r').ok_or(ServerError::Malformed("no nonce"))?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(ServerError::Malformed("no proof"))?;
        let bound = STANDARD.decode(bound).map_err(|_| ServerError::Malformed("invalid channel binding"))?;
        let proof = STANDARD.decode(proof).ok().and_then(|proof| Key::try_from(proof.as_slice()).ok());
        let proof = proof.ok_or(ServerError::Malformed("invalid proof"))?;
        if nonce != self.nonce {
            return Err(ServerError::Malformed("another nonce"));
        }
        if verify_slices_are_equal(&bound, &self.binding).is_err() {
            return Err(ServerError::Binding);
        }
        let auth_message = format!("{},{without_proof}", self.first_messages);
        let mut proven = None;
        for (index, verifier) in verifiers.into_iter().enumerate() {
            let signature = mac(&verifier.stored_key, auth_message.as_bytes());
            let mut client_key = proof;
            client_key.iter_mut().zip(signature).for_each(|(byte, mask)| *byte ^= mask);
            let is_right = verify_slices_are_equal(&sha256(&client_key), &verifier.stored_key).is_ok();
            if is_right && proven.is_none() {
                let server = STANDARD.encode(mac(&verifier.server_key, auth_message.as_bytes()));
                proven = Some(Proven { index, message: format!("v={server}") });
            }
        }
        proven.ok_or(ServerError::WrongProof)
    }
}

fn text(message: &[u8]) -> Result<&str, ServerError> {
    let text = std::str::from_utf8(message).ok().filter(|text| text.len() <= MAX_MESSAGE && !text.contains('\0'));
    text.ok_or(ServerError::Malformed("not text, or too long"))
}

/// Splits a message into gs2-header, with its last comma, and client-first-message-bare.
fn gs2_header(text: &str) -> Result<(&str, &str), ServerError> {
    let malformed = ServerError::Malformed("no GS2 header");
    let (flag, rest) = text.split_once(',').ok_or(malformed)?;
    let (identity, bare) = rest.split_once(',').ok_or(malformed)?;
    match identity {
        "" => {}
        _ if identity.starts_with("a=") => return Err(ServerError::AuthorizationIdentity),
        _ => return Err(malformed),
    }
    let header = text.get(..flag.len() + 2).ok_or(malformed)?;
    Ok((header, bare))
}

/// The channel binding that the last message must have, by the flag in the header.
fn chosen_binding(mechanism: Mechanism, header: &str, data: Option<&[u8]>) -> Result<Vec<u8>, ServerError> {
    let flag = header.split(',').next().unwrap_or_default();
    match (flag, mechanism, data) {
        ("n", Mechanism::Scram, _) | ("y", Mechanism::Scram, None) => Ok(header.as_bytes().to_vec()),
        ("y", Mechanism::Scram, Some(_)) => Err(ServerError::Downgrade),
        ("n" | "y", Mechanism::ScramPlus, _) => {
            Err(ServerError::Malformed("no channel binding with SCRAM-SHA-256-PLUS"))
        }
        (_, Mechanism::Scram, _) if flag.starts_with("p=") => {
            Err(ServerError::Malformed("channel binding with SCRAM-SHA-256"))
        }
        (_, Mechanism::ScramPlus, Some(data)) if flag.strip_prefix("p=") == Some(END_POINT) => {
            Ok([header.as_bytes(), data].concat())
        }
        (_, Mechanism::ScramPlus, _) if flag.starts_with("p=") => Err(ServerError::BindingType),
        _ => Err(ServerError::Malformed("unknown channel binding flag")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 7677 §3: user "user", password "pencil".
    const VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                            wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    const CLIENT_FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                                p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    fn verifier() -> Verifier {
        VERIFIER.parse().unwrap()
    }

    fn begin(mechanism: Mechanism, first: &[u8], binding: Option<&[u8]>) -> Result<(Exchange, String), ServerError> {
        Exchange::begin(mechanism, first, binding, &verifier().parameters, NONCE)
    }

    fn begun() -> Exchange {
        begin(Mechanism::Scram, CLIENT_FIRST, None).unwrap().0
    }

    #[test]
    fn exchange_of_rfc_7677_is_accepted() {
        let (exchange, first) = begin(Mechanism::Scram, CLIENT_FIRST, None).unwrap();
        assert_eq!(first, "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
        let other = Verifier::of("other", verifier().parameters);
        let proven = exchange.finish(CLIENT_FINAL.as_bytes(), &[other, verifier()]).unwrap();
        assert_eq!(proven.index, 1);
        assert_eq!(proven.message, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn proof_of_another_password_is_rejected() {
        let other = Verifier::of("other", verifier().parameters);
        assert_eq!(begun().finish(CLIENT_FINAL.as_bytes(), &[other]), Err(ServerError::WrongProof));
        assert_eq!(begun().finish(CLIENT_FINAL.as_bytes(), &[]), Err(ServerError::WrongProof));
    }

    #[test]
    fn last_message_with_a_changed_part_is_rejected() {
        for (from, to, error) in [
            ("biws", "eSws", ServerError::Binding),
            ("biws", "!", ServerError::Malformed("invalid channel binding")),
            ("r=rOpr", "r=rOpx", ServerError::Malformed("another nonce")),
            ("hNlF$k0", "hNlF$k0,x=1", ServerError::WrongProof),
            (",p=dHzb", ",p=dHzc", ServerError::WrongProof),
            (",p=", ",q=", ServerError::Malformed("no proof")),
            ("p=dHzb", "p=", ServerError::Malformed("invalid proof")),
            ("c=", "d=", ServerError::Malformed("no channel binding")),
            ("hNlF$k0", "hNlF$k0\0", ServerError::Malformed("not text, or too long")),
        ] {
            let message = CLIENT_FINAL.replacen(from, to, 1);
            assert_eq!(begun().finish(message.as_bytes(), &[verifier()]), Err(error), "{message}");
        }
    }

    #[test]
    fn first_message_is_judged_by_its_header() {
        use Mechanism::{Scram, ScramPlus};
        let data = Some(&b"data"[..]);
        let error = |mechanism, header: &str, binding| {
            let message = format!("{header}n=,r=abc");
            begin(mechanism, message.as_bytes(), binding).err()
        };
        assert_eq!(error(Scram, "n,,", data), None);
        assert_eq!(error(Scram, "y,,", None), None);
        assert_eq!(error(Scram, "y,,", data), Some(ServerError::Downgrade));
        assert_eq!(error(ScramPlus, "p=tls-server-end-point,,", data), None);
        assert_eq!(error(ScramPlus, "p=tls-unique,,", data), Some(ServerError::BindingType));
        assert_eq!(error(Scram, "n,a=admin,", data), Some(ServerError::AuthorizationIdentity));
        for (mechanism, header) in [
            (ScramPlus, "n,,"),
            (ScramPlus, "y,,"),
            (Scram, "p=tls-server-end-point,,"),
            (Scram, "x,,"),
            (Scram, "n,b,"),
            (Scram, ""),
        ] {
            assert!(matches!(error(mechanism, header, data), Some(ServerError::Malformed(_))), "{header}");
        }
        for message in ["n,,m=1,n=,r=abc", "n,,n=,r=abc,m=1"] {
            assert_eq!(begin(Scram, message.as_bytes(), None).err(), Some(ServerError::Extension));
        }
        for message in ["n,,r=abc", "n,,n=", "n,,n=,r=", "n,,n=,r=a\u{7f}", "n,,n=,r=ä", "n,,n=,r=a b"] {
            assert!(matches!(begin(Scram, message.as_bytes(), None), Err(ServerError::Malformed(_))), "{message}");
        }
        assert!(begin(Scram, &[b'n'; MAX_MESSAGE + 1], None).is_err());
        assert!(begin(Scram, b"n,,n=\xff,r=abc", None).is_err());
    }
}
