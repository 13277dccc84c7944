//! A compact set of the serial numbers of a revocation list. There may be a million.

/// Call [`sort`](Self::sort) after the last [`add`](Self::add) and before the first [`contain`](Self::contain).
#[derive(Debug, Default)]
pub(crate) struct Serials {
    numbers: Vec<Serial>,
    /// Numbers above [`MAX_LENGTH`].
    longer: Vec<Box<[u8]>>,
}

/// The contents of a DER INTEGER. Serial numbers are compared byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Serial {
    length: u8,
    bytes: [u8; MAX_LENGTH],
}

/// Bytes. RFC 5280 §4.1.2.2 allows 20; some CAs do not count the leading zero of a positive number.
const MAX_LENGTH: usize = 21;

impl Serials {
    pub(crate) fn add(&mut self, encoded: &[u8]) {
        match Serial::new(encoded) {
            Some(serial) => self.numbers.push(serial),
            None => self.longer.push(encoded.into()),
        }
    }

    pub(crate) fn sort(&mut self) {
        self.numbers.sort_unstable();
        self.numbers.shrink_to_fit();
        self.longer.sort_unstable();
    }

    pub(crate) fn len(&self) -> usize {
        self.numbers.len() + self.longer.len()
    }

    pub(crate) fn contain(&self, encoded: &[u8]) -> bool {
        match Serial::new(encoded) {
            Some(serial) => self.numbers.binary_search(&serial).is_ok(),
            None => self.longer.binary_search_by(|longer| (**longer).cmp(encoded)).is_ok(),
        }
    }
}

impl Serial {
    /// `None` if the number is longer than [`MAX_LENGTH`].
    fn new(encoded: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_LENGTH];
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

    fn serials<'a>(encoded: impl IntoIterator<Item = &'a [u8]>) -> Serials {
        let mut serials = Serials::default();
        encoded.into_iter().for_each(|encoded| serials.add(encoded));
        serials.sort();
        serials
    }

    #[test]
    fn serial_numbers_that_differ_in_any_byte_are_different() {
        let listed: [&[u8]; 6] = [&[1], &[0, 0x80], &[7; MAX_LENGTH], &[2, 0], &[], &[9; MAX_LENGTH + 1]];
        let serials = serials(listed);
        assert_eq!(serials.len(), listed.len());
        assert!(listed.into_iter().all(|encoded| serials.contain(encoded)));
        let others: [&[u8]; 9] =
            [&[0], &[0, 1], &[0x80], &[1, 0], &[2], &[7; MAX_LENGTH - 1], &[2, 0, 0], &[9; 21], &[9; 23]];
        assert!(!others.into_iter().any(|encoded| serials.contain(encoded)));
    }

    proptest! {
        #[test]
        fn listed_numbers_are_found_and_no_others(
            listed in btree_set(vec(0..3_u8, 0..4), 0..40),
            asked in vec(vec(any::<u8>(), 0..4), 0..40),
        ) {
            let serials = serials(listed.iter().rev().map(Vec::as_slice));
            for encoded in listed.iter().chain(&asked) {
                let expected = BTreeSet::contains(&listed, encoded);
                assert_eq!(serials.contain(encoded), expected, "{encoded:?}");
            }
        }
    }
}
