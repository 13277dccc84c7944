//! Opens the audit file for appending, and follows symbolic links only where no other user can have made them.
//!
//! A user who can place a link at the path of the audit file chooses the file that the program appends to with its own
//! permissions. So a link in place of the file must be in a directory that only root and the program's user may write to. A
//! link in place of a directory must belong to root or to that user. The rule for directories is weaker because systemd makes
//! such links in `/var/log`, which is group-writable on Ubuntu.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use nix::unistd::geteuid;

use crate::permissions;

/// Opens `path` for appending. A file that does not exist is created with mode 0640.
///
/// # Errors
/// A message to append to the path.
pub(crate) fn open(path: &Path) -> Result<File, String> {
    let target = resolve(path)?;
    // O_NONBLOCK: a FIFO without a reader must not block. O_NOFOLLOW: a link that was placed since is refused.
    let flags = if target.is_descriptor { libc::O_NONBLOCK } else { libc::O_NONBLOCK | libc::O_NOFOLLOW };
    let file = File::options().append(true).create(true).mode(0o640).custom_flags(flags).open(&target.path);
    file.map_err(|error| {
        let fix = fix(&target.path).filter(|_| error.kind() == io::ErrorKind::PermissionDenied);
        let fix = fix.map(|fix| format!("; run: {fix}")).unwrap_or_default();
        format!("{}{fix}", permissions::cannot("cannot be opened for writing", &error))
    })
}

/// Checks whether the links in `path` may be followed and the file may be written. It does not open or create the file.
///
/// # Errors
/// A message to append to the path.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    let Target { path, is_descriptor } = resolve(path)?;
    let existing = if path.exists() { Some(path.as_path()) } else { path.parent() };
    if let Some(why) = existing.and_then(permissions::read_only).filter(|_| !is_descriptor) {
        return Err(cannot_be_opened(&why));
    }
    match fix(&path).filter(|_| !is_descriptor) {
        Some(fix) => {
            let denied = io::ErrorKind::PermissionDenied.into();
            Err(format!("{}; run: {fix}", permissions::cannot("cannot be opened for writing", &denied)))
        }
        None => Ok(()),
    }
}

/// The command that grants this user write or create access to the file, if access is denied.
fn fix(path: &Path) -> Option<String> {
    match path.parent() {
        Some(directory) if !path.exists() => permissions::fix_for_creating(directory),
        Some(_) | None => permissions::fix_for_writing(path),
    }
}

/// The path of the file with all links resolved.
struct Target {
    path: PathBuf,
    /// Whether the last component is a link in /proc to an open file, such as the target of /dev/stderr.
    is_descriptor: bool,
}

fn resolve(path: &Path) -> Result<Target, String> {
    let absolute = std::path::absolute(path).map_err(|error| cannot_be_opened(&error))?;
    let mut left = names(&absolute);
    let mut way = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            way.pop();
            continue;
        }
        let next = way.join(name);
        // A missing component is left to `open`.
        let fields = fs::symlink_metadata(&next).ok().filter(Metadata::is_symlink);
        let Some(link) = fields else {
            way = next;
            continue;
        };
        if next.starts_with("/proc") && left.is_empty() {
            return Ok(Target { path: next, is_descriptor: true });
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(cannot_be_opened(&"too many symbolic links lead to it"));
        }
        let directory = fs::metadata(&way).map_err(|error| cannot_be_opened(&error))?;
        let (directory, link, own) = (Entry::of(&directory), Entry::of(&link), geteuid().as_raw());
        // The target of a link in place of the file may be such a link, too.
        let objection = if left.is_empty() { in_place_of_file(directory, link, own) } else { foreign(link, own) };
        if let Some(why) = objection {
            return Err(refused(&next, &way, &why));
        }
        let target = fs::read_link(&next).map_err(|error| cannot_be_opened(&error))?;
        if target.is_absolute() {
            way = PathBuf::from("/");
        }
        for name in names(&target).into_iter().rev() {
            left.push_front(name);
        }
    }
    Ok(Target { path: way, is_descriptor: false })
}

fn names(path: &Path) -> VecDeque<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::Prefix(_) | Component::RootDir => None,
    };
    path.components().filter_map(name).collect()
}

/// Owner and permissions of a file.
#[derive(Clone, Copy, Debug)]
struct Entry {
    owner: u32,
    mode: u32,
}

impl Entry {
    fn of(fields: &Metadata) -> Self {
        Self { owner: fields.uid(), mode: fields.mode() }
    }

    fn is_trusted(self, own: u32) -> bool {
        [0, own].contains(&self.owner)
    }
}

