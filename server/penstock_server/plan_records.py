"""The ragged registration records of a plan -> checked columns.

The only loop here follows the lengths of the records from one to the next; it runs when requests start, never per row
of a step.
"""

import numpy as np
from numpy.typing import NDArray

from penstock_server.plan_checks import PlanError, PlanLimits, check_distinct, check_range
from penstock_server.registrations import NUM_WORDS, SeatFlag, SeatRegistrations, Word

MODE_GENERATE, MODE_POOL, MODE_SCORE = 1, 2, 3
# As a plain integer: the complement of an IntFlag holds its own members only.
KNOWN_FLAGS = int(SeatFlag.DO_SAMPLE | SeatFlag.LOGPROBS | SeatFlag.RAW_LOGPROBS | SeatFlag.PROMPT_LOGPROBS)
# Most entries of each list of edits (biases, bans, min-length ids): a step pays for the longest among its rows. Stated
# in shard.proto too; the router refuses longer lists of biases with the request, of end tokens with the model.
MAX_EDITS = 1024
LARGEST_INT = np.iinfo(np.int32).max
LARGEST_FLOAT = float(np.finfo(np.float32).max)
SMALLEST_FLOAT = float(np.finfo(np.float32).tiny)
NO_REGISTRATIONS = SeatRegistrations(
    words=np.empty((0, NUM_WORDS), np.int32),
    bias_ids=np.empty(0, np.int32),
    bias_values=np.empty(0, np.float32),
    banned_ids=np.empty(0, np.int32),
    min_length_ids=np.empty(0, np.int32),
    history_ids=np.empty(0, np.int32),
)


def parse_registrations(words: NDArray[np.int32], count: int, limits: PlanLimits) -> SeatRegistrations:
    """Parses `count` records that fill `words` exactly. The result owns its arrays. Raises PlanError."""
    if not count and not words.size:
        return NO_REGISTRATIONS
    starts = _record_starts(words, count)
    heads = words[starts[:, None] + np.arange(NUM_WORDS)]
    sizes = heads[:, Word.NUM_BIAS : Word.NUM_HISTORY + 1].astype(np.int64) * (2, 1, 1, 1)
    ends = starts[:, None] + NUM_WORDS + np.cumsum(sizes, axis=1)
    lists = [_gather(words, ends[:, column] - sizes[:, column], sizes[:, column]) for column in range(4)]
    pairs = lists[0].reshape(-1, 2)
    registrations = SeatRegistrations(
        words=heads,
        bias_ids=pairs[:, 0].copy(),
        bias_values=pairs[:, 1].copy().view(np.float32),
        banned_ids=lists[1],
        min_length_ids=lists[2],
        history_ids=lists[3],
    )
    _check_seats(registrations, limits)
    _check_modes(registrations)
    _check_sampling(registrations, limits)
    _check_lists(registrations, limits)
    return registrations


def _record_starts(words: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """int64 [count]: where each record begins. Every record must lie inside `words`, and they must fill it."""
    if count * NUM_WORDS > words.size:
        raise PlanError(f"{count} registrations do not fit {words.size} registration words")
    starts, at = np.zeros(count, np.int64), 0
    for record in range(count):
        if at + NUM_WORDS > words.size:
            raise PlanError(f"registration {record} begins at word {at} of {words.size} and does not fit")
        num_bias, *others = words[at + Word.NUM_BIAS : at + Word.NUM_HISTORY + 1].tolist()
        if min(num_bias, *others) < 0:
            raise PlanError(f"registration {record} has a list of negative length")
        starts[record] = at
        at += NUM_WORDS + 2 * num_bias + sum(others)
    if at != words.size:
        raise PlanError(f"registrations take {at} words, num_registration_words is {words.size}")
    return starts


def _gather(words: NDArray[np.int32], starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int32]:
    """The runs words[starts[i] : starts[i] + sizes[i]] one after another."""
    before = np.cumsum(sizes) - sizes
    runs: NDArray[np.int32] = words[np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))]
    return runs


