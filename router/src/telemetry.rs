//! Logs: JSON lines or text on standard output, with a filter from the level. Spans and fields hold numbers and names,
//! never prompts.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::TryInitError;

use crate::config::LogConfig;

/// A log level that is neither a level nor a filter, or a second initialisation.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("--log-level {level:?}: {reason}")]
    Level { level: String, reason: String },
    #[error(transparent)]
    Init(#[from] TryInitError),
}

/// Installs the process's log subscriber.
pub fn init(config: &LogConfig) -> Result<(), TelemetryError> {
    use tracing_subscriber::util::SubscriberInitExt;
    let filter = filter(&config.log_level)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stdout().is_terminal());
    if config.json_output {
        builder.json().flatten_event(true).finish().try_init()?;
    } else {
        builder.finish().try_init()?;
    }
    Ok(())
}

/// A bare level is ours; the libraries below stay at info, or their packets would bury everything at debug.
fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let is_filter = level.contains(['=', ',']);
    let directives = if is_filter {
        level.to_owned()
    } else {
        let level = level.trim().to_ascii_lowercase();
        let level = if level.is_empty() {
            "info"
        } else {
            level.as_str()
        };
        let libraries = if matches!(level, "debug" | "trace") {
            "info"
        } else {
            level
        };
        format!("{libraries},penstock_router={level},router={level}")
    };
    EnvFilter::try_new(directives).map_err(|error| TelemetryError::Level {
        level: level.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_understood() {
        for level in [
            "info",
            "WARN",
            "debug",
            "",
            "info,h2=warn",
            "penstock_router=trace",
        ] {
            assert!(filter(level).is_ok(), "{level}");
        }
        assert!(
            filter("debug")
                .unwrap()
                .to_string()
                .contains("penstock_router=debug")
        );
        assert!(filter("loud=quiet").is_err());
    }
}
