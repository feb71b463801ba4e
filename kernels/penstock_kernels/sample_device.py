# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201
"""What the kernels of sampling share: a row's parameters, its weights, which tokens are left, random numbers.

A weight is a probability relative to the row's best token, as an integer: sums of it are exact, so no order of addition
changes a token, and the weights of up to 2^18 tokens stay below 2^63.
"""

import triton
import triton.language as tl

from penstock_kernels.philox import MULTIPLIERS, ROUNDS, WEYL, Purpose
from penstock_kernels.sample_tables import CUTTING, EDITING, FloatLine, IntLine, Stage

WEIGHT_SCALE = tl.constexpr(2.0**44)
INF = tl.constexpr(float("inf"))
# Whose scores are not the logits.
EDITED = tl.constexpr(int(EDITING | Stage.TEMPERATURE))
CUT = tl.constexpr(int(CUTTING))
MIN_P_STAGE = tl.constexpr(int(Stage.MIN_P))
STAGES_LINE = tl.constexpr(int(IntLine.STAGES))
MIN_P_LINE = tl.constexpr(int(FloatLine.MIN_P))
_M0, _M1 = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
_W0, _W1 = tl.constexpr(WEYL[0]), tl.constexpr(WEYL[1])
_ROUNDS, _PURPOSE = tl.constexpr(ROUNDS), tl.constexpr(int(Purpose.SAMPLE))
_WORD = tl.constexpr(0xFFFFFFFF)


@triton.jit
def seat_and_stages(seats_ptr, alias_ptr, ints_ptr, num_seats, row, has_alias: tl.constexpr):
    """The seat whose parameters the row has, and its `Stage` bits."""
    seat = tl.load(seats_ptr + row)
    if has_alias:
        seat = tl.load(alias_ptr + seat)
    return seat, tl.load(ints_ptr + STAGES_LINE * num_seats + seat)


@triton.jit
def row_of_scores(logits_ptr, stride, scores_ptr, vocab, row, bits, has_masks: tl.constexpr):
    """Where the row's scores are: its logits, unless something has changed them."""
    logits_row = logits_ptr + row.to(tl.int64) * stride
    if has_masks:
        return scores_ptr + row.to(tl.int64) * vocab
    return tl.where((bits & EDITED) != 0, scores_ptr + row.to(tl.int64) * vocab, logits_row)


@triton.jit
def best_score(best_ptr, row, num_chunks: tl.constexpr, chunks: tl.constexpr):
    """The row's largest score; +inf where one is NaN."""
    index = tl.arange(0, chunks)
    best = tl.load(best_ptr + row * num_chunks + index, mask=index < num_chunks, other=-INF)
    return tl.max(best, axis=0)


@triton.jit
def is_finite(x):
    return (x > -INF) & (x < INF)


@triton.jit
def weight(x, best):
    """int64: exp(x - best) in units of 2^-44, rounded down."""
    return (tl.exp(x - best) * WEIGHT_SCALE).to(tl.int64)


@triton.jit
def order_key(x):
    """int32 with the order of float32 `x`; 0.0 and -0.0 are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def key_value(key):
    """The float32 of an int32 key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def above_cut(x, place, low, tie):
    """Whether top-k and top-p leave a token: above the lowest score that stays, or at it and among its first."""
    return (x > low) | ((x == low) & (place <= tie))


@triton.jit
def is_kept(x, place, best, bits, cuts_ptr, ties_ptr, min_p, row):
    """Whether a token may come, after all warpers of the row. Cuts: [S, 3] of lowest score, center and radius."""
    low, tie, center, radius = -INF, 0x7FFFFFFF, 0.0, INF
    if (bits & CUT) != 0:
        low = tl.load(cuts_ptr + row * 3)
        center = tl.load(cuts_ptr + row * 3 + 1)
        radius = tl.load(cuts_ptr + row * 3 + 2)
        tie = tl.load(ties_ptr + row)
    kept = above_cut(x, place, low, tie) & (tl.exp(x - best) >= min_p)
    return kept & (tl.abs(x - center) <= radius)


@triton.jit
def row_min_p(floats_ptr, num_seats, seat, bits):
    """The row's min-p; neutral where the stage is not its."""
    min_p = tl.load(floats_ptr + MIN_P_LINE * num_seats + seat)
    return tl.where((bits & MIN_P_STAGE) != 0, min_p, 0.0)


@triton.jit
def uniform(low, high, fork, position):
    """float64 in [0, 1) as `philox.uniform`; all arguments int64 in [0, 2^32)."""
    a, b, c, d = position, tl.zeros_like(position) + _PURPOSE, fork, tl.zeros_like(position)
    for _ in tl.static_range(_ROUNDS):
        # Products wrap around in int64, but their bits are those of the unsigned product.
        first, second = a * _M0, c * _M1
        a = ((second >> 32) & _WORD) ^ b ^ low
        c = ((first >> 32) & _WORD) ^ d ^ high
        b, d = second & _WORD, first & _WORD
        low, high = (low + _W0) & _WORD, (high + _W1) & _WORD
    return ((a << 21) | (b >> 11)).to(tl.float64) * 1.1102230246251565e-16  # 2^-53
