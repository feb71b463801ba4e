"""Times the product for few tokens on a CUDA device beside torch's, for whoever edits `linear_triton`.

The shapes are the weights of Llama 3.1 8B. Compiles in as many processes as there are cores, then measures in one.
"""

import functools
import itertools
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import cuda_timing
import torch
from harness import emit, set_up

from penstock_kernels.linear_triton import SkinnyConfig, skinny_linear

SHAPES = {
    "qkv": (6144, 4096),
    "output": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
    "head": (128256, 4096),
}
TOKENS = (1, 16, 64)
# Outputs and inputs of a tile, warps, stages.
TILES = [
    (16, 256, 4, 4),
    (32, 128, 4, 4),
    (32, 256, 4, 3),
    (64, 64, 4, 6),
    (64, 128, 4, 3),
    (64, 128, 4, 4),
    (64, 256, 8, 3),
    (128, 64, 8, 4),
]
# Programs that a product is worth trying with.
FEWEST, MOST = 120, 1300


def configs(out_features: int, in_features: int) -> list[SkinnyConfig]:
    """All that cut the weight into whole tiles and give the device enough programs."""
    tried = []
    for (block_out, block_in, warps, stages), splits in itertools.product(TILES, (1, 2, 4, 8)):
        programs = -(-out_features // block_out) * splits
        fits = in_features % (splits * block_in) == 0 and in_features // splits >= 2 * block_in
        if fits and (FEWEST <= programs <= MOST or (splits == 1 and programs > MOST)):
            tried.append(SkinnyConfig(block_out, block_in, splits, warps, stages, max(TOKENS)))
    return tried


def compile_one(job: tuple[str, int, SkinnyConfig]) -> str | None:
    """Leaves the kernel in Triton's cache. Returns what went wrong."""
    name, tokens, config = job
    try:
        skinny_linear(*_tensors(SHAPES[name], tokens, 1)[0], None, config)
        torch.cuda.synchronize()
    except Exception as error:
        return f"{name} {tokens} {config}: {str(error)[:200]}"
    return None


def _tensors(shape: tuple[int, int], tokens: int, copies: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x = torch.randn(tokens, shape[1], dtype=torch.bfloat16, device="cuda")
    return [(x, torch.randn(shape, dtype=torch.bfloat16, device="cuda") * 0.02) for _ in range(copies)]


def main() -> None:
    """One line per shape, number of tokens and configuration: microseconds beside torch's."""
    set_up()
    cuda_timing._BUDGET_SECONDS = 0.06
    jobs = [
        (name, tokens, each) for name, tokens in itertools.product(SHAPES, TOKENS) for each in configs(*SHAPES[name])
    ]
    with ProcessPoolExecutor(min(12, os.cpu_count() or 1), get_context("spawn")) as pool:
        failed = {error for error in pool.map(compile_one, jobs) if error}
    for error in sorted(failed):
        print(error, flush=True)
    for name, shape in SHAPES.items():
        copies = _tensors(shape, 1, max(2, (256 << 20) // (2 * shape[0] * shape[1])))
        for tokens in TOKENS:
            x = torch.randn(tokens, shape[1], dtype=torch.bfloat16, device="cuda")
            peer = cuda_timing.seconds_each([functools.partial(torch.nn.functional.linear, x, w) for _, w in copies])
            floor = 2 * shape[0] * shape[1] / cuda_timing.copy_bandwidth()
            emit("linear sweep", f"{name} {tokens}: torch", (peer * 1e6, "us"), ("copy bandwidth", floor * 1e6))
            for config in configs(*shape):
                if any(error.startswith(f"{name} {tokens} {config}:") for error in failed):
                    continue
                calls = [functools.partial(skinny_linear, x, w, None, config) for _, w in copies]
                seconds = cuda_timing.seconds_each(calls)
                emit("linear sweep", f"{name} {tokens}: {config}", (seconds * 1e6, "us"), ("torch", peer * 1e6))
        del copies


if __name__ == "__main__":
    main()
