//! The router: owns every decision and all text. Crate map: `api` speaks HTTP dialects and knows nothing of blocks;
//! `validation` makes a [`request::Request`]; `driver` runs `scheduler` (pure, no I/O, no text) against an `engine`;
//! `text` turns ids into strings.

pub mod api;
pub mod chat;
pub mod config;
pub mod driver;
pub mod engine;
pub mod error;
pub mod event;
pub mod metrics;
pub mod model;
pub mod request;
pub mod scheduler;
mod serve;
pub mod server;
pub mod signals;
pub mod stream;
pub mod telemetry;
pub mod text;
pub mod tokenize;
pub mod tokenizer;
pub mod validation;
pub mod vocabulary;

pub use serve::{Router, ServeError, serve};

/// Generated from `proto/shard/v1/shard.proto`.
#[expect(
    clippy::all,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::doc_markdown,
    reason = "generated code is not ours to lint"
)]
pub mod pb {
    tonic::include_proto!("shard.v1");
}

/// Generated from `proto/penstock/v1/generation.proto`.
#[expect(
    clippy::all,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::doc_markdown,
    reason = "generated code is not ours to lint"
)]
pub mod public_pb {
    tonic::include_proto!("penstock.v1");

    /// The file as reflection shows it.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("penstock.v1");
}
