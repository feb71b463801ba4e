//! Whole requests against the routes over the deterministic fake engine. The modules are marked as tests for the lint
//! that lets tests unwrap.

#[cfg(test)]
mod bad_inputs;
#[cfg(test)]
mod connections;
#[cfg(test)]
mod course;
#[cfg(test)]
mod documents;
#[cfg(test)]
mod grpc;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod openai;
#[cfg(test)]
mod routes;
#[cfg(test)]
mod sagemaker;
#[cfg(test)]
mod scheduling;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tgi;
#[cfg(test)]
mod tokenize;
#[cfg(test)]
mod world;
