//! Checks that this machine can run the configuration: socket directories, local addresses, a writable audit file.
//!
//! The checks bind no listener address and create no file.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;

use crate::addr::ListenAddr;
use crate::audit::file;
use crate::config::problem::Problem;
use crate::config::{Config, Listener, shown};
use crate::permissions;
use crate::transport::unix_socket;
use crate::transport::unix_socket::Access;

/// Returns what prevents a start on this machine. `offline` skips the checks of network addresses.
pub(crate) fn problems(config: &Config, offline: bool) -> Vec<Problem> {
    let admin = config.admin.iter().flat_map(|admin| {
        let listen = admin.listen.iter().filter_map(|address| match address {
            ListenAddr::Unix(path) => {
                let why = unix_socket::check(path, Access::PRIVATE).err()?;
                Some(config.problem_at("admin.listen", format_args!("{} {why}", path.display())))
            }
            ListenAddr::Tcp(address) => {
                let why = bind_error(address.socket).filter(|_| !offline)?;
                Some(config.problem_at("admin.listen", format_args!("{address} {why}")))
            }
        });
        let metrics = admin.metrics.filter(|_| !offline).and_then(|address| {
            let why = bind_error(address)?;
            Some(config.problem_at("admin.metrics", format_args!("{address} {why}")))
        });
        listen.chain(metrics)
    });
    let audit_file = config.log.audit_file.iter().filter_map(|path| {
        let why = file::check(path).err()?;
        Some(config.problem_at("log.audit_file", format_args!("{} {why}", shown::file("log.audit_file", path))))
    });
    let addresses = config.listeners.iter().flat_map(|listener| {
        listener.listen.iter().filter_map(move |address| {
            let why = unavailable_reason(listener, address, offline)?;
            Some(config.problem_at(&address.to_string(), format_args!("{address} {why}")))
        })
    });
    audit_file.chain(admin).chain(addresses).collect()
}

/// Returns why the address cannot be bound, as far as this is known without binding it.
fn unavailable_reason(listener: &Listener, address: &ListenAddr, offline: bool) -> Option<String> {
    match address {
        ListenAddr::Unix(path) => unix_socket::check(path, access(listener, path)).err(),
        ListenAddr::Tcp(_) if offline => None,
        ListenAddr::Tcp(address) => bind_error(address.socket),
    }
}

fn access(listener: &Listener, path: &Path) -> Access {
    listener.socket_files.get(path).copied().unwrap_or(Access::PRIVATE)
}

fn bind_error(address: SocketAddr) -> Option<String> {
    if permissions::is_privileged(address) {
        let (user, fix) = (permissions::user(), permissions::fix_for_privileged_port(address));
        return Some(format!("cannot be bound as user {user}: permission denied; {fix}"));
    }
    // A UDP socket on port 0 tests whether the address is local without ever occupying the TCP port of a listener.
    let mut any_port = address;
    any_port.set_port(0);
    let error = UdpSocket::bind(any_port).err()?;
    Some(format!("cannot be bound: {error}; use an address of this machine (listed by: ip address)"))
}
