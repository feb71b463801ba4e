//! A text's tokens with their places in it, for clients that count or show them. Beside the tokenizer pool, so that every
//! door to the server gives the same answer.

use serde::Serialize;
use tokenizers::Tokenizer;

use crate::tokenizer::EncodeError;

/// One token of a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Token {
    pub id: u32,
    /// The part of the text that the token stands for; empty for one that the tokenizer added.
    pub text: String,
    /// Where that part lies, in bytes, as in TGI; 0 to 0 for an added token.
    pub start: usize,
    pub stop: usize,
}

/// The tokens of `text`, with the tokenizer's own special tokens around them or not. Slow: for a tokenizer thread.
pub fn tokens(
    tokenizer: &Tokenizer,
    text: &str,
    add_special_tokens: bool,
) -> Result<Vec<Token>, EncodeError> {
    let encoding = tokenizer.encode(text, add_special_tokens)?;
    let places = encoding.get_ids().iter().zip(encoding.get_offsets());
    let token = |(&id, &(start, stop)): (&u32, &(usize, usize))| Token {
        id,
        // Byte-level tokens of one character all have the whole of it.
        text: text.get(start..stop).unwrap_or_default().to_owned(),
        start,
        stop,
    };
    Ok(places.map(token).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::tests::byte_tokenizer;

    #[test]
    fn tokens_know_their_places_in_bytes() {
        let tokenizer = byte_tokenizer();
        let found = tokens(&tokenizer, "a é</s>", true).unwrap();
        let shown: Vec<(u32, &str, usize, usize)> = found
            .iter()
            .map(|token| (token.id, token.text.as_str(), token.start, token.stop))
            .collect();
        let expected = [
            (97, "a", 0, 1),
            (32, " ", 1, 2),
            (0xc3, "é", 2, 4),
            (0xa9, "é", 2, 4),
            (257, "</s>", 4, 8),
        ];
        assert_eq!(shown, expected);
        assert!(tokens(&tokenizer, "", true).unwrap().is_empty());
    }
}
