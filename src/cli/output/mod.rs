//! Output files of the commands. A command writes all of its files or none, and overwrites nothing.

pub(crate) mod moment;
pub(crate) mod table;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::cli::Failure;

pub(crate) struct Output {
    name: String,
    content: Zeroizing<Vec<u8>>,
    mode: u32,
}

impl Output {
    pub(crate) fn public(name: &str, content: impl AsRef<[u8]>) -> Self {
        Self::new(name, content.as_ref(), 0o644)
    }

    pub(crate) fn secret(name: &str, content: impl AsRef<[u8]>) -> Self {
        Self::new(name, content.as_ref(), 0o600)
    }

    fn new(name: &str, content: &[u8], mode: u32) -> Self {
        Self { name: name.to_owned(), content: Zeroizing::new(content.to_vec()), mode }
    }
}

/// Writes all files and returns their paths. If one of them exists, writes none.
pub(crate) fn write_all(directory: &Path, files: &[Output]) -> Result<Vec<PathBuf>, Failure> {
    fs::create_dir_all(directory).map_err(|error| Failure::file(directory, error))?;
    let paths: Vec<PathBuf> = files.iter().map(|file| directory.join(&file.name)).collect();
    refuse_existing(&paths)?;
    for (file, path) in files.iter().zip(&paths) {
        let written = File::options().write(true).create_new(true).mode(file.mode).open(path).and_then(|mut out| {
            out.write_all(&file.content)?;
            out.sync_all()
        });
        written.map_err(|error| Failure::file(path, error))?;
    }
    Ok(paths)
}

/// Fails if one of the files exists.
pub(crate) fn refuse_existing(paths: &[PathBuf]) -> Result<(), Failure> {
    match paths.iter().find(|path| path.symlink_metadata().is_ok()) {
        None => Ok(()),
        Some(existing) => Err(Failure::file(
            existing,
            "the file already exists and is not overwritten; remove it or choose another directory",
        )),
    }
}

/// `a, b and c`.
pub(crate) fn join_paths(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    match paths.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    }
}
