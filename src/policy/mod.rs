//! The questions, answered without a clock, a file or a socket: may a client at this address come in, and one of these
//! names?
//!
//! Permission is a value. Only [`SourcePolicy::admit`] makes an [`Admitted`], and everything later in a connection's life
//! asks for one.

mod accounts;
mod balancers;
mod bucket;
mod clients;
mod expiry;
mod host;
mod identity;
mod limits;
mod packet_filter;
mod rule;
mod sources;

pub use accounts::{Account, Accounts};
pub use balancers::Balancers;
pub use bucket::{Allowance, Bucket};
pub use clients::{ClientName, ClientPattern, ClientPatternError, TrustedClients};
pub use expiry::{days_left, expiry_milestone};
pub use host::{AddressBook, Addresses, Host, HostName, HostNameError, LeftOut, NoAddress};
pub use identity::{AnchorValidity, ClientAuth, CrlExpired};
pub use limits::{Rate, RateError};
pub use packet_filter::{Instruction, PacketFilter, TooLong};
pub use rule::{Network, NetworkError, Origin, Rule, Source};
pub use sources::{Admitted, Enforcement, SourcePolicy, Standing, Stranger, TrustedSources};