/// Why another user can have made this link, if one can. `own` is the user of the program.
fn in_place_of_file(directory: Entry, link: Entry, own: u32) -> Option<String> {
    let Entry { owner, mode } = directory;
    if !directory.is_trusted(own) {
        return Some(format!("the directory belongs to user {owner}"));
    }
    match (mode & OTHERS_WRITE, mode & STICKY) {
        (0, _) => None,
        (_, STICKY) => foreign(link, own),
        _ => Some(format!("others may write to the directory (mode {:04o})", mode & 0o7777)),
    }
}

/// The owner of the link, if it is another user.
fn foreign(link: Entry, own: u32) -> Option<String> {
    (!link.is_trusted(own)).then(|| format!("the link belongs to user {}", link.owner))
}

fn refused(link: &Path, directory: &Path, why: &str) -> String {
    cannot_be_opened(&format_args!(
        "{} is a symbolic link in {} and {why}, so audit events could be appended to any file; \
         set log.audit_file to the file itself, or move the link to a directory that only root and user {} may write to",
        link.display(),
        directory.display(),
        geteuid()
    ))
}

fn cannot_be_opened(why: &dyn std::fmt::Display) -> String {
    format!("cannot be opened for writing: {why}")
}

/// Write access for the group and for others.
const OTHERS_WRITE: u32 = 0o022;

/// Only the owner of a file may remove or rename it.
const STICKY: u32 = 0o1000;

/// The limit of Linux, path_resolution(7).
const MAX_LINKS: u32 = 40;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// A directory with this mode that belongs to this user.
    fn directory(mode: u32) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
        directory
    }

    #[test]
    fn link_is_followed_only_where_no_other_user_could_have_made_it() {
        const OWN: u32 = 7;
        let link_of = |owner| Entry { owner, mode: 0o777 };
        let objects = |owner, mode, link| in_place_of_file(Entry { owner, mode }, link_of(link), OWN);
        for (owner, mode, link) in
            [(0, 0o755, 0), (OWN, 0o700, OWN), (OWN, 0o755, 9), (0, 0o1777, OWN), (0, 0o1777, 0), (OWN, 0o1770, OWN)]
        {
            assert_eq!(objects(owner, mode, link), None, "{owner} {mode:o} {link}");
        }
        for (owner, mode, link) in [
            (9, 0o700, 9),
            (9, 0o1777, OWN),
            (9, 0o755, 0),
            (0, 0o777, OWN),
            (0, 0o775, OWN),
            (OWN, 0o720, OWN),
            (OWN, 0o702, OWN),
            (0, 0o1777, 9),
        ] {
            assert!(objects(owner, mode, link).is_some(), "{owner} {mode:o} {link}");
        }
        let of_directory = [0, OWN, 9].map(|owner| foreign(link_of(owner), OWN).is_some());
        assert_eq!(of_directory, [false, false, true]);
    }

    #[test]
    fn link_in_a_directory_of_others_is_rejected_and_no_file_is_created() {
        let (shared, own) = (directory(0o777), directory(0o700));
        let (link, target) = (shared.path().join("audit"), own.path().join("target"));
        symlink(&target, &link).unwrap();
        let error = open(&link).unwrap_err();
        assert!(error.contains("is a symbolic link in") && error.contains("mode 0777"), "{error}");
        assert_eq!(check(&link), Err(error));
        assert!(!target.exists());
        // A link of ours to that link is rejected, too.
        let way = own.path().join("way");
        symlink(&link, &way).unwrap();
        assert!(open(&way).is_err());
        assert!(!target.exists());
        // The file itself may be in that directory, and so may a link of ours to a directory.
        open(&shared.path().join("plain")).unwrap();
        let folder = shared.path().join("folder");
        symlink(own.path(), &folder).unwrap();
        open(&folder.join("target")).unwrap();
    }

    #[test]
    fn link_in_a_private_directory_is_followed() {
        let own = directory(0o755);
        let (first, second, target) = (own.path().join("1"), own.path().join("2"), own.path().join("folder/target"));
        fs::create_dir(own.path().join("folder")).unwrap();
        symlink("2", &first).unwrap();
        symlink("folder/../folder/target", &second).unwrap();
        check(&first).unwrap();
        assert!(!target.exists(), "a check creates nothing");
        io::Write::write_all(&mut open(&first).unwrap(), b"line\n").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"line\n");
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o137, 0, "created for owner and group");
    }

    #[test]
    fn circular_links_are_an_error() {
        let own = directory(0o700);
        let link = own.path().join("circle");
        symlink(&link, &link).unwrap();
        assert!(open(&link).unwrap_err().contains("too many"));
    }

    #[test]
    fn descriptor_of_the_process_is_followed() {
        let own = directory(0o700);
        let file = File::create(own.path().join("file")).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        open(Path::new(&format!("/dev/fd/{number}"))).unwrap();
    }
}
