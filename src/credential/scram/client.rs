//! The client's side of an exchange, towards a database.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::credential::scram::{END_POINT, MAX_MESSAGE, Mechanism, attribute, is_nonce, iterations};
use crate::credential::verifier::{Key, Parameters, client_key, mac, server_key};
use crate::digest::sha256;

/// An exchange whose first message is to be sent.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// gs2-header and the data of the channel binding.
    binding: Vec<u8>,
    header: String,
    nonce: String,
}

/// An exchange whose last message is to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    /// client-final-message.
    pub(crate) message: String,
    /// What the server has to prove.
    server_signature: Key,
}

/// Why an exchange fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("the server sent a malformed SCRAM message: {0}")]
    Malformed(&'static str),
    #[error("the server requires a SCRAM extension that is not supported")]
    Extension,
    #[error("the server asks for {0} iterations, and at most {MAX_ITERATIONS} are accepted")]
    Iterations(u32),
    /// It is not the server that knows the password.
    #[error("the server did not prove that it knows the password")]
    ServerSignature,
    #[error("the server reports: {0}")]
    Reported(&'static str),
}

/// How the exchange is bound to the TLS connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binding<'a> {
    /// The server offers SCRAM-SHA-256-PLUS, and this is the data of tls-server-end-point.
    EndPoint(&'a [u8]),
    /// The server does not offer it, and this client could bind. A server that offered it would notice.
    NotOffered,
    /// This client cannot bind.
    Unsupported,
}

impl Binding<'_> {
    pub(crate) const fn mechanism(self) -> Mechanism {
        match self {
            Self::EndPoint(_) => Mechanism::ScramPlus,
            Self::NotOffered | Self::Unsupported => Mechanism::Scram,
        }
    }
}

impl Exchange {
    /// `nonce` is a new one.
    pub(crate) fn new(binding: Binding<'_>, nonce: String) -> Self {
        let (header, data) = match binding {
            Binding::EndPoint(data) => (format!("p={END_POINT},,"), data),
            Binding::NotOffered => ("y,,".to_owned(), &[][..]),
            Binding::Unsupported => ("n,,".to_owned(), &[][..]),
        };
        Self { binding: [header.as_bytes(), data].concat(), header, nonce }
    }

    /// client-first-message. The user name is in the StartupMessage.
    pub(crate) fn first(&self) -> String {
        format!("{}{}", self.header, self.bare())
    }

    fn bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// Takes the first message of the server. `salted` returns SaltedPassword for its parameters.
    ///
    /// # Errors
    /// If the message is not one, or would cost too much.
    pub(crate) fn answer(
        &self,
        server_first: &[u8],
        salted: impl FnOnce(&Parameters) -> zeroize::Zeroizing<Key>,
    ) -> Result<Answered, ClientError> {
        let text = text(server_first)?;
        if text.starts_with("m=") {
            return Err(ClientError::Extension);
        }
        let (nonce, rest) = attribute(text, 'r').ok_or(ClientError::Malformed("no nonce"))?;
        let (salt, rest) = attribute(rest, 's').ok_or(ClientError::Malformed("no salt"))?;
        let (count, _) = attribute(rest, 'i').ok_or(ClientError::Malformed("no iterations"))?;
        let own = nonce.strip_prefix(self.nonce.as_str());
        if !is_nonce(nonce) || own.is_none_or(str::is_empty) {
            return Err(ClientError::Malformed("another nonce"));
        }
        let salt = STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty());
        let salt = salt.ok_or(ClientError::Malformed("invalid salt"))?;
        let iterations = iterations(count).ok_or(ClientError::Malformed("invalid iterations"))?;
        if iterations.get() > MAX_ITERATIONS {
            return Err(ClientError::Iterations(iterations.get()));
        }
        let salted = salted(&Parameters { salt, iterations });
        let without_proof = format!("c={},r={nonce}", STANDARD.encode(&self.binding));
        let auth_message = format!("{},{text},{without_proof}", self.bare());
        let client_key = client_key(&salted);
        let mut proof = mac(&sha256(&*client_key), auth_message.as_bytes());
        proof.iter_mut().zip(client_key.iter()).for_each(|(byte, key)| *byte ^= key);
        Ok(Answered {
            message: format!("{without_proof},p={}", STANDARD.encode(proof)),
            server_signature: mac(&server_key(&salted), auth_message.as_bytes()),
        })
    }
}

