"""Where the rows of a step find their keys and values: what every layer's attention gets.

Shapes: R padded rows, T padded tokens, B entries of a block table. Knows nothing of seats, plans or models.
"""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """One step's rows in order; padded rows come last, have no keys and read and write block 0 only.

    Row r's tokens are [query_starts[r], query_starts[r + 1]) of the step's T tokens, at positions
    seq_lens[r] - query_len(r) .. seq_lens[r] - 1. Its first `num_decode_rows` rows have exactly one token each.
    """

    slot_mapping: torch.Tensor  # int64 [T], block * tokens_per_block + offset; padded tokens: slots of block 0
    block_table: torch.Tensor  # int32 [R, B], 0 where a row has no block
    seq_lens: torch.Tensor  # int32 [R], keys that the row's last token sees, itself included; 0 in padded rows
    query_starts: torch.Tensor  # int32 [R + 1]
    decode_rows: torch.Tensor  # int32 [1], num_decode_rows
    # Most rows of several tokens that a replay of this step may have: it keeps what the host knew of its first run.
    # None where nothing is replayed, and num_decode_rows is what it is.
    max_prompt_rows: int | None
    # The same on the host, for implementations that group rows before they launch; never read on a GPU.
    num_decode_rows: int  # padded decode rows are counted here
    host_seq_lens: np.ndarray  # int32 [R]
    host_query_lens: np.ndarray  # int32 [R]
