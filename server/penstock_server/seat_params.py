"""Sampling state of every seat: parameters in device tensors, and on the host which stages each seat needs.

Registrations write it, steps gather their rows from it. One seat more than there are, `padding_seat`, belongs to
padded rows, and one lane more, `no_lane`, to rows without penalties, so that no operation has to ask.

Shapes: S rows that sample, N registrations, V vocabulary, E edits of a seat (the most among the rows of a step).
"""

from dataclasses import dataclass
from enum import IntFlag, auto

import numpy as np
import torch
from numpy.typing import NDArray

from penstock_kernels.penalties import IN_PROMPT, NEUTRAL_EDIT, ONE_GENERATED
from penstock_kernels.warpers import MIN_TEMPERATURE, WarpParams, top_k_limits, top_p_limits, typical_p_limits
from penstock_server.registrations import SeatFlag, SeatRegistrations, Word
from penstock_server.transfers import to_device


class Stage(IntFlag):
    """What a seat's rows need beyond the largest logit."""

    EDITS = auto()  # biases and bans
    MIN_LENGTH = auto()
    REPETITION = auto()
    COUNTS = auto()  # frequency and presence penalties
    SAMPLE = auto()
    TEMPERATURE = auto()
    TOP_K = auto()
    TOP_P = auto()
    MIN_P = auto()
    TYPICAL_P = auto()
    RAW_LOGPROBS = auto()
    WARPED_LOGPROBS = auto()


PENALTIES = Stage.REPETITION | Stage.COUNTS
EDITING = Stage.EDITS | Stage.MIN_LENGTH | PENALTIES
WARPING = Stage.TEMPERATURE | Stage.TOP_K | Stage.TOP_P | Stage.MIN_P | Stage.TYPICAL_P
LOGPROBS = Stage.RAW_LOGPROBS | Stage.WARPED_LOGPROBS

# Lines of the two parameter tables.
_SEED_LOW, _SEED_HIGH, _FORK, _PROMPT_LEN, _MIN_NEW, _LANE, _TOP_K, _TOP_P, _TYPICAL_P, _SAMPLES, _RAW = range(11)
_TEMPERATURE, _MIN_P, _REPETITION, _FREQUENCY, _PRESENCE = range(5)

