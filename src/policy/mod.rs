//! The questions, answered without a clock, a file or a socket: may a client at this address come in, and one of these
//! names?
//!
//! Permission is a value. Only [`SourcePolicy::admit`] makes an [`Admitted`], and everything later in a connection's life
//! asks for one.

mod accounts;
mod balancers;
mod bucket;
mod chain_settings;
mod clients;
mod expiry;
mod host;
mod identity;
mod limits;
mod packet_filter;
mod rule;
mod sources;
mod subject_name;

pub use accounts::{Account, Accounts};
pub use balancers::Balancers;
pub use bucket::{Allowance, Bucket};
pub use chain_settings::{AnchorValidity, CrlExpired};
pub use clients::{ClientPattern, ClientPatternError, TrustedClients};
pub use expiry::{days_left, expiry_milestone};
pub use host::{AddressBook, Addresses, Host, HostName, HostNameError, LeftOut, NoAddress};
pub use identity::ClientAuth;
pub use limits::{Rate, RateError};
pub use packet_filter::{Instruction, PacketFilter, TooLong};
pub use rule::{Network, NetworkError, Origin, Rule, Source};
pub use sources::{Admitted, Enforcement, SourcePolicy, Standing, Stranger, TrustedSources};
pub use subject_name::ClientName;
