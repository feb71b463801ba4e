//! What executes plans: a group of shard processes behind gRPC (`grpc`), or the deterministic stand-in of the tests
//! (`fake`). An engine knows nothing of requests and decides nothing.

pub mod blob;
pub mod fake;
pub mod grpc;
mod wire;

use std::time::Duration;

use crate::scheduler::step::{Plan, StepResult};

/// Version of the Step protocol and of the plan blob.
pub const PROTOCOL: u32 = 1;

/// One KV group of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvGroup {
    pub tokens_per_block: u32,
    pub bytes_per_block: u64,
    /// The scratch block 0 included; 0 until warm-up has ended.
    pub num_blocks: u32,
}

/// What an engine says of itself; the same on every rank.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineInfo {
    pub architecture: String,
    pub dtype: String,
    pub device_type: String,
    pub num_ranks: u32,
    pub vocab_size: u32,
    pub max_positions: u32,
    pub groups: Vec<KvGroup>,
    pub num_seats: u32,
    pub num_penalty_lanes: u32,
    /// Padded sizes of steps that hold decode rows only, ascending.
    pub decode_sizes: Vec<u32>,
    /// Padded token counts of steps that hold feed rows, ascending.
    pub mixed_sizes: Vec<u32>,
    /// Plans that may be in flight.
    pub depth: u32,
    pub batch_invariant: bool,
    pub max_top_logprobs: u32,
}

/// How far warm-up is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    pub phase: String,
    /// Inside the phase.
    pub fraction: f32,
    /// Since the engine's process started.
    pub elapsed: Duration,
}

/// Why an engine is lost, or was never there. Every one of them ends the group.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("rank {rank}: {message}")]
    Rank { rank: usize, message: String },
    /// Ranks that contradict each other or the plan.
    #[error("the ranks are out of step: {0}")]
    Mismatch(String),
    /// The engine offers something that this router cannot drive.
    #[error("unsupported engine: {0}")]
    Unsupported(String),
    #[error("the engine has gone")]
    Gone,
}

/// A group that executes plans in order. Dropping it closes the group's stream.
pub trait Engine {
    /// Facts; complete (blocks included) once [`warmup`](Self::warmup) has ended.
    fn info(&self) -> &EngineInfo;

    /// Waits until the engine can take plans. Dropping the future gives up.
    fn warmup(
        &mut self,
        progress: impl FnMut(Progress),
    ) -> impl Future<Output = Result<(), EngineError>>;

    /// Sends a plan. Never waits: no more plans are in flight than `info` allows.
    fn submit(&mut self, plan: &Plan) -> Result<(), EngineError>;

    /// The result of the oldest plan in flight, or why there will be none. Cancel safe; with nothing in flight it
    /// waits for the end of the group.
    fn results(&mut self) -> impl Future<Output = Result<StepResult, EngineError>>;
}

/// Reaches a new engine after a loss.
pub trait Connector {
    type Engine: Engine;

    /// One attempt, without retries. `epoch` is above that of every earlier attempt.
    fn connect(&mut self, epoch: u64) -> impl Future<Output = Result<Self::Engine, EngineError>>;
}
