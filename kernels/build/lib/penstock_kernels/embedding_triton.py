"""Embedding lookup on a GPU. Shapes: T tokens, V rows of this rank's table, C channels."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl

from penstock_kernels.triton_support import power_of_two

# Channels of a token that one program copies.
_BLOCK = 1024


def embedding_triton(token_ids: torch.Tensor, table: torch.Tensor, first_id: int, dtype: torch.dtype) -> torch.Tensor:
    """See `embedding`. `table` must be contiguous."""
    assert table.is_contiguous()
    num_tokens, (num_rows, channels) = token_ids.shape[0], table.shape
    out = torch.empty((num_tokens, channels), dtype=dtype, device=table.device)
    block = min(_BLOCK, power_of_two(channels))
    grid = (num_tokens, -(-channels // block))
    _embedding_kernel[grid](
        token_ids.contiguous(),
        table,
        out,
        first_id=first_id,
        num_rows=num_rows,
        channels=channels,
        block=block,
        num_warps=4,
    )
    return out


# The ids lie at any multiple of 8 bytes in the step's staging buffer: one compiled kernel serves all.
@triton.jit(do_not_specialize_on_alignment=["token_ids_ptr"])
def _embedding_kernel(
    token_ids_ptr,  # int64 [T]
    table_ptr,  # [V, C]
    out_ptr,  # [T, C]
    first_id: tl.constexpr,
    num_rows: tl.constexpr,
    channels: tl.constexpr,
    block: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(token_ids_ptr + token) - first_id
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < channels
    # A row that is not here is not read: what would be read in its place may be anything.
    found = (row >= 0) & (row < num_rows)
    values = tl.load(table_ptr + row * channels + column, mask=inside & found, other=0.0)
    tl.store(out_ptr + token * channels + column, values.to(out_ptr.dtype.element_ty), mask=inside)
