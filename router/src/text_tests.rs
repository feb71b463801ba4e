use proptest::prelude::*;

use super::*;
use crate::vocabulary::tests::{byte_tokenizer, fallback_tokenizer};

fn params(style: TextStyle, stop: &[&str]) -> TextParams {
    TextParams {
        stop: stop.iter().map(|stop| (*stop).to_owned()).collect(),
        style,
    }
}

/// Feeds one token per item and returns the pieces, the last one being what `finish` gave.
fn run(tokens: &[Vec<u8>], params: &TextParams) -> (Vec<String>, bool) {
    let vocabulary = Arc::new(Vocabulary::of_tokens(tokens));
    let mut stream = TextStream::new(vocabulary, params);
    let mut pieces = Vec::new();
    let mut stopped = false;
    for id in 0..u32::try_from(tokens.len()).unwrap() {
        let piece = stream.push(id);
        assert!(!stopped || piece.text.is_empty());
        stopped = piece.stopped;
        pieces.push(piece.text);
    }
    pieces.push(stream.finish());
    (pieces, stopped)
}

fn tokens(parts: &[&str]) -> Vec<Vec<u8>> {
    parts.iter().map(|part| part.as_bytes().to_vec()).collect()
}

#[test]
fn a_character_split_over_tokens_appears_with_its_last_byte() {
    let (pieces, _) = run(
        &[b"a\xf0\x9f".to_vec(), b"\x98".to_vec(), b"\x80b".to_vec()],
        &params(TextStyle::OpenAi, &[]),
    );
    assert_eq!(pieces, ["a", "", "😀b", ""]);
}

#[test]
fn invalid_bytes_become_one_replacement_per_maximal_sequence() {
    let (pieces, _) = run(
        &[
            b"\xe2\x82".to_vec(),
            b"x".to_vec(),
            b"\xff".to_vec(),
            b"\xf0\x9f".to_vec(),
        ],
        &params(TextStyle::OpenAi, &[]),
    );
    assert_eq!(pieces, ["", "\u{fffd}x", "\u{fffd}", "", "\u{fffd}"]);
}

/// What bounds the work of a token: never more than the beginning of one character waits to be looked at again.
#[test]
fn two_thousand_invalid_tokens_leave_nothing_to_look_at_again() {
    let vocabulary = Vocabulary::new(&byte_tokenizer());
    for pattern in [&[0xff][..], &[0x80], &[0xe2], &[0xf0, 0x9f, 0x98]] {
        let mut decoder = Decoder::new(&vocabulary);
        let mut text = String::new();
        for id in pattern.iter().cycle().take(2000) {
            decoder.push(&vocabulary, *id, &mut text);
            let Decoder::Table { pending, .. } = &decoder else {
                panic!("byte-level tokens have a table");
            };
            assert!(pending.len() < 4, "{} bytes wait", pending.len());
        }
        decoder.flush(&mut text);
        let num = 2000_usize.div_ceil(pattern.len());
        assert_eq!(text, "\u{fffd}".repeat(num));
    }
}

#[test]
fn the_native_style_keeps_the_stop_string_and_holds_nothing_back() {
    let (pieces, stopped) = run(
        &tokens(&["one ST", "OP", "P and more", "never"]),
        &params(TextStyle::Native, &["STOPP"]),
    );
    assert_eq!(pieces, ["one ST", "OP", "P", "", ""]);
    assert!(stopped);
}

#[test]
fn the_openai_style_removes_the_stop_string_and_holds_its_beginning_back() {
    let (pieces, stopped) = run(
        &tokens(&["one ST", "OP", "P and more", "never"]),
        &params(TextStyle::OpenAi, &["STOPP"]),
    );
    assert_eq!(pieces, ["one ", "", "", "", ""]);
    assert!(stopped);
    let (pieces, stopped) = run(
        &tokens(&["one ST", "OP", " it"]),
        &params(TextStyle::OpenAi, &["STOPP"]),
    );
    assert_eq!(pieces, ["one ", "", "STOP it", ""]);
    assert!(!stopped);
    let (pieces, _) = run(
        &tokens(&["one STO"]),
        &params(TextStyle::OpenAi, &["STOPP"]),
    );
    assert_eq!(pieces, ["one ", "STO"]);
}

#[test]
fn of_stop_strings_that_end_together_the_longest_is_removed() {
    let (pieces, _) = run(
        &tokens(&["xxab", "c"]),
        &params(TextStyle::OpenAi, &["b", "xab"]),
    );
    assert_eq!(pieces.concat(), "x");
}

