"""Writes plan blobs: for the warm-up, and for tests that drive a shard. The router has its own encoder, in Rust.

Layout: the comment on `Plan.blob` in `proto/shard/v1/shard.proto`.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from penstock_server.plan import (
    LAYOUT_VERSION,
    PLAN_FLAG_SAME_ROWS,
    ROW_FLAG_FEED,
    ROW_FLAG_SAMPLE,
)
from penstock_server.registrations import NUM_WORDS, Word


@dataclass(frozen=True, slots=True)
class NewSeat:
    """A registration; greedy unless told otherwise."""

    seat: int
    generation: int
    prompt_len: int
    max_len: int
    flags: int = 0  # SeatFlag
    penalty_lane: int = -1
    seed: int = 0
    fork: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    num_top_logprobs: int = 0
    adapter_id: int = 0
    mode: int = 1
    min_new_tokens: int = 0
    bias: tuple[tuple[int, float], ...] = ()
    banned: tuple[int, ...] = ()
    min_length: tuple[int, ...] = ()
    history: tuple[int, ...] = ()
    num_generated: int = 0

    def words(self) -> list[int]:
        """The record, int32 words."""
        record = np.zeros(NUM_WORDS, np.int32)
        floats = record.view(np.float32)
        seed = np.array([self.seed], np.uint64).view(np.int32)
        record[: Word.SEED_LOW] = (
            self.seat, self.generation, self.prompt_len, self.max_len, self.flags, self.penalty_lane
        )  # fmt: skip
        record[Word.SEED_LOW], record[Word.SEED_HIGH] = seed
        record[Word.FORK], record[Word.TOP_K] = self.fork, self.top_k
        floats[Word.TEMPERATURE], floats[Word.TOP_P] = self.temperature, self.top_p
        floats[Word.TYPICAL_P : Word.NUM_TOP_LOGPROBS] = (
            self.typical_p, self.min_p, self.repetition_penalty, self.frequency_penalty, self.presence_penalty
        )  # fmt: skip
        record[Word.NUM_TOP_LOGPROBS :] = (
            self.num_top_logprobs, self.adapter_id, self.mode, self.min_new_tokens,
            len(self.bias), len(self.banned), len(self.min_length), len(self.history), self.num_generated,
        )  # fmt: skip
        bias = [word for token, value in self.bias for word in (token, _float_bits(value))]
        words: list[int] = record.tolist()
        return [*words, *bias, *self.banned, *self.min_length, *self.history]


@dataclass(frozen=True, slots=True)
class PlanRow:
    """A row: with ids a feed that starts at `start`, without them a continuation."""

    seat: int
    sample: bool = True
    start: int = 0
    ids: tuple[int, ...] = ()

    @property
    def word(self) -> int:
        return self.seat | (ROW_FLAG_SAMPLE if self.sample else 0) | (ROW_FLAG_FEED if self.ids else 0)


@dataclass(frozen=True, slots=True)
class PlanDraft:
    """A plan before it is encoded."""

    frees: list[tuple[int, int]] = field(default_factory=list)  # seat, generation
    registrations: list[NewSeat] = field(default_factory=list)
    appends: list[tuple[int, int, int, int]] = field(default_factory=list)  # seat, group, index, block
    rows: list[PlanRow] = field(default_factory=list)
    same_rows: bool = False
    padded_rows: int = 0
    padded_tokens: int = 0

    def encode(self) -> bytes:
        """The blob."""
        feeds = [row for row in self.rows if row.ids]
        records = [word for new in self.registrations for word in new.words()]
        sections = [
            [word for free in self.frees for word in free],
            records,
            [word for append in self.appends for word in append],
            [] if self.same_rows else [row.word for row in self.rows],
            [word for row in feeds for word in (row.start, len(row.ids))],
            [token for row in feeds for token in row.ids],
        ]
        header = [
            LAYOUT_VERSION, PLAN_FLAG_SAME_ROWS if self.same_rows else 0, len(self.rows), len(feeds), len(sections[5]),
            len(self.frees), len(self.registrations), len(records), len(self.appends), 0,
            self.padded_rows, self.padded_tokens, 0, 0,
        ]  # fmt: skip
        words: NDArray[np.int32] = np.array([*header, *(word for part in sections for word in part)], dtype="<i4")
        return words.tobytes()


def _float_bits(value: float) -> int:
    return int(np.array([value], np.float32).view(np.int32)[0])
