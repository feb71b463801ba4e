//! Conversations to prompts. Knows templates and nothing of HTTP or tokens.

mod methods;
mod python;
pub(crate) mod source;
mod strftime;
pub mod template;
