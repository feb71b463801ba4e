"""y = x W^T + b for few tokens on a GPU: bound by reading the weight once, so the design keeps loads in flight.

Shapes: T tokens, I input and O output channels. The weight is the wide side of the product, [O, I] x [I, T], so that
few tokens still fill a tensor core's tile. Where O alone has too few tiles for the device, I is cut into pieces; the
last piece of a tile to finish adds them all up, in their order. Neither depends on T: a token has the same bits in
every batch that comes here.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from penstock_kernels.overlap import launch_options, wait_for_inputs
from penstock_kernels.triton_support import power_of_two

# A tensor core takes no fewer.
_MIN_TOKENS = 16


@dataclass(frozen=True, slots=True)
class SkinnyConfig:
    """How one weight is multiplied, with up to `max_tokens` tokens. `splits * block_in` divides I."""

    block_out: int
    block_in: int
    splits: int  # pieces of I
    num_warps: int
    num_stages: int
    max_tokens: int

    def stages(self, tokens: int) -> int:
        """Of loads on their way: one fewer with many tokens, so that an SM still has room for two programs."""
        return self.num_stages if tokens <= 32 else self.num_stages - 1


def skinny_config(out_features: int, in_features: int) -> SkinnyConfig | None:
    """For a weight [O, I]; None where it is not cut into whole tiles. Measured on an H100 by `sweep_linear`."""
    tiles, steps, splits = -(-out_features // 64), in_features // 128, 1
    # A program for every SM; and none has a long way to go alone while the others of its SM have ended.
    while (tiles * splits < 128 or (tiles < 256 and steps // splits > 32)) and steps % (8 * splits) == 0:
        splits *= 2
    if in_features % 128 or tiles * splits < 64:
        return None
    return SkinnyConfig(64, 128, splits, num_warps=4, num_stages=4, max_tokens=64 if tiles >= 256 else 32)


def skinny_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, config: SkinnyConfig, silu_mul: bool = False
) -> torch.Tensor:
    """[T, O] from [T, I] and [O, I], all of one 16-bit dtype (float32 in the interpreter), T at most the config's.

    With `silu_mul`, the weight's outputs are F gates and F ups, and the result is [T, F]: silu(gate) * up.
    """
    num_tokens, in_features = x.shape
    assert weight.is_contiguous()
    assert in_features == weight.shape[1]
    assert num_tokens <= config.max_tokens
    num_outs = weight.shape[0] // 2 if silu_mul else weight.shape[0]
    out = torch.empty((num_tokens, num_outs), dtype=x.dtype, device=x.device)
    tile_outs = config.block_out // 2 if silu_mul else config.block_out
    tiles = -(-num_outs // tile_outs)
    tokens = max(_MIN_TOKENS, power_of_two(num_tokens))
    parts, counters = _workspace(x.device, tiles, config)
    _skinny_kernel[(tiles, config.splits)](
        x.contiguous(), weight, weight if bias is None else bias, out, parts, counters, num_tokens,
        num_outs=num_outs, in_features=in_features, has_bias=bias is not None, silu_mul=silu_mul,
        tokens=tokens, block_out=config.block_out, block_in=config.block_in, splits=config.splits,
        num_warps=config.num_warps, num_stages=config.stages(tokens), **launch_options(x.device),
    )  # fmt: skip
    return out


@functools.cache
def _workspace(device: torch.device, tiles: int, config: SkinnyConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Where pieces of one product meet: their sums, and how many have finished, 0 between two products.

    Kept for good, since captured graphs know where it is; shared by all weights of one shape, which follow each other.
    """
    floats = tiles * config.splits * config.block_out * max(_MIN_TOKENS, config.max_tokens) if config.splits > 1 else 1
    return torch.empty(floats, device=device), torch.zeros(tiles, dtype=torch.int32, device=device)


