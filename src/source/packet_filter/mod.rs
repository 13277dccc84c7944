//! Compiles trusted sources to a classic BPF program that accepts packets from trusted sources only. It agrees with
//! [`TrustedSources::lookup`], but has no clock: it accepts its networks until it is replaced.
//!
//! The program compares addresses in 32-bit words, IPv4 with one word and IPv6 with up to four. It divides the values of a word
//! into ranges with one action each, and finds the range of a packet by binary search. If networks start or end within one value
//! of a word, the next word decides.
//!
//! [`TrustedSources::lookup`]: crate::source::trusted::TrustedSources::lookup

#[cfg(test)]
mod tests;

use ipnet::IpNet;

/// A program within the kernel's length limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketFilter(Vec<Instruction>);

/// One classic BPF instruction (`struct sock_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Opcode.
    pub code: u16,
    /// Number of instructions to skip if a comparison holds.
    pub jt: u8,
    /// Number of instructions to skip if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// The program for the sources exceeds [`MAX_INSTRUCTIONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the trusted sources need a program of more than {MAX_INSTRUCTIONS} instructions, which the kernel does not accept; \
     use fewer or wider networks (about 2,000 single IPv4 addresses fit)"
)]
pub struct ProgramTooLong;

impl PacketFilter {
    /// Builds the program that accepts packets from these networks only.
    ///
    /// # Errors
    /// When the program would be too long.
    pub fn accepting(networks: impl IntoIterator<Item = IpNet>) -> Result<Self, ProgramTooLong> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match network {
                IpNet::V4(net) => v4.push(Range::of_v4(net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push(Range { first: net.network().to_bits(), last: net.broadcast().to_bits() }),
            }
        }
        let (v4, v6) = (merge(v4), merge(v6));
        // Fails early: the program compares both ends of each range at least once, except ends that two ranges share.
        if v4.len().max(v6.len()) > MAX_INSTRUCTIONS {
            return Err(ProgramTooLong);
        }
        let mut assembler = Assembler::default();
        let [v4, v6] = [(V4_SOURCE, v4), (V6_SOURCE, v6)].map(|(offset, ranges)| {
            let decision = Decision::on(&ranges);
            assembler.decide_at(offset, &decision)
        });
        assembler.by_version(v4, v6);
        assembler.finish()
    }

    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }
}

/// A contiguous range of addresses, both ends included. IPv4 addresses are in the uppermost word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    first: u128,
    last: u128,
}

impl Range {
    const ALL: Self = Self { first: 0, last: u128::MAX };

    fn of_v4(first: u32, last: u32) -> Self {
        let upper = |word| u128::from(word) << LOWER_BITS;
        Self { first: upper(first), last: upper(last) | u128::MAX >> WORD_BITS }
    }
}

/// Merges overlapping and adjacent ranges, sorted.
fn merge(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, before| {
        let touches = next.first <= before.last.saturating_add(1);
        if touches {
            before.last = before.last.max(next.last);
        }
        touches
    });
    ranges
}

/// The actions by the value of one word of the source address. The ranges cover all values; the first starts at 0.
#[derive(Debug)]
struct Decision(Vec<AddressRange>);

/// The values of a word from `first` to the start of the next range.
#[derive(Debug)]
struct AddressRange {
    first: u32,
    action: Action,
}

#[derive(Debug)]
enum Action {
    Accept,
    Drop,
    /// The next word decides.
    NextWord(Decision),
}

impl Action {
    /// Whether both are the same final action.
    fn equals(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Accept, Self::Accept) | (Self::Drop, Self::Drop))
    }
}

impl Decision {
    /// Splits the ranges by their uppermost word.
    fn on(ranges: &[Range]) -> Self {
        let mut all = Self(vec![AddressRange { first: 0, action: Action::Drop }]);
        let mut rest = ranges.iter().flat_map(branches).peekable();
        while let Some(Branch { words: (first, last), below }) = rest.next() {
            // Several branches may have the same value.
            let mut within = vec![below];
            while let Some(next) = rest.next_if(|next| next.words.0 == first) {
                within.push(next.below);
            }
            let action = if within == [Range::ALL] { Action::Accept } else { Action::NextWord(Self::on(&within)) };
            all.set_from(first, action);
            if let Some(after) = last.checked_add(1) {
                all.set_from(after, Action::Drop);
            }
        }
        all
    }

