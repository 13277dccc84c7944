//! The serial numbers of a revocation list, of which there may be a million.

/// Sorted, and in one piece.
#[derive(Debug)]
pub(super) struct Serials(Vec<Serial>);

/// A serial number as it is encoded. Two are the same only if all their bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Serial {
    length: u8,
    bytes: [u8; LONGEST],
}

/// A CA may use twenty bytes. Some do not count the zero that keeps a number from being negative.
const LONGEST: usize = 21;

impl Serials {
    pub(super) fn new(mut serials: Vec<Serial>) -> Self {
        serials.sort_unstable();
        Self(serials)
    }

    pub(super) fn contain(&self, serial: Serial) -> bool {
        self.0.binary_search(&serial).is_ok()
    }
}

impl Serial {
    /// Nothing, for one that is longer than any may be.
    pub(super) fn new(encoded: &[u8]) -> Option<Self> {
        let mut bytes = [0; LONGEST];
        bytes.get_mut(..encoded.len())?.copy_from_slice(encoded);
        Some(Self { length: u8::try_from(encoded.len()).ok()?, bytes })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::{btree_set, vec};
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    fn a_number_is_all_of_its_bytes() {
        let listed: [&[u8]; 5] = [&[1], &[0, 0x80], &[7; LONGEST], &[2, 0], &[]];
        let serials = Serials::new(listed.iter().map(|encoded| Serial::new(encoded).unwrap()).collect());
        let is_in = |encoded| serials.contain(Serial::new(encoded).unwrap());
        assert!(listed.into_iter().all(is_in));
        let others: [&[u8]; 7] = [&[0], &[0, 1], &[0x80], &[1, 0], &[2], &[7; LONGEST - 1], &[2, 0, 0]];
        assert!(!others.into_iter().any(is_in));
        assert_eq!(Serial::new(&[7; LONGEST + 1]), None);
    }

    proptest! {
        #[test]
        fn what_was_put_in_is_in_and_nothing_else(
            listed in btree_set(vec(0..3_u8, 0..4), 0..40),
            asked in vec(vec(any::<u8>(), 0..4), 0..40),
        ) {
            let serials = Serials::new(listed.iter().rev().map(|encoded| Serial::new(encoded).unwrap()).collect());
            for encoded in listed.iter().chain(&asked) {
                let expected = BTreeSet::contains(&listed, encoded);
                assert_eq!(serials.contain(Serial::new(encoded).unwrap()), expected, "{encoded:?}");
            }
        }
    }
}
