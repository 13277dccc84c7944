//! For how long an answer of the DNS is good (RFC 1035, with the room of RFC 6891).
//!
//! Nothing else is read of it, and above all no address. What a server, or somebody in its place, can say here is when it
//! is to be asked again.

use std::time::Duration;

/// A question for the addresses of one name, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    id: u16,
    name: Name,
    family: Family,
}

/// Of which kind of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Type A.
    Ipv4,
    /// Type AAAA.
    Ipv6,
}

/// What a datagram says to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Nothing: it is an answer to something else, or no answer at all.
    Stranger,
    /// The server is in trouble or does not want to, the answer is cut, or it makes no sense.
    Unclear,
    /// There is no such address.
    Absent,
    /// There is: the least time to live of its records, and of the aliases on the way to them.
    For(Duration),
}

/// The room that is offered to a server for its answer, which is what goes through every network in one piece.
pub(crate) const LONGEST_ANSWER: u16 = 1232;

impl Query {
    /// A question about a name in text form, with or without a dot at its end. None, where it cannot be one.
    pub(crate) fn new(id: u16, name: &str, family: Family) -> Option<Self> {
        Some(Self { id, name: wire_name(name)?, family })
    }

    /// The datagram.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let header = [self.id, RECURSION_DESIRED, 1, 0, 0, 1];
        let mut bytes: Vec<u8> = header.into_iter().flat_map(u16::to_be_bytes).collect();
        bytes.extend(&self.name);
        bytes.push(ROOT);
        bytes.extend([self.family.code(), INTERNET].into_iter().flat_map(u16::to_be_bytes));
        // How much room there is: a record of the root, with the room in place of its class.
        bytes.push(ROOT);
        bytes.extend([OPT, LONGEST_ANSWER, 0, 0, 0].into_iter().flat_map(u16::to_be_bytes));
        bytes
    }

    /// What a datagram from the server says to this.
    pub(crate) fn hear(&self, datagram: &[u8]) -> Reply {
        let mut reader = Reader { message: datagram, at: 0 };
        match self.echoed(&mut reader) {
            Some(header) if header.flags & TRUNCATED != 0 => Reply::Unclear,
            Some(header) => match header.flags & RESPONSE_CODE {
                NO_ERROR | NO_SUCH_NAME => {
                    reader.records(header.answers).map_or(Reply::Unclear, |records| self.follow(&records))
                }
                _ => Reply::Unclear,
            },
            None => Reply::Stranger,
        }
    }

    /// The header of an answer to this very question. The reader is behind the question then.
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

    /// Goes from alias to alias, in whatever order the records are.
    fn follow(&self, records: &[Record]) -> Reply {
        let (mut name, mut least) = (&self.name, u32::MAX);
        for _ in 0..=MOST_ALIASES {
            let own = || records.iter().filter(|record| record.name == *name);
            let addresses = own().filter(|record| record.kind == self.family.code());
            if let Some(seconds) = addresses.map(|record| record.seconds).min() {
                return Reply::For(Duration::from_secs(least.min(seconds).into()));
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

/// Labels in lower case, each behind its length, without the root.
type Name = Vec<u8>;

fn wire_name(text: &str) -> Option<Name> {
    let mut name = Name::new();
    for label in text.strip_suffix('.').unwrap_or(text).split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=LONGEST_LABEL).contains(length))?;
        name.push(length);
        name.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    (name.len() <= LONGEST_NAME).then_some(name)
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

/// A message, and how far it is read. Every step is within it, or there is none.
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn records(&mut self, count: u16) -> Option<Vec<Record>> {
        // Not made as large as somebody says: a record has eleven bytes at least, and the message may end before.
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
                // More than 31 bits are none (RFC 2181 §8).
                let seconds = if seconds > i32::MAX.unsigned_abs() { 0 } else { seconds };
                records.push(Record { name, kind, seconds, alias_of });
            }
        }
        Some(records)
    }

    /// The name that is all there is between two places.
    fn name_in(&self, start: usize, end: usize) -> Option<Name> {
        let mut reader = Reader { message: self.message, at: start };
        let name = reader.name()?;
        (reader.at == end).then_some(name)
    }

    /// A name, perhaps in pieces. Each piece begins before the one that leads to it, so there is an end.
    fn name(&mut self) -> Option<Name> {
        let (mut name, mut at, mut piece) = (Name::new(), self.at, self.at);
        let mut behind = None;
        loop {
            match *self.message.get(at)? {
                ROOT => break,
                length @ 1..=LONGEST_LABEL => {
                    let next = at + 1 + usize::from(length);
                    name.extend(self.message.get(at..next)?.iter().map(u8::to_ascii_lowercase));
                    if name.len() > LONGEST_NAME {
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
const LONGEST_LABEL: u8 = 63;
const POINTER: u8 = 0xc0;

/// Without the root.
const LONGEST_NAME: usize = 254;

/// More than resolvers follow.
const MOST_ALIASES: u32 = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: u16 = 1;
    const AAAA: u16 = 28;

    fn question(name: &str) -> Query {
        Query::new(0x1234, name, Family::Ipv4).unwrap()
    }

    /// An answer as a server would give it: name, type, time to live, data.
    fn answer(question: &Query, flags: u16, records: &[(&[u8], u16, u32, &[u8])]) -> Vec<u8> {
        let mut bytes = question.bytes();
        bytes.truncate(12 + question.name.len() + 5);
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
        Reply::For(Duration::from_secs(seconds))
    }

    /// Where the question's name is.
    const ITS_NAME: &[u8] = &[0xc0, 12];

    #[test]
    fn a_question_is_what_the_protocol_has() {
        let expected = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x03app\x04test\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0";
        for text in ["app.test", "APP.test."] {
            assert_eq!(question(text).bytes(), expected);
        }
        let ipv6 = Query::new(7, "app.test", Family::Ipv6).unwrap();
        assert_eq!(ipv6.bytes()[22..26], [0, 28, 0, 1]);
        let long = format!("{}.x", "a.".repeat(126));
        for text in ["", ".", "a..b", ".a", &"a".repeat(64), &long] {
            assert_eq!(Query::new(7, text, Family::Ipv4), None, "{text}");
        }
    }

    #[test]
    fn the_least_time_on_the_way_counts() {
        let question = question("app.test");
        let (one, other) = (wire("one.test"), wire("OTHER.test"));
        let address: &[u8] = &[10, 0, 0, 1];
        let plain = answer(&question, 0, &[(ITS_NAME, A, 300, address), (ITS_NAME, A, 20, address)]);
        assert_eq!(question.hear(&plain), seconds(20));
        let last = (&other[..], A, 60, address);
        for chain in [
            [(ITS_NAME, CNAME, 5, &one[..]), (&one, CNAME, 90, &other), last],
            [last, (&one, CNAME, 5, &other), (ITS_NAME, CNAME, 90, &one)],
        ] {
            assert_eq!(question.hear(&answer(&question, 0, &chain)), seconds(5), "in whatever order");
        }
        let aside = [(ITS_NAME, A, 300, address), (&other, A, 1, address), (ITS_NAME, AAAA, 1, &[0; 16])];
        assert_eq!(question.hear(&answer(&question, 0, &aside)), seconds(300), "what is not on the way does not count");
        let huge = answer(&question, 0, &[(ITS_NAME, A, 0x8000_0000, address)]);
        assert_eq!(question.hear(&huge), seconds(0));
    }

    #[test]
    fn what_is_not_there_is_told_from_what_is_not_said() {
        let question = question("app.test");
        let one = wire("one.test");
        let address: &[u8] = &[10, 0, 0, 1];
        let here = [(ITS_NAME, A, 300, address)];
        let dangling = [(ITS_NAME, CNAME, 5, &one[..])];
        for flags in [NO_ERROR, NO_SUCH_NAME] {
            assert_eq!(question.hear(&answer(&question, flags, &[])), Reply::Absent);
            assert_eq!(question.hear(&answer(&question, flags, &dangling)), Reply::Absent);
        }
        for flags in [1, 2, 4, 5, TRUNCATED, TRUNCATED | NO_SUCH_NAME] {
            assert_eq!(question.hear(&answer(&question, flags, &here)), Reply::Unclear, "{flags}");
        }
        let round = [(ITS_NAME, CNAME, 5, &one[..]), (&one, CNAME, 5, ITS_NAME)];
        assert_eq!(question.hear(&answer(&question, 0, &round)), Reply::Unclear, "a circle");
        let whole = answer(&question, 0, &here);
        for end in 12 + 10 + 4..whole.len() {
            assert_eq!(question.hear(&whole[..end]), Reply::Unclear, "cut at {end}");
        }
    }

    #[test]
    fn an_answer_to_something_else_is_none() {
        let question = question("app.test");
        let good = answer(&question, 0, &[(ITS_NAME, A, 300, &[10, 0, 0, 1])]);
        assert_eq!(question.hear(&good), seconds(300));
        let other = [
            Query { id: 0x1235, ..question.clone() },
            Query { family: Family::Ipv6, ..question.clone() },
            Query { name: wire_name("apq.test").unwrap(), ..question.clone() },
        ];
        for other in other {
            assert_eq!(other.hear(&good), Reply::Stranger, "{other:?}");
        }
        // Not an answer; another operation; no question, two; another class.
        for (at, byte) in [(2, 0), (2, 0x88), (5, 0), (5, 2), (25, 3)] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            assert_eq!(question.hear(&bytes), Reply::Stranger, "{at}");
        }
        assert_eq!(question.hear(&question.bytes()), Reply::Stranger, "itself");
        assert_eq!(question.hear(&[]), Reply::Stranger);
    }

    #[test]
    fn pointers_lead_backwards_and_to_an_end() {
        let question = question("app.test");
        let start = u8::try_from(answer(&question, 0, &[]).len()).unwrap();
        // To itself, forwards, behind the end, within its own piece; and a length that is neither.
        for name in [&[0xc0, start][..], &[0xc0, start + 4], &[0xff, 0xff], &[1, b'a', 0xc0, start], &[0x40, 0]] {
            let bytes = answer(&question, 0, &[(name, A, 300, &[10, 0, 0, 1])]);
            assert_eq!(question.hear(&bytes), Reply::Unclear, "{name:?}");
        }
        // A name that grows and grows, each record with one label more than the one before.
        let mut records = vec![(ITS_NAME.to_vec(), 0_u32)];
        let mut at = u16::from(start);
        for _ in 0..200 {
            records.push(([&[1, b'a'][..], &(0xc000 | at).to_be_bytes()].concat(), 0));
            at += if records.len() == 2 { 12 } else { 14 };
        }
        let records: Vec<_> = records.iter().map(|(name, ttl)| (&name[..], 99, *ttl, &[][..])).collect();
        assert_eq!(question.hear(&answer(&question, 0, &records)), Reply::Unclear);
        assert_eq!(question.hear(&answer(&question, 0, &records[..100])), Reply::Absent);
    }

    #[test]
    fn a_name_that_an_alias_leads_to_ends_where_the_record_ends() {
        let question = question("app.test");
        let one = wire("one.test");
        let longer = [&one[..], &[0]].concat();
        for data in [&longer[..], &one[..one.len() - 1]] {
            let bytes = answer(&question, 0, &[(ITS_NAME, CNAME, 5, data)]);
            assert_eq!(question.hear(&bytes), Reply::Unclear);
        }
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_are_no_disaster(
            bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0..80_usize, as_answer: bool,
        ) {
            let question = question("app.test");
            let mut datagram = if as_answer {
                answer(&question, 0, &[(ITS_NAME, CNAME, 5, ITS_NAME), (ITS_NAME, A, 300, &[10, 0, 0, 1])])
            } else {
                Vec::new()
            };
            let at = at.min(datagram.len());
            datagram.splice(at..at, bytes);
            let _ = question.hear(&datagram);
            // What says that it has very many records is read as far as it goes.
            if let Some(count) = datagram.get_mut(6..8) {
                count.fill(0xff);
            }
            let _ = question.hear(&datagram);
        }

        #[test]
        fn a_changed_byte_of_the_question_makes_it_another(at in 12..26_usize, byte: u8) {
            let question = question("app.test");
            let mut bytes = answer(&question, 0, &[(ITS_NAME, A, 300, &[10, 0, 0, 1])]);
            let before = std::mem::replace(&mut bytes[at], byte);
            let same = before.eq_ignore_ascii_case(&byte);
            prop_assert_eq!(question.hear(&bytes) == seconds(300), same);
        }

        #[test]
        fn the_least_of_any_chain_is_found(
            times in proptest::collection::vec(0..=i32::MAX.unsigned_abs(), 1..12), turn: prop::sample::Index,
        ) {
            let names: Vec<_> = (0..times.len()).map(|number| wire(&format!("n{number}.test"))).collect();
            let question = question("n0.test");
            let mut records: Vec<(&[u8], u16, u32, &[u8])> = (1..times.len())
                .map(|number| (&names[number - 1][..], CNAME, times[number - 1], &names[number][..]))
                .collect();
            records.push((&names[times.len() - 1], A, times[times.len() - 1], &[10, 0, 0, 1]));
            let count = records.len();
            records.rotate_left(turn.index(count));
            let least = times.iter().min().unwrap();
            prop_assert_eq!(question.hear(&answer(&question, 0, &records)), seconds((*least).into()));
        }
    }
}
