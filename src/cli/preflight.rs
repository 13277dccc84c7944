//! What a start needs of this machine beside the files that the configuration names: directories for sockets, addresses of its
//! own, a writable audit file. Nothing is bound or created to find out.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;

use crate::addr::ListenAddr;
use crate::audit::file;
use crate::config::problem::Problem;
use crate::config::{Config, Listener};
use crate::permissions;
use crate::transport::unix_socket;
use crate::transport::unix_socket::Access;

/// What would keep the program from starting here. Where it is `offline` the network of this machine is left out.
pub(crate) fn problems(config: &Config, offline: bool) -> Vec<Problem> {
    let admin = config.admin.iter().filter_map(|admin| {
        let why = unix_socket::check(&admin.socket, Access::PRIVATE).err()?;
        Some(config.problem_at("admin.listen", format_args!("{} {why}", admin.socket.display())))
    });
    let audit_file = config.log.audit_file.iter().filter_map(|path| {
        let why = file::check(path).err()?;
        Some(config.problem_at("log.audit_file", format_args!("{} {why}", path.display())))
    });
    let addresses = config.listeners.iter().flat_map(|listener| {
        listener.listen.iter().filter_map(move |address| {
            let why = unavailable(listener, address, offline)?;
            Some(config.problem_at(&address.to_string(), format_args!("{address} {why}")))
        })
    });
    audit_file.chain(admin).chain(addresses).collect()
}

/// Why a start could not have this address, as far as that can be told without taking it.
fn unavailable(listener: &Listener, address: &ListenAddr, offline: bool) -> Option<String> {
    match address {
        ListenAddr::Unix(path) => unix_socket::check(path, access(listener, path)).err(),
        ListenAddr::Tcp(_) if offline => None,
        ListenAddr::Tcp(address) => cannot_be_bound(address.socket),
    }
}

fn access(listener: &Listener, path: &Path) -> Access {
    listener.socket_files.get(path).copied().unwrap_or(Access::PRIVATE)
}

fn cannot_be_bound(address: SocketAddr) -> Option<String> {
    if permissions::is_privileged(address) {
        let (user, fix) = (permissions::user(), permissions::fix_for_privileged_port(address));
        return Some(format!("cannot be bound as user {user}: permission denied; {fix}"));
    }
    // Whether the address is this machine's is asked by a socket of another protocol on a port that nobody has chosen, so that
    // no port of a listener is taken, not even for a moment.
    let mut misplaced_keys = address;
    misplaced_keys.set_port(0);
    let error = UdpSocket::bind(misplaced_keys).err()?;
    Some(format!("cannot be bound: {error}; listen on an address of this machine (ip address lists them)"))
}
