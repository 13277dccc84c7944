//! Sources whose addresses change, and the addresses that each has.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::source::cloud::CloudSource;
use crate::source::host::HostName;

/// A source whose addresses are looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resolvable {
    /// Resolved by DNS.
    Host(HostName),
    /// Resolved by the API of a cloud or a cluster.
    Cloud(CloudSource),
}

impl Resolvable {
    pub const fn host(&self) -> Option<&HostName> {
        match self {
            Self::Host(name) => Some(name),
            Self::Cloud(_) => None,
        }
    }

    pub const fn cloud(&self) -> Option<&CloudSource> {
        match self {
            Self::Host(_) => None,
            Self::Cloud(source) => Some(source),
        }
    }
}

/// As the rule is shown: `dns:db.internal`, `tag:backend`.
impl fmt::Display for Resolvable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => write!(f, "dns:{name}"),
            Self::Cloud(source) => source.fmt(f),
        }
    }
}

/// The known addresses of each source. A source that is missing admits no client.
pub(crate) type AddressBook = BTreeMap<Resolvable, Addresses>;

/// The addresses of one source: sorted and unique, IPv4-mapped ones as IPv4, none unspecified. Those of a host are 1 to
/// [`MAX_HOST_ADDRESSES`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    ips: Arc<[IpAddr]>,
    /// The name of the object that has each address; empty for a host.
    objects: Arc<[Arc<str>]>,
}

impl Addresses {
    /// Returns the addresses of a DNS answer that may be trusted, and the number if some were omitted.
    ///
    /// # Errors
    /// When the answer contains no address that a client can have.
    pub fn of(answer: impl IntoIterator<Item = IpAddr>) -> Result<(Self, Option<OmittedAddresses>), NoAddress> {
        let mut all: Vec<_> = answer.into_iter().map(|ip| ip.to_canonical()).collect();
        all.sort_unstable();
        all.dedup();
        let some = !all.is_empty();
        all.retain(|ip| !ip.is_unspecified());
        if all.is_empty() {
            return Err(if some { NoAddress::Unspecified } else { NoAddress::None });
        }
        let omitted = OmittedAddresses::beyond(MAX_HOST_ADDRESSES, all.len());
        all.truncate(MAX_HOST_ADDRESSES);
        Ok((Self { ips: all.into(), objects: Arc::default() }, omitted))
    }

    /// Returns the addresses of objects that may be trusted, at most `limit`, and the number if some were omitted. An answer
    /// without any object is valid and has no address.
    ///
    /// # Errors
    /// When the answer contains objects, and none has an address that a client can have.
    pub fn of_objects(
        answer: impl IntoIterator<Item = (IpAddr, Arc<str>)>,
        limit: usize,
    ) -> Result<(Self, Option<OmittedAddresses>), NoAddress> {
        let mut all: Vec<_> = answer.into_iter().map(|(ip, object)| (ip.to_canonical(), object)).collect();
        let some = !all.is_empty();
        all.retain(|(ip, _)| !ip.is_unspecified());
        if some && all.is_empty() {
            return Err(NoAddress::Unspecified);
        }
        all.sort_unstable();
        all.dedup_by(|later, earlier| later.0 == earlier.0);
        let omitted = OmittedAddresses::beyond(limit, all.len());
        all.truncate(limit);
        let (ips, objects): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        Ok((Self { ips: ips.into(), objects: objects.into() }, omitted))
    }

    /// The addresses, sorted.
    pub fn all(&self) -> &[IpAddr] {
        &self.ips
    }

    /// The addresses with the name of the object that has each; nothing for a host.
    pub fn objects(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.ips.iter().zip(&*self.objects).map(|(ip, object)| (*ip, &**object))
    }

    /// The name of the object that has an address, such as `droplet web-1`.
    pub fn object_of(&self, ip: IpAddr) -> Option<&Arc<str>> {
        let index = self.ips.binary_search(&ip).ok()?;
        self.objects.get(index).filter(|object| !object.is_empty())
    }

    /// Whether these include all addresses of `other`.
    pub fn cover(&self, other: &Self) -> bool {
        other.without(self).next().is_none()
    }

    /// The addresses that `other` lacks.
    pub fn without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = IpAddr> + 'a {
        self.ips.iter().copied().filter(|ip| other.ips.binary_search(ip).is_err())
    }

    /// Returns the union of two answers about a host, at most [`MAX_HOST_ADDRESSES`].
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let all = self.ips.iter().chain(&*other.ips).copied();
        Self::of(all).map_or_else(|_| self.clone(), |(all, _)| all)
    }
}