# Of the lines _TOP_K, _TOP_P and _TYPICAL_P; _TEMPERATURE and _MIN_P; _REPETITION, _FREQUENCY and _PRESENCE.
_NEUTRAL_LIMITS = (0, -1, 2**62)
_NEUTRAL_WARP = (1.0, 0.0)
_NEUTRAL_PENALTIES = (1.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class RowParams:
    """The parameters of some rows, gathered from their seats; each property is a view or a cheap function of them."""

    ints: torch.Tensor  # int64 [lines, S]
    floats: torch.Tensor  # float32 [lines, S]

    @property
    def key(self) -> torch.Tensor:
        """int64 [2, S], low and high words of the seeds."""
        return self.ints[_SEED_LOW : _SEED_HIGH + 1]

    @property
    def fork(self) -> torch.Tensor:
        """int64 [S]."""
        return self.ints[_FORK]

    @property
    def lane(self) -> torch.Tensor:
        """int64 [S], `no_lane` for rows without penalties."""
        return self.ints[_LANE]

    @property
    def samples(self) -> torch.Tensor:
        """bool [S], False in greedy rows."""
        return self.ints[_SAMPLES] != 0

    @property
    def raw_logprobs(self) -> torch.Tensor:
        """bool [S], log-probabilities are wanted from before penalties and warpers."""
        return self.ints[_RAW] != 0

    @property
    def repetition(self) -> torch.Tensor:
        """float32 [S]."""
        return self.floats[_REPETITION]

    @property
    def frequency(self) -> torch.Tensor:
        """float32 [S]."""
        return self.floats[_FREQUENCY]

    @property
    def presence(self) -> torch.Tensor:
        """float32 [S]."""
        return self.floats[_PRESENCE]

    @property
    def warp(self) -> WarpParams:
        """What the warpers take."""
        ints, floats = self.ints, self.floats
        return WarpParams(floats[_TEMPERATURE], ints[_TOP_K], ints[_TOP_P], floats[_MIN_P], ints[_TYPICAL_P])

    def too_short(self, positions: torch.Tensor) -> torch.Tensor:
        """bool [S], whether the token at `positions` int64 [S] is one of the first min_new_tokens."""
        return positions - self.ints[_PROMPT_LEN] < self.ints[_MIN_NEW]


class EditTable:
    """Per seat a list of (id, value) to add to its logits, padded with what adds nothing."""

    def __init__(self, num_seats: int, device: torch.device) -> None:
        self._counts = np.zeros(num_seats, np.int64)  # entries of each seat, on the host
        self.ids = torch.zeros((num_seats, 1), dtype=torch.int64, device=device)
        self.values = torch.full((num_seats, 1), NEUTRAL_EDIT, dtype=torch.float32, device=device)

    def write(
        self,
        host_seats: NDArray[np.int64],
        counts: NDArray[np.int64],
        ids: NDArray[np.int32],
        values: NDArray[np.float32] | float,
    ) -> None:
        """Replaces the lists of `host_seats` [N] by `counts` [N] entries each of the ragged ids and values."""
        self._widen(int(counts.max(initial=0)))
        self._counts[host_seats] = counts
        record, entry = ragged_index(counts)
        new_ids = np.zeros((len(counts), self.ids.shape[1]), np.int64)
        new_values = np.full(new_ids.shape, NEUTRAL_EDIT, np.float32)
        new_ids[record, entry] = ids
        new_values[record, entry] = values
        seats = to_device(host_seats, self.ids.device)
        self.ids.index_copy_(0, seats, to_device(new_ids, self.ids.device))
        self.values.index_copy_(0, seats, to_device(new_values, self.ids.device))

    def width(self, host_seats: NDArray[np.int64]) -> int:
        """E: the longest list among `host_seats` [S], at least 1."""
        return int(self._counts[host_seats].max(initial=1))

    def _widen(self, width: int) -> None:
        # At most to twice the decoder's limit of a list. Doubling keeps growth rare.
        if (more := width - self.ids.shape[1]) > 0:
            more = max(more, self.ids.shape[1])
            # Both or, out of memory, neither.
            self.ids, self.values = (
                torch.nn.functional.pad(self.ids, (0, more), value=0),
                torch.nn.functional.pad(self.values, (0, more), value=NEUTRAL_EDIT),
            )


def ragged_index(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For lists of `counts` entries one after another: of each entry the list it is in, and its place there."""
    record = np.repeat(np.arange(len(counts)), counts)
    return record, np.arange(len(record)) - np.repeat(np.cumsum(counts) - counts, counts)


class SeatParams:
    """All tensors above for `num_seats` seats, and the penalty lanes' histories."""

    def __init__(self, num_seats: int, num_lanes: int, vocab_size: int, device: torch.device) -> None:
        self.device = device
        self.vocab_size = vocab_size
        self.padding_seat = num_seats
        self.no_lane = num_lanes
        self.stages = np.zeros(num_seats + 1, np.int32)  # Stage bits, on the host
        self.num_top_logprobs = np.zeros(num_seats + 1, np.int64)  # on the host
        self.edits = EditTable(num_seats + 1, device)
        self.min_length = EditTable(num_seats + 1, device)
        self.history = torch.zeros((num_lanes + 1, vocab_size), dtype=torch.int32, device=device)
        neutral_ints = [0, 0, 0, 0, 0, num_lanes, *_NEUTRAL_LIMITS, 0, 0]
        self._neutral_ints = torch.tensor(neutral_ints, device=device)[:, None]
        self._neutral_floats = torch.tensor([*_NEUTRAL_WARP, *_NEUTRAL_PENALTIES], device=device)[:, None]
        # A parameter of all seats lies together, so that what is gathered of it does too.
        self._ints = self._neutral_ints.repeat(1, num_seats + 1)
        self._floats = self._neutral_floats.repeat(1, num_seats + 1)

    def gather(self, seats: torch.Tensor) -> RowParams:
        """The parameters of rows in `seats` int64 [S]."""
        return RowParams(self._ints.index_select(1, seats), self._floats.index_select(1, seats))

    def register(self, new: SeatRegistrations) -> None:
        """Writes the parameters of N seats and seeds their lanes."""
        host_seats = new.ints(Word.SEAT).astype(np.int64)
        seats = self._to_device(host_seats)
        self.stages[host_seats] = stages_of(new)
        self.num_top_logprobs[host_seats] = np.minimum(new.ints(Word.NUM_TOP_LOGPROBS), self.vocab_size)
        self._ints.index_copy_(1, seats, self._to_device(self._int_lines(new)))
        self._floats.index_copy_(1, seats, self._to_device(_float_lines(new)))
        self._write_edits(host_seats, new)
        self._seed_lanes(new)

    def release(self, host_seats: NDArray[np.int64]) -> None:
        """Makes `host_seats` [N] neutral."""
        seats = self._to_device(host_seats)
        self.stages[host_seats] = 0
        self.num_top_logprobs[host_seats] = 0
        self._ints.index_copy_(1, seats, self._neutral_ints.expand(-1, len(host_seats)))
        self._floats.index_copy_(1, seats, self._neutral_floats.expand(-1, len(host_seats)))

    def _int_lines(self, new: SeatRegistrations) -> NDArray[np.int64]:
        flags, lane = new.ints(Word.FLAGS), new.ints(Word.PENALTY_LANE)
        unsigned = new.words.view(np.uint32)
        lines = (
            unsigned[:, Word.SEED_LOW],
            unsigned[:, Word.SEED_HIGH],
            new.ints(Word.FORK),
            new.ints(Word.PROMPT_LEN),
            new.ints(Word.MIN_NEW_TOKENS),
            np.where(lane < 0, self.no_lane, lane),
            top_k_limits(new.ints(Word.TOP_K), self.vocab_size),
            top_p_limits(new.floats(Word.TOP_P)),
            typical_p_limits(new.floats(Word.TYPICAL_P)),
            flags & SeatFlag.DO_SAMPLE,
            flags & SeatFlag.RAW_LOGPROBS,
        )
        table = np.stack([line.astype(np.int64) for line in lines])
        # A stage may run on all rows of a step, so what a seat's own stages leave out must be neutral.
        table[_TOP_K : _TYPICAL_P + 1, table[_SAMPLES] == 0] = np.array(_NEUTRAL_LIMITS)[:, None]
        return table

    def _write_edits(self, host_seats: NDArray[np.int64], new: SeatRegistrations) -> None:
        """Biases, then bans as biases of -inf; and the ids banned from short answers."""
        num_bias, num_banned = new.ints(Word.NUM_BIAS).astype(np.int64), new.ints(Word.NUM_BANNED).astype(np.int64)
        record = np.concatenate((ragged_index(num_bias)[0], ragged_index(num_banned)[0]))
        order = np.argsort(record, kind="stable")
        ids = np.concatenate((new.bias_ids, new.banned_ids))[order]
        values = np.concatenate((new.bias_values, np.full(len(new.banned_ids), -np.inf, np.float32)))[order]
        self.edits.write(host_seats, num_bias + num_banned, ids, values)
        num_min_length = new.ints(Word.NUM_MIN_LENGTH_IDS).astype(np.int64)
        self.min_length.write(host_seats, num_min_length, new.min_length_ids, -np.inf)

    def _seed_lanes(self, new: SeatRegistrations) -> None:
        lanes = new.ints(Word.PENALTY_LANE).astype(np.int64)
        if (lanes < 0).all():
            return
        self.history.index_fill_(0, self._to_device(lanes[lanes >= 0]), 0)
        num_history = new.ints(Word.NUM_HISTORY).astype(np.int64)
        record, entry = ragged_index(num_history)
        flat = lanes[record] * self.vocab_size + new.history_ids
        generated = entry >= (num_history - new.ints(Word.NUM_GENERATED))[record]
        # An id that the prompt holds twice sets its bit once, so prompts go first, by a fill.
        self.history.view(-1).index_fill_(0, self._to_device(flat[~generated]), IN_PROMPT)
        answered = self._to_device(flat[generated])
        self.history.view(-1).index_add_(0, answered, torch.full_like(answered, ONE_GENERATED, dtype=torch.int32))

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self.device)


def stages_of(new: SeatRegistrations) -> NDArray[np.int32]:
    """int32 [N]: the stages that each record needs. Neutral values need none."""
    flags = new.ints(Word.FLAGS)
    samples = (flags & SeatFlag.DO_SAMPLE) != 0
    wants_logprobs = ((flags & SeatFlag.LOGPROBS) != 0) | (new.ints(Word.NUM_TOP_LOGPROBS) > 0)
    raw = (flags & SeatFlag.RAW_LOGPROBS) != 0
    holds_lane = new.ints(Word.PENALTY_LANE) >= 0
    counted = (new.floats(Word.FREQUENCY_PENALTY) != 0) | (new.floats(Word.PRESENCE_PENALTY) != 0)
    needs = {
        Stage.EDITS: new.ints(Word.NUM_BIAS) + new.ints(Word.NUM_BANNED) > 0,
        Stage.MIN_LENGTH: (new.ints(Word.NUM_MIN_LENGTH_IDS) > 0) & (new.ints(Word.MIN_NEW_TOKENS) > 0),
        Stage.REPETITION: holds_lane & (new.floats(Word.REPETITION_PENALTY) != 1),
        Stage.COUNTS: holds_lane & counted,
        Stage.SAMPLE: samples,
        Stage.TEMPERATURE: samples & (new.floats(Word.TEMPERATURE) != 1),
        Stage.TOP_K: samples & (new.ints(Word.TOP_K) > 0),
        Stage.TOP_P: samples & (new.floats(Word.TOP_P) < 1),
        Stage.MIN_P: samples & (new.floats(Word.MIN_P) > 0),
        Stage.TYPICAL_P: samples & (new.floats(Word.TYPICAL_P) < 1),
        Stage.RAW_LOGPROBS: wants_logprobs & raw,
        Stage.WARPED_LOGPROBS: wants_logprobs & ~raw,
    }
    stages = np.zeros(len(new), np.int32)
    for stage, needed in needs.items():
        stages |= np.where(needed, np.int32(stage), np.int32(0))
    return stages


def _float_lines(new: SeatRegistrations) -> NDArray[np.float32]:
    words = (Word.TEMPERATURE, Word.MIN_P, Word.REPETITION_PENALTY, Word.FREQUENCY_PENALTY, Word.PRESENCE_PENALTY)
    lines = np.stack([new.floats(word) for word in words])
    lines[_TEMPERATURE] = np.maximum(lines[_TEMPERATURE], np.float32(MIN_TEMPERATURE))
    greedy, without_lane = (new.ints(Word.FLAGS) & SeatFlag.DO_SAMPLE) == 0, new.ints(Word.PENALTY_LANE) < 0
    lines[: _MIN_P + 1, greedy] = np.array(_NEUTRAL_WARP)[:, None]
    lines[_REPETITION:, without_lane] = np.array(_NEUTRAL_PENALTIES)[:, None]
    return lines