    /// Sets the action for `first` and all higher values.
    fn set_from(&mut self, first: u32, action: Action) {
        if self.0.last().is_some_and(|range| range.first == first) {
            self.0.pop();
        }
        if !self.0.last().is_some_and(|before| before.action.equals(&action)) {
            self.0.push(AddressRange { first, action });
        }
    }
}

/// Part of a range: values of the uppermost word that share one range of the lower words.
struct Branch {
    words: (u32, u32),
    below: Range,
}

fn branches(range: &Range) -> impl Iterator<Item = Branch> + use<> {
    let (first, last) = (uppermost(range.first), uppermost(range.last));
    let from = range.first << WORD_BITS;
    let to = range.last << WORD_BITS | u128::MAX >> LOWER_BITS;
    let branch = |first, last, below| Some(Branch { words: (first, last), below }).filter(|_| first <= last);
    let branches = if first == last {
        [branch(first, last, Range { first: from, last: to }), None, None]
    } else {
        // A complete first or last value belongs to the middle branch.
        let (starts, ends) = (u32::from(from != 0), u32::from(to != u128::MAX));
        [
            (from != 0).then_some(Branch { words: (first, first), below: Range { first: from, last: u128::MAX } }),
            branch(first.saturating_add(starts), last.saturating_sub(ends), Range::ALL),
            (to != u128::MAX).then_some(Branch { words: (last, last), below: Range { first: 0, last: to } }),
        ]
    };
    branches.into_iter().flatten()
}

#[allow(clippy::cast_possible_truncation, reason = "32 bits are left")]
const fn uppermost(address: u128) -> u32 {
    (address >> LOWER_BITS) as u32
}

/// Writes a program from its end to its start. Classic BPF only jumps forward, so the target of a jump is already written.
#[derive(Debug, Default)]
struct Assembler {
    /// The last instruction first.
    backwards: Vec<Instruction>,
    /// The positions of the latest return instructions.
    accept: Option<usize>,
    drop: Option<usize>,
}

/// A jump target.
#[derive(Clone, Copy, Debug)]
enum Target {
    Accept,
    Drop,
    /// The instruction at this distance from the end.
    At(usize),
}

impl Assembler {
    /// Loads the word at `offset` of the network header, and branches on it.
    fn decide_at(&mut self, offset: u32, decision: &Decision) -> Target {
        match decision.0.as_slice() {
            [AddressRange { action: Action::Accept, .. }] => Target::Accept,
            [AddressRange { action: Action::Drop, .. }] => Target::Drop,
            ranges => {
                let target = self.search(offset, ranges);
                self.fall_through_to(target);
                self.write(LOAD_WORD, 0, 0, NETWORK_HEADER.wrapping_add(offset))
            }
        }
    }

    /// Finds the range of the loaded word by binary search.
    fn search(&mut self, offset: u32, ranges: &[AddressRange]) -> Target {
        match ranges {
            [] => Target::Drop,
            [one] => self.follow(offset, &one.action),
            [around, one, after] if after.first == one.first + 1 && around.action.equals(&after.action) => {
                let others = self.follow(offset, &around.action);
                let one_target = self.follow(offset, &one.action);
                self.compare(IS_EQUAL, one.first, one_target, others)
            }
            ranges => {
                let (lower, upper) = ranges.split_at(ranges.len() / 2);
                let from = upper.first().map_or(0, |range| range.first);
                let upper = self.search(offset, upper);
                let lower = self.search(offset, lower);
                self.compare(IS_AT_LEAST, from, upper, lower)
            }
        }
    }

