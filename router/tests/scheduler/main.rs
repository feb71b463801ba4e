//! Driver, scheduler and engines together, without Python.

mod driver;
mod grpc;
mod support;
mod virtual_time;
