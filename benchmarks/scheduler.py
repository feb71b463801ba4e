"""The scheduler alone, by criterion: a plan of 256 and of 1,024 running rows, and one that admits a prompt of 8k tokens
which a prefix cache of 100,000 blocks holds. The limits are the design's."""

import json
import os
import subprocess
from pathlib import Path

import record
import servers

# Case, criterion's name, microseconds that it may take.
CASES = (
    ("plan_256_us", "plan/256", 50),
    ("plan_1024_us", "plan/1024", 200),
    ("radix_hit_8k_us", "admit_cached_8k", 20),
)


def main() -> None:
    command = ["cargo", "bench", "--package", "penstock-router", "--bench", "scheduler"]
    subprocess.run(command, check=True, cwd=servers.ROOT, stdout=subprocess.DEVNULL)
    folder = servers.ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "criterion" / "scheduler"
    for case, name, limit_us in CASES:
        estimates = json.loads(Path(folder, name, "new", "estimates.json").read_text())
        median_us = estimates["median"]["point_estimate"] / 1000
        record.report("scheduler", case, median_us, "us", record.Peer("limit", limit_us))


if __name__ == "__main__":
    main()
