//! Drives the scheduler: inbox -> plan -> engine -> results -> deliveries. The only place where scheduler, engine and
//! clock meet. This file holds the seam that the rest of the router sees.

use std::sync::Arc;

use crate::request::{Request, RequestId};

/// What the rest of the router tells the driver. Bounded channel; a full one means overload.
#[derive(Debug)]
pub enum Command {
    Submit(Request),
    /// The client is gone: nothing more is delivered.
    Cancel(RequestId),
    /// A stop string was found: free the request as if it had ended; nothing more is delivered.
    Finish(RequestId),
}

/// Facts of a ready engine, the same for every rank.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineFacts {
    pub architecture: String,
    pub dtype: String,
    pub device_type: String,
    pub vocab_size: usize,
    pub max_positions: usize,
    pub num_ranks: usize,
    pub tokens_per_block: usize,
    /// Without the scratch block.
    pub num_blocks: usize,
    pub max_top_logprobs: usize,
}

/// How the engine stands; a `watch` value.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineStatus {
    Starting {
        phase: String,
        fraction: f32,
    },
    Ready(Arc<EngineFacts>),
    /// The group is gone; the driver is trying to reach a new one.
    Down {
        reason: String,
    },
}
