//! A wall clock that a test sets while the program runs, by libfaketime. Timeouts use the monotonic clock,
//! which does not change.

use std::fmt::Display;
use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::Command;

use time::{Duration, OffsetDateTime};

use super::portcullis::executable;
use super::{Portcullis, TestDir};

/// A running program with its own clock. What expires under it expires when the test sets the clock, however long the
/// machine takes to open the sessions before.
#[derive(Debug)]
pub(crate) struct ClockedPortcullis(Portcullis);

impl ClockedPortcullis {
    /// Starts with the real time.
    pub(crate) fn start(site: TestDir, config: impl Display) -> Self {
        Self::start_by(executable(), site, config)
    }

    /// The same with a command that ends in the path of the program.
    pub(crate) fn start_by(mut command: Command, site: TestDir, config: impl Display) -> Self {
        let file = site.path(FILE);
        site.write(FILE, "+0\n");
        command
            .env("LD_PRELOAD", library())
            .env("FAKETIME_TIMESTAMP_FILE", file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
        Self(Portcullis::start_by(command, site, config))
    }

    /// Sets its clock to this offset from the real time.
    pub(crate) fn set(&self, offset: Duration) {
        self.site.replace(FILE, format!("{:+}\n", offset.whole_seconds()));
    }

    /// Sets its clock to shortly before this time, which the clock then reaches by itself. Returns when it does, in real time.
    pub(crate) fn set_shortly_before(&self, time: OffsetDateTime) -> OffsetDateTime {
        // Whole seconds, which the file of the clock takes.
        let offset = Duration::seconds((time - OffsetDateTime::now_utc()).whole_seconds() - 2);
        self.set(offset);
        time - offset
    }

    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.0.stop().0
    }
}

impl Deref for ClockedPortcullis {
    type Target = Portcullis;

    fn deref(&self) -> &Portcullis {
        &self.0
    }
}

impl Drop for ClockedPortcullis {
    fn drop(&mut self) {
        // The library does not remove these files if its process is killed.
        let process = self.process.0.id();
        for file in ["faketime_shm_", "sem.faketime_sem_"] {
            let _ = fs::remove_file(format!("/dev/shm/{file}{process}"));
        }
    }
}

/// The offset of the clock, in the directory of the test.
const FILE: &str = "clock";

fn library() -> PathBuf {
    let architectures = fs::read_dir("/usr/lib").expect("there is a /usr/lib").flatten();
    let mut libraries = architectures.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    libraries.find(|library| library.is_file()).expect("libfaketime is installed: apt-get install faketime")
}
