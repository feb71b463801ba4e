"""What one step gives to a model: device tensors, built from a plan without a Python loop over rows.

Shapes: T padded tokens, R padded rows, S padded rows that sample.
"""

from dataclasses import dataclass

import torch

from penstock_kernels.attention_batch import AttentionBatch


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Input of `Model.forward`."""

    token_ids: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T]
    attention: AttentionBatch
    logits_index: torch.Tensor  # int64 [S], tokens whose logits are wanted (each sampling row's last)
