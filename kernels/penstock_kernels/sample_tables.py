"""What sampling knows of each seat, in tables on the device: kernels read a row's parameters by its seat.

Shapes: N seats, one for padded rows included, V vocabulary, L penalty lanes, E the longest list of edits so far.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag, auto
from typing import Protocol

import torch

from penstock_kernels.warpers import WarpParams


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
# Those that leave out tokens by what stands in the whole row.
CUTTING = Stage.TOP_K | Stage.TOP_P | Stage.TYPICAL_P
WARPING = Stage.TEMPERATURE | Stage.MIN_P | CUTTING
LOGPROBS = Stage.RAW_LOGPROBS | Stage.WARPED_LOGPROBS


class IntLine(IntEnum):
    """Lines of `SampleTables.ints`."""

    SEED_LOW = 0
    SEED_HIGH = 1
    FORK = 2
    PROMPT_LEN = 3
    MIN_NEW = 4
    LANE = 5  # L for rows without penalties
    TOP_K = 6  # from `top_k_limits`
    TOP_P = 7  # from `top_p_limits`
    TYPICAL_P = 8  # from `typical_p_limits`
    SAMPLES = 9  # not 0: draws
    RAW = 10  # not 0: log-probabilities are wanted from before penalties and warpers
    STAGES = 11  # `Stage` bits
    NUM_EDITS = 12
    NUM_MIN_LENGTH = 13
    NUM_TOP = 14  # best tokens whose log-probabilities are wanted


class FloatLine(IntEnum):
    """Lines of `SampleTables.floats`."""

    TEMPERATURE = 0
    MIN_P = 1
    REPETITION = 2
    FREQUENCY = 3
    PRESENCE = 4


class Edits(Protocol):
    """Per seat a list of (id, value) to add to its logits; its length stands in a line of the ints."""

    ids: torch.Tensor  # int64 [N, E]
    values: torch.Tensor  # float32 [N, E]


@dataclass(frozen=True, slots=True)
class SampleTables:
    """All seats' parameters, and the histories of the penalty lanes."""

    ints: torch.Tensor  # int64 [lines, N]
    floats: torch.Tensor  # float32 [lines, N]
    edits: Edits  # replaced tensors are seen
    min_length: Edits
    history: torch.Tensor  # int32 [L + 1, V], as in `penalties`


def warp_params(ints: torch.Tensor, floats: torch.Tensor) -> WarpParams:
    """What the warpers take, of some columns of the tables: ints [lines, S], floats [lines, S]."""
    return WarpParams(
        temperature=floats[FloatLine.TEMPERATURE],
        top_k=ints[IntLine.TOP_K],
        top_p=ints[IntLine.TOP_P],
        min_p=floats[FloatLine.MIN_P],
        typical_p=ints[IntLine.TYPICAL_P],
    )
