use super::*;
use crate::fault::injection::inject;

fn lines(path: &std::path::Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn destination(path: &std::path::Path) -> Destination {
    Destination::file(path.to_owned(), File::options().append(true).create(true).open(path).unwrap())
}

#[test]
fn switched_sink_writes_further_lines_to_the_new_file() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (directory.path().join("old"), directory.path().join("new"));
    let sink = Sink::start("test", destination(&old));
    assert!(!sink.is_idle());
    sink.write(b"one\n".to_vec());
    sink.flush(Duration::from_secs(10));
    sink.switch(destination(&new));
    sink.write(b"two\n".to_vec());
    sink.flush(Duration::from_secs(10));
    assert_eq!((lines(&old), lines(&new)), (vec!["one".to_owned()], vec!["two".to_owned()]));
    sink.switch(Destination::nowhere());
    assert!(sink.is_idle());
}

#[test]
fn dropped_lines_are_counted_and_reported_when_writing_works_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let sink = Sink::start("test", Destination::file("/dev/full".into(), full));
    for _ in 0..3 {
        sink.write(b"lost\n".to_vec());
    }
    sink.flush(Duration::from_secs(10));
    sink.switch(destination(&path));
    sink.write(b"found\n".to_vec());
    sink.flush(Duration::from_secs(10));
    let lines = lines(&path);
    assert!(lines[0].contains("\"event\":\"events.dropped\",\"count\":3"), "{lines:?}");
    assert_eq!(lines[1..], ["found"]);
}

#[test]
fn gathered_lines_are_written_whole_and_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit");
    let sink = Sink::start("test", destination(&path));
    let expected: Vec<_> = (0..5_000).map(|number| format!("line {number} {}", "x".repeat(number % 100))).collect();
    for line in &expected {
        sink.write(format!("{line}\n").into_bytes());
    }
    sink.flush(Duration::from_secs(10));
    assert_eq!(lines(&path), expected);
}

#[test]
fn pipe_gets_whole_lines_within_its_atomic_size() {
    let text = "0123456789\n".repeat(1000).into_bytes();
    let piece = whole_lines(&text);
    assert_eq!((piece.len() / 11, piece.len() % 11), (PIPE_BUF / 11, 0));
    let long = [b"x".repeat(5000), b"\nnext\n".to_vec()].concat();
    assert_eq!(whole_lines(&long).len(), 5001);
    assert_eq!(whole_lines(b"one\n"), b"one\n");
}

#[test]
fn line_after_a_torn_line_starts_on_a_new_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit");
    std::fs::write(&path, "{\"half").unwrap();
    let mut destination = destination(&path);
    destination.torn = true;
    destination.write(b"whole\n").unwrap();
    destination.write(b"next\n").unwrap();
    assert_eq!(lines(&path), ["{\"half", "whole", "next"]);
}

#[test]
fn queue_of_a_writer_that_hangs_is_bounded_in_bytes() {
    const LINES: usize = 3_000;
    let line = [b"x".repeat(9_999), b"\n".to_vec()].concat();
    let (mut reader, writer) = io::pipe().unwrap();
    let sink = Sink::start("test", Destination::file("a pipe".into(), File::from(std::os::fd::OwnedFd::from(writer))));
    for _ in 0..LINES {
        sink.write(line.clone());
        assert!(sink.shared.waiting.load(Ordering::Relaxed) <= MAX_QUEUED_BYTES);
    }
    // Not `shared.dropped`: the writer has reported those that were dropped before its thread ran.
    let dropped = sink.dropped();
    // The writer took more than the pipe holds and less than two times MAX_GATHERED before it hung.
    let taken = LINES * line.len() - MAX_QUEUED_BYTES;
    let least = (taken - 3 * MAX_GATHERED) / line.len();
    assert!((least as u64..LINES as u64).contains(&dropped), "{dropped} dropped");
    let read = std::thread::spawn(move || {
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        text
    });
    let shared = Arc::clone(&sink.shared);
    sink.flush(Duration::from_secs(60));
    // The end of the writer closes the pipe.
    drop(sink);
    let text = read.join().unwrap();
    let whole = text.lines().filter(|line| line.len() == 9_999).count();
    assert_eq!(whole as u64 + dropped, LINES as u64);
    assert_eq!(shared.waiting.load(Ordering::Relaxed), 0);
}

#[test]
fn writer_that_panics_continues_with_the_next_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit");
    let (queue, messages) = sync_channel(MAX_QUEUED_LINES);
    for line in ["one\n", "two\n"] {
        queue.send(Message::Line(line.as_bytes().into())).unwrap();
    }
    drop(queue);
    inject(PART);
    write_lines(&messages, destination(&path), &Shared::default());
    assert_eq!(lines(&path), ["one", "two"]);
}
