//! The cost of tracking the message boundaries of a PostgreSQL server: `cargo bench --bench boundary`.

use std::hint::black_box;
use std::time::Instant;

use portcullis::internals::FrameTracker;

fn main() {
    println!("{:>10}  {:>11}  {:>7}", "bytes", "message, ns", "GB, ms");
    for length in [30, 60, 200, 1_000, 1_000_000] {
        report(&length.to_string(), &vec![length; (8 * CHUNK).div_ceil(length)]);
    }
    // Mixed lengths in no particular order.
    let mixed: Vec<usize> = (0..8 * CHUNK / 30).map(|number| 10 + number * 2_654_435_761 % 40).collect();
    report("10 to 49", &mixed);
}

/// Prints the time for one message among messages of these lengths, and for a GB of them: medians of all rounds.
fn report(name: &str, lengths: &[usize]) {
    let stream: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
    let mut tracker = FrameTracker::default();
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for chunk in stream.chunks(CHUNK) {
                tracker.follow(black_box(chunk));
            }
            let seconds = start.elapsed().as_secs_f64();
            assert!(tracker.is_at_boundary(), "the stream consists of whole messages");
            seconds
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let seconds = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
    let (message_ns, gigabyte_ms) = (seconds * 1e9 / lengths.len() as f64, seconds * 1e12 / stream.len() as f64);
    println!("{name:>10}  {message_ns:>11.2}  {gigabyte_ms:>7.1}");
}

/// A message of `length` bytes with its header.
fn message(length: usize) -> Vec<u8> {
    let header = u32::try_from(length - 1).unwrap_or(u32::MAX).to_be_bytes();
    let mut message = [b"D", &header[..]].concat();
    message.resize(length, 0);
    message
}

/// Bytes that the relay reads at a time.
const CHUNK: usize = 64 << 10;

const ROUNDS: usize = 501;
