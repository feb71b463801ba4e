"""Launches the Triton kernels of paged attention: nothing here reads a length, so a step can be captured and replayed.

Sizes of grids and buffers follow from padded sizes only. What depends on lengths is worked out on the device, once per
step, when the first layer asks.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from penstock_kernels.attention_batch import AttentionBatch
from penstock_kernels.attention_config import DecodeConfig, PromptConfig, decode_config, describe, prompt_config
from penstock_kernels.attention_decode_kernel import decode_kernel
from penstock_kernels.attention_plan_kernel import plan_kernel
from penstock_kernels.attention_prompt_kernel import prompt_kernel
from penstock_kernels.attention_softmax import MAX_SEGMENTS, MIN_SEGMENT_KEYS
from penstock_kernels.overlap import launch_options

# tl.dot takes no fewer rows; more than the larger number would not fit the registers.
_MIN_ROWS, _MAX_ROWS = 16, 32
# A decode row is cut when it has more than its share of the keys: the step has one share for so many programs. On an
# H200, rows of 1,024 keys: 32 of them cut into 8 pieces each took 98 us, 128 whole ones 137 us, so a piece of two tiles
# costs several times what two tiles of a longer run do. The number here is computed from that, not tried.
_PROGRAMS_PER_SHARE = 4


@dataclass(frozen=True, slots=True)
class HeadShape:
    """One layer's heads."""

    num_kv_heads: int
    group: int  # query heads of one KV head
    head_dim: int
    dtype: torch.dtype

    @property
    def padded_dim(self) -> int:
        """What the kernels take for the head size."""
        return max(_MIN_ROWS, 1 << (self.head_dim - 1).bit_length())

    @property
    def decode_rows(self) -> int:
        """Heads of a group that a decode program takes."""
        return min(max(_MIN_ROWS, 1 << (self.group - 1).bit_length()), _MAX_ROWS)

    @property
    def decode_head_blocks(self) -> int:
        """Programs' worth of heads of one decode item."""
        return self.num_kv_heads * -(-self.group // self.decode_rows)

    def prompt_heads(self, config: PromptConfig) -> int:
        """Heads of a group in one tile of a prompt."""
        return min(self.group, config.block_rows)

    def constants(self) -> dict[str, int]:
        """Compile-time arguments of both kernels."""
        return {"KV_HEADS": self.num_kv_heads, "GROUP": self.group, "HEAD_DIM": self.head_dim, "DIM": self.padded_dim}


@dataclass(frozen=True, slots=True)
class _Plan:
    """One step's pieces of work for layers of one head shape, and where partial results meet. Filled on the device."""

    decode: DecodeConfig
    prompt: PromptConfig
    num_programs: int  # of the decode kernel
    max_tiles: int
    max_segments: int
    decode_items: torch.Tensor  # int32 [items, 3]
    prompt_items: torch.Tensor  # int32 [tiles, 2]
    totals: torch.Tensor  # int32 [2]
    counters: torch.Tensor  # int32 [cut rows, head blocks], 0 between two layers
    part_out: torch.Tensor  # float32 [cut rows, segments, H, D]
    part_stats: torch.Tensor  # float32 [cut rows, segments, H, 2]


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """One step's rows as the device has them."""

    batch: AttentionBatch
    tokens_per_block: int
    window: int
    plans: dict[HeadShape, _Plan] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.batch.slot_mapping.shape[0]

    @property
    def max_decode_rows(self) -> int:
        """Rows of one token, at most: in a replay any row may be one."""
        return self.batch.num_decode_rows if self.batch.max_prompt_rows is None else self.batch.seq_lens.shape[0]

    @property
    def max_prompt_rows(self) -> int:
        """Rows of several tokens, at most."""
        num_rows = self.batch.seq_lens.shape[0] - self.batch.num_decode_rows
        return num_rows if self.batch.max_prompt_rows is None else self.batch.max_prompt_rows

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of those and of the padding, at most."""
        return self.num_tokens - (self.batch.num_decode_rows if self.batch.max_prompt_rows is None else 0)

    def plan(self, shape: HeadShape) -> _Plan:
        """The plan for layers of this shape, made by the first of them."""
        if shape not in self.plans:
            self.plans[shape] = self._make_plan(shape)
        return self.plans[shape]

    def _make_plan(self, shape: HeadShape) -> _Plan:
        batch, target = self.batch, self.batch.block_table.device
        device = describe(target)
        decode = decode_config(shape.padded_dim, shape.dtype, device)
        prompt = prompt_config(shape.padded_dim, shape.dtype, device)
        num_rows, decode_rows = batch.seq_lens.shape[0], self.max_decode_rows
        max_keys = batch.block_table.shape[1] * self.tokens_per_block
        max_segments = min(MAX_SEGMENTS.value, -(-max_keys // MIN_SEGMENT_KEYS.value))
        num_programs = device.num_sms * decode.programs_per_sm
        # Fewer rows than there are shares can have more than one.
        num_shares = max(2, num_programs // (_PROGRAMS_PER_SHARE * shape.decode_head_blocks))
        cut_rows = min(decode_rows, num_shares)
        max_items = decode_rows + cut_rows * max_segments
        tile_tokens = prompt.block_rows // shape.prompt_heads(prompt)
        # Every prompt row may end in a tile of its own, and so may the padding.
        max_tiles = self.max_prompt_tokens // tile_tokens + self.max_prompt_rows + 1 if self.max_prompt_tokens else 0
        heads = (cut_rows, max_segments, shape.num_kv_heads * shape.group)
        plan = _Plan(
            decode=decode,
            prompt=prompt,
            num_programs=min(num_programs, max_items * shape.decode_head_blocks),
            max_tiles=max_tiles,
            max_segments=max_segments,
            decode_items=torch.empty((max_items, 3), dtype=torch.int32, device=target),
            prompt_items=torch.empty((max_tiles, 2), dtype=torch.int32, device=target),
            totals=torch.empty(2, dtype=torch.int32, device=target),
            counters=torch.empty((cut_rows, shape.decode_head_blocks), dtype=torch.int32, device=target),
            part_out=torch.empty((*heads, shape.head_dim), dtype=torch.float32, device=target),
            part_stats=torch.empty((*heads, 2), dtype=torch.float32, device=target),
        )
        plan_kernel[(num_rows + 1,)](
            batch.seq_lens, batch.query_starts, batch.decode_rows,
            plan.decode_items, plan.prompt_items, plan.totals, plan.counters,
            num_rows, self.num_tokens, num_shares,
            WINDOW=self.window, BLOCK_KEYS=decode.block_keys, TILE_TOKENS=tile_tokens,
            HEAD_BLOCKS=shape.decode_head_blocks, num_warps=4,
        )  # fmt: skip
        return plan


def paged_attention_triton(
    query: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    rows: DeviceRows,
    scale: float,
    softcap: float = 0.0,
) -> torch.Tensor:
    """See `paged_attention`. The caches are contiguous."""
    num_kv_heads, head_dim = k_cache.shape[2:]
    shape = HeadShape(num_kv_heads, query.shape[1] // num_kv_heads, head_dim, query.dtype)
    plan = rows.plan(shape)
    if query.stride()[1:] != (head_dim, 1):
        query = query.contiguous()
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    tensors = (query, k_cache, v_cache, out, rows.batch.block_table, rows.batch.seq_lens)
    factors = (softcap if softcap else scale) * math.log2(math.e), scale / softcap if softcap else 0.0
    constants = shape.constants() | {
        "PAGE": rows.tokens_per_block,
        "WINDOW": rows.window,
        "SOFTCAP": bool(softcap),
    }
    if rows.max_decode_rows:
        _launch_decode(plan, shape, (tensors, factors), constants)
    if plan.max_tiles:
        _launch_prompts(plan, rows, (tensors, factors), constants | {"HEADS": shape.prompt_heads(plan.prompt)})
    return out


_Arguments = tuple[tuple[torch.Tensor, ...], tuple[float, float]]


def _launch_decode(plan: _Plan, shape: HeadShape, arguments: _Arguments, constants: dict[str, Any]) -> None:
    tensors, factors = arguments
    config, query, table = plan.decode, tensors[0], tensors[4]
    decode_kernel[(plan.num_programs,)](
        *tensors, plan.decode_items, plan.totals, plan.counters, plan.part_out, plan.part_stats,
        query.stride(0), table.stride(0), plan.max_segments, *factors,
        **constants, ROWS=shape.decode_rows, BLOCK_KEYS=config.block_keys,
        num_warps=config.num_warps, num_stages=config.num_stages, **launch_options(query.device),
    )  # fmt: skip


def _launch_prompts(plan: _Plan, rows: DeviceRows, arguments: _Arguments, constants: dict[str, Any]) -> None:
    tensors, factors = arguments
    config, query, table = plan.prompt, tensors[0], tensors[4]
    head_blocks = constants["KV_HEADS"] * -(-constants["GROUP"] // constants["HEADS"])
    prompt_kernel[(plan.max_tiles * head_blocks,)](
        *tensors, rows.batch.query_starts, plan.prompt_items, plan.totals,
        query.stride(0), table.stride(0), rows.batch.seq_lens.shape[0], rows.num_tokens, *factors,
        **constants, BLOCK_ROWS=config.block_rows, BLOCK_KEYS=config.block_keys,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
