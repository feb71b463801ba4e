//! What `--env` logs: the facts that a report about a problem should start with. No secrets, so it can be pasted.

use std::fs;
use std::num::NonZero;
use std::thread;

use crate::memory;

/// Program, system, processor, memory and GPU driver, in one line.
pub(crate) fn this_machine() -> String {
    let first_line = |path: &str| {
        let text = fs::read_to_string(path).ok()?;
        text.lines().next().map(|line| line.trim().to_owned())
    };
    let kernel = first_line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "?".to_owned());
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let memory = memory::available().map_or("unknown".to_owned(), |memory| {
        format!("{} MiB", memory.bytes >> 20)
    });
    let driver = first_line("/proc/driver/nvidia/version");
    format!(
        "environment: penstock {}, {} {kernel} on {}, {cores} core(s), {memory} of memory available, {}",
        penstock_router::version(),
        std::env::consts::OS,
        std::env::consts::ARCH,
        driver.unwrap_or_else(|| "no NVIDIA driver".to_owned()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_program_and_machine() {
        let line = this_machine();
        assert!(line.contains(env!("CARGO_PKG_VERSION")), "{line}");
        assert!(line.contains(std::env::consts::ARCH), "{line}");
        assert_eq!(line.lines().count(), 1);
    }
}
