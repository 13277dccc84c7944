//! Names of listeners in arguments.

use crate::cli::Failure;
use crate::cli::client::AdminClient;
use crate::cli::client::json_view::JsonView;

/// Rejects an unknown name, for requests whose filter would match nothing. A removed listener may still have sessions.
///
/// # Errors
/// Wrong usage (exit code 2) for an unknown name.
pub(crate) fn require_listener(listener: &str, client: &AdminClient) -> Result<(), Failure> {
    let status = client.get("/v1/status")?;
    let names = |list| JsonView(&status).list(list).filter_map(|listener| listener.text("name"));
    let mut removed = names("removed_listeners");
    let names: Vec<_> = names("listeners").collect();
    if names.iter().any(|name| name == listener) || removed.any(|name| name == listener) {
        return Ok(());
    }
    Err(Failure::Usage(format!("there is no listener {listener:?}; listeners: {}", names.join(", "))))
}
