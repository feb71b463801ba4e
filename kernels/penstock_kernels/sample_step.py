"""A step's choice of tokens on a device with Triton: every row's edits, warpers, draw and log-probabilities in two to
four launches, by its seat's parameters.

Shapes: S rows, V vocabulary, C chunks of it, N seats, K best tokens at most.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from penstock_kernels.logprobs import Logprobs, logprobs_ref
from penstock_kernels.penalties import ONE_GENERATED, add_at_ref, penalize_counts_ref, penalize_repetition_ref
from penstock_kernels.philox import Purpose, uniform_ref
from penstock_kernels.prepare_step import SeatState
from penstock_kernels.sample import draw_ref, greedy_ref
from penstock_kernels.sample_tables import PENALTIES, FloatLine, IntLine, SampleTables, Stage, warp_params
from penstock_kernels.warpers import warp_ref

# Scores and candidates of a slice of rows take at most this; steps of more rows are sampled slice by slice.
_SLICE_BYTES = 256 << 20
_ALIGNED_ROWS = 16
CHUNK = 2048


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of a step that sample. Padded rows name the pad seat, whose parameters are neutral."""

    seats: torch.Tensor  # int64 [S]
    positions: torch.Tensor  # int64 [S], position of the token that is sampled
    state: SeatState | None = None  # if given, `seats` are looked up in its aliases, and what is chosen is kept there
    masks: torch.Tensor | None = None  # int32 [S, ceil(V / 32)]: bit i % 32 of word i // 32 allows token i


class Sampled(NamedTuple):
    """What was chosen, in buffers of the sampler: valid until the next step."""

    ids: torch.Tensor  # int64 [S]; in bad rows 0, or -1 where the rows have a `state`
    bad: torch.Tensor  # bool [S]: a NaN or +inf in the row's scores, or nothing finite left
    logprobs: Logprobs  # [S] and [S, K], written in rows that asked, of the K as many as they asked for


