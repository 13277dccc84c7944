//! DNS queries and the time to live in their answers (RFC 1035, with the message size of RFC 6891).
//!
//! Only the time to live is read, and no address.

use std::time::Duration;

/// A query for the addresses of one name in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    id: u16,
    name: Name,
    family: Family,
}

/// The family of the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Type A.
    Ipv4,
    /// Type AAAA.
    Ipv6,
}

/// The meaning of a datagram as an answer to a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// It is an answer to another query, or not an answer.
    Unrelated,
    /// The server reports an error, or the answer is truncated or malformed.
    Unclear,
    /// The name has no address of this family.
    Absent,
    /// The minimum time to live of the address records and of the aliases that lead to them.
    Ttl(Duration),
}

/// Maximum size of an answer in bytes, which is not fragmented in any network.
pub(crate) const MAX_ANSWER: u16 = 1232;

impl Query {
    /// A query for a name in text form, with or without a dot at its end. `None` if the name is invalid.
    pub(crate) fn new(id: u16, name: &str, family: Family) -> Option<Self> {
        Some(Self { id, name: wire_name(name)?, family })
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let header = [self.id, RECURSION_DESIRED, 1, 0, 0, 1];
        let mut bytes: Vec<u8> = header.into_iter().flat_map(u16::to_be_bytes).collect();
        bytes.extend(&self.name);
        bytes.push(ROOT);
        bytes.extend([self.family.code(), INTERNET].into_iter().flat_map(u16::to_be_bytes));
        // The maximum answer size: an OPT record of the root, with the size in place of its class.
        bytes.push(ROOT);
        bytes.extend([OPT, MAX_ANSWER, 0, 0, 0].into_iter().flat_map(u16::to_be_bytes));
        bytes
    }

    /// Parses a datagram from the server.
    pub(crate) fn parse(&self, datagram: &[u8]) -> Reply {
        let mut reader = Reader { message: datagram, at: 0 };
        match self.echoed(&mut reader) {
            Some(header) if header.flags & TRUNCATED != 0 => Reply::Unclear,
            Some(header) => match header.flags & RESPONSE_CODE {
                NO_ERROR | NO_SUCH_NAME => {
                    reader.records(header.answers).map_or(Reply::Unclear, |records| self.follow(&records))
                }
                _ => Reply::Unclear,
            },
            None => Reply::Unrelated,
        }
    }

    /// The header, if the message answers this query. The reader is then after the question section.
    fn echoed(&self, reader: &mut Reader<'_>) -> Option<Header> {
        let [id, flags, questions, answers] = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
        reader.skip(4)?;
        let is_answer = flags & (RESPONSE | OPERATION) == RESPONSE;
        let same = id == self.id
            && is_answer
            && questions == 1
            && reader.name()? == self.name
            && reader.u16()? == self.family.code()
            && reader.u16()? == INTERNET;
        same.then_some(Header { flags, answers })
    }

    /// Follows aliases to the addresses, in any order of the records.
    fn follow(&self, records: &[Record]) -> Reply {
        let (mut name, mut least) = (&self.name, u32::MAX);
        for _ in 0..=MAX_ALIASES {
            let own = || records.iter().filter(|record| record.name == *name);
            let addresses = own().filter(|record| record.kind == self.family.code());
            if let Some(seconds) = addresses.map(|record| record.seconds).min() {
                return Reply::Ttl(Duration::from_secs(least.min(seconds).into()));
            }
            match own().find_map(|record| Some((record.seconds, record.alias_of.as_ref()?))) {
                Some((seconds, target)) => (name, least) = (target, least.min(seconds)),
                None => return Reply::Absent,
            }
        }
        Reply::Unclear
    }
}

impl Family {
    fn code(self) -> u16 {
        match self {
            Self::Ipv4 => 1,
            Self::Ipv6 => 28,
        }
    }
}

/// Labels in lower case, each after its length, without the root.
type Name = Vec<u8>;

fn wire_name(text: &str) -> Option<Name> {
    let mut name = Name::new();
    for label in text.strip_suffix('.').unwrap_or(text).split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=MAX_LABEL).contains(length))?;
        name.push(length);
        name.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    (name.len() <= MAX_NAME).then_some(name)
}

