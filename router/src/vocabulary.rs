//! What each token id means as bytes, so that a token becomes text in tens of nanoseconds. Built once from the
//! tokenizer's decoder and checked against the tokenizer's own `decode`; a decoder that the table cannot express is
//! served by a window over `decode` instead (see `text.rs`). Knows no requests.

use std::sync::Arc;

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokenizers::Tokenizer;

/// Sequences compared with the tokenizer's `decode` at load; a wrong rule shows up within the first few.
const NUM_CHECKED_SEQUENCES: usize = 500;
const CHECKED_SEQUENCE_LEN: usize = 12;

/// Token ids to bytes and flags.
#[derive(Debug)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// `bytes[offsets[id]..offsets[id + 1]]` is the token; one entry more than there are ids.
    offsets: Vec<u32>,
    special: Vec<bool>,
    method: Method,
}

/// How ids become text.
#[derive(Clone, Debug)]
pub(crate) enum Method {
    /// Concatenate bytes; how many U+FFFD an invalid sequence of bytes becomes differs by decoder.
    Table { one_per_invalid_byte: bool },
    /// Decode a sliding window with the tokenizer itself.
    Window(Arc<Tokenizer>),
}

/// The parts of a decoder that the table can express.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rules {
    /// Characters stand for bytes (GPT-2's alphabet).
    byte_level: bool,
    /// `<0xNN>` is a byte.
    byte_fallback: bool,
    /// U+2581 is a space.
    space_mark: bool,
}

impl Vocabulary {
    /// Reads every token of `tokenizer`.
    pub fn new(tokenizer: &Arc<Tokenizer>) -> Self {
        let rules = tokenizer
            .get_decoder()
            .and_then(|decoder| serde_json::to_value(decoder).ok())
            .and_then(|decoder| Rules::read(&decoder));
        if let Some(rules) = rules {
            let table = Self::build(tokenizer, rules);
            if table.agrees_with(tokenizer, rules) {
                return table;
            }
            tracing::warn!(
                "the token table disagrees with the tokenizer's decoder; decoding by windows"
            );
        }
        let mut vocabulary = Self::build(tokenizer, Rules::default());
        vocabulary.method = Method::Window(Arc::clone(tokenizer));
        vocabulary
    }

    fn build(tokenizer: &Tokenizer, rules: Rules) -> Self {
        let alphabet = Alphabet::new();
        let added = tokenizer.get_added_tokens_decoder();
        let num_tokens = tokenizer.get_vocab_size(true);
        let mut vocabulary = Self {
            bytes: Vec::with_capacity(num_tokens * 8),
            offsets: vec![0],
            special: Vec::with_capacity(num_tokens),
            method: Method::Table {
                one_per_invalid_byte: rules.byte_fallback,
            },
        };
        let mut num_found = 0;
        // A vocabulary may have holes, so ids run past the count; twice the count ends a broken one.
        for id in 0..u32::try_from(num_tokens * 2).unwrap_or(u32::MAX) {
            if num_found == num_tokens {
                break;
            }
            if let Some(token) = tokenizer.id_to_token(id) {
                num_found += 1;
                rules.append(&token, &alphabet, &mut vocabulary.bytes);
            }
            let end = u32::try_from(vocabulary.bytes.len()).expect("a vocabulary is below 4 GB");
            vocabulary.offsets.push(end);
            let special = added.get(&id).is_some_and(|token| token.special);
            vocabulary.special.push(special);
        }
        vocabulary
    }

    /// Compares random sequences. Byte tokens of a byte-fallback vocabulary are left out: the tokenizer replaces a whole
    /// run of them as soon as one is invalid, which nobody who streams can know. Leading spaces are ignored: decoders
    /// strip them at the start of a text, and an answer continues its prompt.
    fn agrees_with(&self, tokenizer: &Tokenizer, rules: Rules) -> bool {
        let is_byte = |id: &u32| {
            rules.byte_fallback
                && tokenizer
                    .id_to_token(*id)
                    .is_some_and(|token| fallback_byte(&token).is_some())
        };
        let Ok(num_ids) = u32::try_from(self.special.len()) else {
            return false;
        };
        let ids: Vec<u32> = (0..num_ids).filter(|id| !is_byte(id)).collect();
        if ids.is_empty() {
            return false;
        }
        let mut random = StdRng::seed_from_u64(7);
        (0..NUM_CHECKED_SEQUENCES).all(|_| {
            let sequence: Vec<u32> = (0..CHECKED_SEQUENCE_LEN)
                .map(|_| ids[random.random_range(0..ids.len())])
                .collect();
            let mut decoder = crate::text::Decoder::new(self);
            let mut text = String::new();
            for &id in sequence.iter().filter(|&&id| !self.is_special(id)) {
                decoder.push(self, id, &mut text);
            }
            decoder.flush(&mut text);
            tokenizer.decode(&sequence, true).is_ok_and(|expected| {
                expected.trim_start_matches(' ') == text.trim_start_matches(' ')
            })
        })
    }

