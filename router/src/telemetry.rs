//! Logs: JSON lines or text on standard output, with a filter from the level. Spans and fields hold numbers and names,
//! never prompts.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::TryInitError;

use crate::config::LogConfig;

/// By the names that people give.
const LEVELS: [&str; 6] = ["trace", "debug", "info", "warn", "error", "off"];

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
    let filter = filter(&config.log_level, &["router"])?;
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

/// From a level in any case, or a filter of tracing's. A bare level is that of the programs in `ours` and of this library;
/// the libraries below stay at info, or their packets would bury everything at debug.
pub fn filter(level: &str, ours: &[&str]) -> Result<EnvFilter, TelemetryError> {
    let failed = |reason: String| TelemetryError::Level {
        level: level.to_owned(),
        reason,
    };
    if level.contains(['=', ',', '[']) {
        return EnvFilter::try_new(level).map_err(|error| failed(error.to_string()));
    }
    let own_level = match level.trim().to_ascii_lowercase().as_str() {
        "" => "info",
        "warning" => "warn",
        known => LEVELS
            .into_iter()
            .find(|level| *level == known)
            .ok_or_else(|| failed(format!("not a filter, and none of {}", LEVELS.join(", "))))?,
    };
    let libraries = if matches!(own_level, "debug" | "trace") {
        "info"
    } else {
        own_level
    };
    let ours = ours.iter().map(|name| format!(",{name}={own_level}"));
    let ours: String = ours.collect();
    EnvFilter::try_new(format!("{libraries},penstock_router={own_level}{ours}"))
        .map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_understood() {
        for level in [
            "info",
            "WARN",
            "Warning",
            "debug",
            "off",
            "",
            "info,h2=warn",
            "penstock_router=trace",
        ] {
            assert!(filter(level, &["router"]).is_ok(), "{level}");
        }
        let debug = filter("debug", &["launcher"]).unwrap().to_string();
        for part in ["penstock_router=debug", "launcher=debug", "info"] {
            assert!(debug.contains(part), "{debug}");
        }
    }

    /// Such a word would be a filter for a part of that name, which leaves the log empty.
    #[test]
    fn what_is_neither_is_refused() {
        for level in ["loud", "loud=quiet", "=="] {
            let error = filter(level, &["router"]).unwrap_err().to_string();
            assert!(error.starts_with("--log-level"), "{error}");
        }
    }
}
