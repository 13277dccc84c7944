//! The cost of following the commands of a Redis client: `cargo bench --bench commands`.

use std::hint::black_box;
use std::time::Instant;

use portcullis::internals::CommandFollower;

fn main() {
    println!("{:>16}  {:>8}  {:>8}  {:>8}", "ns for a command", "alone", "16", "500");
    let value = vec![b'x'; 4096];
    let key = &b"key:000000012345"[..];
    let many = [[&b"MSET"[..]].as_slice(), &[key, b"xxx"].repeat(10)].concat();
    report("PING, one line", b"PING\r\n");
    report("PING", &array(&[b"PING"]));
    report("GET", &array(&[b"GET", key]));
    report("SET 3 bytes", &array(&[b"SET", key, b"xxx"]));
    report("SET 4 KiB", &array(&[b"SET", key, &value]));
    report("LPUSH", &array(&[b"LPUSH", b"list", b"xxx"]));
    report("MSET 10 keys", &array(&many));
}

/// Prints the time for a command that is sent alone, and in pipelines.
fn report(name: &str, command: &[u8]) {
    let times = [1, 16, 500].map(|pipeline| measure(command, pipeline));
    println!("{name:>16}  {:>8.1}  {:>8.1}  {:>8.1}", times[0], times[1], times[2]);
}

/// The nanoseconds for one command: the median of all rounds.
fn measure(command: &[u8], pipeline: usize) -> f64 {
    let chunk = command.repeat(pipeline);
    let chunks = (COMMANDS / pipeline).max(1);
    let mut follower = CommandFollower::default();
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..chunks {
                let mut rest = black_box(chunk.as_slice());
                while let Some(piece) = follower.next(&mut rest) {
                    black_box(&piece);
                }
            }
            let seconds = start.elapsed().as_secs_f64();
            assert!(follower.is_at_boundary(), "the chunk consists of whole commands");
            seconds
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let seconds = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
    seconds * 1e9 / (chunks * pipeline) as f64
}

fn array(words: &[&[u8]]) -> Vec<u8> {
    let bulk = |word: &&[u8]| [format!("${}\r\n", word.len()).as_bytes(), word, b"\r\n"].concat();
    [format!("*{}\r\n", words.len()).into_bytes(), words.iter().map(bulk).collect::<Vec<_>>().concat()].concat()
}

/// Commands in a round.
const COMMANDS: usize = 100_000;

const ROUNDS: usize = 51;