    /// The token's bytes; empty for an id that the vocabulary does not have.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match (self.offsets.get(id), self.offsets.get(id + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }

    /// The token alone as text, incomplete characters replaced.
    pub fn token_text(&self, id: u32) -> String {
        match &self.method {
            Method::Table { .. } => String::from_utf8_lossy(self.bytes(id)).into_owned(),
            Method::Window(tokenizer) => tokenizer.decode(&[id], false).unwrap_or_default(),
        }
    }

    /// The bytes of the token's text: its own, or where the decoder respells tokens those of what it makes of this one.
    pub fn text_bytes(&self, id: u32) -> Vec<u8> {
        match &self.method {
            Method::Table { .. } => self.bytes(id).to_vec(),
            Method::Window(_) => self.token_text(id).into_bytes(),
        }
    }

    /// Marked special in the tokenizer: never part of an answer's text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// A vocabulary of these tokens, without a tokenizer.
    #[cfg(test)]
    pub(crate) fn of_tokens(tokens: &[Vec<u8>]) -> Self {
        let mut vocabulary = Self {
            bytes: tokens.concat(),
            offsets: vec![0],
            special: vec![false; tokens.len()],
            method: Method::Table {
                one_per_invalid_byte: false,
            },
        };
        let mut end = 0;
        for token in tokens {
            end += u32::try_from(token.len()).expect("small");
            vocabulary.offsets.push(end);
        }
        vocabulary
    }

    pub(crate) fn method(&self) -> &Method {
        &self.method
    }
}

impl Rules {
    /// From the `decoder` of a tokenizer.json; `None` where the table cannot express it.
    fn read(decoder: &Value) -> Option<Self> {
        let mut rules = Self::default();
        match decoder["type"].as_str()? {
            "Sequence" => {
                for part in decoder["decoders"].as_array()? {
                    rules.add(part)?;
                }
            }
            _ => rules.add(decoder)?,
        }
        // Nothing that maps bytes: the tokenizer joins such tokens in its own way.
        (rules != Self::default()).then_some(rules)
    }

    fn add(&mut self, part: &Value) -> Option<()> {
        match part["type"].as_str()? {
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Fuse" => {}
            "Metaspace" if part["replacement"] == "\u{2581}" => self.space_mark = true,
            "Replace" if part["pattern"]["String"] == "\u{2581}" && part["content"] == " " => {
                self.space_mark = true;
            }
            // Only the start of the whole text: an answer continues its prompt.
            "Strip" if part["content"] == " " && part["stop"] == 0 => {}
            _ => return None,
        }
        Some(())
    }

    fn append(self, token: &str, alphabet: &Alphabet, bytes: &mut Vec<u8>) {
        if self.byte_level {
            // A token with any character outside the alphabet stands for itself.
            let start = bytes.len();
            for character in token.chars() {
                if let Some(byte) = alphabet.byte(character) {
                    bytes.push(byte);
                } else {
                    bytes.truncate(start);
                    bytes.extend_from_slice(token.as_bytes());
                    return;
                }
            }
        } else if let (true, Some(byte)) = (self.byte_fallback, fallback_byte(token)) {
            bytes.push(byte);
        } else if self.space_mark {
            bytes.extend_from_slice(token.replace('\u{2581}', " ").as_bytes());
        } else {
            bytes.extend_from_slice(token.as_bytes());
        }
    }
}

/// `<0xE2>` to 0xE2.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100 upwards.
struct Alphabet([Option<u8>; 0x144]);

impl Alphabet {
    fn new() -> Self {
        let mut bytes = [None; 0x144];
        let mut next = 0x100;
        for byte in 0..=u8::MAX {
            let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            let index = if printable {
                usize::from(byte)
            } else {
                next += 1;
                next - 1
            };
            bytes[index] = Some(byte);
        }
        Self(bytes)
    }

