# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201
"""What the attention kernels share: scores, the segments of a row, and how partial results of one row are folded.

Peaks are in units of log2: a weight is exp2(score * multiplier - peak). An empty partial result is (0, -inf, 0).
"""

import triton
import triton.language as tl

# A row is cut into segments of at least this many keys, ...
MIN_SEGMENT_KEYS = tl.constexpr(128)
# ... and into this many segments at most: what a row's last segment has to fold.
MAX_SEGMENTS = tl.constexpr(32)
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def segment_keys(num_keys):
    """Keys of one segment of a row of `num_keys`: a power of two that depends on the row's own length only."""
    keys = num_keys * 0 + MIN_SEGMENT_KEYS
    for _ in tl.static_range(20):
        keys = tl.where(keys * MAX_SEGMENTS < num_keys, keys * 2, keys)
    return keys


@triton.jit
def first_key(seq_len, WINDOW: tl.constexpr):
    """The first key that a row's last token sees."""
    if WINDOW == 0:
        return seq_len * 0
    return tl.maximum(seq_len - WINDOW, 0)


@triton.jit
def capped(scores, inner, SOFTCAP: tl.constexpr):
    """tanh(scores * inner) where the scores have a cap; the caller's multiplier does the rest."""
    if SOFTCAP:
        # The form with one exponential: exp2 overflows to infinity, which gives 1.
        return 1.0 - 2.0 / (tl.exp2(scores * (inner * (2.0 * _LOG2E))) + 1.0)
    return scores


@triton.jit
def finite(peak):
    """`peak`, or 0 where nothing was seen yet: -inf - (-inf) would be NaN."""
    return tl.where(peak == float("-inf"), 0.0, peak)


@triton.jit
def fold(out, peak, weight, part_out, part_peak, part_weight):
    """Adds the partial result of a row's next segment to that of those before it: out [DIM, ROWS], others [ROWS].

    The multiplications and additions are spelled out, so that the bits are the same wherever this is inlined.
    """
    new_peak = tl.maximum(peak, part_peak)
    base = finite(new_peak)
    keep, take = tl.exp2(peak - base), tl.exp2(part_peak - base)
    out = tl.fma(out, tl.broadcast_to(keep[None, :], out.shape), part_out * take[None, :])
    return out, new_peak, tl.fma(weight, keep, part_weight * take)
