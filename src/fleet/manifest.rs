//! The manifest of a listener's rules: which text is in force, and where it is.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::digest::{hex, sha256};
use crate::fleet::chunks;
use crate::timestamp;

/// The value of a key `rules/LISTENER`. It is replaced by compare-and-swap only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// The version of this form.
    format: u32,
    /// One more than that of the manifest it replaced. It orders the rules of every store alike.
    pub(crate) sequence: u64,
    /// The member that wrote it, and when: for people.
    pub(crate) written_by: String,
    pub(crate) written_at: String,
    /// The length of the text in bytes, and its digest.
    length: usize,
    sha256: String,
    content: Content,
}

/// Where the text is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Content {
    /// In the manifest, so that one event of the store brings a whole change.
    Text(String),
    /// In chunks, by their digests in order.
    Chunks(Vec<String>),
}

/// A manifest and the chunks that must be in the store before it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Encoded<'t> {
    pub(crate) manifest: Manifest,
    /// Each with its digest.
    pub(crate) chunks: Vec<(String, &'t str)>,
}

/// Why a manifest or its chunks are not the rules that a member wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("is not a manifest: {0}")]
    Form(String),
    #[error("has format {0}, and this version reads format {FORMAT} only; upgrade this member")]
    Format(u32),
    #[error("is not valid: {0}")]
    Invalid(&'static str),
    #[error("has a text that does not match its digest")]
    Digest,
}

impl Manifest {
    /// Describes a text that follows the manifest with the number `previous`, 0 if there is none.
    pub(crate) fn encode<'t>(text: &'t str, previous: u64, member: &str, now: OffsetDateTime) -> Encoded<'t> {
        let (content, chunks) = if text.len() <= MAX_INLINE {
            (Content::Text(text.to_owned()), Vec::new())
        } else {
            let chunks: Vec<_> = chunks::split(text).into_iter().map(|chunk| (digest(chunk), chunk)).collect();
            (Content::Chunks(chunks.iter().map(|(digest, _)| digest.clone()).collect()), chunks)
        };
        let manifest = Self {
            format: FORMAT,
            sequence: previous.saturating_add(1),
            written_by: member.to_owned(),
            written_at: timestamp::seconds(now),
            length: text.len(),
            sha256: digest(text),
            content,
        };
        Encoded { manifest, chunks }
    }

    /// Reads the value of a key.
    ///
    /// # Errors
    /// [`ManifestError`], without any of the value.
    pub(crate) fn parse(value: &str) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let form = |error: &serde_json::Error| {
            ManifestError::Form(format!("line {}, column {}", error.line(), error.column()))
        };
        let Version { format } = serde_json::from_str(value).map_err(|error| form(&error))?;
        if format != FORMAT {
            return Err(ManifestError::Format(format));
        }
        let manifest: Self = serde_json::from_str(value).map_err(|error| form(&error))?;
        if manifest.sequence == 0 {
            return Err(ManifestError::Invalid("sequence is 0"));
        }
        if manifest.length > MAX_TEXT {
            return Err(ManifestError::Invalid("the text is too long"));
        }
        match &manifest.content {
            Content::Chunks(digests) if digests.len() > MAX_CHUNKS => Err(ManifestError::Invalid("too many chunks")),
            Content::Chunks(digests) if !digests.iter().all(|digest| is_digest(digest)) => {
                Err(ManifestError::Invalid("a chunk is not named by its digest"))
            }
            Content::Chunks(_) | Content::Text(_) => Ok(manifest),
        }
    }

    /// Whether the sequence is one that changes cannot have reached since `known`. Were it believed, none could follow it.
    pub(crate) const fn is_strange(&self, known: u64) -> bool {
        let limit = if known == 0 { MAX_FIRST } else { known.saturating_add(MAX_STEP) };
        self.sequence > limit
    }

    /// The value of the key.
    pub(crate) fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// The digest of the text.
    pub(crate) fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The length of the text in bytes.
    pub(crate) const fn length(&self) -> usize {
        self.length
    }

    /// The digests of the chunks, in order; none if the manifest has the text.
    pub(crate) fn chunks(&self) -> &[String] {
        match &self.content {
            Content::Text(_) => &[],
            Content::Chunks(digests) => digests,
        }
    }

    /// The text, from the chunks that `chunk` returns by their digests; `None` while one is missing.
    ///
    /// # Errors
    /// If the text is not the one that was written.
    pub(crate) fn text<'c>(&self, chunk: impl Fn(&str) -> Option<&'c str>) -> Result<Option<String>, ManifestError> {
        let text = match &self.content {
            Content::Text(text) => text.clone(),
            Content::Chunks(digests) => {
                let mut text = String::new();
                for digest in digests {
                    let Some(chunk) = chunk(digest) else { return Ok(None) };
                    // `parse` has limited the length.
                    if text.len().saturating_add(chunk.len()) > self.length {
                        return Err(ManifestError::Digest);
                    }
                    text.push_str(chunk);
                }
                text
            }
        };
        let is_same = text.len() == self.length && digest(&text) == self.sha256;
        is_same.then_some(Some(text)).ok_or(ManifestError::Digest)
    }
}

