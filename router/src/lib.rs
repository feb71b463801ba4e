//! The router: owns every decision and all text. Crate map: `api` speaks HTTP dialects and knows nothing of blocks;
//! `validation` makes a [`request::Request`]; `driver` runs `scheduler` (pure, no I/O, no text) against an `engine`;
//! `text` turns ids into strings.

pub mod config;
pub mod driver;
pub mod event;
pub mod request;
pub mod text;
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
