//! Packages of PyPI and npm that tests use.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::TestDir;
use super::program::{command, run, tied};

/// The directories in which `scripts/install-test-packages` has installed them.
#[derive(Debug)]
pub(crate) struct Packages {
    pub(crate) python: PathBuf,
    /// Contains `node_modules`.
    pub(crate) node: PathBuf,
}

impl Packages {
    pub(crate) fn installed() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install-test-packages");
        let printed = run(tied(&script).arg("--print")).success();
        let mut directories = printed.lines().map(PathBuf::from);
        let mut next = || directories.next().expect("two directories");
        Self { python: next(), node: next() }
    }

    /// Runs a script of tests/clients with the packages of PyPI. Arguments follow.
    pub(crate) fn python_script(&self, name: &str) -> Command {
        let mut python = tied("/usr/bin/python3".as_ref());
        python.arg(clients().join(name)).env("PYTHONPATH", &self.python).env("PYTHONDONTWRITEBYTECODE", "1");
        python
    }

    /// Runs a script of tests/clients with the packages of npm. Arguments follow.
    pub(crate) fn node_script(&self, name: &str, site: &TestDir) -> Command {
        // Node looks for packages beside the script.
        let script = site.path(name);
        if !script.exists() {
            fs::copy(clients().join(name), &script).expect("a file of the test can be copied");
            symlink(self.node.join("node_modules"), site.path("node_modules")).expect("a link can be made");
        }
        let mut node = command("node");
        node.arg(script);
        node
    }
}

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}
