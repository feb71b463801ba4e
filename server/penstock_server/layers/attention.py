"""Self-attention over the paged cache with rotary positions and grouped-query heads, split over the ranks by heads.

Shapes: T tokens, H query heads and K key-value heads of this rank, D head size.
"""

from dataclasses import dataclass

import torch

from penstock_kernels.attention import PreparedAttention, paged_attention
from penstock_kernels.rotary_kv_store import rotary_kv_store
from penstock_server.kv_cache import KvCache
from penstock_server.layers.linear import ColumnParallelLinear, LoadContext, Projection, RowParallelLinear
from penstock_server.layers.rotary import Rotation


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Heads of the whole model, and whether its projections have biases."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    bias: bool


@dataclass(frozen=True, slots=True)
class StepAttention:
    """What all layers of a step share."""

    prepared: PreparedAttention
    rotation: Rotation
    slot_mapping: torch.Tensor  # int64 [T]
    kv: KvCache


class SelfAttention:
    """The attention block of layer number `layer`."""

    def __init__(self, context: LoadContext, name: str, layer: int, shape: AttentionShape) -> None:
        dim = shape.head_dim
        split = context.parallel.split
        heads, kv_heads = split.query_heads(shape.num_heads), split.kv_heads(shape.num_kv_heads)
        self._layer = layer
        self._scale = dim**-0.5
        self._dim = dim
        kv_part = slice(kv_heads.start * dim, kv_heads.stop * dim)
        part = slice(heads.start * dim, heads.stop * dim)
        projections = (
            Projection(f"{name}.q_proj", shape.num_heads * dim, part),
            Projection(f"{name}.k_proj", shape.num_kv_heads * dim, kv_part),
            Projection(f"{name}.v_proj", shape.num_kv_heads * dim, kv_part),
        )
        self._qkv = ColumnParallelLinear(context, projections, shape.hidden_size, shape.bias)
        self._output = RowParallelLinear(
            context, f"{name}.o_proj", (shape.hidden_size, shape.num_heads * dim), part, shape.bias
        )

    def __call__(self, x: torch.Tensor, step: StepAttention) -> torch.Tensor:
        """[T, hidden] from [T, hidden]; stores the step's keys and values."""
        qkv = self._qkv(x).view(x.shape[0], -1, self._dim)
        keys, values = step.kv.keys[self._layer], step.kv.values[self._layer]
        query = rotary_kv_store(qkv, step.rotation, (keys, values), step.slot_mapping)
        return self._output(paged_attention(query, keys, values, step.prepared, self._scale).flatten(1))
