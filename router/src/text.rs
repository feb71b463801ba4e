//! Ids to text for one request: characters that are complete, stop strings, and what must be held back. Pure: the
//! caller feeds ids in order and sends what comes out. No step costs more than the token itself, whatever came before.

use std::sync::Arc;

use crate::vocabulary::{Method, Vocabulary};

/// Tokens after which a window that ends in U+FFFD is given out as it is: a character has at most 4 bytes, so 16 tokens
/// without a complete one are not a character, and each waiting token costs a decode of all of them.
const MAX_WINDOW: usize = 16;

/// What a dialect wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextStyle {
    /// TGI: the stop string stays in the text and nothing is held back; special tokens show their name, and the flag
    /// `special` keeps them out of the answer.
    Native,
    /// OpenAI: the stop string is removed, so text that may be its beginning is held back; special tokens are empty.
    OpenAi,
}

/// What the text workers need to know about a request.
#[derive(Clone, Debug)]
pub struct TextParams {
    /// None is empty.
    pub stop: Vec<String>,
    pub style: TextStyle,
}

/// The text that became certain with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub text: String,
    pub special: bool,
    /// A stop string ended in this text: nothing that follows belongs to the answer.
    pub stopped: bool,
}

/// The text of one request as its tokens arrive.
#[derive(Debug)]
pub struct TextStream {
    vocabulary: Arc<Vocabulary>,
    decoder: Decoder,
    style: TextStyle,
    stop: Vec<StopString>,
    /// Certain text that may be the beginning of a stop string. Empty in the native style.
    held: String,
    stopped: bool,
}

impl TextStream {
    pub fn new(vocabulary: Arc<Vocabulary>, params: &TextParams) -> Self {
        Self {
            decoder: Decoder::new(&vocabulary),
            vocabulary,
            style: params.style,
            stop: params
                .stop
                .iter()
                .map(|stop| StopString::new(stop))
                .collect(),
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes the next token. After a stop string everything is empty.
    pub fn push(&mut self, id: u32) -> Piece {
        let special = self.vocabulary.is_special(id);
        let mut text = String::new();
        if !self.stopped {
            if !special {
                self.decoder.push(&self.vocabulary, id, &mut text);
                text = self.release(text);
            } else if self.style == TextStyle::Native {
                text = self.vocabulary.token_text(id);
            }
        }
        Piece {
            text,
            special,
            stopped: self.stopped,
        }
    }

    /// The request ended without a stop string: what was held back belongs to the answer after all.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        if !self.stopped {
            self.decoder.flush(&mut text);
            text = self.release(text);
            text.push_str(&std::mem::take(&mut self.held));
        }
        text
    }

    pub fn style(&self) -> TextStyle {
        self.style
    }

    /// The vocabulary that this text is made with.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Looks for stop strings in new text and returns what may be sent.
    fn release(&mut self, fresh: String) -> String {
        if self.stop.is_empty() {
            return fresh;
        }
        let num_held = self.held.len();
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&fresh);
        for (index, byte) in fresh.bytes().enumerate() {
            // All of them advance; of those that end here the longest began first.
            let matched = self
                .stop
                .iter_mut()
                .filter_map(|stop| stop.advance(byte))
                .max();
            if let Some(len) = matched {
                self.stopped = true;
                let end = num_held + index + 1;
                text.truncate(match self.style {
                    TextStyle::Native => end,
                    TextStyle::OpenAi => end - len,
                });
                return text;
            }
        }
        if self.style == TextStyle::OpenAi {
            let num_open = self.stop.iter().map(|stop| stop.matched).max();
            self.held = text.split_off(text.len() - num_open.unwrap_or(0));
        }
        text
    }
}

/// One stop string, matched byte by byte (Knuth, Morris, Pratt): constant time per byte, and it knows how many of the
/// last bytes may be its beginning, which is what has to be held back.
#[derive(Debug)]
struct StopString {
    bytes: Box<[u8]>,
    /// `fallback[n]`: length of the longest proper prefix of the first n + 1 bytes that is also their suffix.
    fallback: Box<[usize]>,
    matched: usize,
}

