"""The interface that every model offers to the engine. Single-device code: parallel layers hide the ranks."""

from dataclasses import dataclass
from typing import Protocol

import torch

from penstock_server.batch import ForwardBatch
from penstock_server.kv_cache import KvCache


@dataclass(frozen=True, slots=True)
class KvSpec:
    """Shape of a model's KV cache on this rank."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype


class Model(Protocol):
    """A loaded model on one rank."""

    kv_spec: KvSpec
    vocab_size: int

    def forward(self, batch: ForwardBatch, kv: KvCache) -> torch.Tensor:
        """Hidden states [T, hidden] of the step's tokens; writes their keys and values into `kv`."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits [S, vocab_size] of the hidden states [S, hidden], whole on every rank."""
        ...
