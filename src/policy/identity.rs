//! What a listener asks of a client's identity.

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked for one.
    None,
    /// They may show one; one that is not trusted is refused all the same.
    Optional,
    /// They must show one.
    Required,
}
