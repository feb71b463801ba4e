//! Whole requests against the routes over the deterministic fake engine.

#![expect(
    clippy::unwrap_used,
    reason = "tests; clippy allows it in test functions only, and most of this is helpers"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "`json!` literals are passed as they are written"
)]

mod bad_inputs;
mod connections;
mod lifecycle;
mod openai;
mod routes;
mod tgi;
mod world;