/// `10.0.0.1, 10.0.0.2`
impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, ip) in self.ips.iter().enumerate() {
            write!(f, "{}{ip}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// An answer had too many addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has {count} addresses, and only the lowest {limit} are trusted; trust the network instead")]
pub struct OmittedAddresses {
    count: usize,
    limit: usize,
}

impl OmittedAddresses {
    fn beyond(limit: usize, count: usize) -> Option<Self> {
        (count > limit).then_some(Self { count, limit })
    }
}

/// An answer had no address that a client can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAddress {
    #[error("the name has no address")]
    None,
    /// Filtering resolvers answer this for blocked names.
    #[error("the answer is 0.0.0.0 or ::, which no client can have")]
    Unspecified,
}

/// Maximum number of addresses of one host. A longer answer is probably a network or a forgery.
pub(crate) const MAX_HOST_ADDRESSES: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn answer_is_bounded_and_unspecified_addresses_are_omitted() {
        let (addresses, omitted) =
            Addresses::of(["10.0.0.2", "::", "::ffff:10.0.0.1", "10.0.0.2", "0.0.0.0"].map(ip)).unwrap();
        assert_eq!((addresses.to_string().as_str(), omitted), ("10.0.0.1, 10.0.0.2", None));
        assert_eq!(Addresses::of([]), Err(NoAddress::None));
        assert_eq!(Addresses::of(["0.0.0.0", "::", "::ffff:0.0.0.0"].map(ip)), Err(NoAddress::Unspecified));
        let many = (0..300_u32).map(|number| IpAddr::V4((0x0a00_0000 + number).into()));
        let (addresses, omitted) = Addresses::of(many).unwrap();
        assert_eq!((addresses.all().len(), omitted), (256, Some(OmittedAddresses { count: 300, limit: 256 })));
    }

    #[test]
    fn objects_are_bounded_and_found_by_their_address() {
        let of = |all: &[(&str, &str)], limit| {
            Addresses::of_objects(all.iter().map(|(address, object)| (ip(address), Arc::from(*object))), limit)
        };
        let answer = [("10.0.0.2", "droplet b"), ("::ffff:10.0.0.1", "droplet a"), ("0.0.0.0", "x"), ("10.0.0.2", "z")];
        let (addresses, omitted) = of(&answer, 9).unwrap();
        assert_eq!((addresses.to_string().as_str(), omitted), ("10.0.0.1, 10.0.0.2", None));
        let object_of = |address| addresses.object_of(ip(address)).map(|object| &**object);
        assert_eq!(object_of("10.0.0.1"), Some("droplet a"));
        assert_eq!(object_of("10.0.0.2"), Some("droplet b"));
        assert_eq!(object_of("10.0.0.3"), None);
        assert_eq!(of(&[("10.0.0.1", "")], 9).unwrap().0.object_of(ip("10.0.0.1")), None);
        assert_eq!(of(&[], 9).unwrap().0, Addresses::default());
        assert_eq!(of(&[("0.0.0.0", "x"), ("::", "y")], 9), Err(NoAddress::Unspecified));
        let (addresses, omitted) = of(&answer, 1).unwrap();
        assert_eq!((addresses.to_string().as_str(), omitted.is_some()), ("10.0.0.1", true));
    }

    proptest! {
        #[test]
        fn order_and_duplicates_of_an_answer_are_ignored(
            mut answer in proptest::collection::vec(any::<u16>(), 1..400),
        ) {
            let ips = |numbers: &[u16]| -> Vec<IpAddr> {
                numbers.iter().map(|number| IpAddr::V4((0x0a00_0000 + u32::from(*number)).into())).collect()
            };
            let one = Addresses::of(ips(&answer)).unwrap();
            answer.reverse();
            let doubled = [answer.clone(), answer].concat();
            prop_assert_eq!(&one, &Addresses::of(ips(&doubled)).unwrap());
            prop_assert!(one.0.all().is_sorted() && one.0.all().len() <= MAX_HOST_ADDRESSES);
            prop_assert!(one.0.cover(&one.0));
        }

        #[test]
        fn union_of_two_answers_contains_both(one: Vec<u8>, other: Vec<u8>) {
            let addresses = |numbers: &[u8]| {
                let ips = numbers.iter().map(|number| IpAddr::from([10, 0, 0, *number])).chain([IpAddr::from([10, 1, 0, 0])]);
                Addresses::of(ips).unwrap().0
            };
            let both = addresses(&one).and(&addresses(&other));
            prop_assert!(both.cover(&addresses(&one)) && both.cover(&addresses(&other)));
            prop_assert_eq!(both, addresses(&[one, other].concat()));
        }
    }
}
