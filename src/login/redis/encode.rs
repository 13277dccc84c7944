//! Commands as Redis expects them: arrays of bulk strings.

use zeroize::Zeroizing;

/// Encodes a command. The buffer has its final size from the start, so that no copy of a password is left behind.
pub(super) fn command(words: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let bytes: usize = words.iter().map(|word| word.len() + MAX_FRAME).sum();
    let mut command = Zeroizing::new(Vec::with_capacity(bytes + MAX_FRAME));
    command.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        command.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        command.extend_from_slice(word);
        command.extend_from_slice(b"\r\n");
    }
    command
}

/// A sign, the digits of a size, and two line ends.
const MAX_FRAME: usize = 25;