/// The name of a chunk.
pub(crate) fn digest(text: &str) -> String {
    hex(&sha256(text.as_bytes()))
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

const FORMAT: u32 = 1;

/// Changes that a member may have missed.
const MAX_STEP: u64 = 1 << 32;

/// The largest sequence that a member believes who has seen none before.
const MAX_FIRST: u64 = 1 << 48;

/// Longer texts are in chunks.
const MAX_INLINE: usize = 32 << 10;

/// 100,000 rules are about 10 MiB. What a member needs to build more may not fit beside its sessions.
const MAX_TEXT: usize = 32 << 20;

/// Eight times as many as the longest text has.
const MAX_CHUNKS: usize = 4096;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn rules(count: usize) -> String {
        (0..count).map(|number| format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.{number}\"\n")).collect()
    }

    #[test]
    fn text_is_read_back_from_manifest_and_chunks() {
        for count in [0, 1, 10_000] {
            let text = rules(count);
            let Encoded { manifest, chunks } = Manifest::encode(&text, 6, "a", NOW);
            assert_eq!((manifest.sequence, chunks.is_empty()), (7, count < 10_000));
            let read = Manifest::parse(&manifest.to_json()).unwrap();
            assert_eq!(read, manifest);
            let known: BTreeMap<_, _> = chunks.iter().map(|(digest, chunk)| (digest.as_str(), *chunk)).collect();
            assert_eq!(read.text(|digest| known.get(digest).copied()), Ok(Some(text)));
        }
    }

    #[test]
    fn missing_or_wrong_chunk_gives_no_text() {
        let text = rules(10_000);
        let Encoded { manifest, chunks } = Manifest::encode(&text, 0, "a", NOW);
        assert!(chunks.len() > 1);
        assert_eq!(manifest.text(|_| None), Ok(None));
        assert_eq!(manifest.text(|_| Some("x")), Err(ManifestError::Digest));
        let long = "x".repeat(chunks::MAX_CHUNK);
        assert_eq!(manifest.text(|_| Some(&long)), Err(ManifestError::Digest));
    }

    #[test]
    fn damaged_manifest_is_rejected_with_its_reason() {
        let good = Manifest::encode("rule = []\n", 0, "a", NOW).manifest.to_json();
        let long = Manifest::encode(&rules(10_000), 0, "a", NOW).manifest.to_json();
        assert!(Manifest::parse(&good).is_ok() && Manifest::parse(&long).is_ok());
        for (value, from, to, why) in [
            (&good, "\"format\":1", "\"format\":2", "format 2"),
            (&good, "\"sequence\":1", "\"sequence\":0", "sequence"),
            (&good, "\"sequence\":1", "\"sequence\":-1", "line 1"),
            (&good, "\"length\":10", "\"length\":99999999999", "too long"),
            (&good, "{", "{\"more\":1,", "line 1"),
            (&long, "\"chunks\":[\"", "\"chunks\":[\"../", "digest"),
        ] {
            let damaged = value.replacen(from, to, 1);
            assert_ne!(&damaged, value);
            let error = Manifest::parse(&damaged).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let other = good.replacen("rule = []", "rule = {}", 1);
        assert_eq!(Manifest::parse(&other).unwrap().text(|_| None), Err(ManifestError::Digest));
    }

    proptest! {
        #[test]
        fn any_value_is_read_without_a_panic(value: String, cut in 0..200_usize) {
            let _ = Manifest::parse(&value);
            let mut good = Manifest::encode("rule = []\n", 0, "a", NOW).manifest.to_json();
            good.insert_str(cut.min(good.len()), &value);
            if let Ok(manifest) = Manifest::parse(&good) {
                let _ = manifest.text(|_| None);
            }
        }
    }
}
