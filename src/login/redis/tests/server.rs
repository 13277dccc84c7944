//! A `redis-server` on a Unix socket.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub(super) struct RedisServer {
    process: Child,
    directory: TempDir,
}

impl RedisServer {
    /// Starts a server with these lines in its configuration.
    pub(super) fn start(lines: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display();
        let common = format!("port 0\nsave \"\"\ndir {path}\nunixsocket {path}/s\n");
        let configuration = directory.path().join("redis.conf");
        fs::write(&configuration, common + &lines.join("\n")).unwrap();
        let mut command = Command::new("redis-server");
        let process = command.arg(&configuration).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let server = Self { process, directory };
        let deadline = Instant::now() + Duration::from_secs(30);
        while UnixStream::connect(server.path()).is_err() {
            assert!(Instant::now() < deadline, "redis-server does not start");
            sleep(Duration::from_millis(10));
        }
        server
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    pub(super) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Everything that Redis replies to these bytes and the end of the stream. The number of the connection is removed.
    pub(super) fn replies(&self, bytes: &[u8]) -> Vec<u8> {
        finish(self.connect(), bytes)
    }
}

/// Sends bytes and the end of the stream, and returns all replies without the number of the connection.
pub(super) fn finish(mut stream: UnixStream, bytes: &[u8]) -> Vec<u8> {
    stream.write_all(bytes).unwrap();
    let _ = stream.shutdown(Shutdown::Write);
    let mut replies = Vec::new();
    // Redis may reset the connection after an error. What it has sent arrives before.
    let _ = stream.read_to_end(&mut replies);
    without_id(&replies)
}

fn without_id(replies: &[u8]) -> Vec<u8> {
    let mark = b"$2\r\nid\r\n:";
    let mut out = Vec::new();
    let mut rest = replies;
    while let Some(start) = rest.windows(mark.len()).position(|part| part == mark) {
        let (before, behind) = rest.split_at(start + mark.len());
        out.extend_from_slice(before);
        let digits = behind.iter().take_while(|byte| byte.is_ascii_digit()).count();
        rest = &behind[digits..];
    }
    out.extend_from_slice(rest);
    out
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
