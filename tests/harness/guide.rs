//! Executes the commands of a guide exactly as they are written, and compares what they print.
//!
//! A `toml` or `ini` block is written to the file that its first line names. All `sh` blocks run in order in one `sh -e`, in
//! a separate directory. A `text` block is the expected output of the commands before it: `…` within a line matches any text,
//! a line of `…` alone any number of lines, and a run of spaces counts as one. Blocks of other languages are not executed.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::Event;
use super::portcullis::EXECUTABLE;
use super::program::{Group, Running, supervised};

/// Commands of a guide, and the environment in which they run.
#[derive(Debug)]
pub(crate) struct Rehearsal {
    blocks: Vec<Block>,
    environment: Vec<(&'static str, String)>,
    /// Names in `PATH` before all others, and what they mean.
    programs: Vec<(&'static str, PathBuf)>,
    /// Names in the directory of the commands, and what they mean.
    links: Vec<(&'static str, PathBuf)>,
}

/// One fenced block.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) language: String,
    pub(crate) lines: Vec<String>,
}

/// The text of a document, by its path in the repository.
pub(crate) fn document(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("the document exists")
}

/// The blocks of the sections whose title is accepted. Blocks before the first section belong to the title "".
pub(crate) fn blocks(guide: &str, is_wanted: impl Fn(&str) -> bool) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut within, mut open) = (is_wanted(""), false);
    for line in guide.lines() {
        match line.strip_prefix("```") {
            Some(_) if open => open = false,
            Some(language) => {
                open = true;
                if within {
                    blocks.push(Block { language: language.to_owned(), lines: Vec::new() });
                }
            }
            None if open && within => blocks.last_mut().expect("a block is open").lines.push(line.to_owned()),
            None if !open => {
                if let Some(title) = line.strip_prefix("## ") {
                    within = is_wanted(title);
                }
            }
            None => {}
        }
    }
    assert!(!open, "a block is not closed");
    blocks
}

impl Rehearsal {
    pub(crate) fn of(blocks: Vec<Block>) -> Self {
        Self { blocks, environment: Vec::new(), programs: Vec::new(), links: Vec::new() }
    }

    pub(crate) fn with_variable(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    pub(crate) fn with_program(mut self, name: &'static str, path: impl Into<PathBuf>) -> Self {
        self.programs.push((name, path.into()));
        self
    }

    pub(crate) fn with_link(mut self, name: &'static str, path: impl Into<PathBuf>) -> Self {
        self.links.push((name, path.into()));
        self
    }

    /// Runs the commands, and compares their output. Returns the lines of portcullis.log.
    pub(crate) fn run(&self) -> Vec<Event> {
        let (transcript, log) = self.transcript();
        let mut parts = transcript.split(MARK).skip(1);
        let mut printed = "";
        let mut shown = 0;
        for block in &self.blocks {
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
        assert!(shown > 0, "a guide shows something");
        log.lines().map(|line| Event(serde_json::from_str(line).unwrap_or_default())).collect()
    }

    /// Runs the commands. Returns what they print, with a mark before each block's, and the log.
    fn transcript(&self) -> (String, String) {
        let site = tempfile::tempdir().expect("a temporary directory can be made");
        let script: String = self.blocks.iter().map(in_shell).collect();
        fs::write(site.path().join("drill.sh"), script).expect("a file of the test can be written");
        let programs = tempfile::tempdir().expect("a temporary directory can be made");
        let programs_here = self.programs.iter().map(|(name, path)| (path, programs.path().join(name)));
        let links_here = self.links.iter().map(|(name, path)| (path, site.path().join(name)));
        for (path, link) in programs_here.chain(links_here) {
            symlink(path, link).expect("a link can be made");
        }
        let script = programs.path().join("portcullis");
        fs::write(&script, portcullis()).expect("a file of the test can be written");
        fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("it is a file of the test");
        let path = std::env::var("PATH").expect("the tests have a PATH");

        let output = site.path().join("drill.out");
        let file = File::create(&output).expect("a file of the test can be made");
        let mut shell = supervised();
        // In the foreground: another process group would leave that of the supervisor.
        shell.args(["timeout", "--foreground", "-k", "1", "100", "sh", "-e", "drill.sh"]).current_dir(site.path());
        shell.env_remove("PORTCULLIS_CONFIG").env("PATH", format!("{}:{path}", programs.path().display()));
        shell.env_remove("REDISCLI_AUTH").envs(self.environment.iter().map(|(name, value)| (name, value)));
        shell.stdin(Stdio::null()).stdout(file.try_clone().expect("a file can be cloned")).stderr(file);
        let mut shell = Group(Running::start(&mut shell));
        let code = shell.0.exit_code();
        let left = shell.left();
        drop(shell);
        let transcript = String::from_utf8_lossy(&fs::read(&output).expect("the output is there")).into_owned();
        let log = fs::read_to_string(site.path().join("portcullis.log")).unwrap_or_default();
        assert_eq!(code, Some(0), "the commands failed:\n{transcript}\n--- log\n{log}");
        assert_eq!(left, "", "the commands leave programs running:\n{transcript}");
        (transcript, log)
    }
}

/// The program. A session is listed until the program has noticed that its client has ended, so each command first waits
/// until the sessions whose clients are no longer connected (state 01 of /proc/net/tcp) are no longer listed. Under load,
/// more clients end meanwhile.
fn portcullis() -> String {
    format!(
        r#"#!/bin/sh
ports() {{ '{EXECUTABLE}' sessions list --json 2> /dev/null | grep -o '"source_port": *[0-9]*' | grep -o '[0-9]*$'; }}
has_ended() {{ ! grep -q "^ *[0-9]*: [0-9A-F]*:$(printf %04X $1) [0-9A-F]*:[0-9A-F]* 01 " /proc/net/tcp /proc/net/tcp6; }}
for port in $(ports); do
    if has_ended $port; then
        while has_ended $port && ports | grep -qx $port; do sleep 0.01; done
    fi
done
exec '{EXECUTABLE}' "$@"
"#
    )
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
        _ => String::new(),
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
