"""Two plans in flight: a fake shard in its own process with steps of 10 ms, 4 ms of work added to every plan, 64 rows.
Depth 2 must reach 95 % of the shard's limit, depth 1, the control, at most 80 %. The program is a cargo example."""

import json
import subprocess

import record
import servers


def main() -> None:
    build = ["cargo", "build", "--release", "--quiet", "--package", "penstock-router", "--examples"]
    subprocess.run(build, check=True, cwd=servers.ROOT)
    run = ["cargo", "run", "--release", "--quiet", "--package", "penstock-router", "--example", "bench_overlap"]
    output = subprocess.run(run, check=True, cwd=servers.ROOT, stdout=subprocess.PIPE, text=True).stdout
    for line in map(json.loads, output.splitlines()):
        peer = record.Peer(line["peer"], line["peer_value"]) if line["peer"] else None
        record.report(line["bench"], line["case"], line["value"], line["unit"], peer)


if __name__ == "__main__":
    main()
