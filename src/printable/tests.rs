use proptest::prelude::*;

use super::*;

/// The general categories Cf, Zl, Zp, Co and, of Cn, the noncharacters (Unicode 16.0, DerivedGeneralCategory.txt).
const HIDDEN: [(u32, u32); 32] = [
    (0xad, 0xad),
    (0x600, 0x605),
    (0x61c, 0x61c),
    (0x6dd, 0x6dd),
    (0x70f, 0x70f),
    (0x890, 0x891),
    (0x8e2, 0x8e2),
    (0x180e, 0x180e),
    (0x200b, 0x200f),
    (0x2028, 0x2029),
    (0x202a, 0x202e),
    (0x2060, 0x2064),
    (0x2066, 0x206f),
    (0xe000, 0xf8ff),
    (0xfdd0, 0xfdef),
    (0xfeff, 0xfeff),
    (0xfff9, 0xfffb),
    (0xfffe, 0xffff),
    (0x110bd, 0x110bd),
    (0x110cd, 0x110cd),
    (0x13430, 0x1343f),
    (0x1bca0, 0x1bca3),
    (0x1d173, 0x1d17a),
    (0x1fffe, 0x1ffff),
    (0xe0001, 0xe0001),
    (0xe0020, 0xe007f),
    (0xf0000, 0xffffd),
    (0x10_0000, 0x10_fffd),
    // Cc.
    (0, 0x1f),
    (0x7f, 0x9f),
    // Invisible by Default_Ignorable_Code_Point alone.
    (0x115f, 0x1160),
    (0xfe00, 0xfe0f),
];

fn escaped(text: &str) -> String {
    cut(text, usize::MAX)
}

#[test]
fn hidden_characters_of_every_category_are_escaped() {
    for character in HIDDEN.iter().flat_map(|(first, last)| *first..=*last).filter_map(char::from_u32) {
        let text = format!("a{character}b");
        assert!(is_hidden(character), "{character:?}");
        assert_eq!(escaped(&text), format!("a{}b", character.escape_default()));
        assert_eq!(lines(&text).contains(character), character == '\n');
    }
}

#[test]
fn visible_text_stays_as_it_is() {
    for text in ["", "a b", "Zoë, Ελένη, 東京, עברית", "e\u{301}", "🔑", "C:\\x \"y\" 'z'", "\\u{202e}"]
    {
        assert_eq!(escaped(text), text);
        assert_eq!(lines(text), text);
        assert_eq!(fitted(text.to_owned()), text);
    }
}

#[test]
fn hidden_text_is_shown_in_the_form_of_rust() {
    assert_eq!(field("a\u{202e}b\u{feff}"), "a\\u{202e}b\\u{feff}");
    assert_eq!(fitted("a\n\r\t\0\u{1b}[2J".to_owned()), "a\\n\\r\\t\\u{0}\\u{1b}[2J");
    assert_eq!(field("\u{301}a\u{a0}b"), "\\u{301}a\\u{a0}b");
    assert_eq!(lines("a\u{2028}b\nc\td"), "a\\u{2028}b\nc\\td");
    assert_eq!(cut_lines("a\u{2028}b\nc", 100), "a\\u{2028}b\nc");
}

#[test]
fn long_text_is_cut_with_a_mark() {
    let long = field("x".repeat(600));
    assert_eq!(long, format!("{}{MARK}", "x".repeat(MAX_FIELD - MARK.len())));
    assert_eq!(field("x".repeat(MAX_FIELD)), "x".repeat(MAX_FIELD));
    assert_eq!(fitted("x".repeat(MAX_FIELD)), "x".repeat(MAX_FIELD));
    assert_eq!(fitted("\"".repeat(300)).len(), (MAX_FIELD - MARK.len()) / 2 + MARK.len());
    assert_eq!(quoted("x".repeat(600)).len(), MAX_QUOTED);
    assert_eq!(cut("xyz", 2), MARK);
}

#[test]
fn cut_text_holds_no_memory_in_reserve() {
    let text = cut("\u{202e}".repeat(64_000), MAX_FIELD);
    assert!(text.capacity() <= MAX_FIELD, "{}", text.capacity());
}

#[test]
fn several_texts_share_one_field() {
    let texts = |count: usize, length: usize| vec!["x".repeat(length); count];
    assert_eq!(list(&texts(3, 5)), "xxxxx; xxxxx; xxxxx");
    let shared = list(&texts(4, 400));
    assert!(shared.len() <= MAX_FIELD);
    assert_eq!(shared.matches(MARK).count(), 4, "{shared}");
    assert!(list(&texts(400, 400)).len() <= MAX_FIELD);
    assert_eq!(list(&[]), "");
}

#[test]
fn escape_sequence_is_one_piece() {
    let of = |text| pieces(text).collect::<Vec<_>>();
    assert_eq!(of("aß\\n\\u{202e}b"), ["a", "ß", "\\n", "\\u{202e}", "b"]);
    assert_eq!(of("\\e2\\80\\ae\\c3\\a4\\0a\\0a\\,"), ["\\e2\\80\\ae", "\\c3\\a4", "\\0a", "\\0a", "\\,"]);
    assert_eq!(of("\\\\u{1}"), ["\\\\", "u", "{", "1", "}"]);
    // Text that only looks like an escape sequence.
    assert_eq!(of("\\u{12"), ["\\u", "{", "1", "2"]);
    assert_eq!(of("\\+1\\"), ["\\+", "1", "\\"]);
    assert_eq!(of("\\€"), ["\\€"]);
}

/// Text with many characters that are escaped or look escaped.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[a-z ]{0,20}",
        "\\PC{0,4}",
        any::<char>().prop_map(String::from),
        Just("\u{202e}".to_owned()),
        Just("\n".to_owned()),
        Just("\\0a\\e2\\80\\ae".to_owned()),
        Just("\\u{202e}".to_owned()),
        Just("\"\\".to_owned()),
    ];
    prop::collection::vec(part, 0..60).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn cut_text_fits_and_ends_between_two_pieces(text in text(), limit in 0_usize..300) {
        let (whole, cut) = (escaped(&text), cut(&text, limit));
        prop_assert!(cut.len() <= limit.max(MARK.len()));
        prop_assert!(serde_json::to_string(&cut).unwrap().len() - 2 <= limit.max(MARK.len()));
        prop_assert_eq!(size_in_json(&cut), serde_json::to_string(&cut).unwrap().len() - 2);
        if size_in_json(&whole) <= limit {
            prop_assert_eq!(cut, whole);
        } else {
            let kept: Vec<_> = pieces(cut.strip_suffix(MARK).unwrap()).collect();
            let all: Vec<_> = pieces(&whole).collect();
            prop_assert_eq!(all.get(..kept.len()), Some(kept.as_slice()));
            // The cut text has no room for the next piece.
            let next = all.get(kept.len()).map_or(0, |piece| size_in_json(piece));
            prop_assert!(size_in_json(&cut) + next > limit);
        }
    }

    #[test]
    fn escaping_twice_changes_nothing(text in text()) {
        let once = escaped(&text);
        prop_assert_eq!(&escaped(&once), &once);
        prop_assert_eq!(&*lines(&once), &once);
        prop_assert!(!once.chars().any(is_hidden));
        let fits = fitted(text.clone());
        prop_assert_eq!(&fitted(fits.clone()), &fits);
        prop_assert_eq!(fits, field(text));
    }
}