impl Answered {
    /// Takes the last message of the server.
    ///
    /// # Errors
    /// If the server does not know the password.
    pub(crate) fn verify(&self, server_final: &[u8]) -> Result<(), ClientError> {
        let text = text(server_final)?;
        if text.starts_with("e=") {
            return Err(ClientError::Reported("an error in the exchange"));
        }
        let (signature, _) = attribute(text, 'v').ok_or(ClientError::Malformed("no signature"))?;
        let signature = STANDARD.decode(signature).map_err(|_| ClientError::Malformed("invalid signature"))?;
        verify_slices_are_equal(&signature, &self.server_signature).map_err(|_| ClientError::ServerSignature)
    }
}

fn text(message: &[u8]) -> Result<&str, ClientError> {
    let text = std::str::from_utf8(message).ok().filter(|text| text.len() <= MAX_MESSAGE);
    text.ok_or(ClientError::Malformed("not text, or too long"))
}

/// A hostile server could keep a worker busy with more.
const MAX_ITERATIONS: u32 = 1_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::credential::scram::server;
    use crate::credential::verifier::Verifier;

    fn parameters() -> Parameters {
        Parameters { salt: b"0123456789abcdef".to_vec(), iterations: 4096.try_into().unwrap() }
    }

    /// An exchange with our own server.
    fn exchange(password: &str, verifier: &Verifier, binding: Option<&[u8]>) -> Result<(), String> {
        let chosen = binding.map_or(Binding::NotOffered, Binding::EndPoint);
        let client = Exchange::new(chosen, "client".to_owned());
        let first = client.first();
        let (server, challenge) =
            server::Exchange::begin(chosen.mechanism(), first.as_bytes(), binding, &verifier.parameters, "server")
                .map_err(|error| error.to_string())?;
        let salted = |parameters: &Parameters| parameters.salted(password);
        let answered = client.answer(challenge.as_bytes(), salted).map_err(|error| error.to_string())?;
        let proven = server.finish(answered.message.as_bytes(), [verifier]).map_err(|error| error.to_string())?;
        answered.verify(proven.message.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn client_and_server_agree_with_and_without_channel_binding() {
        let verifier = Verifier::of("Passw0rd!", parameters());
        for binding in [None, Some(&b"hash"[..])] {
            assert_eq!(exchange("Passw0rd!", &verifier, binding), Ok(()));
            assert_eq!(exchange("passw0rd!", &verifier, binding), Err("wrong password".to_owned()));
        }
    }

    #[test]
    fn message_of_the_server_is_judged() {
        let client = Exchange::new(Binding::Unsupported, "abc".to_owned());
        let answer = |message: &str| {
            client.answer(message.as_bytes(), |parameters| parameters.salted("x")).map(|_| ()).unwrap_err()
        };
        for (message, error) in [
            ("m=x,r=abcd,s=AAAA,i=4096", ClientError::Extension),
            ("r=abc,s=AAAA,i=4096", ClientError::Malformed("another nonce")),
            ("r=xbcd,s=AAAA,i=4096", ClientError::Malformed("another nonce")),
            ("r=abcd,s=,i=4096", ClientError::Malformed("invalid salt")),
            ("r=abcd,s=!,i=4096", ClientError::Malformed("invalid salt")),
            ("r=abcd,s=AAAA,i=0", ClientError::Malformed("invalid iterations")),
            ("r=abcd,s=AAAA,i=-1", ClientError::Malformed("invalid iterations")),
            ("r=abcd,s=AAAA,i=1000001", ClientError::Iterations(1_000_001)),
            ("r=abcd,s=AAAA", ClientError::Malformed("no iterations")),
            ("", ClientError::Malformed("no nonce")),
        ] {
            assert_eq!(answer(message), error, "{message}");
        }
    }

    #[test]
    fn server_without_the_password_is_noticed() {
        let client = Exchange::new(Binding::Unsupported, "abc".to_owned());
        let answered = client.answer(b"r=abcd,s=AAAA,i=1", |parameters| parameters.salted("x")).unwrap();
        assert_eq!(answered.verify(b"v=AAAA"), Err(ClientError::ServerSignature));
        assert_eq!(answered.verify(b"v=!"), Err(ClientError::Malformed("invalid signature")));
        assert_eq!(answered.verify(b"e=other-error"), Err(ClientError::Reported("an error in the exchange")));
        assert_eq!(answered.verify(b""), Err(ClientError::Malformed("no signature")));
    }

    proptest! {
        #[test]
        fn no_message_of_a_server_causes_a_panic(first in ".{0,60}", last in any::<Vec<u8>>()) {
            let client = Exchange::new(Binding::NotOffered, "abc".to_owned());
            let first = format!("r=abc{first}");
            if let Ok(answered) = client.answer(first.as_bytes(), |_| Default::default()) {
                prop_assert!(answered.verify(&last).is_err());
            }
        }
    }
}
