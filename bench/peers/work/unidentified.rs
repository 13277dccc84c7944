//! The memory that a target holds for clients that stop in the middle of their handshake, which requires no credential.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::{Figure, Outcome, Trial};
use crate::databases::local;
use crate::fault::{Context, Result};
use crate::route::Route;

const TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum size of a record's plaintext in bytes.
const RECORD: usize = 16 << 10;

/// A point at which clients stop.
#[derive(Debug, Clone, Copy)]
struct Stop {
    name: &'static str,
    /// Number of bytes sent of a handshake message with a length of 64 KiB.
    message: usize,
    /// Size of a complete ClientHello that is sent first, and whose answer is read. It uses TLS 1.2, which is not encrypted here.
    hello: Option<usize>,
}

const STOPS: [Stop; 5] = [
    Stop { name: "TCP only", message: 0, hello: None },
    Stop { name: "16 KiB of a record", message: RECORD - 64, hello: None },
    Stop { name: "60 KiB of a message", message: 60 << 10, hello: None },
    Stop { name: "ClientHello, answered", message: 0, hello: Some(300) },
    Stop {
        name: "ClientHello of 40 KiB, answered, and 30 KiB of a certificate",
        message: 30 << 10,
        hello: Some(40 << 10),
    },
];

pub(super) async fn sample(trial: Trial<'_>) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for stop in STOPS {
        // A new process: memory that earlier clients have freed would not be counted.
        let instance = trial.target.start(trial.site, 1).await?;
        let address = local(instance.port(Route::Mutual)?);
        let before = instance.tree().pss()?;
        let mut clients = Vec::new();
        let opening = async {
            for _ in 0..trial.plan.unidentified {
                let stream = TcpStream::connect(address).await.context(|| format!("connect to {address}"))?;
                clients.extend(stop.reach(stream).await?);
            }
            Ok::<_, crate::fault::Fault>(())
        };
        timeout(TIMEOUT, opening).await.map_err(|_| format!("{}: not reached in {TIMEOUT:?}", stop.name))??;
        sleep(trial.plan.settle).await;
        let held = instance.tree().pss()?.saturating_sub(before) as f64;
        clients.retain(|client| !has_ended(client));
        let open = clients.len();
        let name = |what: &str| format!("{}{what}", stop.name);
        outcome.figures.push(match open {
            0 => Figure::info(name(": refused"), "connections", trial.plan.unidentified as f64),
            _ => Figure::new(name(", PSS"), "KiB/connection", held / open as f64),
        });
        outcome.units += open as u64;
    }
    Ok(outcome)
}

impl Stop {
    /// Sends all bytes up to this point. `None` if the target closes the connection first.
    async fn reach(self, mut stream: TcpStream) -> Result<Option<TcpStream>> {
        stream.set_nodelay(true)?;
        let reached = async {
            if let Some(size) = self.hello {
                stream.write_all(&records(1, &hello(size))).await?;
                read_flight(&mut stream).await?;
            }
            if self.message > 0 {
                let kind = if self.hello.is_some() { 11 } else { 1 };
                let message = [&[kind, 0, 0xff, 0xff], vec![0; self.message].as_slice()].concat();
                // Without its last byte, so that the last record is incomplete.
                let sent = records(0, &message);
                stream.write_all(sent.get(..sent.len() - 1).unwrap_or_default()).await?;
            }
            Ok::<_, io::Error>(())
        };
        match reached.await {
            Ok(()) => Ok(Some(stream)),
            Err(error) if ENDS.contains(&error.kind()) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

const ENDS: [io::ErrorKind; 3] =
    [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];

fn has_ended(stream: &TcpStream) -> bool {
    loop {
        match stream.try_read(&mut [0; 256]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

/// Reads up to ServerHelloDone.
async fn read_flight(stream: &mut TcpStream) -> io::Result<()> {
    let mut flight = Vec::new();
    loop {
        let mut header = [0; 5];
        stream.read_exact(&mut header).await?;
        if header.first() != Some(&22) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut record = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
        stream.read_exact(&mut record).await?;
        flight.extend(record);
        if flight.ends_with(&[14, 0, 0, 0]) {
            return Ok(());
        }
    }
}

/// A message in records of TLS 1.`minor`.
fn records(minor: u8, message: &[u8]) -> Vec<u8> {
    let record = |piece: &[u8]| {
        let length = u16::try_from(piece.len()).unwrap_or(u16::MAX).to_be_bytes();
        [&[22, 3, minor + 1], &length[..], piece].concat()
    };
    message.chunks(RECORD).flat_map(record).collect()
}

/// A ClientHello of TLS 1.2, padded to this size (RFC 7685).
fn hello(size: usize) -> Vec<u8> {
    let extension = |kind: u16, body: &[u8]| {
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
        [&kind.to_be_bytes(), &length.to_be_bytes(), body].concat()
    };
    let mut extensions = [
        // X25519 and P-256; uncompressed points; ECDSA with P-256 and SHA-256.
        extension(10, &[0, 4, 0, 29, 0, 23]),
        extension(11, &[1, 0]),
        extension(13, &[0, 2, 4, 3]),
        // Extended master secret, which rustls requires.
        extension(23, &[]),
    ]
    .concat();
    // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256.
    let before = [&[3, 3], &[7; 32][..], &[0], &[0, 2, 0xc0, 0x2b], &[1, 0]].concat();
    let padding = size.saturating_sub(before.len() + extensions.len() + 10);
    extensions.extend(extension(21, &vec![0; padding]));
    let length = u16::try_from(extensions.len()).unwrap_or(u16::MAX).to_be_bytes();
    let body = [before, length.to_vec(), extensions].concat();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[1], length.get(1..).unwrap_or_default(), &body].concat()
}