#[test]
fn special_tokens_show_in_the_native_style_only() {
    let vocabulary = Arc::new(Vocabulary::new(&byte_tokenizer()));
    for (style, text) in [(TextStyle::Native, "</s>"), (TextStyle::OpenAi, "")] {
        let mut stream = TextStream::new(Arc::clone(&vocabulary), &params(style, &["</s>"]));
        let piece = stream.push(257);
        assert_eq!(
            (piece.text.as_str(), piece.special, piece.stopped),
            (text, true, false)
        );
        // Not special: part of the answer.
        assert_eq!(stream.push(258).text, "<think>");
    }
}

#[test]
fn a_special_token_inside_a_character_does_not_break_it() {
    let mut stream = TextStream::new(
        Arc::new(Vocabulary::new(&byte_tokenizer())),
        &params(TextStyle::OpenAi, &[]),
    );
    let text: String = [0xc3, 256, 0xa9].map(|id| stream.push(id).text).concat();
    assert_eq!(text, "é");
}

#[test]
fn windows_give_the_same_text_and_never_wait_for_ever() {
    let decoder = serde_json::json!({"type": "WordPiece", "prefix": "##", "cleanup": false});
    let vocabulary = Arc::new(Vocabulary::new(&fallback_tokenizer(&decoder)));
    let mut stream = TextStream::new(vocabulary, &params(TextStyle::OpenAi, &[]));
    let text: String = [258, 259, 258].map(|id| stream.push(id).text).concat();
    assert_eq!(text, "a b a");

    let tokenizer = byte_tokenizer();
    let mut window = Window {
        tokenizer,
        ids: Vec::new(),
        num_given: 0,
        given: String::new(),
    };
    let mut text = String::new();
    for _ in 0..100 {
        window.push(0xff, &mut text);
        assert!(window.ids.len() <= 2 * MAX_WINDOW);
    }
    window.give(&mut text);
    assert_eq!(text, "\u{fffd}".repeat(100));
}

/// Text in several scripts, broken UTF-8, and pieces of the stop strings below.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        "[abAB]{1,4}".prop_map(String::into_bytes),
        "\\PC{1,3}".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 1..4),
        Just("aab".as_bytes().to_vec()),
        Just("éa".as_bytes().to_vec()),
    ];
    proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

fn split(bytes: &[u8], cuts: &[prop::sample::Index]) -> Vec<Vec<u8>> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut start = 0;
    ends.iter()
        .map(|&end| bytes[std::mem::replace(&mut start, end)..end].to_vec())
        .collect()
}

/// The slow definition: the stop string that ends first; of those the longest.
fn expected(text: &str, stop: &[&str], style: TextStyle) -> (String, bool) {
    for end in 1..=text.len() {
        let longest = stop
            .iter()
            .filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()))
            .map(|stop| stop.len())
            .max();
        if let Some(len) = longest {
            let end = if style == TextStyle::Native {
                end
            } else {
                end - len
            };
            return (text[..end].to_owned(), true);
        }
    }
    (text.to_owned(), false)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_split_gives_the_same_text(
        bytes in bytes(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        native in any::<bool>(),
    ) {
        let style = if native { TextStyle::Native } else { TextStyle::OpenAi };
        let stop = ["aab", "abab", "éa", "B"];
        for stop in [&[][..], &stop[..1], &stop[..]] {
            let (pieces, stopped) = run(&split(&bytes, &cuts), &params(style, stop));
            let whole = String::from_utf8_lossy(&bytes);
            prop_assert_eq!((pieces.concat(), stopped), expected(&whole, stop, style));
        }
    }

    #[test]
    fn no_stop_string_leaks_while_streaming(
        bytes in bytes(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let stop = ["aab", "abab", "éa", "B"];
        let (pieces, _) = run(&split(&bytes, &cuts), &params(TextStyle::OpenAi, &stop));
        let mut sent = String::new();
        for piece in pieces {
            sent.push_str(&piece);
            for stop in stop {
                prop_assert!(!sent.contains(stop));
            }
        }
    }

    /// At every moment nothing is held back that could already be told: only the beginning of a character.
    #[test]
    fn without_stop_strings_only_an_incomplete_character_waits(bytes in bytes()) {
        let tokens = split(&bytes, &[]);
        let (pieces, _) = run(&tokens, &params(TextStyle::Native, &["never in the text"]));
        let tail = pieces.last().unwrap();
        let allowed = tail.is_empty() || tail == "\u{fffd}";
        prop_assert!(allowed);
    }
}
