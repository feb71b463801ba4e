//! The router: owns every decision and all text. Crate map: `api` speaks HTTP dialects and knows nothing of blocks;
//! `validation` makes a [`request::Request`]; `driver` runs `scheduler` (pure, no I/O, no text) against an `engine`;
//! `text` turns ids into strings.

pub mod api;
pub mod chat;
pub mod config;
mod cors;
pub mod driver;
pub mod engine;
pub mod environment;
pub mod error;
pub mod event;
mod keys;
mod leftover;
pub mod metrics;
pub mod model;
pub mod names;
mod report;
pub mod request;
pub mod scheduler;
mod serve;
pub mod server;
pub mod signals;
pub mod starting;
pub mod stream;
pub mod telemetry;
pub mod text;
pub mod tokenize;
pub mod tokenizer;
pub mod validation;
pub mod vocabulary;

pub use serve::{Router, ServeError, serve};

/// The version, and the commit where whoever built this named it.
pub fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    commit().map_or(version.to_owned(), |commit| format!("{version} ({commit})"))
}

/// The commit, where whoever built this set `PENSTOCK_COMMIT`.
pub fn commit() -> Option<&'static str> {
    option_env!("PENSTOCK_COMMIT").filter(|commit| !commit.is_empty())
}

/// The image that this was built for, where whoever built it set `DOCKER_LABEL`, as for TGI.
pub fn docker_label() -> Option<&'static str> {
    option_env!("DOCKER_LABEL").filter(|label| !label.is_empty())
}

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
