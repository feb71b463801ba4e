//! Log-probabilities in the two forms of this dialect: chat lists tokens with their bytes, completions has parallel
//! lists. Both name the token itself, not the text that became certain with it.

use indexmap::IndexMap;
use serde::Serialize;

use crate::event::Token;
use crate::vocabulary::Vocabulary;

#[derive(Debug, Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatLogprob>,
}

#[derive(Debug, Serialize)]
struct ChatLogprob {
    #[serde(flatten)]
    chosen: Candidate,
    top_logprobs: Vec<Candidate>,
}

#[derive(Debug, Serialize)]
struct Candidate {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub(super) fn new<'a>(
        tokens: impl IntoIterator<Item = &'a Token>,
        vocabulary: &Vocabulary,
    ) -> Self {
        let content = tokens.into_iter().map(|token| ChatLogprob {
            chosen: Candidate {
                token: vocabulary.token_text(token.id),
                logprob: token.logprob.unwrap_or_default(),
                bytes: vocabulary.text_bytes(token.id),
            },
            top_logprobs: token
                .top
                .iter()
                .map(|candidate| Candidate {
                    token: candidate.text.clone(),
                    logprob: candidate.logprob,
                    bytes: vocabulary.text_bytes(candidate.id),
                })
                .collect(),
        });
        Self {
            content: content.collect(),
        }
    }
}

#[derive(Debug, Default, Serialize)]
pub(super) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Option<Vec<IndexMap<String, f32>>>,
    /// Where each token begins in the text, in characters.
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// `offset` is where the text stands, and is moved on.
    pub(super) fn new<'a>(
        tokens: impl IntoIterator<Item = &'a Token>,
        vocabulary: &Vocabulary,
        with_top: bool,
        offset: &mut usize,
    ) -> Self {
        let mut logprobs = Self {
            top_logprobs: with_top.then(Vec::new),
            ..Self::default()
        };
        for token in tokens {
            logprobs.tokens.push(vocabulary.token_text(token.id));
            logprobs.token_logprobs.push(token.logprob);
            logprobs.text_offset.push(*offset);
            *offset += token.text.chars().count();
            if let Some(tops) = &mut logprobs.top_logprobs {
                let top = token
                    .top
                    .iter()
                    .map(|candidate| (candidate.text.clone(), candidate.logprob));
                tops.push(top.collect());
            }
        }
        logprobs
    }
}
