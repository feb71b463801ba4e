"""Seconds until a model of the 8B shape answers, its files in the page cache, and of each phase of its shard's start.
The first start compiles the kernels, the second reads them. A part of `gpu_report.py`."""

import json
import tempfile
import time

import gpu_bed
import gpu_models
import record
import servers

READY_LIMIT_S = 10.0


def main() -> None:
    bed = gpu_bed.bed(gpu_bed.parser(__doc__).parse_args())
    gpu_models.write(bed.shape, bed.model)
    with tempfile.TemporaryDirectory() as kernels:
        for start in ("first", "second"):
            flags = ["--json-output", "--dtype", bed.dtype, "--device", bed.device.type, "--kernel-cache-dir", kernels]
            begin = time.perf_counter()
            with servers.penstock(bed.model, *flags, "--max-total-tokens", "2048") as port:
                seconds = time.perf_counter() - begin
                log = servers.log_of(port).read_text()
            record.report("gpu_start", f"{start}/ready", seconds, "s", record.Peer("limit", READY_LIMIT_S))
            [line] = [line for line in log.splitlines() if '"phase_seconds"' in line]
            fields = json.loads(line)
            for name, of_phase in fields["phase_seconds"].items():
                record.report("gpu_start", f"{start}/{name}", of_phase, "s", record.Peer("until ready", seconds))
            record.report("gpu_start", f"{start}/weights_read", fields["weight_gigabytes_per_second"], "GB/s")


if __name__ == "__main__":
    main()
