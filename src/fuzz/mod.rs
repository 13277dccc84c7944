//! The entry points of the fuzz targets in `fuzz/`, and what they share. Each checks properties of a parser of untrusted bytes,
//! and panics if one does not hold. The tests run them over the inputs in `fuzz/corpus/`.
//!
//! The properties themselves are beside the parsers.

pub use crate::login::postgres::fuzz::{postgres_client, postgres_parameters, postgres_upstream};
pub use crate::login::redis::fuzz::{redis_before, redis_session, redis_upstream};
pub use crate::protocol::redis::commands::fuzz::redis_commands;

/// What a fuzzer has chosen: two bytes of options, two lengths, and a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    options: u8,
    lengths: [usize; 2],
    pub(crate) stream: &'a [u8],
}

impl<'a> Input<'a> {
    /// `None` if there are too few bytes.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let ([options, first, second], stream) = data.split_first_chunk::<3>()?;
        let length = |byte: u8| usize::from(byte).saturating_add(1);
        Some(Self { options: *options, lengths: [length(*first), length(*second)], stream })
    }

    /// The same choices for another stream.
    pub(crate) fn with_stream(self, stream: &[u8]) -> Input<'_> {
        Input { options: self.options, lengths: self.lengths, stream }
    }

    /// One of eight independent choices.
    pub(crate) fn has(self, option: u32) -> bool {
        self.options.checked_shr(option).unwrap_or_default() & 1 == 1
    }

    /// The stream in chunks of the two lengths in turn.
    pub(crate) fn chunks(self) -> Vec<&'a [u8]> {
        chunks(self.stream, self.lengths)
    }
}

fn chunks(stream: &[u8], lengths: [usize; 2]) -> Vec<&[u8]> {
    let (mut chunks, mut rest) = (Vec::new(), stream);
    for length in lengths.into_iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (chunk, behind) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        chunks.push(chunk);
        rest = behind;
    }
    chunks
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target); 7] = [
        ("postgres_client", super::postgres_client),
        ("postgres_parameters", super::postgres_parameters),
        ("postgres_upstream", super::postgres_upstream),
        ("redis_before", super::redis_before),
        ("redis_commands", super::redis_commands),
        ("redis_session", super::redis_session),
        ("redis_upstream", super::redis_upstream),
    ];

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let mut names: Vec<_> = entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn properties_hold_for_the_corpus_of_each_target() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let expected: Vec<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names(&fuzz.join("corpus")), expected);
        assert_eq!(names(&fuzz.join("targets")), expected);
        for (name, target) in TARGETS {
            for entry in fs::read_dir(fuzz.join("corpus").join(name)).unwrap() {
                let path = entry.unwrap().path();
                let input = fs::read(&path).unwrap();
                // With every option, and in the smallest chunks.
                for options in 0..=255 {
                    target(&[&[options], input.get(1..).unwrap_or_default()].concat());
                }
                target(&[&[input[0], 0, 0], input.get(3..).unwrap_or_default()].concat());
            }
        }
    }
}
