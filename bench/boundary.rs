//! What it costs to follow a PostgreSQL server's messages: `cargo bench --bench boundary`.

use std::hint::black_box;
use std::time::Instant;

use portcullis::protocol::Boundary;

fn main() {
    println!("{:>8}  {:>12}  {:>8}", "bytes", "message, ns", "GB, ms");
    for length in [30, 60, 200, 1_000, 1_000_000] {
        let message_ns = median(length);
        println!("{length:>8}  {message_ns:>12.2}  {:>8.1}", message_ns * 1e3 / f64::from(length));
    }
}

/// Nanoseconds for one message of so many bytes: the median of many rounds.
fn median(length: u32) -> f64 {
    let stream = stream(length);
    let mut boundary = Boundary::default();
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for chunk in stream.chunks(CHUNK) {
                boundary.follow(black_box(chunk));
            }
            let nanoseconds = start.elapsed().as_secs_f64() * 1e9;
            assert!(boundary.is_reached(), "the stream has whole messages only");
            nanoseconds * f64::from(length) / stream.len() as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Messages of one length, a few chunks of them, or one.
fn stream(length: u32) -> Vec<u8> {
    let header = [b"D", &(length - 1).to_be_bytes()[..]].concat();
    let mut message = header.clone();
    message.resize(length as usize, 0);
    message.repeat((8 * CHUNK).div_ceil(message.len()))
}

/// What the relay reads at a time.
const CHUNK: usize = 64 << 10;

const ROUNDS: usize = 501;
