use super::*;
use crate::fault::injection::inject;

fn lines(path: &std::path::Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn destination(path: &std::path::Path) -> Destination {
    Destination::file(path.to_owned(), File::options().append(true).create(true).open(path).unwrap())
}

#[test]
fn lines_go_to_the_new_file_from_the_switch_on() {
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
fn what_cannot_be_written_is_counted_and_told_when_writing_works_again() {
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
fn lines_that_gather_arrive_whole_and_in_order() {
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
fn a_pipe_is_given_whole_lines_and_no_more_than_it_takes_at_once() {
    let text = "0123456789\n".repeat(1000).into_bytes();
    let piece = whole_lines(&text);
    assert_eq!((piece.len() / 11, piece.len() % 11), (ATOMIC / 11, 0));
    let long = [b"x".repeat(5000), b"\nnext\n".to_vec()].concat();
    assert_eq!(whole_lines(&long).len(), 5001);
    assert_eq!(whole_lines(b"one\n"), b"one\n");
}

#[test]
fn a_line_behind_a_torn_one_begins_a_line_of_its_own() {
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
        assert!(sink.shared.waiting.load(Ordering::Relaxed) <= QUEUE_BYTES);
    }
    let dropped = sink.shared.dropped.load(Ordering::Relaxed);
    // What the writer had taken before it hung is more than the pipe, and less than two times what it gathers.
    let taken = LINES * line.len() - QUEUE_BYTES;
    let least = (taken - 3 * MOST_GATHERED) / line.len();
    assert!((least as u64..LINES as u64).contains(&dropped), "{dropped} dropped");
    let read = std::thread::spawn(move || {
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        text
    });
    let shared = Arc::clone(&sink.shared);
    sink.flush(Duration::from_secs(60));
    // Its end closes the pipe.
    drop(sink);
    let text = read.join().unwrap();
    let whole = text.lines().filter(|line| line.len() == 9_999).count();
    assert_eq!(whole as u64 + dropped, LINES as u64);
    assert_eq!(shared.waiting.load(Ordering::Relaxed), 0);
}

#[test]
fn writer_that_panics_goes_on_with_the_next_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit");
    let (queue, messages) = sync_channel(QUEUE_LENGTH);
    for line in ["one\n", "two\n"] {
        queue.send(Message::Line(line.as_bytes().into())).unwrap();
    }
    drop(queue);
    inject(PART);
    write_lines(&messages, destination(&path), &Shared::default());
    assert_eq!(lines(&path), ["one", "two"]);
}