def _check_seats(new: SeatRegistrations, limits: PlanLimits) -> None:
    check_range("registered seat", new.ints(Word.SEAT), 0, limits.num_seats - 1)
    check_distinct("registered seat", new.ints(Word.SEAT))
    check_range("generation", new.ints(Word.GENERATION), 1, LARGEST_INT)
    check_range("max_len", new.ints(Word.MAX_LEN), 1, limits.max_seq_len)
    check_range("prompt_len", new.ints(Word.PROMPT_LEN), 1, limits.max_seq_len)
    if (too_long := new.ints(Word.PROMPT_LEN) > new.ints(Word.MAX_LEN)).any():
        raise PlanError(f"prompt_len {new.ints(Word.PROMPT_LEN)[too_long][0]} exceeds max_len")
    lanes = new.ints(Word.PENALTY_LANE)
    check_range("penalty_lane", lanes, -1, limits.num_penalty_lanes - 1)
    check_distinct("penalty_lane", lanes[lanes >= 0])


def _check_modes(new: SeatRegistrations) -> None:
    flags = new.ints(Word.FLAGS)
    unknown = flags & np.int32(~KNOWN_FLAGS)
    if unknown.any():
        raise PlanError(f"unknown registration flags {int(unknown[unknown != 0][0]) & 0xFFFFFFFF:#x}")
    if (flags & SeatFlag.PROMPT_LOGPROBS).any():
        raise PlanError("prompt logprobs are refused: this shard has no FEATURE_PROMPT_LOGPROBS")
    if new.ints(Word.ADAPTER_ID).any():
        raise PlanError("adapters are refused: this shard has no FEATURE_ADAPTERS")
    modes = new.ints(Word.MODE)
    if (modes == MODE_POOL).any():
        raise PlanError("seat mode pool is refused: this shard has no FEATURE_POOLING")
    if (modes == MODE_SCORE).any():
        raise PlanError("seat mode score is refused: this shard has no FEATURE_SCORING")
    if (other := modes != MODE_GENERATE).any():
        raise PlanError(f"unknown seat mode {modes[other][0]}")


def _check_sampling(new: SeatRegistrations, limits: PlanLimits) -> None:
    check_range("fork index", new.ints(Word.FORK), 0, LARGEST_INT)
    check_range("temperature", new.floats(Word.TEMPERATURE), SMALLEST_FLOAT, LARGEST_FLOAT)
    check_range("top_k", new.ints(Word.TOP_K), 0, LARGEST_INT)
    check_range("top_p", new.floats(Word.TOP_P), SMALLEST_FLOAT, 1.0)
    check_range("typical_p", new.floats(Word.TYPICAL_P), SMALLEST_FLOAT, 1.0)
    check_range("min_p", new.floats(Word.MIN_P), 0.0, 1.0)
    check_range("repetition_penalty", new.floats(Word.REPETITION_PENALTY), SMALLEST_FLOAT, LARGEST_FLOAT)
    check_range("frequency_penalty", new.floats(Word.FREQUENCY_PENALTY), -LARGEST_FLOAT, LARGEST_FLOAT)
    check_range("presence_penalty", new.floats(Word.PRESENCE_PENALTY), -LARGEST_FLOAT, LARGEST_FLOAT)
    check_range("num_top_logprobs", new.ints(Word.NUM_TOP_LOGPROBS), 0, limits.max_top_logprobs)
    check_range("min_new_tokens", new.ints(Word.MIN_NEW_TOKENS), 0, LARGEST_INT)


def _check_lists(new: SeatRegistrations, limits: PlanLimits) -> None:
    for word in (Word.NUM_BIAS, Word.NUM_BANNED, Word.NUM_MIN_LENGTH_IDS):
        check_range(word.name.lower(), new.ints(word), 0, MAX_EDITS)
    banning = np.isneginf(new.bias_values)  # -inf bans an id, which is allowed; NaN and +inf are not
    check_range("logit bias", np.where(banning, np.float32(0), new.bias_values), -LARGEST_FLOAT, LARGEST_FLOAT)
    last_id = limits.vocab_size - 1
    check_range("bias id", new.bias_ids, 0, last_id)
    check_range("banned id", new.banned_ids, 0, last_id)
    check_range("min-length id", new.min_length_ids, 0, last_id)
    check_range("history id", new.history_ids, 0, last_id)
    num_history, num_generated = new.ints(Word.NUM_HISTORY), new.ints(Word.NUM_GENERATED)
    if num_history[new.ints(Word.PENALTY_LANE) < 0].any():
        raise PlanError("history ids without a penalty lane")
    if (num_generated < 0).any() or (num_generated > num_history).any():
        raise PlanError("num_generated is not within num_history")
