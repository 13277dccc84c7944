//! What the members of a fleet keep secret from everyone who can read the store.

use crate::fleet::seal::SealingKeys;
use crate::tls::tickets::TicketKeys;

/// The secrets of a fleet, as far as this member has them.
#[derive(Debug, Default)]
pub(crate) struct FleetSecrets {
    /// `[fleet] key_file`
    pub(crate) keys: Option<SealingKeys>,
    /// The last good session ticket keys and their sequence, if a listener uses them.
    pub(crate) tickets: Option<(u64, TicketKeys)>,
}
