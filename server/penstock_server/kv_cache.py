"""The paged KV cache: one pair of tensors per layer. Block 0 is scratch for padded rows."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class KvCache:
    """keys[layer] and values[layer]: [num_blocks, tokens_per_block, num_kv_heads, head_dim]."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    tokens_per_block: int
