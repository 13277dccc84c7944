//! Explains a permission error of the file system: which user was denied, and which command grants access.
//!
//! The kernel reports only "Permission denied". This module determines the user, and whether the file or a directory above it
//! denies access.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, Group, User, faccessat, getegid, geteuid};

/// The name of the user that the program runs as, or its number where it has no name.
pub(crate) fn user() -> String {
    let uid = geteuid();
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// The name of the group that the program runs as, or its number where it has no name.
fn group() -> String {
    let gid = getegid();
    Group::from_gid(gid).ok().flatten().map_or_else(|| gid.to_string(), |group| group.name)
}

/// A message that names what failed and why, with the user if permissions are the reason.
pub(crate) fn cannot(what: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!("{what} as user {}: permission denied", user()),
        _ => format!("{what}: {error}"),
    }
}

/// The command that grants this user read access to a file, if access is denied. A `private` file stays readable by its owner
/// only.
pub(crate) fn fix_for_reading(file: &Path, private: bool) -> Option<String> {
    if let Some(fix) = fix_for_reaching(file) {
        return Some(fix);
    }
    if is_allowed(file, AccessFlags::R_OK) {
        return None;
    }
    let (user, file) = (user(), quoted(file));
    Some(if private {
        format!("chown {user}: {file} && chmod 600 {file}")
    } else {
        format!("chgrp {} {file} && chmod g+r {file}", group())
    })
}

/// The command that grants this user the right to create files in a directory, if it is denied.
pub(crate) fn fix_for_creating(directory: &Path) -> Option<String> {
    if let Some(fix) = fix_for_reaching(directory) {
        return Some(fix);
    }
    if is_allowed(directory, AccessFlags::W_OK | AccessFlags::X_OK) {
        return None;
    }
    // The mode binds the owner as well.
    let is_own = directory.metadata().is_ok_and(|metadata| metadata.uid() == geteuid().as_raw());
    let directory = quoted(directory);
    Some(if is_own { format!("chmod u+wx {directory}") } else { format!("chown {}: {directory}", user()) })
}

/// The command that grants this user write access to an existing file, if access is denied.
pub(crate) fn fix_for_writing(file: &Path) -> Option<String> {
    if let Some(fix) = fix_for_reaching(file) {
        return Some(fix);
    }
    if is_allowed(file, AccessFlags::W_OK) {
        return None;
    }
    Some(format!("chown {}: {}", user(), quoted(file)))
}

/// Why no user can write to `path`, an existing file or directory.
pub(crate) fn read_only(path: &Path) -> Option<&'static str> {
    let is_read_only = matches!(faccessat(AT_FDCWD, path, AccessFlags::W_OK, AtFlags::AT_EACCESS), Err(Errno::EROFS));
    is_read_only
        .then_some("its file system is read-only; mount it writable (systemd: ReadWritePaths=), or choose another path")
}

/// Why no file can be created in a directory.
pub(crate) fn obstacle_to_creating(directory: &Path) -> Option<String> {
    if !directory.is_dir() {
        return Some("is not a directory; create it".to_owned());
    }
    if let Some(why) = read_only(directory) {
        return Some(format!("cannot be written to: {why}"));
    }
    let fix = fix_for_creating(directory)?;
    Some(format!("cannot be written to as user {}; run: {fix}", user()))
}

/// Whether the kernel denies this address to the user because its port is privileged.
pub(crate) fn is_privileged(address: SocketAddr) -> bool {
    let port = address.port();
    port != 0 && port < first_unprivileged_port() && !may_bind_privileged_ports()
}

/// How to allow this user to bind a privileged port.
pub(crate) fn fix_for_privileged_port(address: SocketAddr) -> String {
    format!(
        "ports below {} need CAP_NET_BIND_SERVICE; under systemd set AmbientCapabilities= and CapabilityBoundingSet= to \
         CAP_NET_BIND_SERVICE, or run: sysctl -w net.ipv4.ip_unprivileged_port_start={}",
        first_unprivileged_port(),
        address.port()
    )
}

/// The command that grants search access to the first directory above `path` that denies it to this user.
fn fix_for_reaching(path: &Path) -> Option<String> {
    let absolute = std::path::absolute(path).ok()?;
    let mut above: Vec<&Path> = absolute.ancestors().skip(1).collect();
    above.reverse();
    let closed = above.into_iter().find(|directory| !is_allowed(directory, AccessFlags::X_OK))?;
    let directory = quoted(closed);
    Some(format!("chgrp {} {directory} && chmod g+x {directory}", group()))
}

/// Whether access to a file is not denied. A missing file counts as accessible.
fn is_allowed(path: &Path, access: AccessFlags) -> bool {
    !matches!(faccessat(AT_FDCWD, path, access, AtFlags::AT_EACCESS), Err(Errno::EACCES | Errno::EPERM))
}

/// Quotes a path for a shell.
fn quoted(path: &Path) -> Cow<'_, str> {
    let text = path.to_string_lossy();
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-+:@%".contains(character);
    if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")).into() }
}

fn first_unprivileged_port() -> u16 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

/// Whether CAP_NET_BIND_SERVICE is effective.
fn may_bind_privileged_ports() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.map_or_else(|| geteuid().is_root(), |set| set >> CAP_NET_BIND_SERVICE & 1 == 1)
}

/// Its number in capabilities(7).
const CAP_NET_BIND_SERVICE: u32 = 10;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn permission_error_names_the_user_and_other_errors_are_unchanged() {
        let denied = cannot("cannot be read", &io::ErrorKind::PermissionDenied.into());
        assert_eq!(denied, format!("cannot be read as user {}: permission denied", user()));
        let missing = cannot("cannot be read", &io::Error::from_raw_os_error(libc::ENOENT));
        assert!(missing.starts_with("cannot be read: No such file"), "{missing}");
    }

    #[test]
    fn accessible_and_missing_files_need_no_fix() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x");
        assert_eq!(fix_for_reading(&file, true), None);
        fs::write(&file, "x").unwrap();
        assert_eq!((fix_for_reading(&file, true), fix_for_writing(&file)), (None, None));
        assert_eq!(fix_for_creating(directory.path()), None);
        assert_eq!(obstacle_to_creating(directory.path()), None);
        assert!(obstacle_to_creating(&directory.path().join("missing")).unwrap().contains("create it"));
    }

    /// Root is denied nothing. tests/preflight.rs runs the program as another user.
    #[test]
    fn closed_files_and_directories_name_the_obstacle() {
        if geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o0)).unwrap();
        assert!(fix_for_reading(&file, true).unwrap().ends_with(&format!("chmod 600 {}", file.display())));
        assert!(fix_for_reading(&file, false).unwrap().contains("chmod g+r"));
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o0)).unwrap();
        let fix = fix_for_reading(&file, true).unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(fix.ends_with(&format!("chmod g+x {}", directory.path().display())), "{fix}");
    }

    #[test]
    fn paths_are_quoted_for_a_shell() {
        assert_eq!(quoted(Path::new("/etc/a-b_c.d")), "/etc/a-b_c.d");
        assert_eq!(quoted(Path::new("/etc/it's; rm")), r"'/etc/it'\''s; rm'");
    }

    #[test]
    fn high_and_ephemeral_ports_are_not_privileged() {
        for port in [0, 65_535] {
            assert!(!is_privileged(SocketAddr::from(([127, 0, 0, 1], port))), "{port}");
        }
    }
}
