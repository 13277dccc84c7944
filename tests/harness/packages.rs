//! Packages of PyPI and npm that tests use.

use std::path::{Path, PathBuf};

use super::program::{run, tied};

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
}
