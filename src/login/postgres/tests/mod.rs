mod client;
mod conversation;
mod parameters;
mod upstream;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::credential::verifier::{Parameters, Verifier};
use crate::protocol::postgres::fatal;
use crate::protocol::postgres::startup::message::message;

/// Splits a stream into chunks of these lengths, repeated.
fn chunks<'s>(stream: &'s [u8], cuts: &[usize]) -> Vec<&'s [u8]> {
    let mut chunks = Vec::new();
    let mut rest = stream;
    for cut in cuts.iter().cycle() {
        let (chunk, behind) = rest.split_at(rest.len().min(*cut));
        chunks.push(chunk);
        rest = behind;
        if rest.is_empty() {
            break;
        }
    }
    chunks
}

fn initial_response(mechanism: &str, response: &str) -> Vec<u8> {
    let length = u32::try_from(response.len()).unwrap().to_be_bytes();
    message(b'p', &[mechanism.as_bytes(), b"\0", &length, response.as_bytes()].concat())
}

fn response(text: &str) -> Vec<u8> {
    message(b'p', text.as_bytes())
}

fn request(code: u32, data: &[u8]) -> Vec<u8> {
    message(b'R', &[&code.to_be_bytes(), data].concat())
}

fn parameters(salt: &str) -> Parameters {
    Parameters { salt: STANDARD.decode(salt).unwrap(), iterations: 4096.try_into().unwrap() }
}

fn verifier(password: &str) -> Verifier {
    Verifier::of(password, parameters(recorded::SALT))
}

/// Exchanges with PostgreSQL 15 for the user `app` with the password `pencil`. The client is a Python script with a fixed
/// nonce.
mod recorded {
    pub(super) const SALT: &str = "g/h1j6LfVUs5Yec93KKlgg==";
    pub(super) const CLIENT_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";

    pub(super) const SASL: &[u8] = b"R\0\0\0\x17\0\0\0\nSCRAM-SHA-256\0\0";
    pub(super) const SASL_OVER_TLS: &[u8] = b"R\0\0\0*\0\0\0\nSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
    pub(super) const OK: &[u8] =
        b"R\0\0\0\x08\0\0\0\0S\0\0\0\x16application_name\0\0K\0\0\0\x0c\0\x002\xec\xd4\x06\xc1\x90Z\0\0\0\x05I";
    pub(super) const MD5: &[u8] = b"R\0\0\0\x0c\0\0\0\x05\x07\xd2Vn";
    pub(super) const MD5_ANSWER: &[u8] = b"p\0\0\0(md51ec9d21e783849b63338806b20d53d66\0";
    pub(super) const CLEARTEXT: &[u8] = b"R\0\0\0\x08\0\0\0\x03";
    pub(super) const CLEARTEXT_ANSWER: &[u8] = b"p\0\0\0\x0bpencil\0";
    pub(super) const WRONG_PASSWORD: &[u8] =
        b"E\0\0\0cSFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user \"app\"\0\
        Fauth.c\0L334\0Rauth_failed\0\0";
    pub(super) const NO_MESSAGE: &[u8] = b"R\0\0\0\x08\0\0\0\x0b";
    pub(super) const NEGOTIATION: &[u8] = b"v\0\0\0\x21\0\x03\0\0\0\0\0\x03_pq_.x\0_pq_.z\0_pq_.x\0";

    /// Over a Unix socket, without channel binding.
    pub(super) const PLAIN: Exchange = Exchange {
        server_nonce: "ktsubLYCBlNsrb8JbXzi2oqz",
        first: b"p\0\0\x002SCRAM-SHA-256\0\0\0\0\x1cn,,n=,r=rOprNGfwEbeRWgbNEkqO",
        challenge: b"R\0\0\0X\0\0\0\x0br=rOprNGfwEbeRWgbNEkqOktsubLYCBlNsrb8JbXzi2oqz,s=g/h1j6LfVUs5Yec93KKlgg==,i=4096",
        last: b"p\0\0\0hc=biws,r=rOprNGfwEbeRWgbNEkqOktsubLYCBlNsrb8JbXzi2oqz,p=raPek/FX4fdBBllkcJKkmGStGOunQoYkaOyJIJPJf/k=",
        proof: b"R\0\0\x006\0\0\0\x0cv=j5arZXVS0FJTMlywP1z3Z/0nHVfW/tP7NPOPbik0DWY=",
    };

    /// Over TLS, with channel binding.
    pub(super) const BOUND: Exchange = Exchange {
        server_nonce: "+svZRUKMrXsAHNMAqbXkbqnE",
        first: b"p\0\0\0LSCRAM-SHA-256-PLUS\0\0\0\x001p=tls-server-end-point,,n=,r=rOprNGfwEbeRWgbNEkqO",
        challenge: b"R\0\0\0X\0\0\0\x0br=rOprNGfwEbeRWgbNEkqO+svZRUKMrXsAHNMAqbXkbqnE,s=g/h1j6LfVUs5Yec93KKlgg==,i=4096",
        last: b"p\0\0\0\xc4c=cD10bHMtc2VydmVyLWVuZC1wb2ludCwsuA13fSKFGLnlzESP4kAIej+ZkdyRaFTYbHtkK96re80iBAQNGaOrWbQ6RvRH2NDe,\
            r=rOprNGfwEbeRWgbNEkqO+svZRUKMrXsAHNMAqbXkbqnE,p=zaNbwIrbyvmx5viiN62inp4S1r1qodrtZgqL/yitb2A=",
        proof: b"R\0\0\x006\0\0\0\x0cv=40CUBfRop5ycJCQjQM+XYNRrzY90dntOrZ5RCZAvQ40=",
    };

    /// The SHA-384 of the server's certificate.
    pub(super) const BINDING: [u8; 48] = [
        0xb8, 0x0d, 0x77, 0x7d, 0x22, 0x85, 0x18, 0xb9, 0xe5, 0xcc, 0x44, 0x8f, 0xe2, 0x40, 0x08, 0x7a, 0x3f, 0x99,
        0x91, 0xdc, 0x91, 0x68, 0x54, 0xd8, 0x6c, 0x7b, 0x64, 0x2b, 0xde, 0xab, 0x7b, 0xcd, 0x22, 0x04, 0x04, 0x0d,
        0x19, 0xa3, 0xab, 0x59, 0xb4, 0x3a, 0x46, 0xf4, 0x47, 0xd8, 0xd0, 0xde,
    ];

    pub(super) struct Exchange {
        pub(super) server_nonce: &'static str,
        pub(super) first: &'static [u8],
        pub(super) challenge: &'static [u8],
        pub(super) last: &'static [u8],
        pub(super) proof: &'static [u8],
    }
}

fn error(state: &str, text: &str) -> Vec<u8> {
    fatal(state, text, "")
}
