"""A step's answer as a client sees it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from penstock_server.row_status import RowStatus


@dataclass(frozen=True, slots=True)
class ResultRow:
    seat: int
    generation: int
    position: int
    status: RowStatus
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """The columns of a `StepResult` that concern rows, one entry per row of the plan."""

    plan_id: int
    plan_checksum: int
    ids_checksum: int
    rows: tuple[ResultRow, ...]

    @classmethod
    def parse(cls, message: Any) -> "Result":
        """From the protobuf message or the engine's own class: they have the same fields."""
        columns = np.frombuffer(message.rows, np.int32).reshape(-1, 4)
        ids, rows = np.frombuffer(message.token_ids, np.int32).tolist(), []
        for seat, generation, position, word in columns.tolist():
            num_tokens = word >> 8
            rows.append(ResultRow(seat, generation, position, RowStatus(word & 0xFF), tuple(ids[:num_tokens])))
            del ids[:num_tokens]
        assert not ids, "more tokens than the rows have"
        return cls(message.plan_id, message.plan_checksum, message.ids_checksum, tuple(rows))