struct Header {
    flags: u16,
    answers: u16,
}

struct Record {
    name: Name,
    kind: u16,
    seconds: u32,
    alias_of: Option<Name>,
}

/// A message and the position in it. Reading beyond its end returns `None`.
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn records(&mut self, count: u16) -> Option<Vec<Record>> {
        // No capacity from `count`: an attacker chooses it, and the message may end earlier.
        let mut records = Vec::new();
        for _ in 0..count {
            let name = self.name()?;
            let [kind, class] = [self.u16()?, self.u16()?];
            let seconds = u32::from(self.u16()?) << 16 | u32::from(self.u16()?);
            let length = self.u16()?;
            let data = self.at;
            self.skip(length.into())?;
            if class == INTERNET {
                let alias_of = match kind {
                    CNAME => Some(self.name_in(data, self.at)?),
                    _ => None,
                };
                // A value with the top bit set counts as 0 (RFC 2181 §8).
                let seconds = if seconds > i32::MAX.unsigned_abs() { 0 } else { seconds };
                records.push(Record { name, kind, seconds, alias_of });
            }
        }
        Some(records)
    }

    /// The name that fills the bytes from `start` to `end`.
    fn name_in(&self, start: usize, end: usize) -> Option<Name> {
        let mut reader = Reader { message: self.message, at: start };
        let name = reader.name()?;
        (reader.at == end).then_some(name)
    }

    /// A name, which may be compressed. Each pointer leads to an earlier position, so parsing ends.
    fn name(&mut self) -> Option<Name> {
        let (mut name, mut at, mut piece) = (Name::new(), self.at, self.at);
        let mut behind = None;
        loop {
            match *self.message.get(at)? {
                ROOT => break,
                length @ 1..=MAX_LABEL => {
                    let next = at + 1 + usize::from(length);
                    name.extend(self.message.get(at..next)?.iter().map(u8::to_ascii_lowercase));
                    if name.len() > MAX_NAME {
                        return None;
                    }
                    at = next;
                }
                high @ POINTER.. => {
                    let target = usize::from(high & !POINTER) << 8 | usize::from(*self.message.get(at + 1)?);
                    if target >= piece {
                        return None;
                    }
                    behind.get_or_insert(at + 2);
                    (at, piece) = (target, target);
                }
                _ => return None,
            }
        }
        self.at = behind.unwrap_or(at + 1);
        Some(name)
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.message.get(self.at..)?.first_chunk()?;
        self.at += 2;
        Some(u16::from_be_bytes(*bytes))
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.at += count;
        (self.at <= self.message.len()).then_some(())
    }
}

const RESPONSE: u16 = 0x8000;
const OPERATION: u16 = 0x7800;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RESPONSE_CODE: u16 = 0x000f;
const NO_ERROR: u16 = 0;
const NO_SUCH_NAME: u16 = 3;

const INTERNET: u16 = 1;
const CNAME: u16 = 5;
const OPT: u16 = 41;

const ROOT: u8 = 0;
const MAX_LABEL: u8 = 63;
const POINTER: u8 = 0xc0;

/// Maximum size of a name in bytes without the root.
const MAX_NAME: usize = 254;

