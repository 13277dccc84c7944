//! The file of a listening Unix socket. It never has wider permissions than configured, never replaces the socket of a running
//! program, and is removed at the end.

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

/// The file of a bound socket. Dropping it removes the file, unless another file has replaced it. Drop it before the socket
/// is closed: until then no other file can have the same inode number.
#[derive(Debug)]
pub(crate) struct UnixSocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// The permissions of the file of a Unix socket. Connecting needs write permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The permission bits.
    pub mode: u32,
    /// User id. `None` for the user of the process.
    pub owner: Option<u32>,
    /// Group id. `None` for the group of the process.
    pub group: Option<u32>,
}

impl Access {
    /// Only the user of the process, and root.
    pub const PRIVATE: Self = Self { mode: 0o600, owner: None, group: None };
}

/// Listens at `path`. A socket that no program listens on is replaced. The kernel queues up to `backlog` clients.
///
/// # Errors
/// The message is a predicate for the path, such as `cannot be bound: …`.
pub(crate) fn listen(path: &Path, access: Access, backlog: i32) -> io::Result<(UnixSocketFile, UnixListener)> {
    remove_stale(path)?;
    let socket = private_socket().map_err(|error| describe(&error, "cannot be created"))?;
    socket.bind(&SockAddr::unix(path)?).map_err(|error| describe_bind_error(path, &error))?;
    let socket_file = UnixSocketFile::new(path)?;
    socket_file.set_access(access)?;
    // Before this call no client could connect, whatever the mode of the file.
    socket.listen(backlog).map_err(|error| describe(&error, "cannot be listened on"))?;
    Ok((socket_file, socket.into()))
}

/// Checks whether [`listen`] could listen at `path`, without side effects. It does not detect a running program there.
///
/// # Errors
/// The message is a predicate for the path, such as `cannot be bound: …`.
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
        return Err(NOT_A_SOCKET.to_owned());
    }
    let (user, root) = (geteuid().as_raw(), geteuid().is_root());
    let groups = getgroups().unwrap_or_default();
    let is_own = |group: u32| getegid().as_raw() == group || groups.iter().any(|own| own.as_raw() == group);
    match access {
        _ if root => Ok(()),
        Access { owner: Some(owner), .. } if owner != user => Err(format!(
            "cannot be owned by user {owner}: only root can change the owner, and the process runs as {}; remove owner, or run \
             as user {owner}",
            permissions::user()
        )),
        Access { group: Some(group), .. } if !is_own(group) => {
            let name = permissions::user();
            Err(format!(
                "cannot be given to group {group}: user {name} is not a member; run: usermod -aG {group} {name}"
            ))
        }
        Access { .. } => Ok(()),
    }
}

impl UnixSocketFile {
    /// The file at `path`, which was just bound.
    fn new(path: &Path) -> io::Result<Self> {
        let file = fs::symlink_metadata(path).map_err(|error| describe(&error, "cannot be inspected"))?;
        let socket_file = Self { path: path.to_owned(), device: file.dev(), inode: file.ino() };
        if !file.file_type().is_socket() {
            return Err(replaced());
        }
        if file.mode() & 0o077 != 0 {
            let mode = file.mode() & 0o777;
            let why =
                format!("has mode {mode:o}: this file system does not support private sockets; use another directory");
            return Err(io::Error::other(why));
        }
        Ok(socket_file)
    }

    /// Sets owner, group and mode.
    ///
    /// # Errors
    /// The message is a predicate for the path, such as `has been replaced by another file`.
    pub(crate) fn set_access(&self, access: Access) -> io::Result<()> {
        let Access { mode, owner, group } = access;
        let file = self.open()?;
        let fd_path = format!("/proc/self/fd/{}", file.as_raw_fd());
        if owner.is_some() || group.is_some() {
            chown(&fd_path, owner, group)
                .map_err(|error| describe(&error, "cannot be assigned its owner and group"))?;
        }
        // Set after the owner, so that the wider mode never applies to the former owner or group.
        let permissions = Permissions::from_mode(mode);
        fs::set_permissions(&fd_path, permissions).map_err(|error| describe(&error, "cannot be assigned its mode"))
    }

    /// Opens exactly this file. If another user owns the directory, that user could replace the file with a symbolic link to
    /// any file that this process may change.
    fn open(&self) -> io::Result<File> {
        let file = File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(&self.path);
        let file = file.map_err(|error| describe(&error, "cannot be inspected"))?;
        let metadata = file.metadata().map_err(|error| describe(&error, "cannot be inspected"))?;
        if (metadata.dev(), metadata.ino()) == (self.device, self.inode) { Ok(file) } else { Err(replaced()) }
    }

    /// Whether the path still has the file that was bound.
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

/// Creates a socket whose file has mode 0600 from the moment of bind: Linux applies the mode of the socket, less the umask.
/// The umask cannot be used, because it belongs to the whole process and other threads create files too.
fn private_socket() -> io::Result<Socket> {
    let file = File::from(OwnedFd::from(new_socket()?));
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(Socket::from(OwnedFd::from(file)))
}

/// Creates a nonblocking socket, so that connect does not block either.
fn new_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Removes the socket of a program that has ended without removing it. Any other file is an error.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {}
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, NOT_A_SOCKET)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(describe(&error, "cannot be inspected")),
    }
    match new_socket()?.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => remove(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Only a running program can have a full backlog.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
            Err(describe(&error, "already exists, and testing whether a program uses it failed"))
        }
        Ok(()) | Err(_) => {
            let why = "is in use by a running program; stop that program, or choose another path";
            Err(io::Error::new(io::ErrorKind::AddrInUse, why))
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(describe(&error, "is a stale socket that cannot be removed"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn describe_bind_error(path: &Path, error: &io::Error) -> io::Error {
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
        "directory {} does not exist; create it for the user of this process (systemd: RuntimeDirectory=)",
        directory.display()
    )
}

const NOT_A_SOCKET: &str = "exists and is not a socket; remove it, or choose another path";

fn replaced() -> io::Error {
    io::Error::other("has been replaced by another file")
}

fn describe(error: &io::Error, failure: &str) -> io::Error {
    io::Error::new(error.kind(), permissions::cannot(failure, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    /// The mode applies before a client can connect: the socket does not listen yet.
    #[test]
    fn file_is_private_before_the_socket_listens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let socket = private_socket().unwrap();
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn file_has_the_configured_mode_with_any_umask() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let (socket_file, _socket) = listen(&path, Access { mode: 0o666, ..Access::PRIVATE }, 1).unwrap();
        assert_eq!(mode(&path), 0o666);
        socket_file.set_access(Access::PRIVATE).unwrap();
        assert_eq!(mode(&path), 0o600);
        drop(socket_file);
        assert!(!path.exists());
    }

    #[test]
    fn file_that_replaced_the_socket_keeps_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let (path, secret) = (directory.path().join("a.sock"), directory.path().join("key.pem"));
        fs::write(&secret, "secret").unwrap();
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        let (socket_file, _socket) = listen(&path, Access::PRIVATE, 1).unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        let error = socket_file.set_access(Access { mode: 0o666, ..Access::PRIVATE }).unwrap_err();
        assert_eq!(error.to_string(), "has been replaced by another file");
        assert_eq!(mode(&secret), 0o600);
        drop(socket_file);
        assert!(secret.exists() && path.is_symlink());
    }
}
