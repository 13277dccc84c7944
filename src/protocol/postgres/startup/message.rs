/// One message of a server: type byte, Int32 length (including itself, big endian), body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u8,
    /// The message with its header.
    pub(crate) whole: &'a [u8],
    pub(crate) body: &'a [u8],
}

/// What a stream that starts at a message boundary begins with.
#[derive(Debug)]
pub(crate) enum First<'a> {
    /// A complete message and the bytes after it.
    Whole(Message<'a>, &'a [u8]),
    /// An incomplete message, or nothing.
    Cut,
    /// Bytes that no server sends during startup.
    Impossible,
}

impl<'a> First<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        let Some((&[kind, ref length @ ..], _)) = bytes.split_first_chunk::<HEADER>() else { return Self::Cut };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if !(4..=MAX_LENGTH).contains(&length) {
            return Self::Impossible;
        }
        let Some((whole, rest)) = bytes.split_at_checked(length + 1) else { return Self::Cut };
        let body = whole.get(HEADER..).unwrap_or_default();
        Self::Whole(Message { kind, whole, body }, rest)
    }
}

impl<'a> Message<'a> {
    /// The code of an authentication request, and its data.
    pub(crate) fn authentication(&self) -> Option<(u32, &'a [u8])> {
        let (code, rest) = self.body.split_first_chunk::<4>().filter(|_| self.kind == AUTHENTICATION)?;
        Some((u32::from_be_bytes(*code), rest))
    }

    /// The value of a ParameterStatus with this name.
    pub(crate) fn parameter(&self, name: &[u8]) -> Option<&'a [u8]> {
        let mut texts = self.body.split(|byte| *byte == 0);
        let is_named = self.kind == PARAMETER_STATUS && texts.next() == Some(name);
        texts.next().filter(|_| is_named)
    }

    /// The field of this type in an ErrorResponse.
    pub(crate) fn field(&self, kind: u8) -> Option<&'a [u8]> {
        let mut fields = self.body.split(|byte| *byte == 0);
        fields.find_map(|field| field.split_first().filter(|(first, _)| **first == kind)).map(|(_, text)| text)
    }
}

/// Builds a message.
pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

pub(crate) const AUTHENTICATION: u8 = b'R';
pub(crate) const BACKEND_KEY_DATA: u8 = b'K';
pub(crate) const DATA_ROW: u8 = b'D';
pub(crate) const ERROR_RESPONSE: u8 = b'E';
pub(crate) const NEGOTIATE_PROTOCOL_VERSION: u8 = b'v';
pub(crate) const NOTICE_RESPONSE: u8 = b'N';
pub(crate) const NOTIFICATION_RESPONSE: u8 = b'A';
pub(crate) const PARAMETER_STATUS: u8 = b'S';
pub(crate) const READY_FOR_QUERY: u8 = b'Z';

/// Size in bytes of the type and the length.
const HEADER: usize = 5;

/// Maximum length of a message during startup, in bytes. Real ones have a few hundred.
pub(crate) const MAX_LENGTH: usize = 64 * 1024;