/// More aliases than resolvers follow.
const MAX_ALIASES: u32 = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: u16 = 1;
    const AAAA: u16 = 28;

    fn query(name: &str) -> Query {
        Query::new(0x1234, name, Family::Ipv4).unwrap()
    }

    /// An answer with these records: name, type, time to live, data.
    fn answer(query: &Query, flags: u16, records: &[(&[u8], u16, u32, &[u8])]) -> Vec<u8> {
        let mut bytes = query.bytes();
        bytes.truncate(12 + query.name.len() + 5);
        bytes[2..4].copy_from_slice(&(RESPONSE | flags).to_be_bytes());
        bytes[6..8].copy_from_slice(&u16::try_from(records.len()).unwrap().to_be_bytes());
        bytes[10..12].fill(0);
        for (name, kind, seconds, data) in records {
            bytes.extend(*name);
            bytes.extend([kind.to_be_bytes(), INTERNET.to_be_bytes()].concat());
            bytes.extend(seconds.to_be_bytes());
            bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend(*data);
        }
        bytes
    }

    fn wire(name: &str) -> Vec<u8> {
        [wire_name(name).unwrap(), vec![ROOT]].concat()
    }

    fn seconds(seconds: u64) -> Reply {
        Reply::Ttl(Duration::from_secs(seconds))
    }

    /// A pointer to the name in the question section.
    const QUERY_NAME: &[u8] = &[0xc0, 12];

    #[test]
    fn query_has_the_format_of_the_protocol() {
        let expected = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x03app\x04test\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0";
        for text in ["app.test", "APP.test."] {
            assert_eq!(query(text).bytes(), expected);
        }
        let ipv6 = Query::new(7, "app.test", Family::Ipv6).unwrap();
        assert_eq!(ipv6.bytes()[22..26], [0, 28, 0, 1]);
        let long = format!("{}.x", "a.".repeat(126));
        for text in ["", ".", "a..b", ".a", &"a".repeat(64), &long] {
            assert_eq!(Query::new(7, text, Family::Ipv4), None, "{text}");
        }
    }

    #[test]
    fn minimum_time_to_live_of_the_alias_chain_counts() {
        let query = query("app.test");
        let (one, other) = (wire("one.test"), wire("OTHER.test"));
        let address: &[u8] = &[10, 0, 0, 1];
        let plain = answer(&query, 0, &[(QUERY_NAME, A, 300, address), (QUERY_NAME, A, 20, address)]);
        assert_eq!(query.parse(&plain), seconds(20));
        let last = (&other[..], A, 60, address);
        for chain in [
            [(QUERY_NAME, CNAME, 5, &one[..]), (&one, CNAME, 90, &other), last],
            [last, (&one, CNAME, 5, &other), (QUERY_NAME, CNAME, 90, &one)],
        ] {
            assert_eq!(query.parse(&answer(&query, 0, &chain)), seconds(5), "in any order");
        }
        let aside = [(QUERY_NAME, A, 300, address), (&other, A, 1, address), (QUERY_NAME, AAAA, 1, &[0; 16])];
        assert_eq!(query.parse(&answer(&query, 0, &aside)), seconds(300), "records outside the chain do not count");
        let huge = answer(&query, 0, &[(QUERY_NAME, A, 0x8000_0000, address)]);
        assert_eq!(query.parse(&huge), seconds(0));
    }

    #[test]
    fn absent_address_differs_from_unclear_answer() {
        let query = query("app.test");
        let one = wire("one.test");
        let address: &[u8] = &[10, 0, 0, 1];
        let here = [(QUERY_NAME, A, 300, address)];
        let dangling = [(QUERY_NAME, CNAME, 5, &one[..])];
        for flags in [NO_ERROR, NO_SUCH_NAME] {
            assert_eq!(query.parse(&answer(&query, flags, &[])), Reply::Absent);
            assert_eq!(query.parse(&answer(&query, flags, &dangling)), Reply::Absent);
        }
        for flags in [1, 2, 4, 5, TRUNCATED, TRUNCATED | NO_SUCH_NAME] {
            assert_eq!(query.parse(&answer(&query, flags, &here)), Reply::Unclear, "{flags}");
        }
        let round = [(QUERY_NAME, CNAME, 5, &one[..]), (&one, CNAME, 5, QUERY_NAME)];
        assert_eq!(query.parse(&answer(&query, 0, &round)), Reply::Unclear, "a circle");
        let whole = answer(&query, 0, &here);
        for end in 12 + 10 + 4..whole.len() {
            assert_eq!(query.parse(&whole[..end]), Reply::Unclear, "cut at {end}");
        }
    }

    #[test]
    fn answer_to_another_query_is_unrelated() {
        let query = query("app.test");
        let good = answer(&query, 0, &[(QUERY_NAME, A, 300, &[10, 0, 0, 1])]);
        assert_eq!(query.parse(&good), seconds(300));
        let other = [
            Query { id: 0x1235, ..query.clone() },
            Query { family: Family::Ipv6, ..query.clone() },
            Query { name: wire_name("apq.test").unwrap(), ..query.clone() },
        ];
        for other in other {
            assert_eq!(other.parse(&good), Reply::Unrelated, "{other:?}");
        }
        // Not an answer; another operation; no question; two questions; another class.
        for (at, byte) in [(2, 0), (2, 0x88), (5, 0), (5, 2), (25, 3)] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            assert_eq!(query.parse(&bytes), Reply::Unrelated, "{at}");
        }
        assert_eq!(query.parse(&query.bytes()), Reply::Unrelated, "itself");
        assert_eq!(query.parse(&[]), Reply::Unrelated);
    }

    #[test]
    fn pointer_that_does_not_lead_backwards_is_unclear() {
        let query = query("app.test");
        let start = u8::try_from(answer(&query, 0, &[]).len()).unwrap();
        // To itself, forwards, beyond the end, within its own labels; and an invalid length.
        for name in [&[0xc0, start][..], &[0xc0, start + 4], &[0xff, 0xff], &[1, b'a', 0xc0, start], &[0x40, 0]] {
            let bytes = answer(&query, 0, &[(name, A, 300, &[10, 0, 0, 1])]);
            assert_eq!(query.parse(&bytes), Reply::Unclear, "{name:?}");
        }
        // A growing name: each record has one label more than the one before.
        let mut records = vec![(QUERY_NAME.to_vec(), 0_u32)];
        let mut at = u16::from(start);
        for _ in 0..200 {
            records.push(([&[1, b'a'][..], &(0xc000 | at).to_be_bytes()].concat(), 0));
            at += if records.len() == 2 { 12 } else { 14 };
        }
        let records: Vec<_> = records.iter().map(|(name, ttl)| (&name[..], 99, *ttl, &[][..])).collect();
        assert_eq!(query.parse(&answer(&query, 0, &records)), Reply::Unclear);
        assert_eq!(query.parse(&answer(&query, 0, &records[..100])), Reply::Absent);
    }

    #[test]
    fn alias_target_has_to_fill_its_record() {
        let query = query("app.test");
        let one = wire("one.test");
        let longer = [&one[..], &[0]].concat();
        for data in [&longer[..], &one[..one.len() - 1]] {
            let bytes = answer(&query, 0, &[(QUERY_NAME, CNAME, 5, data)]);
            assert_eq!(query.parse(&bytes), Reply::Unclear);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0..80_usize, as_answer: bool,
        ) {
            let query = query("app.test");
            let mut datagram = if as_answer {
                answer(&query, 0, &[(QUERY_NAME, CNAME, 5, QUERY_NAME), (QUERY_NAME, A, 300, &[10, 0, 0, 1])])
            } else {
                Vec::new()
            };
            let at = at.min(datagram.len());
            datagram.splice(at..at, bytes);
            let _ = query.parse(&datagram);
            // A message with a wrong record count is read to its end.
            if let Some(count) = datagram.get_mut(6..8) {
                count.fill(0xff);
            }
            let _ = query.parse(&datagram);
        }

        #[test]
        fn answer_with_a_changed_question_is_unrelated(at in 12..26_usize, byte: u8) {
            let query = query("app.test");
            let mut bytes = answer(&query, 0, &[(QUERY_NAME, A, 300, &[10, 0, 0, 1])]);
            let before = std::mem::replace(&mut bytes[at], byte);
            let same = before.eq_ignore_ascii_case(&byte);
            prop_assert_eq!(query.parse(&bytes) == seconds(300), same);
        }

        #[test]
        fn minimum_of_any_alias_chain_is_found(
            times in proptest::collection::vec(0..=i32::MAX.unsigned_abs(), 1..12), turn: prop::sample::Index,
        ) {
            let names: Vec<_> = (0..times.len()).map(|number| wire(&format!("n{number}.test"))).collect();
            let query = query("n0.test");
            let mut records: Vec<(&[u8], u16, u32, &[u8])> = (1..times.len())
                .map(|number| (&names[number - 1][..], CNAME, times[number - 1], &names[number][..]))
                .collect();
            records.push((&names[times.len() - 1], A, times[times.len() - 1], &[10, 0, 0, 1]));
            let count = records.len();
            records.rotate_left(turn.index(count));
            let least = times.iter().min().unwrap();
            prop_assert_eq!(query.parse(&answer(&query, 0, &records)), seconds((*least).into()));
        }
    }
}
