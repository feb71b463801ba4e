# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202
"""Where top-k, top-p and typical-p cut a row, without sorting it.

All three ask the same of a row's values x with their weights: the largest x* at which the weight of all values >= x* is
at least an amount. A first pass over the row weighs it at eight values, which bracket x*; a second one collects what
lies between (usually a few hundred of 128k tokens); a binary search among those finishes. Weights are integers, so the
answer is exact.

Shapes: S rows, V vocabulary, C chunks, N seats.
"""

import triton
import triton.language as tl

from penstock_kernels.overlap import wait_for_inputs
from penstock_kernels.sample_device import (
    CUT,
    INF,
    WEIGHT_SCALE,
    above_cut,
    best_score,
    is_finite,
    key_value,
    order_key,
    row_min_p,
    row_of_scores,
    seat_and_stages,
    weight,
)
from penstock_kernels.sample_tables import IntLine, Stage

_TOP_K, _TOP_P = tl.constexpr(int(Stage.TOP_K)), tl.constexpr(int(Stage.TOP_P))
_TYPICAL_P = tl.constexpr(int(Stage.TYPICAL_P))
_TOP_K_LINE, _TOP_P_LINE = tl.constexpr(int(IntLine.TOP_K)), tl.constexpr(int(IntLine.TOP_P))
_TYPICAL_P_LINE = tl.constexpr(int(IntLine.TYPICAL_P))

# Limits of top-p and typical-p are probabilities in these units.
_LIMIT_UNIT = tl.constexpr(2.0**-60)
_ENTROPY_SCALE = tl.constexpr(2.0**40)
_PIVOTS = tl.constexpr(8)
_LOWEST_KEY = tl.constexpr(-0x7F800001)  # of -inf
_HIGHEST_KEY = tl.constexpr(0x7F800000)  # of +inf
# What is searched: scores by their number, scores by their weight, or (negated) distances from the entropy by weight.
COUNT = tl.constexpr(0)
MASS = tl.constexpr(1)
TYPICAL = tl.constexpr(2)


@triton.jit
def _present(scores_ptr, place, vocab, best, state, min_p, MODE: tl.constexpr):
    """Scores at `place`, and whether the warpers before left them. `state`: lowest score, last id at it, center."""
    low, tie, _ = state
    inside = place < vocab
    score = tl.load(scores_ptr + place, mask=inside, other=-INF)
    if MODE == COUNT:
        return score, inside
    there = inside & above_cut(score, place, low, tie)
    if MODE == TYPICAL:
        there = there & (tl.exp(score - best) >= min_p)
    return score, there


@triton.jit
def _value_and_weight(score, best, state, MODE: tl.constexpr):
    """x and its weight, of scores that are present."""
    if MODE == COUNT:
        return score, tl.full(score.shape, 1, tl.int64)
    if MODE == MASS:
        return score, weight(score, best)
    return 0.0 - tl.abs(score - state[2]), weight(score, best)


@triton.jit
def _weigh_pivots(scores_ptr, vocab, best, state, min_p, MODE: tl.constexpr, block: tl.constexpr):
    """Keys of eight values, falling, and the weight of all that is at or above each; the last is below all."""
    order = tl.arange(0, _PIVOTS)
    step = (order + 1).to(tl.float32)
    top = 0.0 if MODE == TYPICAL else best
    # Closer where probability is dense.
    pivots = tl.where(order == _PIVOTS - 1, -INF, top - 0.375 * step * (step + 1.0))
    sums = tl.zeros([block, _PIVOTS], tl.int64)
    for start in range(0, vocab, block):
        place = start + tl.arange(0, block)
        score, there = _present(scores_ptr, place, vocab, best, state, min_p, MODE)
        x, w = _value_and_weight(score, best, state, MODE)
        w = tl.where(there, w, 0)
        sums += tl.where(x[:, None] >= pivots[None, :], w[:, None], 0)
    return order_key(pivots), tl.sum(sums, axis=0)


@triton.jit
def _span(keys, weights, amount):
    """Between which keys x* lies, both included, and the weight of all values above them."""
    short = weights < amount
    low = tl.max(tl.where(short, _LOWEST_KEY, keys), axis=0)
    # The lowest pivot that is too high is excluded. Where none is, all is below the highest of numbers.
    high = tl.min(tl.where(short, keys - 1, _HIGHEST_KEY), axis=0)
    return low, high, tl.max(tl.where(short, weights, 0), axis=0)


