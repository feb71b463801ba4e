"""Registration records of a plan, decoded into columns: what the plan decoder gives to the sampler and the seats.

The words and their order are those of the registration record in `proto/shard/v1/shard.proto`. Knows no device and
checks nothing: the decoder has refused a record that lies before one is made.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag

import numpy as np
from numpy.typing import NDArray


class Word(IntEnum):
    """Index of a field in the fixed part of a record."""

    SEAT = 0
    GENERATION = 1
    PROMPT_LEN = 2
    MAX_LEN = 3
    FLAGS = 4
    PENALTY_LANE = 5
    SEED_LOW = 6
    SEED_HIGH = 7
    FORK = 8
    TEMPERATURE = 9  # f32
    TOP_K = 10
    TOP_P = 11  # f32
    TYPICAL_P = 12  # f32
    MIN_P = 13  # f32
    REPETITION_PENALTY = 14  # f32
    FREQUENCY_PENALTY = 15  # f32
    PRESENCE_PENALTY = 16  # f32
    NUM_TOP_LOGPROBS = 17
    ADAPTER_ID = 18
    MODE = 19
    MIN_NEW_TOKENS = 20
    NUM_BIAS = 21
    NUM_BANNED = 22
    NUM_MIN_LENGTH_IDS = 23
    NUM_HISTORY = 24
    NUM_GENERATED = 25


NUM_WORDS = len(Word)


class SeatFlag(IntFlag):
    """Bits of `Word.FLAGS`."""

    DO_SAMPLE = 1
    LOGPROBS = 2
    RAW_LOGPROBS = 4
    PROMPT_LOGPROBS = 8


@dataclass(frozen=True, slots=True)
class SeatRegistrations:
    """N records in plan order. The ragged lists of all records lie one after another, in record order.

    Record r's part of a list is found by the counts in `words` (NUM_BIAS, NUM_BANNED, NUM_MIN_LENGTH_IDS, NUM_HISTORY).
    """

    words: NDArray[np.int32]  # [N, NUM_WORDS]
    bias_ids: NDArray[np.int32]  # [sum of NUM_BIAS]
    bias_values: NDArray[np.float32]  # [sum of NUM_BIAS]
    banned_ids: NDArray[np.int32]  # [sum of NUM_BANNED]
    min_length_ids: NDArray[np.int32]  # [sum of NUM_MIN_LENGTH_IDS]
    history_ids: NDArray[np.int32]  # [sum of NUM_HISTORY], per record the prompt, then what was generated

    def __len__(self) -> int:
        """Number of records."""
        return len(self.words)

    def ints(self, word: Word) -> NDArray[np.int32]:
        """One int32 field of every record, [N]."""
        return self.words[:, word]

    def floats(self, word: Word) -> NDArray[np.float32]:
        """One float32 field of every record, [N]."""
        return self.words[:, word].view(np.float32)
