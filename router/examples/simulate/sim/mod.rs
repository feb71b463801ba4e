//! A world in virtual time: servers that plan steps, a machine that says how long steps take, and a clock that jumps
//! from one event to the next. Nothing here waits, and the same trace gives the same figures every time.

pub(crate) mod blocks;
pub(crate) mod machine;
pub(crate) mod penstock;
pub(crate) mod replica;
pub(crate) mod report;
pub(crate) mod routing;
pub(crate) mod server;
pub(crate) mod tgi;
pub(crate) mod trace;
pub(crate) mod vllm;
pub(crate) mod world;