@triton.jit
def _collect(scores_ptr, scratch_ptr, vocab, best, state, min_p, span, MODE: tl.constexpr, block: tl.constexpr):
    """Writes the scores whose x lies in `span`, in the order of their ids. Returns their number, and the lowest and the
    highest of their keys.
    """
    low, high = span
    count = 0
    lowest, highest = tl.full([], _HIGHEST_KEY, tl.int32), tl.full([], _LOWEST_KEY, tl.int32)
    for start in range(0, vocab, block):
        place = start + tl.arange(0, block)
        score, there = _present(scores_ptr, place, vocab, best, state, min_p, MODE)
        x, _ = _value_and_weight(score, best, state, MODE)
        key = order_key(x)
        chosen = there & (key >= low) & (key <= high)
        rank = tl.cumsum(chosen.to(tl.int32), axis=0)
        tl.store(scratch_ptr + count + rank - 1, score, mask=chosen)
        count += tl.sum(chosen.to(tl.int32), axis=0)
        lowest = tl.minimum(lowest, tl.min(tl.where(chosen, key, _HIGHEST_KEY), axis=0))
        highest = tl.maximum(highest, tl.max(tl.where(chosen, key, _LOWEST_KEY), axis=0))
    tl.debug_barrier()  # every thread reads what others have written
    return count, lowest, highest


