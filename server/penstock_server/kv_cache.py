"""The paged KV cache: one pair of tensors per layer. Block 0 is scratch for padded rows."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from penstock_server.models.base import KvSpec

# Where no size was given, the KV cache takes this share of a CPU's memory that is free after loading. On a GPU it takes
# all that steps leave but for this share of the whole: for gaps between allocations, and what the driver takes late.
CPU_FREE_SHARE = 0.5
CUDA_SPARE_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class KvCache:
    """keys[layer] and values[layer]: [num_blocks, tokens_per_block, num_kv_heads, head_dim]."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    tokens_per_block: int

    def fill(self, value: float) -> None:
        """Fills the whole pool, block 0 included."""
        for tensor in (*self.keys, *self.values):
            tensor.fill_(value)


def bytes_per_block(spec: "KvSpec", tokens_per_block: int) -> int:
    """Bytes of one block over all layers, keys and values, on this rank."""
    return 2 * spec.num_layers * tokens_per_block * spec.num_kv_heads * spec.head_dim * spec.dtype.itemsize


def allocate(spec: "KvSpec", num_blocks: int, tokens_per_block: int, device: torch.device) -> KvCache:
    """A pool of zeros. On a CPU a page takes memory when a block of it is first written (the launcher has checked that
    the whole pool fits), so a large pool costs neither time at the start nor memory while it is not needed."""
    shape = (num_blocks, tokens_per_block, spec.num_kv_heads, spec.head_dim)

    def zeros() -> torch.Tensor:
        if device.type != "cpu":
            return torch.zeros(shape, dtype=spec.dtype, device=device)
        # numpy asks the system for zeroed pages; torch would write the zeros itself.
        num_bytes = math.prod(shape) * spec.dtype.itemsize
        return torch.from_numpy(np.zeros(num_bytes, np.uint8)).view(spec.dtype).view(shape)

    layers = range(spec.num_layers)
    return KvCache([zeros() for _ in layers], [zeros() for _ in layers], tokens_per_block)


def blocks_that_fit(block_bytes: int, useful_blocks: int, device: torch.device, step_bytes: int = 0) -> int:
    """How many blocks the device's free memory holds, at most `useful_blocks`. Raises ValueError when not even two.

    `step_bytes`: what steps will take of a GPU's.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        budget = max(0, free - step_bytes - int(total * CUDA_SPARE_SHARE))
    else:
        budget = int(available_memory_bytes() * CPU_FREE_SHARE)
    num_blocks = min(useful_blocks, budget // block_bytes)
    if num_blocks < 2:
        raise ValueError(f"no memory for a KV cache: {budget} bytes free, one block takes {block_bytes}")
    return num_blocks


def available_memory_bytes() -> int:
    """Memory that this process may still take: what the system has available, or less where a cgroup limits it."""
    available = math.inf
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        available = min(available, max(0, int(text) - int(used.read_text())))
    return int(available)
