//! A Unix socket as a file: never open to more than it should be, never taken from a program that lives, never left
//! behind.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::unistd::{getegid, geteuid, getgroups};
use socket2::{Domain, SockAddr, Socket, Type};
use tracing::warn;

use crate::permissions;

/// A socket's file. Dropped, it is removed, unless another has come into its place. To be dropped before the socket is
/// closed: until then the file's number is nobody else's.
#[derive(Debug)]
pub(crate) struct UnixSocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Who may connect to a Unix socket: whoever may write to its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The permission bits.
    pub mode: u32,
    /// The number of the user it belongs to; the program's own where there is none.
    pub owner: Option<u32>,
    /// The number of its group; the program's own where there is none.
    pub group: Option<u32>,
}

impl Access {
    /// Nobody but the user the program runs as, and root.
    pub const PRIVATE: Self = Self { mode: 0o600, owner: None, group: None };
}

/// Listens at `path`, in place of a socket that nobody listens at. The kernel keeps as many as `backlog` ready.
///
/// # Errors
/// In words that fit behind the path.
pub(crate) fn listen(path: &Path, access: Access, backlog: i32) -> io::Result<(UnixSocketFile, UnixListener)> {
    make_room(path)?;
    let socket = private_socket().map_err(|error| because(&error, "cannot be made"))?;
    socket.bind(&SockAddr::unix(path)?).map_err(|error| cannot_bind(path, &error))?;
    let socket_file = UnixSocketFile::of(path)?;
    socket_file.open_to(access)?;
    // Until now nobody could connect, whatever the file's mode.
    socket.listen(backlog).map_err(|error| because(&error, "cannot be listened at"))?;
    Ok((socket_file, socket.into()))
}

/// Whether [`listen`] could listen at `path`, as far as that can be told without doing so: a program that answers there
/// already is not asked.
///
/// # Errors
/// In words that fit behind the path.
pub(crate) fn check(path: &Path, access: Access) -> Result<(), String> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Some(fix) = permissions::fix_for_creating(directory) {
        let denied = permissions::cannot("cannot be bound", &io::ErrorKind::PermissionDenied.into());
        return Err(format!("{denied}; run: {fix}"));
    }
    if !directory.is_dir() {
        return Err(format!("cannot be bound: {}", no_directory(directory)));
    }
    if let Some(why) = permissions::read_only(directory) {
        return Err(format!("cannot be bound: {why}"));
    }
    if fs::symlink_metadata(path).is_ok_and(|file| !file.file_type().is_socket()) {
        return Err(NO_SOCKET.to_owned());
    }
    let (user, root) = (geteuid().as_raw(), geteuid().is_root());
    let groups = getgroups().unwrap_or_default();
    let is_own = |group: u32| getegid().as_raw() == group || groups.iter().any(|own| own.as_raw() == group);
    match access {
        _ if root => Ok(()),
        Access { owner: Some(owner), .. } if owner != user => Err(format!(
            "cannot be given to user {owner} as user {}: only root can do that; leave owner out, or run as that user",
            permissions::user()
        )),
        Access { group: Some(group), .. } if !is_own(group) => {
            let name = permissions::user();
            Err(format!(
                "cannot be given to group {group} as user {name}, who is not in it; run: usermod -aG {group} {name}"
            ))
        }
        Access { .. } => Ok(()),
    }
}

impl UnixSocketFile {
    /// The file that was just bound.
    fn of(path: &Path) -> io::Result<Self> {
        let file = fs::symlink_metadata(path).map_err(|error| because(&error, "cannot be looked at"))?;
        let socket_file = Self { path: path.to_owned(), device: file.dev(), inode: file.ino() };
        if !file.file_type().is_socket() {
            return Err(taken());
        }
        if file.mode() & 0o077 != 0 {
            let mode = file.mode() & 0o777;
            let why = format!("has the mode {mode:o} on this file system, and would be open to others");
            return Err(io::Error::other(why));
        }
        Ok(socket_file)
    }

    /// Lets these connect, and nobody else.
    ///
    /// # Errors
    /// In words that fit behind the path.
    pub(crate) fn open_to(&self, access: Access) -> io::Result<()> {
        let Access { mode, owner, group } = access;
        let file = self.hold()?;
        let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
        if owner.is_some() || group.is_some() {
            chown(&itself, owner, group).map_err(|error| because(&error, "cannot be given to its owner"))?;
        }
        // Behind the owner: the mode never opens it to one who should not have it.
        let permissions = Permissions::from_mode(mode);
        fs::set_permissions(&itself, permissions).map_err(|error| because(&error, "cannot be given its mode"))
    }

