//! Why the launcher ends otherwise than drained, and with which exit code.

use std::process::ExitCode;

use thiserror::Error;

/// The three kinds that a supervisor treats differently: a later try may help, another flag, another model.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// Something broke or was in the way: a port, memory, a process. A later try may succeed.
    #[error("{0}")]
    Failed(String),
    /// The flags contradict each other or the model.
    #[error("{0}")]
    Usage(String),
    /// The model folder cannot be served, now or later.
    #[error("{0}")]
    Model(String),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Model(_) => 3,
        })
    }

    /// An I/O error with what was being tried.
    pub(crate) fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        Self::Failed(format!("{what}: {error}"))
    }
}
