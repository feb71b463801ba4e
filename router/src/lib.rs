//! The router: owns every decision and all text. Crate map: `api` speaks HTTP dialects and knows nothing of blocks;
//! `validation` makes a [`request::Request`]; `driver` runs `scheduler` (pure, no I/O, no text) against an `engine`;
//! `text` turns ids into strings.

pub mod chat;
pub mod config;
pub mod driver;
pub mod error;
pub mod event;
pub mod metrics;
pub mod model;
pub mod request;
pub mod stream;
pub mod text;
pub mod tokenizer;
pub mod validation;
pub mod vocabulary;

/// Generated from `proto/shard/v1/shard.proto`.
#[expect(
    clippy::all,
    clippy::doc_markdown,
    reason = "generated code is not ours to lint"
)]
pub mod pb {
    tonic::include_proto!("shard.v1");
}
