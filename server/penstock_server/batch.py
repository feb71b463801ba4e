"""What one step gives to a model: device tensors, built from a plan without a Python loop over rows.

Shapes: T padded tokens, R padded rows, S padded rows that sample, N rows of the plan. `BatchBuilder` works on the host
from the plan and the seats; `forward_batch` finishes on the device with what only the device knows.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from penstock_kernels.attention_batch import AttentionBatch
from penstock_kernels.prepare_step import StepTokens, prepare_step
from penstock_server.plan import Plan
from penstock_server.row_status import RowStatus
from penstock_server.seats import DeviceSeats, SeatTable
from penstock_server.staging import DeviceColumns, HostColumns, Staging, StepShape
from penstock_server.steady import SteadyDecode

# Mixed steps up to these sizes are built so that one can be replayed as another. Launching a larger one takes less time
# than running it; and every prompt allowed here costs every replay a tile of attention that may be empty.
MAX_REPLAYED_TOKENS = 512
MAX_REPLAYED_PROMPTS = 16


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Input of `Model.forward`."""

    token_ids: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T]
    attention: AttentionBatch


@dataclass(frozen=True, slots=True)
class StagedStep:
    """One step as far as the host can build it. Its columns lie in entry `entry` of the staging ring."""

    entry: int
    shape: StepShape
    num_decode_rows: int  # rows of one token, which come first; padded ones included
    host_seq_lens: NDArray[np.int32]  # [R]
    host_query_lens: NDArray[np.int32]  # [R]
    host_sample_seats: NDArray[np.int64]  # [S]


@dataclass(frozen=True, slots=True)
class RowReport:
    """What the answer needs to know about the rows of a plan, in its order."""

    seats: NDArray[np.int64]  # [N]
    generations: NDArray[np.int32]  # [N]
    positions: NDArray[np.int64]  # [N], after the last token fed
    status: NDArray[np.int32]  # [N], as far as the host knows it: OK, OVERRUN, DEAD or BAD_INPUT
    batch_rows: NDArray[np.int64]  # row of the plan behind each row of the batch, padding left out
    sample_rows: NDArray[np.int64]  # row of the plan behind each sample, padding left out
    wants_logprobs: NDArray[np.bool_]  # [N]
    num_top_logprobs: NDArray[np.int64]  # [N]


@dataclass(frozen=True, slots=True)
class _Feeds:
    """The plan's rows with their tokens, and the subset that runs, decode rows first."""

    starts: NDArray[np.int64]  # [N] position of the first token
    counts: NDArray[np.int64]  # [N]
    sources: NDArray[np.int64]  # [N] index of the first token in the plan's feed ids; -1 continues


