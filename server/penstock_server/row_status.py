"""Status of a result row: the numbers of `RowStatus` in `proto/shard/v1/shard.proto` (a test holds them equal)."""

from enum import IntEnum


class RowStatus(IntEnum):
    """Anything but OK, and the row has no tokens and its seat is dead until it is registered again."""

    OK = 1
    OVERRUN = 2
    NAN = 3
    DEAD = 4
    OUT_OF_MEMORY = 5
    BAD_INPUT = 6
