//! The header `grpc-timeout`: how long a client waits. A request whose time is over is dropped, and so cancelled.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::metadata::MetadataMap;

use crate::error::ApiError;
use crate::event::Failure;
use crate::validation::ValidationError;

const HEADER: &str = "grpc-timeout";
/// Of the number in the header.
const MAX_DIGITS: usize = 8;

/// When the client's time is over, if ever.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Option<Instant>);

impl Deadline {
    pub(super) fn of(metadata: &MetadataMap) -> Result<Self, ApiError> {
        let Some(value) = metadata.get(HEADER) else {
            return Ok(Self(None));
        };
        let timeout = value.to_str().ok().and_then(parse).ok_or_else(|| {
            let message = format!(
                "`{HEADER}` must be at most {MAX_DIGITS} digits and one of H, M, S, m, u, n. Given: {value:?}"
            );
            ValidationError::new(HEADER, message)
        })?;
        Ok(Self(Some(Instant::now() + timeout)))
    }

    pub(super) fn instant(self) -> Option<Instant> {
        self.0
    }

    /// Does the work, or drops it when the time is over.
    pub(super) async fn bound<T>(
        self,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        match self.0 {
            None => work.await,
            Some(at) => timeout_at(at, work)
                .await
                .unwrap_or_else(|_| Err(exceeded())),
        }
    }

    pub(super) fn sleep(self) -> Option<Pin<Box<Sleep>>> {
        self.0.map(|at| Box::pin(sleep_until(at)))
    }
}

pub(super) fn exceeded() -> ApiError {
    // The scheduler ends the request at the same time: whoever is first says the same.
    Failure::DeadlineExceeded.into()
}

fn parse(value: &str) -> Option<Duration> {
    let unit = value.chars().last()?;
    let digits = value.strip_suffix(unit)?;
    let is_number = (1..=MAX_DIGITS).contains(&digits.len())
        && digits.bytes().all(|digit| digit.is_ascii_digit());
    let number: u64 = is_number.then(|| digits.parse().ok()).flatten()?;
    Some(match unit {
        'H' => Duration::from_secs(number * 3600),
        'M' => Duration::from_secs(number * 60),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_up_to_eight_digits_and_a_unit() {
        let valid = [
            ("100m", Duration::from_millis(100)),
            ("0n", Duration::ZERO),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("7u", Duration::from_micros(7)),
        ];
        for (value, expected) in valid {
            assert_eq!(parse(value), Some(expected), "{value}");
        }
        for value in [
            "",
            "m",
            "100",
            "100000000m",
            "+1S",
            "-1S",
            "1.5S",
            "1s",
            "1µ",
        ] {
            assert_eq!(parse(value), None, "{value}");
        }
    }
}
