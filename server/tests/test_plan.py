"""Plan blobs: what was encoded comes back, and what is malformed is refused by name, never by a crash."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_testkit.limits import LIMITS

from penstock_server.plan import HEADER_WORDS, ROW_FLAG_FEED, ROW_FLAG_MASKED, ROW_FLAG_SAMPLE, RowSet, decode_plan
from penstock_server.plan_checks import PlanError
from penstock_server.plan_encoding import NewSeat, PlanDraft, PlanRow
from penstock_server.registrations import SeatFlag, Word

token_ids = st.integers(0, LIMITS.vocab_size - 1)
id_lists = st.lists(token_ids, max_size=4).map(tuple)
small_floats = st.floats(0.125, 1.0, width=32)


@st.composite
def new_seats(draw, seat):
    max_len = draw(st.integers(1, LIMITS.max_seq_len))
    lane = draw(st.sampled_from([-1, seat % LIMITS.num_penalty_lanes if seat < LIMITS.num_penalty_lanes else -1]))
    history = draw(id_lists) if lane >= 0 else ()
    return NewSeat(
        seat=seat,
        generation=draw(st.integers(1, 2**31 - 1)),
        prompt_len=draw(st.integers(1, max_len)),
        max_len=max_len,
        flags=draw(st.integers(0, 7)),
        penalty_lane=lane,
        seed=draw(st.integers(0, 2**64 - 1)),
        fork=draw(st.integers(0, 100)),
        temperature=draw(st.floats(0.125, 8, width=32)),
        top_k=draw(st.integers(0, 50)),
        top_p=draw(small_floats),
        typical_p=draw(small_floats),
        min_p=draw(small_floats),
        repetition_penalty=draw(st.floats(0.5, 2, width=32)),
        frequency_penalty=draw(st.floats(-2, 2, width=32)),
        presence_penalty=draw(st.floats(-2, 2, width=32)),
        num_top_logprobs=draw(st.integers(0, LIMITS.max_top_logprobs)),
        min_new_tokens=draw(st.integers(0, 9)),
        bias=draw(st.lists(st.tuples(token_ids, st.floats(-5, 5, width=32)), max_size=3).map(tuple)),
        banned=draw(id_lists),
        min_length=draw(id_lists),
        history=history,
        num_generated=draw(st.integers(0, len(history))),
    )


@st.composite
def drafts(draw):
    seats = draw(st.permutations(range(LIMITS.num_seats)))
    rows, budget = [], LIMITS.max_tokens
    for seat in seats[: draw(st.integers(0, LIMITS.max_rows))]:
        ids = draw(st.lists(token_ids, max_size=min(budget, 6)).map(tuple))
        budget -= max(1, len(ids))
        if budget < 0:
            break
        rows.append(PlanRow(seat, draw(st.booleans()), draw(st.integers(0, 50)) if ids else 0, ids))
    targets = draw(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 7)), unique=True, max_size=5))
    return PlanDraft(
        frees=[(seat, draw(st.integers(1, 9))) for seat in draw(st.sets(st.integers(0, 15), max_size=4))],
        registrations=[draw(new_seats(seat)) for seat in draw(st.sets(st.integers(0, 15), max_size=4))],
        appends=[(seat, 0, index, draw(st.integers(1, LIMITS.num_blocks - 1))) for seat, index in targets],
        rows=rows,
    )


def check_registration(plan, index, new):
    decoded = plan.registrations
    integers = (
        (Word.SEAT, new.seat), (Word.GENERATION, new.generation), (Word.PROMPT_LEN, new.prompt_len),
        (Word.MAX_LEN, new.max_len), (Word.FLAGS, new.flags), (Word.PENALTY_LANE, new.penalty_lane),
        (Word.FORK, new.fork), (Word.TOP_K, new.top_k), (Word.NUM_TOP_LOGPROBS, new.num_top_logprobs),
        (Word.ADAPTER_ID, 0), (Word.MODE, 1), (Word.MIN_NEW_TOKENS, new.min_new_tokens),
        (Word.NUM_BIAS, len(new.bias)), (Word.NUM_BANNED, len(new.banned)),
        (Word.NUM_MIN_LENGTH_IDS, len(new.min_length)), (Word.NUM_HISTORY, len(new.history)),
        (Word.NUM_GENERATED, new.num_generated),
    )  # fmt: skip
    assert {word: decoded.ints(word)[index] for word, _ in integers} == dict(integers)
    floats = (
        (Word.TEMPERATURE, new.temperature), (Word.TOP_P, new.top_p), (Word.TYPICAL_P, new.typical_p),
        (Word.MIN_P, new.min_p), (Word.REPETITION_PENALTY, new.repetition_penalty),
        (Word.FREQUENCY_PENALTY, new.frequency_penalty), (Word.PRESENCE_PENALTY, new.presence_penalty),
    )  # fmt: skip
    assert {word: decoded.floats(word)[index] for word, _ in floats} == dict(floats)
    seed = decoded.words[index, Word.SEED_LOW : Word.SEED_HIGH + 1].astype(np.uint32).astype(object)
    assert seed[0] | seed[1] << 32 == new.seed


@settings(max_examples=150, deadline=None)
@given(drafts())
def test_a_plan_comes_back_as_it_was_encoded(draft):
    blob = draft.encode()
    plan = decode_plan(7, blob, None, LIMITS)
    assert (plan.plan_id, plan.checksum) == (7, zlib.crc32(blob))
    assert plan.frees.tolist() == [list(free) for free in draft.frees]
    assert plan.appends.tolist() == [list(append) for append in draft.appends]
    assert plan.rows.seats.tolist() == [row.seat for row in draft.rows]
    assert plan.rows.samples.tolist() == [row.sample for row in draft.rows]
    assert plan.rows.feeds.tolist() == [bool(row.ids) for row in draft.rows]
    feeds = [row for row in draft.rows if row.ids]
    assert plan.extents.tolist() == [[row.start, len(row.ids)] for row in feeds]
    assert plan.feed_ids.tolist() == [token for row in feeds for token in row.ids]
    assert plan.num_tokens == sum(max(1, len(row.ids)) for row in draft.rows)
    for index, new in enumerate(draft.registrations):
        check_registration(plan, index, new)
    lists = {
        "bias_ids": [token for new in draft.registrations for token, _ in new.bias],
        "bias_values": [value for new in draft.registrations for _, value in new.bias],
        "banned_ids": [token for new in draft.registrations for token in new.banned],
        "min_length_ids": [token for new in draft.registrations for token in new.min_length],
        "history_ids": [token for new in draft.registrations for token in new.history],
    }
    assert {name: getattr(plan.registrations, name).tolist() for name in lists} == lists


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_plan_or_an_error(blob):
    decode_or_refuse(blob)


@settings(max_examples=300, deadline=None)
@given(drafts(), st.data())
def test_a_damaged_plan_is_a_plan_or_an_error(draft, data):
    words = np.frombuffer(draft.encode(), np.int32).copy()
    for _ in range(data.draw(st.integers(1, 3))):
        words[data.draw(st.integers(0, words.size - 1))] = data.draw(st.integers(-(2**31), 2**31 - 1))
    blob = words.tobytes()
    decode_or_refuse(blob[: data.draw(st.integers(0, len(blob)))])
    decode_or_refuse(blob)


def decode_or_refuse(blob):
    try:
        plan = decode_plan(1, blob, None, LIMITS)
    except PlanError:
        return
    assert plan.rows.seats.size <= LIMITS.max_rows
    assert plan.num_tokens <= LIMITS.max_tokens


SEAT = NewSeat(seat=1, generation=1, prompt_len=4, max_len=8)


def changed(word, value, draft=None):
    """A plan's words with one of them replaced; negative indices count from the end."""
    words = np.frombuffer((draft or PlanDraft(registrations=[SEAT], rows=[PlanRow(2)])).encode(), np.int32).copy()
    words[word] = value
    return words.tobytes()


