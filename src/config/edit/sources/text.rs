//! Line breaks of an edited text.

/// The line break of a text: that of its first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineBreak {
    Lf,
    CrLf,
}

impl LineBreak {
    pub(crate) fn of(text: &str) -> Self {
        let is_crlf = text.split_once('\n').is_some_and(|(line, _)| line.ends_with('\r'));
        if is_crlf { Self::CrLf } else { Self::Lf }
    }

    /// Returns a text with these line breaks.
    pub(crate) fn apply(self, text: String) -> String {
        match self {
            Self::Lf => text,
            Self::CrLf => text.replace("\r\n", "\n").replace('\n', "\r\n"),
        }
    }

    /// Ends the last line of a text, if there is one.
    pub(crate) fn end_line(self, text: &mut String) {
        if !text.is_empty() && !text.ends_with('\n') {
            self.push(text);
        }
    }

    /// Ends the last line and adds a blank one, unless there is one or the text is empty.
    pub(crate) fn end_with_blank_line(self, text: &mut String) {
        self.end_line(text);
        if !ends_with_blank_line(text) {
            self.push(text);
        }
    }

    fn push(self, text: &mut String) {
        text.push_str(match self {
            Self::Lf => "\n",
            Self::CrLf => "\r\n",
        });
    }
}

/// Whether a rule added to the text would not touch other content.
pub(crate) fn ends_with_blank_line(text: &str) -> bool {
    text.is_empty() || text.ends_with('\n') && text.lines().next_back().is_some_and(|line| line.trim().is_empty())
}