    /// The file itself, whatever comes into its place. Its directory may be somebody else's, who could put a link there
    /// and so have any file that we may change.
    fn hold(&self) -> io::Result<File> {
        let file = File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(&self.path);
        let file = file.map_err(|error| because(&error, "cannot be looked at"))?;
        let fields = file.metadata().map_err(|error| because(&error, "cannot be looked at"))?;
        if (fields.dev(), fields.ino()) == (self.device, self.inode) { Ok(file) } else { Err(taken()) }
    }

    /// Whether it is the file at `path`.
    pub(crate) fn is(&self, path: &Path) -> bool {
        self.path == path
    }

    /// Whether the file is still there and still the one that was bound.
    pub(crate) fn is_ours(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == (self.device, self.inode))
    }
}

impl Drop for UnixSocketFile {
    fn drop(&mut self) {
        if self.is_ours()
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(path = %self.path.display(), %error, "cannot remove the Unix socket");
        }
    }
}

/// A socket whose file will have the mode 0600 from its first moment: Linux gives the file the mode of the socket, less the
/// umask. The umask itself is the whole process's, and other threads make files, too.
fn private_socket() -> io::Result<Socket> {
    let file = File::from(OwnedFd::from(new_socket()?));
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(Socket::from(OwnedFd::from(file)))
}

/// One that waits for nobody, also when it connects.
fn new_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Removes what a program left that ended without tidying up, and nothing else.
fn make_room(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {}
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, NO_SOCKET)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(because(&error, "cannot be looked at")),
    }
    match new_socket()?.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => remove(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full queue is one that somebody has.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
            Err(because(&error, "is there already, and whether a program answers at it cannot be found out"))
        }
        Ok(()) | Err(_) => {
            let why = "a running program answers there already; end it, or choose another path";
            Err(io::Error::new(io::ErrorKind::AddrInUse, why))
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(because(&error, "was left by a program that has ended, and cannot be removed"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn cannot_bind(path: &Path, error: &io::Error) -> io::Error {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    match directory.filter(|directory| error.kind() == io::ErrorKind::NotFound && !directory.exists()) {
        Some(directory) => io::Error::new(error.kind(), no_directory(directory)),
        None => {
            let fix = permissions::fix_for_creating(directory.unwrap_or(Path::new(".")));
            let fix = fix.filter(|_| error.kind() == io::ErrorKind::PermissionDenied);
            let fix = fix.map(|fix| format!("; run: {fix}")).unwrap_or_default();
            io::Error::new(error.kind(), format!("{}{fix}", permissions::cannot("cannot be bound", error)))
        }
    }
}

fn no_directory(directory: &Path) -> String {
    format!(
        "there is no directory {}; make it, for the user this program runs as (systemd: RuntimeDirectory=)",
        directory.display()
    )
}

const NO_SOCKET: &str = "is there already and is no socket, so it is not touched; take it away, or choose another path";

fn taken() -> io::Error {
    io::Error::other("has been replaced by another file")
}

fn because(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), permissions::cannot(what, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    /// The mode is there before anybody can connect: the file of a socket that does not listen yet has it.
    #[test]
    fn the_file_is_nobody_elses_before_the_socket_listens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let socket = private_socket().unwrap();
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn the_file_is_opened_to_those_who_should_have_it_whatever_the_umask() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let (socket_file, _socket) = listen(&path, Access { mode: 0o666, ..Access::PRIVATE }, 1).unwrap();
        assert_eq!(mode(&path), 0o666);
        socket_file.open_to(Access::PRIVATE).unwrap();
        assert_eq!(mode(&path), 0o600);
        drop(socket_file);
        assert!(!path.exists());
    }

    #[test]
    fn what_has_come_into_its_place_keeps_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let (path, secret) = (directory.path().join("a.sock"), directory.path().join("key.pem"));
        fs::write(&secret, "secret").unwrap();
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        let (socket_file, _socket) = listen(&path, Access::PRIVATE, 1).unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        let error = socket_file.open_to(Access { mode: 0o666, ..Access::PRIVATE }).unwrap_err();
        assert_eq!(error.to_string(), "has been replaced by another file");
        assert_eq!(mode(&secret), 0o600);
        drop(socket_file);
        assert!(secret.exists() && path.is_symlink());
    }
}