    fn byte(&self, character: char) -> Option<u8> {
        self.0.get(character as usize).copied().flatten()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A byte-level tokenizer of the 256 bytes, ids 0..=255 in byte order, some merges and three special tokens.
    pub(crate) fn byte_tokenizer() -> Arc<Tokenizer> {
        let alphabet = Alphabet::new();
        let mut letters = vec![String::new(); 256];
        for (character, byte) in alphabet.0.iter().enumerate() {
            if let Some(byte) = byte {
                let character = u32::try_from(character).ok().and_then(char::from_u32);
                letters[usize::from(*byte)] = character.unwrap().to_string();
            }
        }
        let vocab: serde_json::Map<String, Value> = letters
            .iter()
            .enumerate()
            .map(|(id, letter)| (letter.clone(), id.into()))
            .collect();
        let special = |id: u32, content: &str, special: bool| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special})
        };
        let tokenizer = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [special(256, "<s>", true), special(257, "</s>", true), special(258, "<think>", false)],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}
        });
        Arc::new(Tokenizer::from_bytes(tokenizer.to_string()).unwrap())
    }

    /// A SentencePiece-like tokenizer with byte fallback; `decoder` as in tokenizer.json.
    pub(crate) fn fallback_tokenizer(decoder: &Value) -> Arc<Tokenizer> {
        let mut vocab = serde_json::Map::new();
        vocab.insert("<unk>".into(), 0.into());
        for byte in 0..256 {
            vocab.insert(format!("<0x{byte:02X}>"), (byte + 1).into());
        }
        for (index, token) in ["\u{2581}", "a", "b", "\u{2581}ab", "é", "\u{2581}\u{2581}"]
            .iter()
            .enumerate()
        {
            vocab.insert((*token).to_owned(), (257 + index).into());
        }
        let tokenizer = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [], "pre_tokenizer": null, "decoder": decoder,
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": []}
        });
        Arc::new(Tokenizer::from_bytes(tokenizer.to_string()).unwrap())
    }

    #[test]
    fn byte_level_tokens_are_their_bytes() {
        let vocabulary = Vocabulary::new(&byte_tokenizer());
        assert!(matches!(
            vocabulary.method,
            Method::Table {
                one_per_invalid_byte: false
            }
        ));
        for byte in 0..=255u8 {
            assert_eq!(vocabulary.bytes(u32::from(byte)), [byte]);
        }
        assert_eq!(vocabulary.bytes(257), b"</s>");
        assert!(
            vocabulary.is_special(257)
                && !vocabulary.is_special(258)
                && !vocabulary.is_special(99_999)
        );
        assert_eq!(vocabulary.bytes(99_999), b"");
        assert_eq!(vocabulary.token_text(0xe2), "\u{fffd}");
    }

    #[test]
    fn sentencepiece_decoders_use_the_table() {
        let replace = serde_json::json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
        let sequence = serde_json::json!({"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let vocabulary = Vocabulary::new(&fallback_tokenizer(&sequence));
        assert!(matches!(
            vocabulary.method,
            Method::Table {
                one_per_invalid_byte: true
            }
        ));
        assert_eq!(vocabulary.bytes(260), b" ab");
        assert_eq!(vocabulary.bytes(0xe2 + 1), [0xe2]);

        let metaspace = serde_json::json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always",
            "split": true});
        let vocabulary = Vocabulary::new(&fallback_tokenizer(&metaspace));
        assert!(matches!(vocabulary.method, Method::Table { .. }));
    }

    #[test]
    fn an_unknown_decoder_is_served_by_windows() {
        let decoder = serde_json::json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        let vocabulary = Vocabulary::new(&fallback_tokenizer(&decoder));
        assert!(matches!(vocabulary.method, Method::Window(_)));
        assert_eq!(vocabulary.token_text(258), "a");
        assert_eq!(vocabulary.text_bytes(258), b"a");
        let respelling =
            serde_json::json!({"type": "Replace", "pattern": {"String": "a"}, "content": "é"});
        let vocabulary = Vocabulary::new(&fallback_tokenizer(&respelling));
        assert_eq!(vocabulary.bytes(258), b"a");
        assert_eq!(vocabulary.text_bytes(258), "é".as_bytes());
    }

    #[test]
    fn the_self_check_notices_a_wrong_rule() {
        let tokenizer = byte_tokenizer();
        let wrong = Rules {
            space_mark: true,
            ..Rules::default()
        };
        assert!(!Vocabulary::build(&tokenizer, wrong).agrees_with(&tokenizer, wrong));
    }
}
