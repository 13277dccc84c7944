//! The files of `[fleet]`, as far as this process reads them.

use crate::config::files::Location;
use crate::config::fleet::Fleet;
use crate::config::{Config, SharedTicketKeys};
use crate::fleet::seal::SealingKeys;
use crate::fleet::settings::Engine;
use crate::fleet::ticket_ring::Ring;
use crate::policy::builder::Builder;
use crate::policy::builder::reader::Reader;
use crate::policy::fleet::FleetSecrets;
use crate::tls::tickets::TicketKeys;
use crate::x509::pem;

/// Reads the secrets of the fleet. Records a problem for a file that cannot be used, and warns about secrets that others can
/// read.
pub(crate) fn secrets(fleet: &Fleet, config: &Config, reader: &mut Reader<'_>) -> FleetSecrets {
    for file in &fleet.certificates {
        let _ = reader.parse(file, pem::certificates);
    }
    for secret in &fleet.secrets {
        reader.warn_about_readers("secret", &Location::from(secret));
    }
    if let Engine::Etcd(etcd) = &fleet.store.engine
        && let Some(endpoint) = etcd.endpoints.iter().find(|endpoint| is_readable_on_the_way(endpoint))
    {
        reader.warn(format_args!(
            "{endpoint} is reached without TLS, so others can read and change the rules on the way; use https"
        ));
    }
    let keys = fleet.key_file.as_ref().and_then(|file| {
        let keys = reader.parse(file, SealingKeys::parse);
        reader.warn_about_readers("fleet key", &Location::from(&file.path));
        keys
    });
    let uses_tickets = config.listeners.iter().filter_map(|listener| listener.tls.as_ref());
    let uses_tickets =
        uses_tickets.filter_map(|tls| tls.ticket_keys.as_ref()).any(|keys| *keys == SharedTicketKeys::Fleet);
    let tickets = keys.as_ref().filter(|_| uses_tickets).and_then(|keys| tickets(fleet, keys, reader));
    FleetSecrets { keys, tickets }
}

/// The last good ticket keys. Without them, each listener has its own.
fn tickets(fleet: &Fleet, keys: &SealingKeys, reader: &mut Reader<'_>) -> Option<(u64, TicketKeys)> {
    let file = fleet.tickets_file();
    let known = match reader.files.read_if_present(&file) {
        Ok(None) => Err("they are not known yet".to_owned()),
        Ok(Some(bytes)) => open(&bytes, keys, fleet.name()).map_err(|why| format!("{}: {why}", file.display())),
        Err(why) => Err(format!("{} {why}", file.display())),
    };
    known
        .map_err(|why| {
            reader.warn(format_args!(
                "the ticket keys of the fleet are not used: {why}; tickets are valid at this member only"
            ));
        })
        .ok()
}

/// Reads a ring of ticket keys.
///
/// # Errors
/// Why it cannot be used, without any of its content.
pub(crate) fn open(bytes: &[u8], keys: &SealingKeys, fleet: &str) -> Result<(u64, TicketKeys), String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    let ring = Ring::parse(text).map_err(|error| error.to_string())?;
    let raw = ring.unseal(keys, fleet).map_err(|error| error.to_string())?;
    let tickets = TicketKeys::from_raw(raw.iter().map(|key| key.as_slice())).ok_or("it holds no ticket keys")?;
    Ok((ring.sequence, tickets))
}

fn is_readable_on_the_way(endpoint: &str) -> bool {
    endpoint.strip_prefix("http://").is_some_and(|authority| {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let is_loopback = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        !is_loopback && host != "localhost"
    })
}

impl Builder<'_> {
    /// Whether the rules of the listener are in the store of the fleet, and this member has never seen them.
    pub(crate) fn waits_for_fleet(&self) -> bool {
        self.listener.fleet_rules.as_ref().is_some_and(|rules| rules.copy.is_none())
    }
}
