//! The source question in the kernel's own words: a classic BPF program that says of a packet whether it comes from a trusted
//! source. It answers as [`TrustedSources::lookup`] does, but knows no clock: whom it was made for it lets through for good.
//!
//! Addresses are compared 32 bits at a time, IPv4 by one word and IPv6 by up to four. The values of a word are cut into
//! stretches that have one verdict each, and the stretch of a packet is found by halving them. A word within which networks
//! begin or end leads to a decision on the next word.
//!
//! [`TrustedSources::lookup`]: crate::source::trusted::TrustedSources::lookup

#[cfg(test)]
mod tests;

use ipnet::IpNet;

/// A program for the kernel, no longer than it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketFilter(Vec<Instruction>);

/// One instruction of classic BPF, as the kernel has it (`struct sock_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many instructions to leave out where a comparison holds.
    pub jt: u8,
    /// And where it does not.
    pub jf: u8,
    /// What to do it with.
    pub k: u32,
}

/// The sources are too many for one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the trusted sources make a program of more than {MOST_INSTRUCTIONS} instructions, which is the most the kernel takes; \
     fewer or wider networks would fit (some 2,000 single IPv4 addresses do)"
)]
pub struct ProgramTooLong;

impl PacketFilter {
    /// The program that lets packets from these networks through, and no others.
    ///
    /// # Errors
    /// When it would be too long.
    pub fn accepting(networks: impl IntoIterator<Item = IpNet>) -> Result<Self, ProgramTooLong> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match network {
                IpNet::V4(net) => v4.push(Range::of_v4(net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push(Range { first: net.network().to_bits(), last: net.broadcast().to_bits() }),
            }
        }
        let (v4, v6) = (merged(v4), merged(v6));
        // Nobody needs to see the program to know. Each word of each end of a range is compared at least once, but for the
        // ends that two ranges share.
        if v4.len().max(v6.len()) > MOST_INSTRUCTIONS {
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

    /// The instructions, in order.
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }
}

/// Addresses without a gap, both ends included. IPv4 stands in the uppermost word.
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

/// The same addresses by as few ranges as can be, in order.
fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
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

/// What is done with a packet by the value of one word of its source. The stretches cover all values; the first begins at 0.
#[derive(Debug)]
struct Decision(Vec<AddressRange>);

/// Values of a word up to the beginning of the next stretch.
#[derive(Debug)]
struct AddressRange {
    first: u32,
    action: Action,
}

#[derive(Debug)]
enum Action {
    Through,
    Drop,
    /// The next word decides.
    Ask(Decision),
}

impl Action {
    /// Whether both need no further look and are the same.
    fn equals(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Through, Self::Through) | (Self::Drop, Self::Drop))
    }
}

impl Decision {
    /// Takes the ranges apart by their uppermost word.
    fn on(ranges: &[Range]) -> Self {
        let mut all = Self(vec![AddressRange { first: 0, action: Action::Drop }]);
        let mut rest = ranges.iter().flat_map(pieces).peekable();
        while let Some(Branch { words: (first, last), below }) = rest.next() {
            // Several may be within one word.
            let mut within = vec![below];
            while let Some(next) = rest.next_if(|next| next.words.0 == first) {
                within.push(next.below);
            }
            let action = if within == [Range::ALL] { Action::Through } else { Action::Ask(Self::on(&within)) };
            all.from(first, action);
            if let Some(after) = last.checked_add(1) {
                all.from(after, Action::Drop);
            }
        }
        all
    }

    /// Gives the values from here on another verdict.
    fn from(&mut self, first: u32, action: Action) {
        if self.0.last().is_some_and(|stretch| stretch.first == first) {
            self.0.pop();
        }
        if !self.0.last().is_some_and(|before| before.action.equals(&action)) {
            self.0.push(AddressRange { first, action });
        }
    }
}

/// Part of a range: these values of the uppermost word, each with the same range below it.
struct Branch {
    words: (u32, u32),
    below: Range,
}

fn pieces(range: &Range) -> impl Iterator<Item = Branch> + use<> {
    let (first, last) = (uppermost(range.first), uppermost(range.last));
    let from = range.first << WORD_BITS;
    let to = range.last << WORD_BITS | u128::MAX >> LOWER_BITS;
    let piece = |first, last, below| Some(Branch { words: (first, last), below }).filter(|_| first <= last);
    let pieces = if first == last {
        [piece(first, last, Range { first: from, last: to }), None, None]
    } else {
        // What is whole at an end belongs to the middle.
        let (begins, ends) = (u32::from(from != 0), u32::from(to != u128::MAX));
        [
            (from != 0).then_some(Branch { words: (first, first), below: Range { first: from, last: u128::MAX } }),
            piece(first.saturating_add(begins), last.saturating_sub(ends), Range::ALL),
            (to != u128::MAX).then_some(Branch { words: (last, last), below: Range { first: 0, last: to } }),
        ]
    };
    pieces.into_iter().flatten()
}

#[allow(clippy::cast_possible_truncation, reason = "32 bits are left")]
const fn uppermost(address: u128) -> u32 {
    (address >> LOWER_BITS) as u32
}

