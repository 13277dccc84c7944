//! Replaces and removes small files so that a crash at any time leaves the old or the new content, and never a mix.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tracing::warn;

/// Replaces the content of a file. The file is created with mode `new_mode` if it does not exist.
///
/// An existing file keeps its mode and owner. A symbolic link is followed, so that its target is replaced and not the link. The
/// content is on disk when the function returns. Concurrent calls for files of one directory wait for each other, at most
/// [`LOCK_TIMEOUT`].
///
/// Blocks on the disk, so asynchronous callers need a thread for it.
///
/// # Errors
/// Any error of the file system; the file is unchanged then.
pub(crate) fn replace(file: &Path, content: &[u8], new_mode: u32) -> io::Result<()> {
    replace_if(file, content, new_mode, || Ok(()))
}

/// Replaces the content of a file like [`replace`], if `check` succeeds. It is called last, when the new content is on disk: a
/// flush can take long, and a change of the file in this time must not be lost.
///
/// # Errors
/// The error of `check`, or any error of the file system; the file is unchanged then.
pub(crate) fn replace_if<E: From<io::Error>>(
    file: &Path,
    content: &[u8],
    new_mode: u32,
    check: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    let target = match fs::canonicalize(file) {
        // A link without target is an error. Creating the target could create a file in any directory.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !file.is_symlink() => file.to_owned(),
        target => target?,
    };
    let name = target.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The lock makes it safe to remove the temporary file of a process that crashed. Closing the file releases it.
    let directory = lock(File::open(parent)?)?;
    let temporary = target.with_file_name(temporary_name(name));
    remove_if_present(&temporary)?;
    let replaced = write(&temporary, &target, content, new_mode)
        .map_err(E::from)
        .and_then(|()| check())
        .and_then(|()| Ok(fs::rename(&temporary, &target)?));
    if replaced.is_err() {
        // The first error explains more than one of the clean-up.
        let _ = fs::remove_file(&temporary);
    }
    replaced?;
    if let Err(error) = directory.sync_all() {
        // The new content is there. After a crash of the machine, the old one may return.
        warn!(file = %file.display(), %error, "cannot flush a directory, a crash of the machine may undo the change of its file");
    }
    Ok(())
}

/// Removes a file, if `check` succeeds. It is called last. A symbolic link is removed and not its target. Concurrent calls wait
/// for each other as in [`replace`].
///
/// # Errors
/// The error of `check`, or any error of the file system; the file is unchanged then.
pub(crate) fn remove_if<E: From<io::Error>>(file: &Path, check: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = lock(File::open(parent)?)?;
    check()?;
    fs::remove_file(file)?;
    if let Err(error) = directory.sync_all() {
        warn!(file = %file.display(), %error, "cannot flush a directory, a crash of the machine may bring back a removed file");
    }
    Ok(())
}

/// Locks a directory. Everyone who may read it can hold the lock, so the wait is limited.
fn lock(mut directory: File) -> io::Result<Flock<File>> {
    let end = Instant::now() + LOCK_TIMEOUT;
    loop {
        let errno = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((unlocked, errno)) => {
                directory = unlocked;
                errno
            }
        };
        if !matches!(errno, Errno::EWOULDBLOCK | Errno::EINTR) {
            return Err(errno.into());
        }
        if Instant::now() >= end {
            return Err(io::Error::new(io::ErrorKind::TimedOut, LOCKED));
        }
        // flock(2) has no timeout.
        thread::sleep(LOCK_RETRY);
    }
}