class SampleBuffers:
    """Memory of steps of up to `max_rows` rows. `chunk`: tokens of a program; results do not depend on it but for the
    rounding of log-probabilities.
    """

    def __init__(self, sizes: tuple[int, int, int], device: torch.device, chunk: int | None = None) -> None:
        """`sizes`: most rows, V, and most best tokens."""
        max_rows, vocab_size, max_top = sizes
        self.vocab_size, self.chunk, self.top_width = vocab_size, chunk or CHUNK, max(max_top, 1)
        self.num_chunks = -(-vocab_size // self.chunk)
        fitting = _SLICE_BYTES // (2 * torch.float32.itemsize * vocab_size)
        # Whole multiples: every slice's part of every buffer is aligned like the first, and no kernel is compiled anew.
        self.slice_rows = min(max_rows, max(_ALIGNED_ROWS, fitting // _ALIGNED_ROWS * _ALIGNED_ROWS))
        rows, cells = max_rows, (self.slice_rows, self.num_chunks)

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.best, self.best_id = buffer(rows, self.num_chunks), buffer(rows, self.num_chunks, dtype=torch.int32)
        self.raw_best, self.raw_sum = buffer(*cells), buffer(*cells)
        self.weights, self.top = buffer(*cells, dtype=torch.int64), buffer(*cells, self.top_width, dtype=torch.int64)
        self.scores, self.scratch = buffer(self.slice_rows, vocab_size), buffer(self.slice_rows, vocab_size)
        self.cuts, self.ties = buffer(self.slice_rows, 3), buffer(self.slice_rows, dtype=torch.int32)
        self.ids, self.bad = buffer(rows, dtype=torch.int64), buffer(rows, dtype=torch.uint8)
        self.chosen = buffer(rows)
        self.top_ids, self.top_logprobs = buffer(rows, self.top_width, dtype=torch.int64), buffer(rows, self.top_width)
        # A row that asked for fewer than its neighbours leaves the rest as it is.
        self.top_ids.zero_()
        self.top_logprobs.zero_()
        self.chosen.zero_()


def sample_step(
    logits: torch.Tensor, rows: StepRows, tables: SampleTables, wanted: Stage, buffers: SampleBuffers
) -> Sampled:
    """Chooses a token for each row of float32 `logits` [S, V] (rows may lie apart), which stay as they are.

    `wanted`: the stages of all rows together, known on the host: it decides what is launched. Ids chosen in rows with
    penalties are counted in their lanes. Never waits. Has a Triton kernel only; where there is none, the operations of
    `penalties`, `warpers`, `sample` and `logprobs` do the same one after another.
    """
    from penstock_kernels.sample_step_triton import launch_slice

    num_rows = logits.shape[0]
    step = buffers.slice_rows if wanted or rows.masks is not None else num_rows
    for start in range(0, num_rows, step):
        launch_slice(logits, rows, tables, wanted, (buffers, slice(start, min(start + step, num_rows))))
    found = Logprobs(*(part[:num_rows] for part in (buffers.chosen, buffers.top_ids, buffers.top_logprobs)))
    return Sampled(buffers.ids[:num_rows], buffers.bad[:num_rows].view(torch.bool), found)


def sample_step_ref(logits: torch.Tensor, rows: StepRows, tables: SampleTables) -> Sampled:
    """Row by row, by the references of the single operations."""
    ids, bad, logprobs = [], [], []
    for row in range(logits.shape[0]):
        seat = int(rows.seats[row] if rows.state is None else rows.state.alias[rows.seats[row]])
        ints = tables.ints[:, seat].tolist()
        stages, scores = Stage(ints[IntLine.STAGES]), logits[row : row + 1].clone()
        _edit_ref(scores, int(rows.positions[row]), (seat, stages, ints), tables)
        if rows.masks is not None:
            bits = [rows.masks[row, token // 32] >> token % 32 & 1 for token in range(scores.shape[1])]
            scores[0, torch.tensor(bits) == 0] += -torch.inf
        token, is_bad = greedy_ref(scores)
        if not is_bad:
            warp_ref(scores, warp_params(tables.ints[:, seat : seat + 1], tables.floats[:, seat : seat + 1]))
            if stages & Stage.SAMPLE:
                seed = ints[IntLine.SEED_LOW] | ints[IntLine.SEED_HIGH] << 32
                number = uniform_ref(seed, ints[IntLine.FORK], int(rows.positions[row]), Purpose.SAMPLE)
                token, _ = draw_ref(scores, torch.tensor([number], dtype=torch.float64))
            if stages & PENALTIES:
                tables.history[ints[IntLine.LANE], token] += ONE_GENERATED
        source = logits[row : row + 1] if stages & Stage.RAW_LOGPROBS else scores
        logprobs.append(logprobs_ref(source, token, ints[IntLine.NUM_TOP]))
        bad.append(bool(is_bad))
        ids.append(int(token))
        if rows.state is not None:
            rows.state.last_token[seat] = token
            rows.state.alias[seat] = tables.ints.shape[1] - 1 if is_bad else seat
            ids[-1] = -1 if is_bad else ids[-1]
    width = max(part.top.shape[1] for part in logprobs)
    found = Logprobs(
        torch.cat([part.chosen for part in logprobs]),
        torch.cat([torch.nn.functional.pad(part.top_ids, (0, width - part.top.shape[1])) for part in logprobs]),
        torch.cat([torch.nn.functional.pad(part.top, (0, width - part.top.shape[1])) for part in logprobs]),
    )
    return Sampled(torch.tensor(ids), torch.tensor(bad), found)


def _edit_ref(scores: torch.Tensor, position: int, row: tuple[int, Stage, list[int]], tables: SampleTables) -> None:
    seat, stages, ints = row
    floats = tables.floats[:, seat : seat + 1]
    lists = {Stage.EDITS: (tables.edits, IntLine.NUM_EDITS)}
    if position - ints[IntLine.PROMPT_LEN] < ints[IntLine.MIN_NEW]:
        lists[Stage.MIN_LENGTH] = (tables.min_length, IntLine.NUM_MIN_LENGTH)
    for stage, (table, line) in lists.items():
        if stages & stage:
            own = slice(0, ints[line])
            add_at_ref(scores, table.ids[seat : seat + 1, own], table.values[seat : seat + 1, own])
    history = tables.history[ints[IntLine.LANE]][None]
    if stages & Stage.REPETITION:
        penalize_repetition_ref(scores, history, floats[FloatLine.REPETITION])
    if stages & Stage.COUNTS:
        penalize_counts_ref(scores, history, floats[FloatLine.FREQUENCY], floats[FloatLine.PRESENCE])