@triton.jit
def _search(scratch_ptr, count, low, high, above, amount, best, state, MODE: tl.constexpr, block: tl.constexpr):
    """x* as a key, among `count` candidates from key `low` to key `high`, which are some of theirs."""
    while low < high:
        # Differences of keys need 33 bits.
        middle = (low.to(tl.int64) + (high.to(tl.int64) - low.to(tl.int64) + 1) // 2).to(tl.int32)
        sums = tl.zeros([block], tl.int64)
        next_up, next_down = high, low
        for start in range(0, count, block):
            place = start + tl.arange(0, block)
            there = place < count
            score = tl.load(scratch_ptr + place, mask=there, other=-INF)
            x, w = _value_and_weight(score, best, state, MODE)
            key = order_key(x)
            upper = there & (key >= middle)
            sums += tl.where(upper, w, 0)
            next_up = tl.minimum(next_up, tl.min(tl.where(upper, key, high), axis=0))
            next_down = tl.maximum(next_down, tl.max(tl.where(there & (key < middle), key, low), axis=0))
        enough = above + tl.sum(sums, axis=0) >= amount
        low = tl.where(enough, next_up, low)
        high = tl.where(enough, high, next_down)
    return low


@triton.jit
def _weight_from(scratch_ptr, count, cut, best, block: tl.constexpr):
    """Of `count` candidates, the weight of those >= cut, and how many equal it."""
    sums, equal = tl.zeros([block], tl.int64), tl.zeros([block], tl.int32)
    for start in range(0, count, block):
        place = start + tl.arange(0, block)
        score = tl.load(scratch_ptr + place, mask=place < count, other=-INF)
        sums += tl.where((place < count) & (score >= cut), weight(score, best), 0)
        equal += ((place < count) & (score == cut)).to(tl.int32)
    return tl.sum(sums, axis=0), tl.sum(equal, axis=0)


@triton.jit
def _find(scores_ptr, scratch_ptr, vocab, best, state, min_p, limit, MODE: tl.constexpr, block: tl.constexpr):
    """x*. `limit`: the amount, but for MASS the share of the weight that may be dropped, where also how many of the
    scores equal to x* stay, and whether those are not all.
    """
    keys, weights = _weigh_pivots(scores_ptr, vocab, best, state, min_p, MODE, block)
    amount = limit
    if MODE == MASS:
        total = tl.max(weights, axis=0)
        amount = total - tl.minimum((limit * total.to(tl.float64)).to(tl.int64), total - 1)
    low, high, above = _span(keys, weights, amount)
    tl.debug_barrier()  # nobody reads the scratch of the search before any more
    count, low, high = _collect(scores_ptr, scratch_ptr, vocab, best, state, min_p, (low, high), MODE, block)
    cut = key_value(_search(scratch_ptr, count, low, high, above, amount, best, state, MODE, block))
    num_kept, some = 0, False
    if MODE == MASS:
        upper, num_tied = _weight_from(scratch_ptr, count, cut, best, block)
        # What is over the amount pays for dropping some of the tokens that have the score at the cut.
        each = tl.maximum(weight(cut, best), 1)
        num_kept = num_tied - ((above + upper - amount) // each).to(tl.int32)
        some = num_kept < num_tied
    return cut, num_kept, some


@triton.jit
def _id_of_tie(scores_ptr, vocab, cut, number, block: tl.constexpr):
    """The id of the `number`th score (from 1) that equals `cut`."""
    seen, found = 0, 0
    for start in range(0, vocab, block):
        place = start + tl.arange(0, block)
        score = tl.load(scores_ptr + place, mask=place < vocab, other=-INF)
        tied = (score == cut) & (place < vocab)
        rank = seen + tl.cumsum(tied.to(tl.int32), axis=0)
        found = tl.maximum(found, tl.max(tl.where(tied & (rank == number), place, 0), axis=0))
        seen += tl.sum(tied.to(tl.int32), axis=0)
    return found


@triton.jit
def _entropy(scores_ptr, vocab, best, state, min_p, block: tl.constexpr):
    """Of what may come: the weight of all, and best + log(sum) - entropy, the score of a token as surprising as that.

    A token's surprise is log(sum) - (x - best), and their mean, the entropy, log(sum) - mean(x - best).
    """
    sums, terms = tl.zeros([block], tl.int64), tl.zeros([block], tl.int64)
    for start in range(0, vocab, block):
        score, there = _present(scores_ptr, start + tl.arange(0, block), vocab, best, state, min_p, TYPICAL)
        there = there & (score - best > -INF)  # also of scores so far apart that it overflows
        below = tl.where(there, score - best, 0.0)
        sums += tl.where(there, weight(score, best), 0)
        terms += tl.where(there, (tl.exp(below) * below * _ENTROPY_SCALE).to(tl.int64), 0)
    total = tl.sum(sums, axis=0)
    mean = (tl.sum(terms, axis=0).to(tl.float64) / _ENTROPY_SCALE) / (total.to(tl.float64) / WEIGHT_SCALE)
    return total, best + mean.to(tl.float32)


@triton.jit(do_not_specialize=["logits_stride", "num_seats"], do_not_specialize_on_alignment=["seats_ptr"])
def cut_kernel(
    logits_ptr,
    seats_ptr,
    alias_ptr,
    ints_ptr,
    floats_ptr,
    scores_ptr,
    best_ptr,
    scratch_ptr,  # float32 [S, V]
    cuts_ptr,  # float32 [S, 3]: lowest score that stays, center and radius of typical-p; written in rows that cut
    ties_ptr,  # int32 [S]: last id that stays of those that have the lowest score
    logits_stride,
    num_seats,
    vocab: tl.constexpr,
    num_chunks: tl.constexpr,
    chunks: tl.constexpr,
    block: tl.constexpr,
    has_alias: tl.constexpr,
    has_masks: tl.constexpr,
    overlaps: tl.constexpr,
):
    """Grid (S,)."""
    wait_for_inputs(overlaps)
    row = tl.program_id(0)
    seat, bits = seat_and_stages(seats_ptr, alias_ptr, ints_ptr, num_seats, row, has_alias)
    best = best_score(best_ptr, row, num_chunks, chunks)
    if ((bits & CUT) != 0) & is_finite(best):
        source_ptr = row_of_scores(logits_ptr, logits_stride, scores_ptr, vocab, row, bits, has_masks)
        own_ptr = scratch_ptr + row.to(tl.int64) * vocab
        low, tie = tl.full([], -INF, tl.float32), tl.full([], vocab, tl.int32)
        center, radius = tl.full([], 0.0, tl.float32), tl.full([], INF, tl.float32)
        if (bits & _TOP_K) != 0:
            amount = vocab - tl.load(ints_ptr + _TOP_K_LINE * num_seats + seat)
            low, _, _ = _find(source_ptr, own_ptr, vocab, best, (low, tie, center), 0.0, amount, COUNT, block)
        if (bits & _TOP_P) != 0:
            share = tl.load(ints_ptr + _TOP_P_LINE * num_seats + seat).to(tl.float64) * _LIMIT_UNIT
            low, kept, some = _find(source_ptr, own_ptr, vocab, best, (low, tie, center), 0.0, share, MASS, block)
            if some:
                tie = _id_of_tie(source_ptr, vocab, low, kept, block)
        if (bits & _TYPICAL_P) != 0:
            min_p = row_min_p(floats_ptr, num_seats, seat, bits)
            total, center = _entropy(source_ptr, vocab, best, (low, tie, center), min_p, block)
            share = tl.load(ints_ptr + _TYPICAL_P_LINE * num_seats + seat).to(tl.float64) * _LIMIT_UNIT
            if share < 1.0:
                amount = (share * total.to(tl.float64)).to(tl.int64) + 1
                state = (low, tie, center)
                radius, _, _ = _find(source_ptr, own_ptr, vocab, best, state, min_p, amount, TYPICAL, block)
                radius = -radius
        tl.store(cuts_ptr + row * 3, low)
        tl.store(cuts_ptr + row * 3 + 1, center)
        tl.store(cuts_ptr + row * 3 + 2, radius)
        tl.store(ties_ptr + row, tie)
