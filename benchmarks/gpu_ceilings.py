"""What this card can do at best: read memory, copy it, and multiply large matrices. A part of `gpu_report.py`."""

import gpu_bed
import record
import torch
from cuda_timing import copy_bandwidth, matmul_flops, read_bandwidth
from harness import flops, shortest_seconds
from harness import read_bandwidth as read_bandwidth_of_cpu


def main() -> None:
    bed = gpu_bed.bed(gpu_bed.parser(__doc__).parse_args())
    if bed.dry:
        source = torch.ones(1 << 22)
        copies, rate = 2 * source.nbytes / shortest_seconds(source.clone, 0.1), flops()
        reads = read_bandwidth_of_cpu()
    else:
        reads, copies, rate = read_bandwidth(), copy_bandwidth(), matmul_flops()
    record.report("gpu_ceilings", "read_bandwidth", reads / 1e12, "TB/s", record.Peer("a copy's", copies / 1e12))
    record.report("gpu_ceilings", "bf16_product", rate / 1e12, "TFLOP/s")
    # The honest roofline is that of whichever moves more.
    bed.keep_ceilings(max(reads, copies), rate)


if __name__ == "__main__":
    main()