@triton.jit(do_not_specialize=["num_tokens"])
def _skinny_kernel(
    x_ptr,  # [T, I]
    weight_ptr,  # [O, I]
    bias_ptr,  # [O], read if `has_bias`
    out_ptr,  # [T, num_outs]
    parts_ptr,  # float32 [tiles, splits, tokens, block_out]
    counters_ptr,  # int32 [tiles]
    num_tokens,
    num_outs: tl.constexpr,
    in_features: tl.constexpr,
    has_bias: tl.constexpr,
    silu_mul: tl.constexpr,
    tokens: tl.constexpr,
    block_out: tl.constexpr,
    block_in: tl.constexpr,
    splits: tl.constexpr,
    overlaps: tl.constexpr,
):
    tile, piece = tl.program_id(0), tl.program_id(1)
    each: tl.constexpr = in_features // splits
    rows = _weight_rows(tile, num_outs, block_out, silu_mul).to(tl.int64)
    row_starts = weight_ptr + rows * in_features + piece * each
    token, column = tl.arange(0, tokens), tl.arange(0, block_in)
    weights = row_starts[:, None] + column[None, :]
    inputs = x_ptr + token[None, :] * in_features + piece * each + column[:, None]
    is_token = (token < num_tokens)[None, :]
    acc = tl.zeros([block_out, tokens], tl.float32)
    wait_for_inputs(overlaps)
    for begin in range(0, each, block_in):
        weight = tl.load(weights + begin, eviction_policy="evict_first")
        x = tl.load(inputs + begin, mask=is_token, other=0.0)
        acc = tl.dot(weight, x, acc, input_precision="ieee")
    if splits > 1:
        place = token[None, :] * block_out + tl.arange(0, block_out)[:, None]
        parts = parts_ptr + tile * (splits * tokens * block_out) + place
        tl.store(parts + piece * (tokens * block_out), acc)
        # Every thread's stores come before the one thread that counts this piece as finished.
        tl.debug_barrier()
        if tl.atomic_add(counters_ptr + tile, 1, sem="acq_rel") == splits - 1:
            tl.store(counters_ptr + tile, 0)
            # ".cg" reads past the first-level cache, which may hold what the product before left there.
            acc = tl.load(parts, cache_modifier=".cg")
            for other in tl.static_range(1, splits):
                acc += tl.load(parts + other * (tokens * block_out), cache_modifier=".cg")
            _store(acc, (bias_ptr, out_ptr), (tile, rows, num_tokens), num_outs, has_bias, silu_mul)
    else:
        _store(acc, (bias_ptr, out_ptr), (tile, rows, num_tokens), num_outs, has_bias, silu_mul)


@triton.jit
def _weight_rows(tile, num_outs: tl.constexpr, block_out: tl.constexpr, silu_mul: tl.constexpr):
    """The rows of W [block_out] of a tile: with `silu_mul` those of gates, then those of their ups.

    The last tile reads its last row again and again rather than beyond the weight: nothing of that is stored.
    """
    index = tl.arange(0, block_out)
    if silu_mul:
        half: tl.constexpr = block_out // 2
        rows = tl.minimum(tile * half + index % half, num_outs - 1) + index // half * num_outs
    else:
        rows = tl.minimum(tile * block_out + index, num_outs - 1)
    return rows


@triton.jit
def _store(acc, pointers, places, num_outs: tl.constexpr, has_bias: tl.constexpr, silu_mul: tl.constexpr):
    """acc [block_out, tokens], plus the bias, into out [T, num_outs]."""
    bias_ptr, out_ptr = pointers
    tile, rows, num_tokens = places
    block_out: tl.constexpr = acc.shape[0]
    tokens: tl.constexpr = acc.shape[1]
    if has_bias:
        acc += tl.load(bias_ptr + rows).to(tl.float32)[:, None]
    tile_outs: tl.constexpr = block_out // 2 if silu_mul else block_out
    if silu_mul:
        gate, up = tl.split(tl.permute(tl.reshape(acc, [2, tile_outs, tokens]), [1, 2, 0]))
        acc = gate / (1.0 + tl.exp(-gate)) * up
    outs, token = tile * tile_outs + tl.arange(0, tile_outs), tl.arange(0, tokens)
    target = out_ptr + token[None, :] * num_outs + outs[:, None]
    inside = (outs < num_outs)[:, None] & (token < num_tokens)[None, :]
    tl.store(target, acc.to(out_ptr.dtype.element_ty), mask=inside)
