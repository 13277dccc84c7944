//! The socket as a file: never open to others, never taken from a program that lives, never left behind.

use std::fmt::Display;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tracing::warn;

/// A socket's file. Dropped, it is removed, unless another has come into its place. To be dropped before the socket is
/// closed: until then the file's number is nobody else's.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Listens at `path`, in place of a socket that nobody listens at.
pub(super) fn listen(path: &Path) -> io::Result<(Place, UnixListener)> {
    make_room(path)?;
    let socket = private_socket().map_err(|error| at(path, error.kind(), format_args!("cannot be made: {error}")))?;
    socket.bind(&SockAddr::unix(path)?).map_err(|error| cannot_bind(path, &error))?;
    let place = Place::of(path)?;
    // Until now nobody could connect, whatever the file's mode.
    socket.listen(BACKLOG).map_err(|error| at(path, error.kind(), format_args!("cannot be listened at: {error}")))?;
    Ok((place, socket.into()))
}

impl Place {
    /// The file that was just bound.
    fn of(path: &Path) -> io::Result<Self> {
        let unreadable = |error: io::Error| at(path, error.kind(), format_args!("cannot be looked at: {error}"));
        let file = fs::symlink_metadata(path).map_err(unreadable)?;
        let place = Self { path: path.to_owned(), device: file.dev(), inode: file.ino() };
        if file.mode() & 0o077 != 0 {
            let mode = file.mode() & 0o777;
            return Err(at(
                path,
                io::ErrorKind::Other,
                format_args!("has the mode {mode:o} on this file system, and would be open to others"),
            ));
        }
        Ok(place)
    }

    /// Whether it is the file at `path`.
    pub(super) fn is(&self, path: &Path) -> bool {
        self.path == path
    }

    /// Whether the file is still there and still the one that was bound.
    pub(super) fn is_ours(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == (self.device, self.inode))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_ours()
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!("admin socket {}: cannot be removed: {error}", self.path.display());
        }
    }
}

/// A socket whose file will have the mode 0600 from its first moment: Linux gives the file the mode of the socket, less the
/// umask. The umask itself is the whole process's, and other threads make files, too.
pub(super) fn private_socket() -> io::Result<Socket> {
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
        Ok(_) => {
            let why = "is there already and is no socket, so it is not touched; take it away, or choose another path";
            return Err(at(path, io::ErrorKind::AlreadyExists, why));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(path, error.kind(), format_args!("cannot be looked at: {error}"))),
    }
    match new_socket()?.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => remove(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full queue is one that somebody has.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
            let why =
                format_args!("is there already, and whether a program answers at it cannot be found out: {error}");
            Err(at(path, error.kind(), why))
        }
        Ok(()) | Err(_) => {
            let why = "a running program answers there already; end it, or choose another path";
            Err(at(path, io::ErrorKind::AddrInUse, why))
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(
            path,
            error.kind(),
            format_args!("was left by a program that has ended, and cannot be removed: {error}"),
        )),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn cannot_bind(path: &Path, error: &io::Error) -> io::Error {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    match directory.filter(|directory| error.kind() == io::ErrorKind::NotFound && !directory.exists()) {
        Some(directory) => {
            let why = format_args!(
                "there is no directory {}; make it, for the user this program runs as (systemd: RuntimeDirectory=)",
                directory.display()
            );
            at(path, error.kind(), why)
        }
        None => at(path, error.kind(), format_args!("cannot be bound: {error}")),
    }
}

fn at(path: &Path, kind: io::ErrorKind, why: impl Display) -> io::Error {
    io::Error::new(kind, format!("admin socket {}: {why}", path.display()))
}

/// Callers the kernel keeps ready while the others have their answers.
const BACKLOG: i32 = 128;