impl StopString {
    fn new(stop: &str) -> Self {
        let bytes: Box<[u8]> = stop.as_bytes().into();
        let mut fallback = vec![0; bytes.len()];
        let mut matched = 0;
        for index in 1..bytes.len() {
            while matched > 0 && bytes[matched] != bytes[index] {
                matched = fallback[matched - 1];
            }
            matched += usize::from(bytes[matched] == bytes[index]);
            fallback[index] = matched;
        }
        Self {
            bytes,
            fallback: fallback.into(),
            matched: 0,
        }
    }

    /// Takes a byte; the length of the string if it ends here. Not called again after that.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        (self.matched == self.bytes.len()).then_some(self.matched)
    }
}

/// Ids to complete characters. A character that is not complete waits; one that never can be becomes U+FFFD at once.
#[derive(Debug)]
pub(crate) enum Decoder {
    Table {
        /// At most three bytes: the beginning of a character.
        pending: Vec<u8>,
        one_per_invalid_byte: bool,
    },
    Window(Window),
}

impl Decoder {
    pub(crate) fn new(vocabulary: &Vocabulary) -> Self {
        match vocabulary.method() {
            Method::Table {
                one_per_invalid_byte,
            } => Self::Table {
                pending: Vec::new(),
                one_per_invalid_byte: *one_per_invalid_byte,
            },
            Method::Window(tokenizer) => Self::Window(Window {
                tokenizer: Arc::clone(tokenizer),
                ids: Vec::new(),
                num_given: 0,
                given: String::new(),
            }),
        }
    }

    /// Appends the characters that became complete with `id`.
    pub(crate) fn push(&mut self, vocabulary: &Vocabulary, id: u32, text: &mut String) {
        match self {
            Self::Table {
                pending,
                one_per_invalid_byte,
            } => {
                pending.extend_from_slice(vocabulary.bytes(id));
                let num_left = take_characters(pending, *one_per_invalid_byte, text);
                pending.drain(..pending.len() - num_left);
            }
            Self::Window(window) => window.push(id, text),
        }
    }

    /// Ends the text: an incomplete character is an invalid one.
    pub(crate) fn flush(&mut self, text: &mut String) {
        match self {
            Self::Table {
                pending,
                one_per_invalid_byte,
            } => {
                replace(pending.len(), *one_per_invalid_byte, text);
                pending.clear();
            }
            Self::Window(window) => window.give(text),
        }
    }
}

/// Appends complete characters and replacements to `text`; returns how many bytes at the end may still become one.
fn take_characters(mut bytes: &[u8], one_per_invalid_byte: bool, text: &mut String) -> usize {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(valid) => {
                text.push_str(valid);
                return 0;
            }
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                let Some(num_invalid) = error.error_len() else {
                    return rest.len();
                };
                replace(num_invalid, one_per_invalid_byte, text);
                bytes = &rest[num_invalid..];
            }
        }
    }
}

fn replace(num_invalid: usize, one_per_invalid_byte: bool, text: &mut String) {
    let num = if one_per_invalid_byte {
        num_invalid
    } else {
        num_invalid.min(1)
    };
    text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, num));
}

/// Decoding by the tokenizer: the last tokens that were given out are the context of those that were not.
#[derive(Debug)]
pub(crate) struct Window {
    tokenizer: Arc<tokenizers::Tokenizer>,
    ids: Vec<u32>,
    /// How many of `ids` are context.
    num_given: usize,
    /// The context as text.
    given: String,
}

impl Window {
    fn push(&mut self, id: u32, text: &mut String) {
        self.ids.push(id);
        let waits = self.ids.len() - self.num_given < MAX_WINDOW;
        if waits
            && self
                .decode(&self.ids)
                .ends_with(char::REPLACEMENT_CHARACTER)
        {
            return;
        }
        self.give(text);
    }

    fn give(&mut self, text: &mut String) {
        let decoded = self.decode(&self.ids);
        let num_common: usize = decoded
            .chars()
            .zip(self.given.chars())
            .take_while(|(left, right)| left == right)
            .map(|(character, _)| character.len_utf8())
            .sum();
        text.push_str(&decoded[num_common..]);
        self.ids.drain(..self.num_given);
        self.num_given = self.ids.len();
        self.given = self.decode(&self.ids);
    }

    /// Ids unknown to the tokenizer are skipped by it; it fails on nothing else.
    fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, false).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
