//! The secret for the salts of unknown users where the file of the clients has none, because nobody has used `portcullis
//! password`.

use std::fs;
use std::sync::LazyLock;

use crate::credential::mock::MockSecret;

/// Depends on the ID of this machine, which is the same after a restart and which clients do not know (machine-id(5)). Without
/// one, it is random for the lifetime of the process.
pub(crate) fn of_machine() -> MockSecret {
    static SECRET: LazyLock<MockSecret> = LazyLock::new(|| {
        let text = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let id = u128::from_str_radix(text.trim(), 16).ok().filter(|_| text.trim().len() == 32);
        let derived = id.map(|id| MockSecret::derived(&id.to_be_bytes()));
        derived.or_else(MockSecret::random).unwrap_or_default()
    });
    SECRET.clone()
}
