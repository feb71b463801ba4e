# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202
"""A step's choice of tokens in three launches: edit the logits, weigh what is left, choose. `sample_cut_kernel` has the
fourth, for rows whose warpers look at a row as a whole.

Shapes: S rows, V vocabulary in C chunks, N seats, K best tokens. A chunk is one program's, whatever the batch; what
chunks found is put together in the order of the chunks, so a row's token does not depend on the rows beside it. Rows
read their seats' `Stage` bits and skip what they do not need. Runtime numbers are never specialised: one compiled
kernel serves all steps.
"""

import triton
import triton.language as tl

from penstock_kernels.overlap import wait_for_inputs
from penstock_kernels.penalties import ONE_GENERATED
from penstock_kernels.sample_device import (
    EDITED,
    INF,
    WEIGHT_SCALE,
    best_score,
    is_finite,
    is_kept,
    key_value,
    order_key,
    row_min_p,
    row_of_scores,
    seat_and_stages,
    uniform,
    weight,
)
from penstock_kernels.sample_tables import LOGPROBS, PENALTIES, FloatLine, IntLine, Stage

_EDITS, _MIN_LENGTH = tl.constexpr(int(Stage.EDITS)), tl.constexpr(int(Stage.MIN_LENGTH))
_REPETITION, _COUNTS = tl.constexpr(int(Stage.REPETITION)), tl.constexpr(int(Stage.COUNTS))
_PENALTIES, _LOGPROBS = tl.constexpr(int(PENALTIES)), tl.constexpr(int(LOGPROBS))
_SAMPLE, _TEMPERATURE = tl.constexpr(int(Stage.SAMPLE)), tl.constexpr(int(Stage.TEMPERATURE))
_RAW, _WARPED = tl.constexpr(int(Stage.RAW_LOGPROBS)), tl.constexpr(int(Stage.WARPED_LOGPROBS))

_SEED_LOW, _SEED_HIGH = tl.constexpr(int(IntLine.SEED_LOW)), tl.constexpr(int(IntLine.SEED_HIGH))
_FORK, _LANE = tl.constexpr(int(IntLine.FORK)), tl.constexpr(int(IntLine.LANE))
_PROMPT_LEN, _MIN_NEW = tl.constexpr(int(IntLine.PROMPT_LEN)), tl.constexpr(int(IntLine.MIN_NEW))
_NUM_EDITS, _NUM_MIN_LENGTH = tl.constexpr(int(IntLine.NUM_EDITS)), tl.constexpr(int(IntLine.NUM_MIN_LENGTH))
_NUM_TOP = tl.constexpr(int(IntLine.NUM_TOP))
_TEMPERATURE_LINE, _REPETITION_LINE = tl.constexpr(int(FloatLine.TEMPERATURE)), tl.constexpr(int(FloatLine.REPETITION))
_FREQUENCY_LINE, _PRESENCE_LINE = tl.constexpr(int(FloatLine.FREQUENCY)), tl.constexpr(int(FloatLine.PRESENCE))

_ONE_GENERATED = tl.constexpr(ONE_GENERATED)
_EDITS_AT_ONCE = tl.constexpr(128)
_NOTHING = tl.constexpr(-(2**63))  # below every (key, id)
_LOW_WORD = tl.constexpr(0xFFFFFFFF)


@triton.jit
def _add_edits(target_ptr, ids_ptr, values_ptr, count, first, end):
    """Adds the edits of ids first .. end - 1."""
    for start in range(0, count, _EDITS_AT_ONCE):
        entry = start + tl.arange(0, _EDITS_AT_ONCE)
        there = entry < count
        ids = tl.load(ids_ptr + entry, mask=there, other=-1)
        values = tl.load(values_ptr + entry, mask=there, other=0.0)
        tl.atomic_add(target_ptr + ids, values, mask=there & (ids >= first) & (ids < end), sem="relaxed")