def record_word(word, value):
    return changed(HEADER_WORDS + word, value)


def float_word(word, value):
    return record_word(word, np.array([value], np.float32).view(np.int32)[0])


@pytest.mark.parametrize(
    ("blob", "text"),
    [
        (b"", "plan of 0 bytes"),
        (b"\0" * 55, "plan of 55 bytes"),
        (PlanDraft().encode() + b"\0\0\0\0", "plan of 15 words, its header describes 14"),
        (changed(0, 2), "plan layout version 2, this shard speaks 1"),
        (changed(1, 2), "unknown plan flags 0x2"),
        (changed(2, -1), "num_rows -1 is negative"),
        (changed(2, 9), "plan of 9 rows, limit 8"),
        (changed(3, 2), "num_feed_rows 2 exceeds num_rows 1"),
        (changed(9, 1), "FEATURE_BLOCK_COPIES"),
        (changed(10, 3), "padded_rows 3 for 1 rows is not a decode size"),
        (changed(11, 9), "padded_tokens 9 for 1 tokens is not a mixed size"),
        (changed(12, 2), "FEATURE_REPEAT"),
        (changed(13, 1), "FEATURE_WEIGHT_UPDATE"),
        (changed(-1, 2 | 1 << 24), "unknown row flags 0x1000000"),
        (changed(-1, -(2**31) | 2), "unknown row flags 0x80000000"),
        (changed(-1, 2 | ROW_FLAG_MASKED), "FEATURE_GRAMMAR_MASKS"),
        (changed(-1, 16 | ROW_FLAG_SAMPLE), r"row seat 16 is outside \[0, 15\]"),
        (changed(-1, 2 | ROW_FLAG_FEED), "num_feed_rows 0, but 1 rows have the FEED flag"),
        (PlanDraft(rows=[PlanRow(2), PlanRow(2)]).encode(), "row seat 2 occurs twice"),
        (changed(-2, 0, PlanDraft(rows=[PlanRow(2, ids=(1,))])), r"feed count 0 is outside"),
        (changed(-3, -1, PlanDraft(rows=[PlanRow(2, ids=(1,))])), r"feed start -1 is outside"),
        (changed(-2, 2, PlanDraft(rows=[PlanRow(2, ids=(1,))])), "feed counts add up to 2, num_feed_ids is 1"),
        (PlanDraft(rows=[PlanRow(2, ids=(1,) * 33)]).encode(), "plan computes 33 tokens, limit 32"),
        (PlanDraft(frees=[(16, 1)]).encode(), "freed seat 16 is outside"),
        (PlanDraft(frees=[(1, 1), (1, 2)]).encode(), "freed seat 1 occurs twice"),
        (PlanDraft(appends=[(16, 0, 0, 1)]).encode(), "append seat 16 is outside"),
        (PlanDraft(appends=[(1, 1, 0, 1)]).encode(), r"append group 1 is outside \[0, 0\]"),
        (PlanDraft(appends=[(1, 0, 8, 1)]).encode(), r"append index 8 is outside \[0, 7\]"),
        (PlanDraft(appends=[(1, 0, 0, 0)]).encode(), r"append block 0 is outside \[1, 63\]"),
        (PlanDraft(appends=[(1, 0, 0, 64)]).encode(), "append block 64 is outside"),
        (PlanDraft(appends=[(1, 0, 0, 1), (1, 0, 0, 2)]).encode(), "append .* occurs twice"),
        (record_word(Word.SEAT, -1), "registered seat -1 is outside"),
        (record_word(Word.GENERATION, 0), "generation 0 is outside"),
        (record_word(Word.PROMPT_LEN, 9), "prompt_len 9 exceeds max_len"),
        (record_word(Word.MAX_LEN, 65), r"max_len 65 is outside \[1, 64\]"),
        (record_word(Word.FLAGS, 16), "unknown registration flags 0x10"),
        (record_word(Word.FLAGS, SeatFlag.PROMPT_LOGPROBS), "FEATURE_PROMPT_LOGPROBS"),
        (record_word(Word.PENALTY_LANE, 4), r"penalty_lane 4 is outside \[-1, 3\]"),
        (record_word(Word.FORK, -1), "fork index -1 is outside"),
        (float_word(Word.TEMPERATURE, 0.0), "temperature 0.0 is outside"),
        (float_word(Word.TEMPERATURE, float("nan")), "temperature nan is outside"),
        (float_word(Word.TEMPERATURE, float("inf")), "temperature inf is outside"),
        (record_word(Word.TOP_K, -1), "top_k -1 is outside"),
        (float_word(Word.TOP_P, 1.5), "top_p 1.5 is outside"),
        (float_word(Word.TYPICAL_P, 0.0), "typical_p 0.0 is outside"),
        (float_word(Word.MIN_P, -0.5), "min_p -0.5 is outside"),
        (float_word(Word.REPETITION_PENALTY, 0.0), "repetition_penalty 0.0 is outside"),
        (float_word(Word.FREQUENCY_PENALTY, float("-inf")), "frequency_penalty -inf is outside"),
        (float_word(Word.PRESENCE_PENALTY, float("nan")), "presence_penalty nan is outside"),
        (record_word(Word.NUM_TOP_LOGPROBS, 6), r"num_top_logprobs 6 is outside \[0, 5\]"),
        (record_word(Word.ADAPTER_ID, 1), "FEATURE_ADAPTERS"),
        (record_word(Word.MODE, 0), "unknown seat mode 0"),
        (record_word(Word.MODE, 2), "FEATURE_POOLING"),
        (record_word(Word.MODE, 3), "FEATURE_SCORING"),
        (record_word(Word.NUM_BANNED, 1), "registrations take 27 words, num_registration_words is 26"),
        (record_word(Word.NUM_BANNED, -1), "list of negative length"),
        (record_word(Word.NUM_GENERATED, 1), "num_generated is not within num_history"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(blob, text):
    with pytest.raises(PlanError, match=text):
        decode_plan(1, blob, None, LIMITS)


@pytest.mark.parametrize(
    ("seat", "text"),
    [
        (NewSeat(1, 1, 1, 8, bias=((100, 1.0),)), "bias id 100 is outside"),
        (NewSeat(1, 1, 1, 8, bias=((1, float("nan")),)), "logit bias nan is outside"),
        (NewSeat(1, 1, 1, 8, banned=(-1,)), "banned id -1 is outside"),
        (NewSeat(1, 1, 1, 8, bias=((1, 1.0),) * 1025), r"num_bias 1025 is outside \[0, 1024\]"),
        (NewSeat(1, 1, 1, 8, banned=(1,) * 1025), "num_banned 1025 is outside"),
        (NewSeat(1, 1, 1, 8, min_length=(1,) * 1025), "num_min_length_ids 1025 is outside"),
        (NewSeat(1, 1, 1, 8, min_length=(100,)), "min-length id 100 is outside"),
        (NewSeat(1, 1, 1, 8, history=(1,)), "history ids without a penalty lane"),
        (NewSeat(1, 1, 1, 8, penalty_lane=0, history=(100,)), "history id 100 is outside"),
    ],
)
def test_lists_of_a_registration_are_checked(seat, text):
    with pytest.raises(PlanError, match=text):
        decode_plan(1, PlanDraft(registrations=[seat]).encode(), None, LIMITS)


def test_minus_infinity_is_a_bias():
    blob = PlanDraft(registrations=[NewSeat(1, 1, 1, 8, bias=((3, float("-inf")),))]).encode()
    assert np.isneginf(decode_plan(1, blob, None, LIMITS).registrations.bias_values).all()


def rows(*seats, sample=True, feed=False):
    count = len(seats)
    return RowSet(np.array(seats), np.full(count, sample), np.full(count, feed))


@pytest.mark.parametrize(
    ("previous", "text"),
    [
        (None, "SAME_ROWS in the first plan"),
        (rows(1), "SAME_ROWS with num_rows 2, the previous plan had 1"),
        (rows(1, 2, feed=True), "SAME_ROWS after a plan with feed rows"),
        (rows(1, 2, sample=False), "SAME_ROWS after a plan with feed rows or rows without SAMPLE"),
    ],
)
def test_same_rows_needs_rows_to_repeat(previous, text):
    blob = PlanDraft(rows=[PlanRow(1), PlanRow(2)], same_rows=True).encode()
    with pytest.raises(PlanError, match=text):
        decode_plan(2, blob, previous, LIMITS)


def test_same_rows_repeats_them():
    blob = PlanDraft(rows=[PlanRow(5), PlanRow(3)], same_rows=True).encode()
    previous = rows(5, 3)
    assert decode_plan(2, blob, previous, LIMITS).rows is previous
    assert len(blob) == 4 * HEADER_WORDS


def test_same_rows_has_no_feed_rows():
    words = np.frombuffer(PlanDraft(rows=[PlanRow(1)], same_rows=True).encode(), np.int32).copy()
    words[3:5] = 1
    with pytest.raises(PlanError, match="SAME_ROWS together with feed rows"):
        decode_plan(2, words.tobytes() + b"\0" * 12, rows(1), LIMITS)
