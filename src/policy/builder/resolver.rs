//! The files of `[resolver]`, as far as this process reads them.

use crate::config::files::Location;
use crate::config::resolver::Resolvers;
use crate::policy::builder::reader::Reader;
use crate::x509::pem;

/// Records a problem for a `ca` that is no bundle of certificates, and warns about secrets that others can read.
pub(crate) fn check(resolvers: &Resolvers, reader: &mut Reader<'_>) {
    for file in &resolvers.ca {
        let _ = reader.parse(file, pem::certificates);
    }
    for secret in &resolvers.secrets {
        reader.warn_about_readers("secret", &Location::from(secret));
    }
}