/// Writes a program from its end to its beginning: classic BPF jumps forwards only, so where a jump leads to is always
/// written already.
#[derive(Debug, Default)]
struct Assembler {
    /// The last instruction first.
    backwards: Vec<Instruction>,
    /// Where the ends of the program were written last.
    through: Option<usize>,
    drop: Option<usize>,
}

/// Where to go on.
#[derive(Clone, Copy, Debug)]
enum Target {
    Through,
    Drop,
    /// At the instruction that is this far from the end.
    At(usize),
}

impl Assembler {
    /// Loads the word at `offset` of the network header, and decides on it.
    fn decide_at(&mut self, offset: u32, decision: &Decision) -> Target {
        match decision.0.as_slice() {
            [AddressRange { action: Action::Through, .. }] => Target::Through,
            [AddressRange { action: Action::Drop, .. }] => Target::Drop,
            stretches => {
                let target = self.halve(offset, stretches);
                self.go_on_at(target);
                self.write(LOAD_WORD, 0, 0, NETWORK_HEADER.wrapping_add(offset))
            }
        }
    }

    /// Finds the stretch of the word that is loaded.
    fn halve(&mut self, offset: u32, stretches: &[AddressRange]) -> Target {
        match stretches {
            [] => Target::Drop,
            [one] => self.follow(offset, &one.action),
            [around, one, after] if after.first == one.first + 1 && around.action.equals(&after.action) => {
                let others = self.follow(offset, &around.action);
                let one_target = self.follow(offset, &one.action);
                self.compare(IS_EQUAL, one.first, one_target, others)
            }
            stretches => {
                let (lower, upper) = stretches.split_at(stretches.len() / 2);
                let from = upper.first().map_or(0, |stretch| stretch.first);
                let upper = self.halve(offset, upper);
                let lower = self.halve(offset, lower);
                self.compare(IS_AT_LEAST, from, upper, lower)
            }
        }
    }

    fn follow(&mut self, offset: u32, action: &Action) -> Target {
        match action {
            Action::Through => Target::Through,
            Action::Drop => Target::Drop,
            Action::Ask(decision) => self.decide_at(offset + WORD_BYTES, decision),
        }
    }

    /// Asks for the version of IP, and lets through what has none that is known.
    fn by_version(&mut self, v4: Target, v6: Target) {
        let other = self.compare(IS_EQUAL, 0x60, v6, Target::Through);
        let version = self.compare(IS_EQUAL, 0x40, v4, other);
        self.go_on_at(version);
        self.write(AND, 0, 0, 0xf0);
        self.write(LOAD_BYTE, 0, 0, NETWORK_HEADER);
    }

    fn compare(&mut self, code: u16, k: u32, holds: Target, does_not: Target) -> Target {
        // To be within reach of the second may take an instruction, and that must not take the first out of reach.
        let holds = self.within_reach(holds, FARTHEST - 1);
        let does_not = self.within_reach(does_not, FARTHEST);
        let next = self.backwards.len();
        let far = |target: usize| u8::try_from(next - 1 - target).unwrap_or(u8::MAX);
        self.write(code, far(holds), far(does_not), k)
    }

    /// Where to jump to so that no more than `farthest` instructions are left out.
    fn within_reach(&mut self, target: Target, farthest: usize) -> usize {
        let near = |at: &usize| self.backwards.len() - 1 - at <= farthest;
        match target {
            Target::Through => self.through.filter(near).unwrap_or_else(|| {
                self.write(RETURN, 0, 0, WHOLE_PACKET);
                *self.through.insert(self.backwards.len() - 1)
            }),
            Target::Drop => self.drop.filter(near).unwrap_or_else(|| {
                self.write(RETURN, 0, 0, NOTHING);
                *self.drop.insert(self.backwards.len() - 1)
            }),
            Target::At(at) if near(&at) => at,
            Target::At(_) => {
                self.go_on_at(target);
                self.backwards.len() - 1
            }
        }
    }

    /// Makes sure that what is written next goes on there.
    fn go_on_at(&mut self, target: Target) {
        let next = self.backwards.len();
        match target {
            Target::At(at) if at + 1 == next => {}
            Target::At(at) => {
                self.write(JUMP, 0, 0, u32::try_from(next - 1 - at).unwrap_or(u32::MAX));
            }
            Target::Through => {
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
        if self.backwards.len() > MOST_INSTRUCTIONS { Err(ProgramTooLong) } else { Ok(PacketFilter(self.backwards)) }
    }
}

const WORD_BITS: u32 = 32;
const WORD_BYTES: u32 = 4;
const LOWER_BITS: u32 = 96;

/// Where an IPv4 and an IPv6 header have the source.
const V4_SOURCE: u32 = 12;
const V6_SOURCE: u32 = 8;

/// Added to the offset of a load, it counts from the network header (`SKF_NET_OFF`); a TCP socket's filter would begin at TCP's.
const NETWORK_HEADER: u32 = 0xfff0_0000;

// linux/bpf_common.h
const LOAD_WORD: u16 = 0x20;
const LOAD_BYTE: u16 = 0x30;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IS_EQUAL: u16 = 0x15;
const IS_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// How many bytes of the packet are kept.
const WHOLE_PACKET: u32 = u32::MAX;
const NOTHING: u32 = 0;

/// A comparison leaves out no more than this.
const FARTHEST: usize = 255;

/// `BPF_MAXINSNS`
const MOST_INSTRUCTIONS: usize = 4096;
