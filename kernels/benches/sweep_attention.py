"""Times launch configurations of the attention kernels on a CUDA device, for whoever edits `attention_config`."""

import itertools

import torch
from attention_on_cuda import DECODE_CASES, PROMPT_CASES, make_work
from cuda_timing import seconds_each
from harness import emit, set_up

from penstock_kernels import attention_triton
from penstock_kernels.attention_config import DecodeConfig, PromptConfig

DECODE = [
    DecodeConfig(block_keys=keys, num_warps=warps, num_stages=stages, programs_per_sm=programs)
    for (keys, stages), warps, programs in itertools.product([(32, 4), (64, 2), (64, 3), (64, 4)], (4,), (1, 2, 3))
]
DECODE_STEPS = {name: rows for name, rows in DECODE_CASES.items() if len(rows.lens) in (1, 32, 256)}
PROMPT = [
    PromptConfig(block_rows=rows, block_keys=keys, num_warps=warps, num_stages=stages)
    for rows, keys, warps, stages in [
        (128, 64, 8, 2),
        (128, 64, 8, 3),
        (128, 128, 8, 2),
        (64, 64, 4, 2),
        (64, 64, 4, 3),
    ]
]


def main() -> None:
    """One line per case and configuration."""
    set_up()
    for cases, configs, table in ((DECODE_STEPS, DECODE, "decode_config"), (PROMPT_CASES, PROMPT, "prompt_config")):
        for name, rows in cases.items():
            for config in configs:
                setattr(attention_triton, table, lambda *_, config=config: config)
                work = make_work(name, rows)
                seconds = seconds_each(work.ours)
                emit(
                    "attention sweep", f"{name}: {config}", (seconds * 1e6, "us"), (work.floor[0], work.floor[1] * 1e6)
                )
                del work
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