class BatchBuilder:
    """Builds steps at the padded sizes of `Info`. Owns no seat state; advances that of `SeatTable`."""

    def __init__(
        self, decode_sizes: tuple[int, ...], mixed_sizes: tuple[int, ...], vocab_size: int, for_replay: bool = False
    ) -> None:
        """`for_replay`: steps are built so that a captured one fits all of its size. Block tables are given whole, and
        small mixed steps have as many rows as any of so many tokens can have.
        """
        self._decode_sizes = np.array(decode_sizes)
        self._mixed_sizes = np.array(mixed_sizes)
        self._vocab_size = vocab_size
        self._for_replay = for_replay
        self._steady = SteadyDecode()
        self._ones = np.ones(decode_sizes[-1], np.int32)
        self._count = np.arange(max(decode_sizes[-1], mixed_sizes[-1]) + 1)

    def build(self, plan: Plan, seats: SeatTable, staging: Staging, entry: int) -> tuple[StagedStep | None, RowReport]:
        """Stages the rows that can run, and advances the seats. None when no row runs."""
        if steady := self._steady.build(plan, seats, entry):
            return steady
        feeds = _feeds(plan, seats)
        report = self._report(plan, seats, feeds)
        order = report.batch_rows
        if not order.size:
            self._steady.forget()
            return None, report
        counts, ends = feeds.counts[order], report.positions[order]
        shape = self._shape(plan, seats, report, counts)
        num_decode_rows = shape.num_rows if shape.decode else int(np.count_nonzero(counts == 1))
        columns = staging.host(entry, shape)
        query_lens = self._fill_rows(columns, report, counts, shape, seats.num_seats)
        if shape.decode:
            self._fill_decode(columns, plan, feeds, order)
        else:
            self._fill_mixed(columns, plan, feeds, order, report.seats[order], seats.num_seats)
        np.floor_divide(columns.positions, seats.tokens_per_block, out=columns.table_entries)
        np.remainder(columns.positions, seats.tokens_per_block, out=columns.block_offsets)
        columns.seq_lens[: ends.size] = ends
        columns.seq_lens[ends.size :] = 0
        columns.decode_rows[0] = num_decode_rows
        staged = StagedStep(
            entry=entry,
            shape=shape,
            num_decode_rows=num_decode_rows,
            host_seq_lens=columns.seq_lens,
            host_query_lens=query_lens,
            host_sample_seats=columns.sample_seats,
        )
        self._steady.remember(plan, seats, staged, report, staging)
        return staged, report

    def idle_step(self, size: int, decode: bool, seats: SeatTable, staging: Staging) -> StagedStep:
        """A step of a padded size that concerns no seat: its rows are the pad seat's and touch block 0 only. They are
        as many as in any decode step of the size; in a mixed one two tokens have a row, and the others are padding.
        """
        if decode:
            width = seats.blocks_per_seat if self._for_replay else 1
            shape = StepShape(size, size, size, width, decode=True)
        elif self._for_replay and size <= MAX_REPLAYED_TOKENS:
            shape = self.any_mix_shape(size, self._pad(self._decode_sizes, 1), seats)
        else:
            width = seats.blocks_per_seat if self._for_replay else min(2, seats.blocks_per_seat)
            shape = StepShape(1, size, self._pad(self._decode_sizes, 1), width, decode=False)
        self._steady.forget()
        columns = staging.host(0, shape)
        for field in fields(columns):
            getattr(columns, field.name)[:] = 0
        for column in (columns.row_seats, columns.token_seats, columns.sample_seats):
            column[:] = seats.num_seats
        columns.seq_lens[:] = int(decode)
        if not decode:
            columns.seq_lens[0] = 2
            columns.positions[1] = 1
        columns.query_starts[1:] = np.cumsum(columns.seq_lens)
        columns.decode_rows[0] = size if decode else 0
        columns.logits_index[:] = self._count[: shape.num_samples] if decode else 1
        lens = columns.seq_lens
        return StagedStep(0, shape, int(columns.decode_rows[0]), lens, lens, columns.sample_seats)

    def _report(self, plan: Plan, seats: SeatTable, feeds: _Feeds) -> RowReport:
        """Judges every row, advances the seats, and orders the rows that run: those of one token first."""
        rows, row_seats = plan.rows, plan.rows.seats
        ends = feeds.starts + feeds.counts
        status = _status(plan, seats, feeds, ends, self._vocab_size)
        seats.failed[row_seats] = status != RowStatus.OK
        seats.length[row_seats] = ends
        seats.fresh[row_seats] = False
        seats.sampled[row_seats] = rows.samples
        batch_rows = np.flatnonzero(status == RowStatus.OK)
        if plan.extents.size:
            batch_rows = batch_rows[np.argsort(feeds.counts[batch_rows] > 1, kind="stable")]
        return RowReport(
            seats=row_seats,
            generations=seats.generation[row_seats],
            positions=np.where(seats.generation[row_seats] == 0, 0, ends),
            status=status,
            batch_rows=batch_rows,
            sample_rows=batch_rows[rows.samples[batch_rows]],
            wants_logprobs=seats.wants_logprobs[row_seats],
            num_top_logprobs=seats.num_top_logprobs[row_seats],
        )

    def _shape(self, plan: Plan, seats: SeatTable, report: RowReport, counts: NDArray[np.int64]) -> StepShape:
        num_rows, num_samples = counts.size, report.sample_rows.size
        num_tokens = int(counts.sum())
        decode = num_tokens == num_rows
        padded_rows = plan.padded_rows or self._pad(self._decode_sizes, num_rows)
        if not decode and self._for_replay and np.count_nonzero(counts > 1) <= MAX_REPLAYED_PROMPTS:
            padded_tokens = plan.padded_tokens or self._pad(self._mixed_sizes, num_tokens)
            if padded_tokens <= MAX_REPLAYED_TOKENS:
                return self.any_mix_shape(padded_tokens, self._pad(self._decode_sizes, num_samples), seats)
        num_blocks = -(-int(report.positions[report.batch_rows].max()) // seats.tokens_per_block)
        table_width = min(1 << (num_blocks - 1).bit_length(), seats.blocks_per_seat)
        return StepShape(
            num_rows=padded_rows if decode else num_rows,
            num_tokens=padded_rows if decode else plan.padded_tokens or self._pad(self._mixed_sizes, num_tokens),
            num_samples=padded_rows if num_samples == num_rows else self._pad(self._decode_sizes, num_samples),
            table_width=seats.blocks_per_seat if self._for_replay else table_width,
            decode=decode,
        )

    def any_mix_shape(self, num_tokens: int, num_samples: int, seats: SeatTable) -> StepShape:
        """That of all small mixed steps of `num_tokens` padded tokens."""
        return StepShape(
            num_rows=min(num_tokens, int(self._decode_sizes[-1])),
            num_tokens=num_tokens,
            num_samples=num_samples,
            table_width=seats.blocks_per_seat,
            decode=False,
            any_mix=True,
        )

    @staticmethod
    def _pad(sizes: NDArray[np.int64], count: int) -> int:
        """The smallest size that holds `count`; 0 stays 0."""
        return int(sizes[np.searchsorted(sizes, count)]) if count else 0

    def _fill_rows(
        self, columns: HostColumns, report: RowReport, counts: NDArray[np.int64], shape: StepShape, pad_seat: int
    ) -> NDArray[np.int32]:
        """Fills the columns per row and per sample; returns the rows' token counts, int32 [R]."""
        num_rows, num_samples = counts.size, report.sample_rows.size
        columns.row_seats[:num_rows] = report.seats[report.batch_rows]
        columns.row_seats[num_rows:] = pad_seat
        columns.sample_seats[:num_samples] = report.seats[report.sample_rows]
        columns.sample_seats[num_samples:] = pad_seat
        columns.sample_positions[:num_samples] = report.positions[report.sample_rows]
        columns.sample_positions[num_samples:] = 0
        if shape.decode:
            columns.query_starts[:] = self._count[: shape.num_rows + 1]
            query_lens = self._ones[: shape.num_rows]
        else:
            columns.query_starts[0] = 0
            np.cumsum(counts, out=columns.query_starts[1 : num_rows + 1])
            columns.query_starts[num_rows + 1 :] = columns.query_starts[num_rows]
            query_lens = np.diff(columns.query_starts)
        if num_samples == num_rows:
            columns.logits_index[:num_samples] = columns.query_starts[1 : num_samples + 1]
        else:
            position_in_batch = np.empty(report.seats.size, np.int64)
            position_in_batch[report.batch_rows] = self._count[:num_rows]
            columns.logits_index[:num_samples] = columns.query_starts[position_in_batch[report.sample_rows] + 1]
        columns.logits_index[:num_samples] -= 1
        columns.logits_index[num_samples:] = 0
        return query_lens

    def _fill_decode(self, columns: HostColumns, plan: Plan, feeds: _Feeds, order: NDArray[np.int64]) -> None:
        """One token a row: padded rows feed id 0 at position 0 of the pad seat, whose table is all block 0."""
        num_rows = order.size
        columns.positions[:num_rows] = feeds.starts[order]
        columns.positions[num_rows:] = 0
        if plan.extents.size:
            columns.feed_ids[:num_rows] = _token_ids(plan, feeds.sources[order])
        else:
            columns.feed_ids[:num_rows] = -1
        columns.feed_ids[num_rows:] = 0

    def _fill_mixed(
        self,
        columns: HostColumns,
        plan: Plan,
        feeds: _Feeds,
        order: NDArray[np.int64],
        row_seats: NDArray[np.int64],
        pad_seat: int,
    ) -> None:
        """Several tokens a row: padded tokens belong to no row and write to block 0."""
        counts, sources = feeds.counts[order], feeds.sources[order]
        num_tokens = int(columns.query_starts[-1])
        row_of_token = np.repeat(self._count[: order.size], counts)
        within = self._count[:num_tokens] - columns.query_starts[row_of_token]
        columns.token_seats[:num_tokens] = row_seats[row_of_token]
        columns.token_seats[num_tokens:] = pad_seat
        columns.positions[:num_tokens] = feeds.starts[order][row_of_token] + within
        columns.positions[num_tokens:] = 0
        source = sources[row_of_token]
        columns.feed_ids[:num_tokens] = _token_ids(plan, np.where(source < 0, source, source + within))
        columns.feed_ids[num_tokens:] = 0


def _feeds(plan: Plan, seats: SeatTable) -> _Feeds:
    """Where each row of the plan begins and how many tokens it has."""
    starts = seats.length[plan.rows.seats]
    counts, sources = np.ones(starts.size, np.int64), np.full(starts.size, -1, np.int64)
    if plan.extents.size:
        extents = plan.extents.astype(np.int64)
        starts[plan.rows.feeds], counts[plan.rows.feeds] = extents[:, 0], extents[:, 1]
        sources[plan.rows.feeds] = np.cumsum(extents[:, 1]) - extents[:, 1]
    return _Feeds(starts, counts, sources)


def _token_ids(plan: Plan, sources: NDArray[np.int64]) -> NDArray[np.int64]:
    """The plan's feed ids at `sources`; -1 where a source is -1."""
    return np.where(sources < 0, -1, plan.feed_ids[sources])


def _status(plan: Plan, seats: SeatTable, feeds: _Feeds, ends: NDArray[np.int64], vocab_size: int) -> NDArray[np.int32]:
    """int32 [N]: what the host knows about each row. The later of two reasons below wins."""
    rows, row_seats = plan.rows, plan.rows.seats
    status = np.full(row_seats.size, RowStatus.OK, np.int32)
    beyond_limit = ends + rows.samples > seats.max_len[row_seats]
    status[beyond_limit | (ends > seats.granted_tokens[row_seats])] = RowStatus.OVERRUN
    # A seat's first feed may start at any block boundary: what lies before it came from the prefix cache.
    fits = feeds.starts == seats.length[row_seats]
    if plan.extents.size:
        fits |= seats.fresh[row_seats] & (feeds.starts % seats.tokens_per_block == 0)
        fits[rows.feeds] &= ~_has_bad_id(plan, vocab_size)
    status[~np.where(rows.feeds, fits, seats.sampled[row_seats])] = RowStatus.BAD_INPUT
    status[seats.failed[row_seats]] = RowStatus.DEAD
    return status


def _has_bad_id(plan: Plan, vocab_size: int) -> NDArray[np.bool_]:
    """bool [M]: which feed rows hold an id outside the vocabulary."""
    bad = (plan.feed_ids < 0) | (plan.feed_ids >= vocab_size)
    counts = plan.extents[:, 1]
    return np.logical_or.reduceat(bad, np.cumsum(counts) - counts)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step ready for the model."""

    batch: ForwardBatch
    row_seats: torch.Tensor  # int64 [R], the seats' aliases: the pad seat in dead and padded rows


def forward_batch(columns: DeviceColumns, staged: StagedStep, seats: DeviceSeats, tokens_per_block: int) -> Prepared:
    """Finishes a step on the device: last tokens, slots and block tables; dead rows become padding on block 0."""
    shape = staged.shape
    tokens = StepTokens(
        row_seats=columns.row_seats,
        token_seats=columns.token_seats,
        feed_ids=columns.feed_ids,
        table_entries=columns.table_entries,
        block_offsets=columns.block_offsets,
    )
    prepared = prepare_step(tokens, seats.state, tokens_per_block, shape.table_width)
    attention = AttentionBatch(
        slot_mapping=prepared.slot_mapping,
        block_table=prepared.block_table,
        seq_lens=columns.seq_lens,
        query_starts=columns.query_starts,
        decode_rows=columns.decode_rows,
        max_prompt_rows=MAX_REPLAYED_PROMPTS if shape.any_mix else None,
        num_decode_rows=staged.num_decode_rows,
        host_seq_lens=staged.host_seq_lens,
        host_query_lens=staged.host_query_lens,
    )
    batch = ForwardBatch(
        token_ids=prepared.token_ids,
        positions=columns.positions,
        attention=attention,
    )
    return Prepared(batch, prepared.row_seats)
