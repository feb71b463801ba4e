//! What the kernel says of another process.

use std::fs::read_to_string;

use anyhow::Context;

use crate::Target;

/// Of `/proc`, on every architecture that we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time of all its threads, in seconds.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before the last bracket may hold anything.
    let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
    let ticks = |field: &str| field.parse::<u32>().map(f64::from);
    let mut fields = rest.split_whitespace().skip(11);
    let user = ticks(fields.next().context("no utime")?)?;
    let system = ticks(fields.next().context("no stime")?)?;
    Ok((user + system) / TICKS_PER_SECOND)
}

/// Resident memory, in KiB.
pub(crate) fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    let status = read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("no VmRSS in status")?.parse()?)
}

/// Processor time of the whole machine, what its host took included, in seconds.
fn machine_seconds() -> anyhow::Result<f64> {
    let stat = read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    // user nice system idle iowait irq softirq steal; what follows is part of these.
    let fields = line.split_whitespace().skip(1).take(8).enumerate();
    let busy = fields.filter(|(index, _)| !matches!(index, 3 | 4));
    let ticks: Result<Vec<f64>, _> = busy.map(|(_, field)| field.parse::<f64>()).collect();
    Ok(ticks?.iter().sum::<f64>() / TICKS_PER_SECOND)
}

/// What has been used so far.
pub(crate) struct Usage {
    pub(crate) server: f64,
    pub(crate) client: f64,
    /// By processes that are no part of this; over a short time a little less than nothing, as ticks are rounded.
    pub(crate) others: f64,
}

impl Usage {
    pub(crate) fn now(target: &Target) -> anyhow::Result<Self> {
        let server = cpu_seconds(target.pid)?;
        let client = cpu_seconds(std::process::id())?;
        let shard = target.shard_pid.map_or(Ok(0.0), cpu_seconds)?;
        let others = machine_seconds()? - server - client - shard;
        Ok(Self {
            server,
            client,
            others,
        })
    }
}
