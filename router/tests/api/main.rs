//! Whole requests against the routes over the deterministic fake engine.

mod bad_inputs;
mod connections;
mod lifecycle;
mod openai;
mod routes;
mod tgi;
mod world;
