//! Splits the text of a list of rules into chunks for a store whose values are limited in size.
//!
//! Where a chunk ends depends on the text near its end only, so a changed rule changes one or two chunks, and the others are not
//! written again.

/// Splits a text at the starts of its rules. The chunks in order are the text. Each has at most [`MAX_CHUNK`] bytes.
pub(crate) fn split(text: &str) -> Vec<&str> {
    let mut chunks = Vec::new();
    let mut rest = text;
    while rest.len() > MAX_CHUNK {
        let (chunk, after) = rest.split_at(end(rest));
        chunks.push(chunk);
        rest = after;
    }
    if !rest.is_empty() {
        chunks.push(rest);
    }
    chunks
}

/// Where the first chunk of a text ends that is longer than [`MAX_CHUNK`].
fn end(text: &str) -> usize {
    let starts = || text.match_indices(RULE).map(|(newline, _)| newline + 1).take_while(|start| *start <= MAX_CHUNK);
    let usual = starts().filter(|start| *start >= MIN_CHUNK).find(|start| is_boundary(text, *start));
    // Without a usual boundary the last rule that still fits begins the next chunk, and a very long rule is cut.
    usual.or_else(|| starts().last()).unwrap_or_else(|| floor_char_boundary(text, MAX_CHUNK))
}

/// Whether a chunk ends before the rule at `start`: one of [`MEAN_RULES`], by the hash of the text before it.
fn is_boundary(text: &str, start: usize) -> bool {
    // FNV-1a: an operator who defeats it gets chunks of the maximum size.
    let before = text.as_bytes().get(start.saturating_sub(HASHED)..start).unwrap_or_default();
    let hash = before
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash >> 32).is_multiple_of(MEAN_RULES)
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|index| text.is_char_boundary(*index)).filter(|index| *index > 0).unwrap_or(text.len())
}

/// The line that begins a rule.
const RULE: &str = "\n[[rule]]";

/// The maximum length of a chunk in bytes. A value of etcd may have 1.5 MiB, an object of Kubernetes about 1 MiB.
pub(crate) const MAX_CHUNK: usize = 256 << 10;

/// No chunk but the last is much shorter, so that their number stays small.
const MIN_CHUNK: usize = 64 << 10;

/// After the minimum, the usual number of rules until a chunk ends.
const MEAN_RULES: u64 = 256;

/// Bytes before a boundary that decide about it.
const HASHED: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(numbers: impl Iterator<Item = usize>) -> String {
        numbers.map(|number| format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.{number}\"\n\n")).collect()
    }

    #[test]
    fn changed_rule_changes_few_chunks() {
        let all = rules(0..100_000);
        let chunks = split(&all);
        assert!(chunks.len() > 15 && chunks.len() < 90, "{}", chunks.len());
        for changed in [0, 1, 50_000, 99_999] {
            let text = rules((0..100_000).filter(|number| *number != changed));
            let new = split(&text).into_iter().filter(|chunk| !chunks.contains(chunk)).count();
            assert!(new <= 3, "{changed}: {new}");
        }
    }

    #[test]
    fn chunk_begins_with_a_rule() {
        let all = rules(0..50_000);
        assert!(split(&all).iter().all(|chunk| chunk.starts_with("[[rule]]")));
    }

    #[test]
    fn long_rule_is_cut_between_characters() {
        let text = format!("[[rule]]\ndescription = \"{}\"\n", "ä".repeat(MAX_CHUNK));
        let chunks = split(&text);
        assert!(chunks.iter().all(|chunk| chunk.len() <= MAX_CHUNK));
        assert_eq!(chunks.concat(), text);
    }

    proptest! {
        #[test]
        fn chunks_in_order_are_the_text(parts in proptest::collection::vec((0..3_u8, 1..40_000_usize), 0..40)) {
            let part = |(kind, length): &(u8, usize)| match kind {
                0 => "\n[[rule]]".repeat(length / 40),
                1 => "x".repeat(*length),
                _ => "ö".repeat(length / 2),
            };
            let text: String = parts.iter().map(part).collect();
            let chunks = split(&text);
            prop_assert_eq!(chunks.concat(), text.as_str());
            prop_assert!(chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= MAX_CHUNK));
        }
    }
}
