"""The operations between the products, against reading and writing their tensors once: on a CPU at the sizes of a 135M
Llama in float32, on a GPU at those of an 8B Llama in bfloat16 and against plain torch too."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from cuda_timing import copy_bandwidth, num_copies, seconds_each
from harness import emit, report, set_up, shortest_seconds

from penstock_kernels.embedding import embedding, embedding_cpu
from penstock_kernels.rms_norm import add_rms_norm, add_rms_norm_cpu
from penstock_kernels.rotary import rotation
from penstock_kernels.rotary_kv_store import rotary_kv_store, rotary_kv_store_cpu
from penstock_kernels.silu_mul import silu_mul, silu_mul_cpu

BLOCKS, TOKENS_PER_BLOCK = 600, 16
MICROSECONDS = 1e6


@dataclass(frozen=True)
class Sizes:
    """Of a model, and where it runs."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    stored: torch.dtype  # of the embedding
    dtype: torch.dtype
    device: torch.device


CPU_SIZES = Sizes(576, 1536, 9, 3, 64, 49152, torch.bfloat16, torch.float32, torch.device("cpu"))
GPU_SIZES = Sizes(4096, 14336, 32, 8, 128, 128256, torch.bfloat16, torch.bfloat16, torch.device("cuda"))


@dataclass(frozen=True)
class Case:
    """One operation on its tensors, the same in plain torch, and the bytes that it reads and writes at least."""

    work: Callable[[], object]
    plain: Callable[[], object]
    num_bytes: int


def cases(tokens: int, sizes: Sizes, table: torch.Tensor) -> dict[str, Case]:
    """Every operation on tensors of its own."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=sizes.dtype, device=sizes.device)

    x, residual, weight = random(tokens, sizes.hidden), random(tokens, sizes.hidden), random(sizes.hidden)
    gate_up = random(tokens, 2 * sizes.inner)
    qkv = random(tokens, sizes.heads + 2 * sizes.kv_heads, sizes.head_dim)
    factors = rotation(torch.randn(tokens, sizes.head_dim // 2, device=sizes.device), sizes.dtype)
    pool = (BLOCKS, TOKENS_PER_BLOCK, sizes.kv_heads, sizes.head_dim)
    caches = random(*pool), random(*pool)
    slots = torch.randperm(BLOCKS * TOKENS_PER_BLOCK, device=sizes.device)[:tokens]
    ids = torch.randint(0, sizes.vocabulary, (tokens,), device=sizes.device)
    return {
        "rms_norm": Case(
            lambda: add_rms_norm(x, residual, weight, 1e-5),
            lambda: add_rms_norm_cpu(x, residual, weight, 1e-5),
            4 * x.nbytes,
        ),
        "silu_mul": Case(lambda: silu_mul(gate_up), lambda: silu_mul_cpu(gate_up), gate_up.nbytes * 3 // 2),
        "rotary_kv_store": Case(
            lambda: rotary_kv_store(qkv, factors, caches, slots),
            lambda: rotary_kv_store_cpu(qkv, factors, caches, slots),
            2 * qkv.nbytes,
        ),
        "embedding": Case(
            lambda: embedding(ids, table, 0, sizes.dtype),
            lambda: embedding_cpu(ids, table, 0, sizes.dtype),
            tokens * sizes.hidden * (sizes.stored.itemsize + sizes.dtype.itemsize),
        ),
    }


def on_cpu(table: torch.Tensor) -> None:
    """One line per operation and number of tokens."""
    for tokens in (1, 8, 32, 512):
        for name, case in cases(tokens, CPU_SIZES, table).items():
            report(name, f"{tokens} tokens", shortest_seconds(case.work, 0.2), case.num_bytes)


def on_gpu(table: torch.Tensor) -> None:
    """Two lines per operation and number of tokens."""
    for tokens in (1, 32, 256, 4096):
        first = cases(tokens, GPU_SIZES, table)
        count = min(num_copies(case.num_bytes) for case in first.values())
        copies = [first, *(cases(tokens, GPU_SIZES, table) for _ in range(count - 1))]
        for name, case in first.items():
            seconds = seconds_each([copy[name].work for copy in copies])
            figure, label = (seconds * MICROSECONDS, "us"), f"{tokens} tokens, 8B, bf16"
            emit(name, label, figure, ("memory bandwidth", case.num_bytes / copy_bandwidth() * MICROSECONDS))
            plain = seconds_each([copy[name].plain for copy in copies])
            emit(name, label, figure, ("plain torch", plain * MICROSECONDS))


def main() -> None:
    """On the GPU where there is one."""
    set_up()
    has_gpu = torch.cuda.is_available()
    sizes = GPU_SIZES if has_gpu else CPU_SIZES
    table = torch.zeros(sizes.vocabulary, sizes.hidden, dtype=sizes.stored, device=sizes.device)
    (on_gpu if has_gpu else on_cpu)(table)


if __name__ == "__main__":
    main()
