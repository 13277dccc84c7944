//! The drills of docs/ROTATION.md, executed exactly as they are written, with a real Redis.
//!
//! A drill is a section whose title begins with `Drill:`. A `toml` or `ini` block is written to the file that its first line
//! names. All `sh` blocks of a drill run in order in one `sh -e`, in a separate directory. A `text` block is the expected
//! output of the commands before it: `…` within a line matches any text, a line of `…` alone any number of lines, and a run
//! of spaces counts as one. Only the two ports differ from the guide, so that drills can run at the same time.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use crate::harness::Redis;
use crate::harness::portcullis::EXECUTABLE;
use crate::harness::program::{Group, Running, free_port, supervised};

/// The text of the guide.
fn guide() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ROTATION.md")).unwrap()
}

macro_rules! drills {
    ($($test:ident: $title:literal,)*) => {
        $(#[test]
        fn $test() {
            rehearse($title, None);
        })*

        const TITLES: &[&str] = &[$($title),*];
    };
}

drills! {
    server_certificate_is_replaced: "the server certificate",
    client_ca_is_replaced: "the CA of the clients",
    client_certificate_of_a_ca_is_replaced: "a client's certificate, by a CA",
    uploaded_client_certificate_is_replaced: "a client's certificate, uploaded",
    certificate_is_revoked_by_a_list: "a revocation list",
    source_is_replaced: "the list of sources",
    ticket_key_is_replaced: "the ticket keys",
    rejected_reload_is_fixed: "a reload that is rejected",
}

#[test]
fn every_drill_of_the_guide_has_a_test() {
    let guide = guide();
    let titles: Vec<&str> = guide.lines().filter_map(|line| line.strip_prefix(DRILL)).collect();
    assert_eq!(titles, TITLES);
}

/// The beginning of the title of a drill.
const DRILL: &str = "## Drill: ";

/// One fenced block.
struct Block {
    language: String,
    lines: Vec<String>,
}

#[test]
fn drills_work_before_a_redis_that_has_a_password() {
    for title in ["a client's certificate, by a CA", "the ticket keys", "a reload that is rejected"] {
        rehearse(title, Some("a long password"));
    }
}

/// Executes a drill, and compares its output.
fn rehearse(title: &str, password: Option<&str>) {
    let redis = match password {
        Some(password) => Redis::with(&["--requirepass", password]),
        None => Redis::start(),
    };
    let guide = guide().replace("127.0.0.1:6379", &redis.to_string()).replace("6380", &free_port().to_string());
    let blocks = blocks(&guide, title);
    let transcript = run(&blocks, password);
    let mut parts = transcript.split(MARK).skip(1);
    let mut printed = "";
    let mut shown = 0;
    for block in &blocks {
        match block.language.as_str() {
            "sh" => printed = parts.next().unwrap_or_else(|| panic!("it ended before\n{}", block.lines.join("\n"))),
            "text" => {
                shown += 1;
                let lines: Vec<String> = printed.lines().map(spaced).collect();
                let expected: Vec<String> = block.lines.iter().map(|line| spaced(line)).collect();
                let expected = expected.join("\n");
                assert!(
                    shows(&expected, &lines),
                    "expected\n{expected}\n--- but printed\n{printed}\n--- in\n{transcript}"
                );
            }
            _ => {}
        }
    }
    assert!(shown > 0, "a drill shows something");
}

/// The blocks of one drill.
fn blocks(guide: &str, title: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut within, mut open) = (false, false);
    for line in guide.lines() {
        match line.strip_prefix("```") {
            Some(_) if open => open = false,
            Some(language) => {
                open = true;
                if within {
                    blocks.push(Block { language: language.to_owned(), lines: Vec::new() });
                }
            }
            None if open && within => blocks.last_mut().unwrap().lines.push(line.to_owned()),
            None if !open && line.starts_with("## ") => within = line.strip_prefix(DRILL) == Some(title),
            None => {}
        }
    }
    assert!(!open, "a block is not closed");
    blocks
}

