//! `listen`: TCP addresses and Unix sockets.

use std::path::{Path, PathBuf};

use nix::unistd::{Group, User};

use crate::addr::{ListenAddr, TcpListenAddr};
use crate::config::document::Node;
use crate::transport::unix_socket::Access;

#[derive(Debug)]
pub(crate) struct Listen {
    pub(crate) address: ListenAddr,
    /// Owner and permissions of a Unix socket; `None` for TCP.
    pub(crate) access: Option<Access>,
}

/// Reads one address: a string, or a table that also sets owner and permissions of a Unix socket.
pub(crate) fn listen(node: &Node<'_>, ipv6_only: bool, directory: &Path) -> Option<Listen> {
    if node.is_table() {
        return unix_socket(node, directory);
    }
    if node.text(LISTEN)?.starts_with("unix:") {
        let address = ListenAddr::Unix(path(node, directory)?);
        return Some(Listen { address, access: Some(Access::PRIVATE) });
    }
    let address = ListenAddr::Tcp(TcpListenAddr { socket: node.socket_address()?, ipv6_only });
    Some(Listen { address, access: None })
}

fn unix_socket(node: &Node<'_>, directory: &Path) -> Option<Listen> {
    let section = node.section("a table")?;
    let path = section.require("address", UNIX).and_then(|node| path(&node, directory));
    let mode = section.get("mode").map(|node| mode(&node));
    let owner = section.get("owner").map(|node| owner(&node));
    let group = section.get("group").map(|node| group(&node));
    section.finish();
    let access = Access {
        mode: mode.unwrap_or(Some(Access::PRIVATE.mode))?,
        owner: owner.map_or(Some(None), |owner| owner.map(Some))?,
        group: group.map_or(Some(None), |group| group.map(Some))?,
    };
    Some(Listen { address: ListenAddr::Unix(path?), access: Some(access) })
}

fn path(node: &Node<'_>, directory: &Path) -> Option<PathBuf> {
    node.socket_path(directory, UNIX)
}

/// `"0660"`: octal permission bits without setuid, setgid and sticky.
fn mode(node: &Node<'_>) -> Option<u32> {
    let text = node.text(MODE)?;
    let octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o777);
    if mode.is_none() {
        node.expected(MODE);
    }
    mode
}

fn owner(node: &Node<'_>) -> Option<u32> {
    let text = node.text(OWNER)?;
    let known = |name: &str| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
    number_of(node, text, known, "user")
}

fn group(node: &Node<'_>) -> Option<u32> {
    let text = node.text(GROUP)?;
    let known = |name: &str| Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
    number_of(node, text, known, "group")
}

fn number_of(node: &Node<'_>, text: &str, known: impl Fn(&str) -> Option<u32>, what: &str) -> Option<u32> {
    let number = text.parse().ok().or_else(|| known(text));
    if number.is_none() {
        node.problem(format_args!("found {}, but this machine has no such {what}", node.found()));
    }
    number
}

const LISTEN: &str = "an IP address and port such as \"0.0.0.0:6380\" or \"[::]:6380\", or a Unix socket such as \"unix:/run/portcullis/cache.sock\"";
const UNIX: &str = "a Unix socket such as \"unix:/run/portcullis/cache.sock\"";
const MODE: &str = "octal permissions such as \"0660\"";
const OWNER: &str = "a user name or numeric user ID";
const GROUP: &str = "a group name or numeric group ID";
