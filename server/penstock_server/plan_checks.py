"""What a plan may refer to, and the checks that say by name what is wrong with one."""

from dataclasses import dataclass

import numpy as np

PROTOCOL_VERSION = 1


class PlanError(ValueError):
    """The plan cannot be carried out. It ends the Step stream; the text names the field, the value and the limit."""


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """What a plan may refer to; the same numbers as in `Info`."""

    num_seats: int
    num_penalty_lanes: int
    num_blocks: int  # scratch block included
    blocks_per_seat: int  # entries of a seat's block table
    vocab_size: int
    max_rows: int
    max_tokens: int
    max_seq_len: int
    max_top_logprobs: int
    decode_sizes: tuple[int, ...]
    mixed_sizes: tuple[int, ...]


def check_range(name: str, values: np.ndarray, low: float, high: float) -> None:
    """Raises PlanError that names the first value outside [low, high]; NaN is outside."""
    inside = (values >= low) & (values <= high)
    if not inside.all():
        raise PlanError(f"{name} {values[~inside][0]} is outside [{low}, {high}]")


def check_distinct(name: str, values: np.ndarray) -> None:
    """Raises PlanError that names a value which occurs twice."""
    if values.size > 1:
        ordered = np.sort(values)
        twice = ordered[1:] == ordered[:-1]
        if twice.any():
            raise PlanError(f"{name} {ordered[1:][twice][0]} occurs twice in one plan")