@triton.jit(
    do_not_specialize=["logits_stride", "num_seats", "edits_width", "min_length_width"],
    do_not_specialize_on_alignment=["seats_ptr", "positions_ptr"],
)
def edit_kernel(
    logits_ptr,  # float32 [S, V]
    seats_ptr,  # int64 [S]
    positions_ptr,  # int64 [S]
    alias_ptr,  # int64 [N], read if `has_alias`
    masks_ptr,  # int32 [S, ceil(V / 32)], read if `has_masks`: bit i % 32 of word i // 32 allows token i
    ints_ptr,
    floats_ptr,
    edit_ids_ptr,
    edit_values_ptr,
    min_length_ids_ptr,
    min_length_values_ptr,
    history_ptr,  # int32 [lanes, V]
    scores_ptr,  # float32 [S, V], written in rows that are edited
    best_ptr,  # float32 [S, C]: the chunk's largest score, +inf where one is NaN
    best_id_ptr,  # int32 [S, C]: the lowest id that has it
    raw_best_ptr,  # float32 [S, C]: the same of the logits, in rows of raw log-probabilities
    raw_sum_ptr,  # float32 [S, C]: sum of exp(logit - the chunk's largest)
    logits_stride,
    num_seats,
    edits_width,
    min_length_width,
    vocab: tl.constexpr,
    num_chunks: tl.constexpr,
    chunk: tl.constexpr,
    staged: tl.constexpr,  # whether any row needs more than its largest logit
    has_alias: tl.constexpr,
    has_masks: tl.constexpr,
    overlaps: tl.constexpr,
):
    """Grid (S, C): the scores after bans, biases, penalties, masks and temperature, and the best of each chunk."""
    wait_for_inputs(overlaps)
    row, piece = tl.program_id(0), tl.program_id(1)
    place = piece * chunk + tl.arange(0, chunk)
    inside = place < vocab
    x = tl.load(logits_ptr + row.to(tl.int64) * logits_stride + place, mask=inside, other=-INF)
    cell = row * num_chunks + piece
    if staged:
        seat, bits = seat_and_stages(seats_ptr, alias_ptr, ints_ptr, num_seats, row, has_alias)
        if (bits & _RAW) != 0:
            raw_best = tl.max(tl.where(x == x, x, INF), axis=0)
            tl.store(raw_best_ptr + cell, raw_best)
            tl.store(raw_sum_ptr + cell, tl.sum(tl.where(x > -INF, tl.exp(x - raw_best), 0.0), axis=0))
        target_ptr = scores_ptr + row.to(tl.int64) * vocab
        if (bits & (_EDITS | _MIN_LENGTH)) != 0:
            # Lists are short and name any ids: they are added in memory.
            tl.store(target_ptr + place, x, mask=inside)
            tl.debug_barrier()
            first, end = piece * chunk, piece * chunk + chunk
            if (bits & _EDITS) != 0:
                begin = seat * edits_width
                count = tl.load(ints_ptr + _NUM_EDITS * num_seats + seat)
                _add_edits(target_ptr, edit_ids_ptr + begin, edit_values_ptr + begin, count, first, end)
            if (bits & _MIN_LENGTH) != 0:
                generated = tl.load(positions_ptr + row) - tl.load(ints_ptr + _PROMPT_LEN * num_seats + seat)
                if generated < tl.load(ints_ptr + _MIN_NEW * num_seats + seat):
                    begin = seat * min_length_width
                    count = tl.load(ints_ptr + _NUM_MIN_LENGTH * num_seats + seat)
                    _add_edits(target_ptr, min_length_ids_ptr + begin, min_length_values_ptr + begin, count, first, end)
            tl.debug_barrier()
            x = tl.load(target_ptr + place, mask=inside, other=-INF)
        if (bits & _PENALTIES) != 0:
            lane = tl.load(ints_ptr + _LANE * num_seats + seat)
            seen = tl.load(history_ptr + lane * vocab + place, mask=inside, other=0)
            if (bits & _REPETITION) != 0:
                penalty = tl.load(floats_ptr + _REPETITION_LINE * num_seats + seat)
                x = tl.where(seen != 0, tl.where(x < 0, x * penalty, tl.div_rn(x, tl.zeros_like(x) + penalty)), x)
            if (bits & _COUNTS) != 0:
                counts = (seen >> 1).to(tl.float32)
                x = x - counts * tl.load(floats_ptr + _FREQUENCY_LINE * num_seats + seat)
                x = x - tl.where(counts > 0, tl.load(floats_ptr + _PRESENCE_LINE * num_seats + seat), 0.0)
        if (bits & _TEMPERATURE) != 0:
            temperature = tl.load(floats_ptr + _TEMPERATURE_LINE * num_seats + seat)
            x = tl.div_rn(x, tl.zeros_like(x) + temperature)
        if has_masks:
            words: tl.constexpr = (vocab + 31) // 32
            word = tl.load(masks_ptr + row.to(tl.int64) * words + place // 32, mask=inside, other=0)
            allowed = ((word >> (place % 32)) & 1) != 0
            x = tl.where(allowed | (x != x), x, -INF)  # a NaN stays one, so that the row is found bad
        if has_masks or (bits & EDITED) != 0:
            tl.store(target_ptr + place, x, mask=inside)
    is_nan = inside & (x != x)
    best = tl.max(tl.where(is_nan, INF, x), axis=0)
    tl.store(best_ptr + cell, best)
    tl.store(best_id_ptr + cell, tl.min(tl.where(x == best, place, vocab - 1), axis=0))


@triton.jit(do_not_specialize=["logits_stride", "num_seats"], do_not_specialize_on_alignment=["seats_ptr"])
def weigh_kernel(
    logits_ptr,
    seats_ptr,
    alias_ptr,
    ints_ptr,
    floats_ptr,
    scores_ptr,
    best_ptr,
    cuts_ptr,  # float32 [S, 3]
    ties_ptr,  # int32 [S]
    weights_ptr,  # int64 [S, C]: sum of the weights of the chunk's tokens that may come
    top_ptr,  # int64 [S, C, K]: the chunk's best tokens, as key * 2^32 + (2^32 - 1 - id), best first
    logits_stride,
    num_seats,
    vocab: tl.constexpr,
    num_chunks: tl.constexpr,
    chunks: tl.constexpr,
    chunk: tl.constexpr,
    top_width: tl.constexpr,
    has_alias: tl.constexpr,
    has_masks: tl.constexpr,
    overlaps: tl.constexpr,
):
    """Grid (S, C)."""
    wait_for_inputs(overlaps)
    row, piece = tl.program_id(0), tl.program_id(1)
    seat, bits = seat_and_stages(seats_ptr, alias_ptr, ints_ptr, num_seats, row, has_alias)
    best = best_score(best_ptr, row, num_chunks, chunks)
    if ((bits & (_SAMPLE | _LOGPROBS)) != 0) & is_finite(best):
        place = piece * chunk + tl.arange(0, chunk)
        inside = place < vocab
        source_ptr = row_of_scores(logits_ptr, logits_stride, scores_ptr, vocab, row, bits, has_masks)
        x = tl.load(source_ptr + place, mask=inside, other=-INF)
        kept = is_kept(x, place, best, bits, cuts_ptr, ties_ptr, row_min_p(floats_ptr, num_seats, seat, bits), row)
        total = tl.sum(tl.where(kept, weight(x, best), 0), axis=0)
        tl.store(weights_ptr + row * num_chunks + piece, total)
        num_top = tl.load(ints_ptr + _NUM_TOP * num_seats + seat)
        if num_top > 0:
            x = tl.where(kept, x, -INF)
            if (bits & _RAW) != 0:
                raw_ptr = logits_ptr + row.to(tl.int64) * logits_stride
                x = tl.load(raw_ptr + place, mask=inside, other=-INF)
            entries = (order_key(x).to(tl.int64) << 32) + (place.to(tl.int64) ^ _LOW_WORD)
            entries = tl.where(inside, entries, _NOTHING)
            out_ptr = top_ptr + (row * num_chunks + piece) * top_width
            for index in range(num_top):
                found = tl.max(entries, axis=0)
                tl.store(out_ptr + index, found)
                entries = tl.where(entries == found, _NOTHING, entries)


@triton.jit
def _draw(source_ptr, number, row, bits, best, min_p, pieces, vocab: tl.constexpr, chunk: tl.constexpr):
    """The first token at which the sum of weights exceeds its share `number` of the whole. `pieces`: weights [chunks],
    and where the cuts are."""
    weights, cuts_ptr, ties_ptr = pieces
    total = tl.sum(weights, axis=0)
    target = (number * total.to(tl.float64)).to(tl.int64)
    target = tl.minimum(target, total - 1)
    sums = tl.cumsum(weights, axis=0)
    piece = tl.sum((sums <= target).to(tl.int32), axis=0)
    target -= tl.sum(tl.where(sums <= target, weights, 0), axis=0)
    place = piece * chunk + tl.arange(0, chunk)
    x = tl.load(source_ptr + place, mask=place < vocab, other=-INF)
    kept = is_kept(x, place, best, bits, cuts_ptr, ties_ptr, min_p, row)
    sums = tl.cumsum(tl.where(kept, weight(x, best), 0), axis=0)
    return piece * chunk + tl.sum((sums <= target).to(tl.int32), axis=0)


@triton.jit(
    do_not_specialize=["logits_stride", "num_seats", "pad_seat"],
    do_not_specialize_on_alignment=["seats_ptr", "positions_ptr"],
)
def choose_kernel(
    logits_ptr,
    seats_ptr,
    positions_ptr,
    alias_ptr,  # written if `has_alias`: a seat without a usable logit becomes the pad seat
    last_token_ptr,  # int64 [N], written if `has_alias`
    ints_ptr,
    floats_ptr,
    history_ptr,
    scores_ptr,
    best_ptr,
    best_id_ptr,
    raw_best_ptr,
    raw_sum_ptr,
    cuts_ptr,
    ties_ptr,
    weights_ptr,
    top_ptr,
    ids_ptr,  # int64 [S]: what was chosen; 0 in bad rows, or -1 if `has_alias`
    bad_ptr,  # uint8 [S]
    chosen_ptr,  # float32 [S]: its log-probability
    top_ids_ptr,  # int64 [S, K]
    top_logprobs_ptr,  # float32 [S, K]
    logits_stride,
    num_seats,
    pad_seat,
    vocab: tl.constexpr,
    num_chunks: tl.constexpr,
    chunks: tl.constexpr,
    chunk: tl.constexpr,
    top_width: tl.constexpr,
    top_block: tl.constexpr,  # a power of two, at least C K
    staged: tl.constexpr,
    has_alias: tl.constexpr,
    has_masks: tl.constexpr,
    overlaps: tl.constexpr,
):
    """Grid (S,)."""
    wait_for_inputs(overlaps)
    row = tl.program_id(0)
    index = tl.arange(0, chunks)
    there = index < num_chunks
    bests = tl.load(best_ptr + row * num_chunks + index, mask=there, other=-INF)
    best = tl.max(bests, axis=0)
    ids = tl.load(best_id_ptr + row * num_chunks + index, mask=there, other=vocab - 1)
    token = tl.min(tl.where(bests == best, ids, vocab - 1), axis=0)
    good = is_finite(best)
    if staged:
        seat, bits = seat_and_stages(seats_ptr, alias_ptr, ints_ptr, num_seats, row, has_alias)
        if good & ((bits & (_SAMPLE | _LOGPROBS)) != 0):
            source_ptr = row_of_scores(logits_ptr, logits_stride, scores_ptr, vocab, row, bits, has_masks)
            weights = tl.load(weights_ptr + row * num_chunks + index, mask=there, other=0)
            if (bits & _SAMPLE) != 0:
                line_ptr = ints_ptr + seat
                number = uniform(
                    tl.load(line_ptr + _SEED_LOW * num_seats),
                    tl.load(line_ptr + _SEED_HIGH * num_seats),
                    tl.load(line_ptr + _FORK * num_seats),
                    tl.load(positions_ptr + row),
                )
                min_p = row_min_p(floats_ptr, num_seats, seat, bits)
                pieces = (weights, cuts_ptr, ties_ptr)
                token = _draw(source_ptr, number, row, bits, best, min_p, pieces, vocab, chunk)
                token = tl.minimum(token, vocab - 1)
            if (bits & _LOGPROBS) != 0:
                log_sum = best + tl.log((tl.sum(weights, axis=0).to(tl.float64) / WEIGHT_SCALE).to(tl.float32))
                if (bits & _RAW) != 0:
                    source_ptr = logits_ptr + row.to(tl.int64) * logits_stride
                    bests = tl.load(raw_best_ptr + row * num_chunks + index, mask=there, other=-INF)
                    sums = tl.load(raw_sum_ptr + row * num_chunks + index, mask=there, other=0.0)
                    raw_best = tl.max(bests, axis=0)
                    log_sum = raw_best + tl.log(tl.sum(sums * tl.exp(bests - raw_best), axis=0))
                tl.store(chosen_ptr + row, tl.load(source_ptr + token) - log_sum)
                num_top = tl.load(ints_ptr + _NUM_TOP * num_seats + seat)
                if num_top > 0:
                    entry = tl.arange(0, top_block)
                    asked = (entry < num_chunks * top_width) & (entry % top_width < num_top)
                    entries = tl.load(top_ptr + row * num_chunks * top_width + entry, mask=asked, other=_NOTHING)
                    for rank in range(num_top):
                        found = tl.max(entries, axis=0)
                        tl.store(top_ids_ptr + row * top_width + rank, (found & _LOW_WORD) ^ _LOW_WORD)
                        value = key_value((found >> 32).to(tl.int32)) - log_sum
                        tl.store(top_logprobs_ptr + row * top_width + rank, value)
                        entries = tl.where(entries == found, _NOTHING, entries)
        if good & ((bits & _PENALTIES) != 0):
            lane = tl.load(ints_ptr + _LANE * num_seats + seat)
            count_ptr = history_ptr + lane * vocab + token
            tl.store(count_ptr, tl.load(count_ptr) + _ONE_GENERATED)
    usable = tl.where(good, token, 0).to(tl.int64)
    tl.store(bad_ptr + row, tl.where(good, 0, 1).to(tl.uint8))
    if has_alias:
        tl.store(ids_ptr + row, tl.where(good, usable, -1))
        own = tl.load(alias_ptr + tl.load(seats_ptr + row))
        if own != pad_seat:
            tl.store(last_token_ptr + own, usable)
            tl.store(alias_ptr + own, tl.where(good, own, pad_seat))
    else:
        tl.store(ids_ptr + row, usable)
