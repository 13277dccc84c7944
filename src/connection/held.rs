//! Bytes on their way that could not be moved on yet.

/// Bytes that wait, in order. Empty, it owns no memory: most sessions never need any.
#[derive(Debug, Default)]
pub(super) struct Held {
    bytes: Vec<u8>,
    /// How many at the front are gone already.
    gone: usize,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.gone >= self.bytes.len()
    }

    /// What waits.
    pub(super) fn rest(&self) -> &[u8] {
        self.bytes.get(self.gone..).unwrap_or_default()
    }

    /// The first `count` have been moved on.
    pub(super) fn advance(&mut self, count: usize) {
        self.gone += count;
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// Puts more behind what waits.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Where more can be put behind what waits.
    pub(super) fn end(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Waits with `bytes` only.
    pub(super) fn replace(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            *self = Self::default();
        } else {
            self.bytes.clear();
            self.bytes.extend_from_slice(bytes);
            self.gone = 0;
        }
    }
}

impl From<Vec<u8>> for Held {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, gone: 0 }
    }
}