/// Runs the commands. Returns what they print, with a mark before each block's.
fn run(blocks: &[Block], password: Option<&str>) -> String {
    let site = tempfile::tempdir().unwrap();
    let script: String = blocks.iter().map(in_shell).collect();
    fs::write(site.path().join("drill.sh"), script).unwrap();
    let programs = tempfile::tempdir().unwrap();
    symlink(EXECUTABLE, programs.path().join("portcullis")).unwrap();
    let path = std::env::var("PATH").unwrap();

    let output = site.path().join("drill.out");
    let file = File::create(&output).unwrap();
    let mut shell = supervised();
    // In the foreground: another process group would leave that of the supervisor.
    shell.args(["timeout", "--foreground", "-k", "1", "100", "sh", "-e", "drill.sh"]).current_dir(site.path());
    shell.env_remove("PORTCULLIS_CONFIG").env("PATH", format!("{}:{path}", programs.path().display()));
    shell.env_remove("REDISCLI_AUTH").envs(password.map(|password| ("REDISCLI_AUTH", password)));
    shell.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    let mut shell = Group(Running::start(&mut shell));
    let code = shell.0.exit_code();
    let left = shell.left();
    drop(shell);
    let transcript = String::from_utf8_lossy(&fs::read(&output).unwrap()).into_owned();
    let log = fs::read_to_string(site.path().join("portcullis.log")).unwrap_or_default();
    assert_eq!(code, Some(0), "the drill failed:\n{transcript}\n--- log\n{log}");
    assert_eq!(left, "", "the drill leaves programs running:\n{transcript}");
    transcript
}

/// A block as a part of the script.
fn in_shell(block: &Block) -> String {
    let Block { language, lines } = block;
    let text = lines.join("\n");
    match language.as_str() {
        "sh" => format!("echo '{MARK}'\n{text}\n"),
        "toml" | "ini" => {
            let file =
                lines.first().and_then(|line| line.strip_prefix("# ")).expect("a block begins with its file's name");
            format!("cat > {file} <<'END OF FILE'\n{text}\nEND OF FILE\n")
        }
        "text" => String::new(),
        other => panic!("the test knows no block of {other:?}"),
    }
}

const MARK: &str = "=== the next block ===";

fn spaced(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether the lines printed are those expected.
fn shows(expected: &str, lines: &[String]) -> bool {
    let lines: Vec<&String> = lines.iter().filter(|line| !line.is_empty()).collect();
    let expected: Vec<&str> = expected.lines().filter(|line| !line.is_empty()).collect();
    shows_from(&expected, &lines)
}

fn shows_from(expected: &[&str], lines: &[&String]) -> bool {
    match (expected, lines) {
        ([], lines) => lines.is_empty(),
        (["…", rest @ ..], lines) => (0..=lines.len()).any(|skipped| shows_from(rest, &lines[skipped..])),
        ([first, rest @ ..], [line, lines @ ..]) => matches(first, line) && shows_from(rest, lines),
        (_, []) => false,
    }
}

fn matches(pattern: &str, line: &str) -> bool {
    match pattern.split_once('…') {
        None => pattern == line,
        Some((before, after)) => line.strip_prefix(before).is_some_and(|rest| {
            let ends = rest.char_indices().map(|(index, _)| index).chain([rest.len()]);
            ends.into_iter().any(|end| matches(after, &rest[end..]))
        }),
    }
}

#[test]
fn expected_output_is_compared_line_by_line() {
    let printed = ["one", "two 2", "three"].map(str::to_owned);
    let shown = |expected: &str| shows(expected, &printed);
    assert!(shown("one\ntwo 2\nthree") && shown("one\n…\nthree") && shown("…") && shown("o…e\nt… 2\n…three"));
    assert!(!shown("one\nthree") && !shown("one\ntwo 2") && !shown("one\ntwo 3\n…") && !shown("…\none") && !shown(""));
}