fn write(temporary: &Path, target: &Path, content: &[u8], new_mode: u32) -> io::Result<()> {
    let existing = match fs::metadata(target) {
        Ok(metadata) if !metadata.is_file() => return Err(io::Error::other("not a regular file")),
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(temporary)?;
    file.write_all(content)?;
    let mut mode = new_mode;
    if let Some(existing) = existing {
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (existing.uid(), existing.gid()) {
            fchown(&file, Some(existing.uid()), Some(existing.gid())).map_err(|error| {
                let owner = format!("{}:{}", existing.uid(), existing.gid());
                let why = format!("it belongs to {owner} and not to the user of the program; change its owner");
                io::Error::other(format!("{why} ({error})"))
            })?;
        }
        mode = existing.mode() & PERMISSION_BITS;
    }
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// A name in the same directory, that no pattern such as `*.toml` matches.
fn temporary_name(name: &OsStr) -> OsString {
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    temporary
}

fn remove_if_present(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Longer than another process needs to write its file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(5);

const LOCKED: &str = "another process keeps a lock on its directory (flock); end that process";

/// The part of `st_mode` that chmod(2) sets.
const PERMISSION_BITS: u32 = 0o7777;

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::fs::symlink;
    use std::process::{Command, Stdio};

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    fn mode(file: &Path) -> u32 {
        fs::metadata(file).unwrap().mode() & PERMISSION_BITS
    }

    #[test]
    fn new_file_has_the_given_mode_and_an_existing_one_keeps_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tokens.toml");
        replace(&file, b"one", 0o600).unwrap();
        assert_eq!((fs::read(&file).unwrap().as_slice(), mode(&file)), (b"one".as_slice(), 0o600));
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        replace(&file, b"two", 0o600).unwrap();
        assert_eq!((fs::read(&file).unwrap().as_slice(), mode(&file)), (b"two".as_slice(), 0o640));
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&file, Some(1), Some(2)).unwrap();
            replace(&file, b"three", 0o600).unwrap();
            let metadata = fs::metadata(&file).unwrap();
            assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & PERMISSION_BITS), (1, 2, 0o640));
        }
        assert_eq!(names(directory.path()), ["tokens.toml"]);
    }

    #[test]
    fn link_stays_and_its_target_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (data, link) = (directory.path().join("data"), directory.path().join("sources.toml"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("real"), "one").unwrap();
        symlink("data/real", &link).unwrap();
        replace(&link, b"two", 0o600).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(data.join("real")).unwrap(), b"two");
        assert_eq!(
            (names(&data), names(directory.path())),
            (vec!["real".to_owned()], vec!["data".to_owned(), "sources.toml".to_owned()])
        );
        fs::remove_file(data.join("real")).unwrap();
        assert_eq!(replace(&link, b"three", 0o600).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn failure_leaves_no_temporary_file() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("directory");
        fs::create_dir(&target).unwrap();
        assert!(replace(&target, b"one", 0o600).is_err());
        assert_eq!(names(directory.path()), ["directory"]);
        assert!(replace(Path::new("/"), b"", 0o600).is_err());
        assert!(replace(&directory.path().join("missing/file"), b"", 0o600).is_err());
    }

    #[test]
    fn failed_check_sees_the_last_content_and_keeps_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "one").unwrap();
        let check = || {
            assert_eq!(
                fs::read(directory.path().join(".file.new")).unwrap(),
                b"three",
                "the new content is written before"
            );
            fs::write(&file, "two").unwrap();
            Err(io::Error::other("edited"))
        };
        assert_eq!(replace_if(&file, b"three", 0o600, check).unwrap_err().to_string(), "edited");
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert_eq!(names(directory.path()), ["file"]);
    }

    #[test]
    fn file_is_removed_only_if_the_check_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&file, "one").unwrap();
        symlink(&file, &link).unwrap();
        assert_eq!(remove_if(&file, || Err(io::Error::other("edited"))).unwrap_err().to_string(), "edited");
        remove_if(&link, || Ok::<_, io::Error>(())).unwrap();
        assert_eq!(names(directory.path()), ["file"]);
        remove_if(&file, || Ok::<_, io::Error>(())).unwrap();
        assert!(names(directory.path()).is_empty());
        assert_eq!(remove_if(&file, || Ok::<_, io::Error>(())).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn lock_of_another_process_delays_and_does_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        let held = Flock::lock(File::open(directory.path()).unwrap(), FlockArg::LockExclusive).unwrap();
        assert_eq!(replace(&file, b"one", 0o600).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(names(directory.path()).is_empty());
        drop(held);
        replace(&file, b"two", 0o600).unwrap();
    }

    #[test]
    fn concurrent_writers_leave_one_of_their_contents() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        let contents: Vec<Vec<u8>> = (b'a'..b'i').map(|letter| vec![letter; 100_000]).collect();
        thread::scope(|scope| {
            for content in &contents {
                scope.spawn(|| replace(&file, content, 0o600).unwrap());
            }
        });
        assert!(contents.contains(&fs::read(&file).unwrap()));
        assert_eq!(names(directory.path()), ["file"]);
    }

    /// Names the file that a child process of the next test writes until it is killed.
    const FILE_OF_CHILD: &str = "PORTCULLIS_TEST_DURABLE_FILE";
    const LENGTH: usize = 1 << 20;

    const MIN_ROUNDS: usize = 20;
    const MAX_ROUNDS: usize = 2_000;

    #[test]
    fn killed_writer_leaves_the_old_or_the_new_content() {
        if let Some(file) = std::env::var_os(FILE_OF_CHILD) {
            for letter in (b'a'..=b'z').cycle() {
                println!("\nwriting");
                replace(Path::new(&file), &vec![letter; LENGTH], 0o600).unwrap();
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        replace(&file, &vec![b'A'; LENGTH], 0o600).unwrap();
        let name = "durable_file::tests::killed_writer_leaves_the_old_or_the_new_content";
        let mut was_writing = false;
        // When a signal arrives is up to the kernel, so there are as many rounds as it takes.
        for round in 0..MAX_ROUNDS {
            if round >= MIN_ROUNDS && was_writing {
                break;
            }
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args([name, "--exact", "--nocapture"])
                .env(FILE_OF_CHILD, &file)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            // Each round kills the child at another time of its work.
            let started = lines.map_while(Result::ok).filter(|line| line == "writing").nth(round % 4);
            assert!(started.is_some());
            child.kill().unwrap();
            child.wait().unwrap();
            let content = fs::read(&file).unwrap();
            assert_eq!(content.len(), LENGTH);
            assert!(content.iter().all(|byte| *byte == content[0]));
            was_writing |= names(directory.path()).len() > 1;
        }
        assert!(was_writing, "no child was killed while it wrote");
        replace(&file, b"end", 0o600).unwrap();
        assert_eq!(names(directory.path()), ["file"]);
    }
}
