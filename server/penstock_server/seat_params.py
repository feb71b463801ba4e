"""Sampling state of every seat: parameters in device tensors, and on the host which stages each seat needs.

Registrations write it, steps gather their rows from it. One seat more than there are, `padding_seat`, belongs to
padded rows, and one lane more, `no_lane`, to rows without penalties, so that no operation has to ask.

Shapes: S rows that sample, N registrations, V vocabulary, E edits of a seat (the most among the rows of a step).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from penstock_kernels.penalties import IN_PROMPT, NEUTRAL_EDIT, ONE_GENERATED
from penstock_kernels.sample_tables import FloatLine, IntLine, SampleTables, Stage, warp_params
from penstock_kernels.warpers import MIN_TEMPERATURE, WarpParams, top_k_limits, top_p_limits, typical_p_limits
from penstock_server.registrations import SeatFlag, SeatRegistrations, Word
from penstock_server.transfers import to_device

# Of the three limits; of temperature and min-p; of repetition, frequency and presence.
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
        return self.ints[IntLine.SEED_LOW : IntLine.SEED_HIGH + 1]

    @property
    def fork(self) -> torch.Tensor:
        """int64 [S]."""
        return self.ints[IntLine.FORK]

    @property
    def lane(self) -> torch.Tensor:
        """int64 [S], `no_lane` for rows without penalties."""
        return self.ints[IntLine.LANE]

    @property
    def samples(self) -> torch.Tensor:
        """bool [S], False in greedy rows."""
        return self.ints[IntLine.SAMPLES] != 0

    @property
    def raw_logprobs(self) -> torch.Tensor:
        """bool [S], log-probabilities are wanted from before penalties and warpers."""
        return self.ints[IntLine.RAW] != 0

    @property
    def repetition(self) -> torch.Tensor:
        """float32 [S]."""
        return self.floats[FloatLine.REPETITION]

    @property
    def frequency(self) -> torch.Tensor:
        """float32 [S]."""
        return self.floats[FloatLine.FREQUENCY]

    @property
    def presence(self) -> torch.Tensor:
        """float32 [S]."""
        return self.floats[FloatLine.PRESENCE]

    @property
    def warp(self) -> WarpParams:
        """What the warpers take."""
        return warp_params(self.ints, self.floats)

    def too_short(self, positions: torch.Tensor) -> torch.Tensor:
        """bool [S], whether the token at `positions` int64 [S] is one of the first min_new_tokens."""
        return positions - self.ints[IntLine.PROMPT_LEN] < self.ints[IntLine.MIN_NEW]


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
        neutral_ints = [0] * len(IntLine)
        neutral_ints[IntLine.LANE] = num_lanes
        neutral_ints[IntLine.TOP_K : IntLine.TYPICAL_P + 1] = _NEUTRAL_LIMITS
        self._neutral_ints = torch.tensor(neutral_ints, device=device)[:, None]
        self._neutral_floats = torch.tensor([*_NEUTRAL_WARP, *_NEUTRAL_PENALTIES], device=device)[:, None]
        # A parameter of all seats lies together, so that what is gathered of it does too.
        self._ints = self._neutral_ints.repeat(1, num_seats + 1)
        self._floats = self._neutral_floats.repeat(1, num_seats + 1)
        self.tables = SampleTables(self._ints, self._floats, self.edits, self.min_length, self.history)

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
        num_edits = new.ints(Word.NUM_BIAS) + new.ints(Word.NUM_BANNED)
        lines = {
            IntLine.SEED_LOW: unsigned[:, Word.SEED_LOW],
            IntLine.SEED_HIGH: unsigned[:, Word.SEED_HIGH],
            IntLine.FORK: new.ints(Word.FORK),
            IntLine.PROMPT_LEN: new.ints(Word.PROMPT_LEN),
            IntLine.MIN_NEW: new.ints(Word.MIN_NEW_TOKENS),
            IntLine.LANE: np.where(lane < 0, self.no_lane, lane),
            IntLine.TOP_K: top_k_limits(new.ints(Word.TOP_K), self.vocab_size),
            IntLine.TOP_P: top_p_limits(new.floats(Word.TOP_P)),
            IntLine.TYPICAL_P: typical_p_limits(new.floats(Word.TYPICAL_P)),
            IntLine.SAMPLES: flags & SeatFlag.DO_SAMPLE,
            IntLine.RAW: flags & SeatFlag.RAW_LOGPROBS,
            IntLine.STAGES: stages_of(new),
            IntLine.NUM_EDITS: num_edits,
            IntLine.NUM_MIN_LENGTH: new.ints(Word.NUM_MIN_LENGTH_IDS),
            IntLine.NUM_TOP: np.minimum(new.ints(Word.NUM_TOP_LOGPROBS), self.vocab_size),
        }
        table = np.stack([lines[line].astype(np.int64) for line in IntLine])
        # A stage may run on all rows of a step, so what a seat's own stages leave out must be neutral.
        limits = slice(IntLine.TOP_K, IntLine.TYPICAL_P + 1)
        table[limits, table[IntLine.SAMPLES] == 0] = np.array(_NEUTRAL_LIMITS)[:, None]
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
    words = {
        FloatLine.TEMPERATURE: Word.TEMPERATURE,
        FloatLine.MIN_P: Word.MIN_P,
        FloatLine.REPETITION: Word.REPETITION_PENALTY,
        FloatLine.FREQUENCY: Word.FREQUENCY_PENALTY,
        FloatLine.PRESENCE: Word.PRESENCE_PENALTY,
    }
    lines = np.stack([new.floats(words[line]) for line in FloatLine])
    lines[FloatLine.TEMPERATURE] = np.maximum(lines[FloatLine.TEMPERATURE], np.float32(MIN_TEMPERATURE))
    greedy, without_lane = (new.ints(Word.FLAGS) & SeatFlag.DO_SAMPLE) == 0, new.ints(Word.PENALTY_LANE) < 0
    lines[: FloatLine.MIN_P + 1, greedy] = np.array(_NEUTRAL_WARP)[:, None]
    lines[FloatLine.REPETITION :, without_lane] = np.array(_NEUTRAL_PENALTIES)[:, None]
    return lines
