//! Conversations to prompts. Knows templates and nothing of HTTP or tokens.

mod methods;
mod python;
mod strftime;
pub mod template;
