//! README.md: the commands of its quick start are executed as they are written.

use crate::harness::Redis;
use crate::harness::guide::{Block, Rehearsal, blocks, document};
use crate::harness::program::free_port;

/// A console block as commands, each with its expected output.
fn in_sh_and_text(block: Block) -> Vec<Block> {
    if block.language != "console" {
        return vec![block];
    }
    let of = |language: &str, line: String| Block { language: language.to_owned(), lines: vec![line] };
    let mut blocks: Vec<Block> = Vec::new();
    for line in block.lines {
        match (line.strip_prefix("$ "), blocks.last_mut()) {
            // A command that fails is recognized by its output.
            (Some(command), _) => blocks.push(of("sh", format!("{command} || true"))),
            (None, Some(last)) if last.language == "text" => last.lines.push(line),
            (None, _) => blocks.push(of("text", line)),
        }
    }
    blocks
}

#[test]
fn quick_start_for_redis_works_as_written() {
    let redis = Redis::start();
    let run = "portcullis run > portcullis.log &";
    let readme = document("README.md");
    assert!(readme.contains(run));
    let readme = readme
        .replace("127.0.0.1:6379", &redis.to_string())
        .replace("6380", &free_port().to_string())
        // A script types faster than a person.
        .replace(run, &format!("{run}\nuntil portcullis status > /dev/null 2>&1; do sleep 0.1; done"))
        // redis-cli prints this at a terminal only.
        .replace("(error) ERR", "ERR")
        .replace("3f2a9c41", "…");
    let (redis_only, _) = readme.split_once("### PostgreSQL").expect("the part for Redis comes first");
    let commands = blocks(redis_only, |title| title == "Quick start").into_iter().flat_map(in_sh_and_text);
    let stop = Block { language: "sh".to_owned(), lines: vec!["kill $! && wait $!".to_owned()] };
    Rehearsal::of(commands.chain([stop]).collect()).run();
}