    fn follow(&mut self, offset: u32, action: &Action) -> Target {
        match action {
            Action::Accept => Target::Accept,
            Action::Drop => Target::Drop,
            Action::NextWord(decision) => self.decide_at(offset + WORD_BYTES, decision),
        }
    }

    /// Branches on the IP version, and accepts packets of any other version.
    fn by_version(&mut self, v4: Target, v6: Target) {
        let other = self.compare(IS_EQUAL, 0x60, v6, Target::Accept);
        let version = self.compare(IS_EQUAL, 0x40, v4, other);
        self.fall_through_to(version);
        self.write(AND, 0, 0, 0xf0);
        self.write(LOAD_BYTE, 0, 0, NETWORK_HEADER);
    }

    fn compare(&mut self, code: u16, k: u32, holds: Target, does_not: Target) -> Target {
        // Bringing the second target within reach may add an instruction, which must not move the first out of reach.
        let holds = self.within_reach(holds, MAX_SKIP - 1);
        let does_not = self.within_reach(does_not, MAX_SKIP);
        let next = self.backwards.len();
        let far = |target: usize| u8::try_from(next - 1 - target).unwrap_or(u8::MAX);
        self.write(code, far(holds), far(does_not), k)
    }

    /// Returns a position for `target` that skips at most `farthest` instructions.
    fn within_reach(&mut self, target: Target, farthest: usize) -> usize {
        let near = |at: &usize| self.backwards.len() - 1 - at <= farthest;
        match target {
            Target::Accept => self.accept.filter(near).unwrap_or_else(|| {
                self.write(RETURN, 0, 0, WHOLE_PACKET);
                *self.accept.insert(self.backwards.len() - 1)
            }),
            Target::Drop => self.drop.filter(near).unwrap_or_else(|| {
                self.write(RETURN, 0, 0, NOTHING);
                *self.drop.insert(self.backwards.len() - 1)
            }),
            Target::At(at) if near(&at) => at,
            Target::At(_) => {
                self.fall_through_to(target);
                self.backwards.len() - 1
            }
        }
    }

    /// Ensures that the next instruction written continues at `target`.
    fn fall_through_to(&mut self, target: Target) {
        let next = self.backwards.len();
        match target {
            Target::At(at) if at + 1 == next => {}
            Target::At(at) => {
                self.write(JUMP, 0, 0, u32::try_from(next - 1 - at).unwrap_or(u32::MAX));
            }
            Target::Accept => {
                self.write(RETURN, 0, 0, WHOLE_PACKET);
            }
            Target::Drop => {
                self.write(RETURN, 0, 0, NOTHING);
            }
        }
    }

    fn write(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Target {
        self.backwards.push(Instruction { code, jt, jf, k });
        Target::At(self.backwards.len() - 1)
    }

    fn finish(mut self) -> Result<PacketFilter, ProgramTooLong> {
        self.backwards.reverse();
        if self.backwards.len() > MAX_INSTRUCTIONS { Err(ProgramTooLong) } else { Ok(PacketFilter(self.backwards)) }
    }
}

const WORD_BITS: u32 = 32;
const WORD_BYTES: u32 = 4;
const LOWER_BITS: u32 = 96;

/// Offsets of the source address in IPv4 and IPv6 headers, in bytes.
const V4_SOURCE: u32 = 12;
const V6_SOURCE: u32 = 8;

/// Added to a load offset to count from the network header (`SKF_NET_OFF`). Otherwise the filter of a TCP socket counts from the
/// TCP header.
const NETWORK_HEADER: u32 = 0xfff0_0000;

// linux/bpf_common.h
const LOAD_WORD: u16 = 0x20;
const LOAD_BYTE: u16 = 0x30;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IS_EQUAL: u16 = 0x15;
const IS_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Return values: the number of bytes of the packet to keep.
const WHOLE_PACKET: u32 = u32::MAX;
const NOTHING: u32 = 0;

/// Maximum number of instructions that a comparison can skip.
const MAX_SKIP: usize = 255;

/// `BPF_MAXINSNS`
const MAX_INSTRUCTIONS: usize = 4096;
